package replication

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func env(lines ...string) []string {
	for i := range lines {
		lines[i] = envPrefix + lines[i]
	}
	return lines
}

func TestEveryMistakeIsInOneError(t *testing.T) {
	_, err := loadEnv(env("MODE=raft", "BIND_ADDR=0.0.0.0:7688", "RAFT_ELECTION_TIMEOUT=soon", "RAFT_PEERS=a:h:1,a:h:2", "RAFT_BOOTSTRAPP=true",
		"MAX_FRAME_SIZE=12", "SECRET=short", "LOG_STORE=bolt", "HA_SYNC_MODE=maybe"))
	require.ErrorIs(t, err, ErrInvalidConfig)
	for _, part := range []string{"RAFT_ELECTION_TIMEOUT=\"soon\"", "ADVERTISE_ADDR", "a is there twice", "did you mean NORNICDB_CLUSTER_RAFT_BOOTSTRAP?",
		"MAX_FRAME_SIZE=\"12\"", "SECRET=\"***\"", "HA_SYNC_MODE=\"maybe\""} {
		require.ErrorContains(t, err, part)
	}
	require.NotContains(t, err.Error(), "short\"")
}

func TestEnvironmentRoundTrip(t *testing.T) {
	c, err := loadEnv(env("MODE=raft", "NODE_ID=n1", "BIND_ADDR=[::1]:7688", "RAFT_PEERS=n2:[::1]:7689,host:7688", "RAFT_SNAPSHOT_INTERVAL=90",
		"HA_HEARTBEAT_MS=250", "SERVICE_HOST=10.0.0.1", "PORT_7688_TCP_ADDR=10.0.0.1", "RAFT_CLUSTER_ID="))
	require.NoError(t, err)
	require.Equal(t, []RaftPeer{{ID: "n2", Addr: "[::1]:7689"}, {Addr: "host:7688"}}, c.Raft.Peers)
	require.Equal(t, 90*time.Second, c.Raft.SnapshotInterval)
	require.Equal(t, 250*time.Millisecond, c.HA.Heartbeat)
	again, err := loadEnv(strings.Split(strings.TrimSpace(c.String()), "\n"))
	require.NoError(t, err)
	require.Equal(t, c, again)
}

func TestDefaultsAreValidAndSecretsHidden(t *testing.T) {
	c := DefaultConfig()
	require.NoError(t, c.Validate())
	c.Secret = "a very secret secret"
	require.NotContains(t, c.String(), "very secret")
}

func TestCrossFieldRules(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"RAFT_ELECTION_TIMEOUT":     func(c *Config) { c.Raft.ElectionTimeout = 200 * time.Millisecond },
		"RAFT_LEADER_LEASE_TIMEOUT": func(c *Config) { c.Raft.LeaderLeaseTimeout = 2 * time.Second },
		"is this node":              func(c *Config) { c.Raft.Peers = []RaftPeer{{ID: "x", Addr: c.BindAddr}} },
		"WRITE_CONSISTENCY":         func(c *Config) { c.WriteConsistency = ConsistencyOne },
		"TLS_CERT_FILE":             func(c *Config) { c.TLS.Enabled = true },
		"TLS_KEY_FILE":              func(c *Config) { c.TLS.KeyFile = "k" }, // it would run in plain text
		"TLS_CA_FILE":               func(c *Config) { c.TLS.CAFile = "a" },
		"would not be encrypted":    func(c *Config) { c.TLS.CertFile = "c" },
		"insecure": func(c *Config) {
			c.TLS = TLSConfig{Enabled: true, MinVersion: "1.2", CipherSuites: []string{"TLS_RSA_WITH_RC4_128_SHA"}}
		},
	} {
		c := DefaultConfig()
		c.Mode, c.BindAddr = ModeRaft, "127.0.0.1:7688"
		require.NoError(t, c.Validate())
		change(c)
		require.ErrorContains(t, c.Validate(), name)
	}
	c := DefaultConfig()
	c.Mode, c.BindAddr, c.HA.Role, c.HA.PeerAddr = ModeHAStandby, "127.0.0.1:7688", "primary", "127.0.0.1:7689"
	require.NoError(t, c.Validate())
	c.HA.PartitionPolicy, c.HA.SyncMode = "consistency", SyncAsync
	require.ErrorContains(t, c.Validate(), "HA_SYNC_MODE")
}

func FuzzEnvironment(f *testing.F) {
	f.Add("MODE=raft\x00RAFT_PEERS=a:b:1,[::1]:2\x00BIND_ADDR=127.0.0.1:7688")
	f.Add("REMOTE_REGIONS=eu:h:1\x00HA_HEARTBEAT_MS=99999999999999999999")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := loadEnv(env(strings.Split(text, "\x00")...))
		if err != nil {
			require.ErrorIs(t, err, ErrInvalidConfig)
			return
		}
		require.NoError(t, c.Validate())
	})
}

// TestEveryVariable: each is read into its field, printed from it, and refused
// by name where its value cannot be.
func TestEveryVariable(t *testing.T) {
	good := map[string]string{
		"MODE": "raft", "NODE_ID": "n9", "BIND_ADDR": "127.0.0.1:9999", "ADVERTISE_ADDR": "db.example:9999", "DATA_DIR": "/elsewhere",
		"SECRET": "***", "SECRET_FILE": "/secret", "MAX_FRAME_SIZE": "1048576", "LOG_STORE": "wal", "WRITE_CONSISTENCY": "ONE", "READ_CONSISTENCY": "ALL",
		"HA_ROLE": "standby", "HA_PEER_ADDR": "peer:7688", "HA_SYNC_MODE": "sync", "HA_HEARTBEAT_MS": "250", "HA_FAILOVER_TIMEOUT": "1m0s",
		"HA_AUTO_FAILOVER": "false", "HA_PARTITION_POLICY": "consistency", "HA_WAL_BATCH_SIZE": "7", "HA_WAL_BATCH_TIMEOUT": "7ms",
		"HA_MAX_UNCONFIRMED": "77", "HA_WAL_RETAIN": "777", "HA_RECONNECT_INTERVAL": "7s", "HA_MAX_RECONNECT_BACKOFF": "1m10s",
		"RAFT_CLUSTER_ID": "other", "RAFT_BOOTSTRAP": "true", "RAFT_PEERS": "a:h:1,[::1]:2", "RAFT_ELECTION_TIMEOUT": "3s",
		"RAFT_HEARTBEAT_TIMEOUT": "300ms", "RAFT_LEADER_LEASE_TIMEOUT": "1s", "RAFT_SNAPSHOT_INTERVAL": "33", "RAFT_SNAPSHOT_THRESHOLD": "44",
		"RAFT_SNAPSHOT_RETAIN": "5", "RAFT_TRAILING_LOGS": "55", "RAFT_MAX_APPEND_ENTRIES": "66", "RAFT_COMMIT_TIMEOUT": "20ms",
		"RAFT_MAX_INFLIGHT_LOGS": "88", "RAFT_FORWARD_WRITES": "false",
		"REGION_ID": "eu", "REMOTE_REGIONS": "us:h:1,us:h:2", "CROSS_REGION_MODE": "semi_sync", "CROSS_REGION_BATCH_SIZE": "9",
		"CROSS_REGION_BATCH_TIMEOUT": "9ms", "WRITE_REGION": "eu", "FEDERATION_ID": "f", "MAX_CLOCK_OFFSET": "9s", "CLOCK_SKEW_POLICY": "reject",
		"OUTBOX_MAX_ENTRIES": "99", "OUTBOX_MAX_BYTES": "999", "CONFLICT_STRATEGY": "manual",
		"TLS_ENABLED": "true", "TLS_CERT_FILE": "c", "TLS_KEY_FILE": "k", "TLS_CA_FILE": "a", "TLS_VERIFY_CLIENT": "false",
		"TLS_INSECURE_SKIP_VERIFY": "true", "TLS_SERVER_NAME": "s", "TLS_MIN_VERSION": "1.3", "TLS_CIPHER_SUITES": "TLS_AES_128_GCM_SHA256",
	}
	defaults := strings.Split(DefaultConfig().String(), "\n")
	require.Len(t, variables, len(good), "a row of the reference has no value here")
	for _, v := range variables {
		value, ok := good[v.name]
		require.True(t, ok, v.name)
		c := DefaultConfig()
		require.NoError(t, v.set(c, value), v.name)
		var changed []string
		for i, line := range strings.Split(c.String(), "\n") {
			if line != defaults[i] {
				changed = append(changed, line)
			}
		}
		require.Equal(t, []string{envPrefix + v.name + "=" + value}, changed, "it sets its own field, to another value than the default, and no other")
		if v.allowed == "text" || v.name == "TLS_CIPHER_SUITES" {
			continue // what is wrong with those is Validate's matter
		}
		for _, bad := range []string{"no such thing", "", "-1x"} {
			if _, err := loadEnv(env(v.name + "=" + bad)); bad != "" || err != nil {
				require.ErrorIs(t, err, ErrInvalidConfig, "%s=%q", v.name, bad)
				require.ErrorContains(t, err, envPrefix+v.name, "it is named")
				require.ErrorContains(t, err, v.allowed, "and what is allowed is said")
			}
		}
	}
}

// TestNumbersOutOfRangeAreRefused, whatever their variable.
func TestNumbersOutOfRangeAreRefused(t *testing.T) {
	base := env("MODE=raft", "BIND_ADDR=127.0.0.1:7688")
	for _, v := range variables {
		if !strings.Contains(v.allowed, "number") && !strings.Contains(v.allowed, "duration") {
			continue
		}
		for _, bad := range []string{"-5", "-5s"} {
			_, err := loadEnv(append(env(v.name+"="+bad), base...))
			require.ErrorIs(t, err, ErrInvalidConfig, "%s=%s", v.name, bad)
			require.ErrorContains(t, err, v.name)
		}
	}
}

// TestAMistakeIsSaidOnce: a variable that does not parse is no reason to find
// fault with one that is measured against it.
func TestAMistakeIsSaidOnce(t *testing.T) {
	for _, line := range []string{"RAFT_ELECTION_TIMEOUT=5", "RAFT_HEARTBEAT_TIMEOUT=soon", "HA_HEARTBEAT_MS=1s", "HA_RECONNECT_INTERVAL=9", "HA_PARTITION_POLICY=both"} {
		_, err := loadEnv(env(line))
		require.ErrorContains(t, err, envPrefix+strings.Split(line, "=")[0])
		require.Equal(t, 1, strings.Count(err.Error(), envPrefix), "%v", err)
	}
}

// TestWordsOfTheModeInUseAreNotEmpty: a Config that was put together by hand
// without one would get a semantics that nobody chose.
func TestWordsOfTheModeInUseAreNotEmpty(t *testing.T) {
	fields := map[string]struct {
		mode  ReplicationMode
		clear func(*Config)
	}{
		"HA_ROLE":             {ModeHAStandby, func(c *Config) { c.HA.Role = "" }},
		"HA_SYNC_MODE":        {ModeHAStandby, func(c *Config) { c.HA.SyncMode = "" }},
		"HA_PARTITION_POLICY": {ModeHAStandby, func(c *Config) { c.HA.PartitionPolicy = "" }},
		"CROSS_REGION_MODE":   {ModeMultiRegion, func(c *Config) { c.Region.CrossRegionMode = "" }},
		"CLOCK_SKEW_POLICY":   {ModeMultiRegion, func(c *Config) { c.Region.ClockSkewPolicy = "" }},
		"CONFLICT_STRATEGY":   {ModeMultiRegion, func(c *Config) { c.Region.ConflictStrategy = "" }},
		"TLS_MIN_VERSION":     {ModeRaft, func(c *Config) { c.TLS.MinVersion = "" }},
		"READ_CONSISTENCY":    {ModeRaft, func(c *Config) { c.ReadConsistency = "" }},
		"MODE":                {"", func(*Config) {}},
	}
	for name, tc := range fields {
		c := DefaultConfig()
		c.Mode, c.BindAddr, c.HA.Role, c.HA.PeerAddr, c.Region.RegionID = tc.mode, "127.0.0.1:7688", "primary", "127.0.0.1:7689", "eu"
		c.TLS.Enabled, c.TLS.CertFile, c.TLS.KeyFile, c.TLS.CAFile = true, "c", "k", "a"
		if tc.mode != "" {
			require.NoError(t, c.Validate(), name)
		}
		tc.clear(c)
		require.ErrorContains(t, c.Validate(), envPrefix+name)
	}
}
