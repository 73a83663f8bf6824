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
