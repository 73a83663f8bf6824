package replication

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

const envPrefix = "NORNICDB_CLUSTER_"

// variable is one row of the configuration reference: its name less the prefix,
// how its text becomes a field, and back.
type variable struct {
	name    string
	allowed string
	set     func(*Config, string) error
	get     func(*Config) string
}

// variables is the one list from which loading, printing and the check for
// unknown names are made.
var variables = slices.Concat(generalVariables, haVariables, raftVariables, regionVariables, tlsVariables)

var generalVariables = []variable{
	wordVar("MODE", func(c *Config) *ReplicationMode { return &c.Mode }, ModeStandalone, ModeHAStandby, ModeRaft, ModeMultiRegion),
	textVar("NODE_ID", func(c *Config) *string { return &c.NodeID }),
	textVar("BIND_ADDR", func(c *Config) *string { return &c.BindAddr }),
	textVar("ADVERTISE_ADDR", func(c *Config) *string { return &c.AdvertiseAddr }),
	textVar("DATA_DIR", func(c *Config) *string { return &c.DataDir }),
	textVar("SECRET", func(c *Config) *Secret { return &c.Secret }),
	textVar("SECRET_FILE", func(c *Config) *string { return &c.SecretFile }),
	intVar("MAX_FRAME_SIZE", func(c *Config) *int { return &c.MaxFrameSize }),
	textVar("LOG_STORE", func(c *Config) *string { return &c.LogStore }),
	wordVar("WRITE_CONSISTENCY", func(c *Config) *Consistency { return &c.WriteConsistency }, levels...),
	wordVar("READ_CONSISTENCY", func(c *Config) *Consistency { return &c.ReadConsistency }, levels...),
}

var levels = []Consistency{ConsistencyOne, ConsistencyLocalOne, ConsistencyQuorum, ConsistencyLocalQuorum, ConsistencyAll}

var haVariables = []variable{
	wordVar("HA_ROLE", func(c *Config) *string { return &c.HA.Role }, "primary", "standby"),
	textVar("HA_PEER_ADDR", func(c *Config) *string { return &c.HA.PeerAddr }),
	wordVar("HA_SYNC_MODE", func(c *Config) *SyncMode { return &c.HA.SyncMode }, SyncAsync, SyncSemi, SyncFull),
	unitVar("HA_HEARTBEAT_MS", time.Millisecond, false, func(c *Config) *time.Duration { return &c.HA.Heartbeat }),
	durationVar("HA_FAILOVER_TIMEOUT", func(c *Config) *time.Duration { return &c.HA.FailoverTimeout }),
	boolVar("HA_AUTO_FAILOVER", func(c *Config) *bool { return &c.HA.AutoFailover }),
	wordVar("HA_PARTITION_POLICY", func(c *Config) *string { return &c.HA.PartitionPolicy }, "availability", "consistency"),
	intVar("HA_WAL_BATCH_SIZE", func(c *Config) *int { return &c.HA.WALBatchSize }),
	durationVar("HA_WAL_BATCH_TIMEOUT", func(c *Config) *time.Duration { return &c.HA.WALBatchTimeout }),
	intVar("HA_MAX_UNCONFIRMED", func(c *Config) *int { return &c.HA.MaxUnconfirmed }),
	intVar("HA_WAL_RETAIN", func(c *Config) *int { return &c.HA.WALRetain }),
	durationVar("HA_RECONNECT_INTERVAL", func(c *Config) *time.Duration { return &c.HA.ReconnectInterval }),
	durationVar("HA_MAX_RECONNECT_BACKOFF", func(c *Config) *time.Duration { return &c.HA.MaxReconnectBackoff }),
}

var raftVariables = []variable{
	textVar("RAFT_CLUSTER_ID", func(c *Config) *string { return &c.Raft.ClusterID }),
	boolVar("RAFT_BOOTSTRAP", func(c *Config) *bool { return &c.Raft.Bootstrap }),
	{
		name: "RAFT_PEERS", allowed: "id:host:port or host:port, comma-separated; IPv6 hosts in brackets",
		set: func(c *Config, s string) (err error) { c.Raft.Peers, err = parsePeers(s); return err },
		get: func(c *Config) string { return formatPeers(c.Raft.Peers) },
	},
	durationVar("RAFT_ELECTION_TIMEOUT", func(c *Config) *time.Duration { return &c.Raft.ElectionTimeout }),
	durationVar("RAFT_HEARTBEAT_TIMEOUT", func(c *Config) *time.Duration { return &c.Raft.HeartbeatTimeout }),
	durationVar("RAFT_LEADER_LEASE_TIMEOUT", func(c *Config) *time.Duration { return &c.Raft.LeaderLeaseTimeout }),
	unitVar("RAFT_SNAPSHOT_INTERVAL", time.Second, true, func(c *Config) *time.Duration { return &c.Raft.SnapshotInterval }),
	uintVar("RAFT_SNAPSHOT_THRESHOLD", func(c *Config) *uint64 { return &c.Raft.SnapshotThreshold }),
	intVar("RAFT_SNAPSHOT_RETAIN", func(c *Config) *int { return &c.Raft.SnapshotRetain }),
	uintVar("RAFT_TRAILING_LOGS", func(c *Config) *uint64 { return &c.Raft.TrailingLogs }),
	intVar("RAFT_MAX_APPEND_ENTRIES", func(c *Config) *int { return &c.Raft.MaxAppendEntries }),
	durationVar("RAFT_COMMIT_TIMEOUT", func(c *Config) *time.Duration { return &c.Raft.CommitTimeout }),
	intVar("RAFT_MAX_INFLIGHT_LOGS", func(c *Config) *int { return &c.Raft.MaxInflightLogs }),
	boolVar("RAFT_FORWARD_WRITES", func(c *Config) *bool { return &c.Raft.ForwardWrites }),
}

var regionVariables = []variable{
	textVar("REGION_ID", func(c *Config) *string { return &c.Region.RegionID }),
	{
		name: "REMOTE_REGIONS", allowed: "region:host:port, comma-separated",
		set: func(c *Config, s string) (err error) { c.Region.RemoteRegions, err = parseRegions(s); return err },
		get: func(c *Config) string { return formatRegions(c.Region.RemoteRegions) },
	},
	wordVar("CROSS_REGION_MODE", func(c *Config) *SyncMode { return &c.Region.CrossRegionMode }, SyncAsync, SyncSemi),
	intVar("CROSS_REGION_BATCH_SIZE", func(c *Config) *int { return &c.Region.BatchSize }),
	durationVar("CROSS_REGION_BATCH_TIMEOUT", func(c *Config) *time.Duration { return &c.Region.BatchTimeout }),
	textVar("WRITE_REGION", func(c *Config) *string { return &c.Region.WriteRegion }),
	textVar("FEDERATION_ID", func(c *Config) *string { return &c.Region.FederationID }),
	durationVar("MAX_CLOCK_OFFSET", func(c *Config) *time.Duration { return &c.Region.MaxClockOffset }),
	wordVar("CLOCK_SKEW_POLICY", func(c *Config) *string { return &c.Region.ClockSkewPolicy }, "warn", "reject"),
	intVar("OUTBOX_MAX_ENTRIES", func(c *Config) *int { return &c.Region.OutboxMaxEntries }),
	intVar("OUTBOX_MAX_BYTES", func(c *Config) *int64 { return &c.Region.OutboxMaxBytes }),
	wordVar("CONFLICT_STRATEGY", func(c *Config) *string { return &c.Region.ConflictStrategy }, "last_write_wins", "first_write_wins", "manual"),
}

var tlsVariables = []variable{
	boolVar("TLS_ENABLED", func(c *Config) *bool { return &c.TLS.Enabled }),
	textVar("TLS_CERT_FILE", func(c *Config) *string { return &c.TLS.CertFile }),
	textVar("TLS_KEY_FILE", func(c *Config) *string { return &c.TLS.KeyFile }),
	textVar("TLS_CA_FILE", func(c *Config) *string { return &c.TLS.CAFile }),
	boolVar("TLS_VERIFY_CLIENT", func(c *Config) *bool { return &c.TLS.VerifyClient }),
	boolVar("TLS_INSECURE_SKIP_VERIFY", func(c *Config) *bool { return &c.TLS.InsecureSkipVerify }),
	textVar("TLS_SERVER_NAME", func(c *Config) *string { return &c.TLS.ServerName }),
	wordVar("TLS_MIN_VERSION", func(c *Config) *string { return &c.TLS.MinVersion }, "1.2", "1.3"),
	{
		name: "TLS_CIPHER_SUITES", allowed: "comma-separated names of Go's crypto/tls",
		set: func(c *Config, s string) error { c.TLS.CipherSuites = splitList(s); return nil },
		get: func(c *Config) string { return strings.Join(c.TLS.CipherSuites, ",") },
	},
}

func textVar[T ~string](name string, field func(*Config) *T) variable {
	return variable{name: name, allowed: "text",
		set: func(c *Config, s string) error { *field(c) = T(s); return nil },
		get: func(c *Config) string { return string(*field(c)) }}
}

func wordVar[T ~string](name string, field func(*Config) *T, words ...T) variable {
	list := make([]string, len(words))
	for i, w := range words {
		list[i] = string(w)
	}
	return variable{name: name, allowed: "one of " + strings.Join(list, ", "),
		set: func(c *Config, s string) error {
			if !slices.Contains(words, T(s)) {
				return errors.New("unknown word")
			}
			*field(c) = T(s)
			return nil
		},
		get: func(c *Config) string { return string(*field(c)) }}
}

func intVar[T int | int64](name string, field func(*Config) *T) variable {
	return variable{name: name, allowed: "a whole number",
		set: func(c *Config, s string) error {
			v, err := strconv.ParseInt(s, 10, 63)
			return keep(field(c), T(v), err)
		},
		get: func(c *Config) string { return strconv.FormatInt(int64(*field(c)), 10) }}
}

func uintVar(name string, field func(*Config) *uint64) variable {
	return variable{name: name, allowed: "a whole number",
		set: func(c *Config, s string) error {
			v, err := strconv.ParseUint(s, 10, 64)
			return keep(field(c), v, err)
		},
		get: func(c *Config) string { return strconv.FormatUint(*field(c), 10) }}
}

func boolVar(name string, field func(*Config) *bool) variable {
	return variable{name: name, allowed: "true or false",
		set: func(c *Config, s string) error {
			v, err := strconv.ParseBool(s)
			return keep(field(c), v, err)
		},
		get: func(c *Config) string { return strconv.FormatBool(*field(c)) }}
}

func durationVar(name string, field func(*Config) *time.Duration) variable {
	return variable{name: name, allowed: "a duration such as 30s or 250ms",
		set: func(c *Config, s string) error {
			v, err := time.ParseDuration(s)
			return keep(field(c), v, err)
		},
		get: func(c *Config) string { return field(c).String() }}
}

// unitVar is one of the historical variables that count in a unit.
func unitVar(name string, unit time.Duration, orDuration bool, field func(*Config) *time.Duration) variable {
	allowed := "a whole number of " + strings.TrimPrefix(unit.String(), "1")
	if orDuration {
		allowed += ", or a duration such as 5m"
	}
	return variable{name: name, allowed: allowed,
		set: func(c *Config, s string) error {
			n, err := strconv.ParseInt(s, 10, 64)
			if err == nil {
				if n > int64((1<<63-1)/unit) || n < 0 {
					return errors.New("out of range")
				}
				*field(c) = time.Duration(n) * unit
				return nil
			}
			var d time.Duration
			if orDuration {
				d, err = time.ParseDuration(s)
			}
			return keep(field(c), d, err)
		},
		get: func(c *Config) string {
			if d := *field(c); d%unit == 0 || !orDuration {
				return strconv.FormatInt(int64(d/unit), 10)
			}
			return field(c).String()
		}}
}

// keep sets a field to a value that parsed. One that did not leaves the default,
// so that other variables are not measured against a zero. The parser's error
// would repeat the value, which is shown already and may be a secret put into the
// wrong variable.
func keep[T any](field *T, v T, err error) error {
	if err != nil {
		return errors.New("does not parse")
	}
	*field = v
	return nil
}

func splitList(s string) []string {
	var list []string
	for _, item := range strings.Split(s, ",") {
		if item = strings.TrimSpace(item); item != "" {
			list = append(list, item)
		}
	}
	return list
}

// LoadFromEnv reads the NORNICDB_CLUSTER_* variables over the defaults. One
// error, wrapping [ErrInvalidConfig], names every variable that does not parse
// or is not known, its value and what is allowed, together with what Validate
// finds. A variable that is set but empty counts as not set.
func LoadFromEnv() (*Config, error) { return loadEnv(os.Environ()) }

func loadEnv(environ []string) (*Config, error) {
	c := DefaultConfig()
	var problems []string
	bad := make(map[string]bool)
	for _, kv := range environ {
		key, value, _ := strings.Cut(kv, "=")
		name, ours := strings.CutPrefix(key, envPrefix)
		if !ours || isKubernetes(name) {
			continue
		}
		i := slices.IndexFunc(variables, func(v variable) bool { return v.name == name })
		if i < 0 {
			problems = append(problems, fmt.Sprintf("%s is not known; did you mean %s?", key, envPrefix+nearest(name)))
			continue
		}
		if value == "" {
			continue
		}
		v := variables[i]
		if err := v.set(c, value); err != nil {
			bad[name] = true
			problems = append(problems, problem(name, show(name, value), err.Error()+"; allowed: "+v.allowed))
		}
	}
	problems = append(problems, c.problems(bad, true)...)
	if err := configError(problems); err != nil {
		return nil, err
	}
	return c, nil
}

func problem(name, value, text string) string {
	return fmt.Sprintf("%s%s=%q: %s", envPrefix, name, value, text)
}

func show(name, value string) string {
	if name == "SECRET" {
		return Secret(value).String()
	}
	return value
}

func configError(problems []string) error {
	if len(problems) == 0 {
		return nil
	}
	slices.Sort(problems)
	return fmt.Errorf("%w:\n  %s", ErrInvalidConfig, strings.Join(slices.Compact(problems), "\n  "))
}

// isKubernetes: variables that Kubernetes injects for a service of that name.
func isKubernetes(name string) bool {
	for _, part := range []string{"SERVICE_HOST", "SERVICE_PORT", "PORT"} {
		if name == part || strings.HasPrefix(name, part+"_") {
			return true
		}
	}
	return strings.HasSuffix(name, "_SERVICE_HOST") || strings.HasSuffix(name, "_SERVICE_PORT") ||
		strings.Contains(name, "_PORT_") && strings.Contains(name, "_TCP") || strings.HasSuffix(name, "_PORT")
}

// nearest is the known name with the smallest edit distance.
func nearest(name string) string {
	if len(name) > 64 {
		name = name[:64]
	}
	best, bestDistance := "", 1<<30
	for _, v := range variables {
		if d := editDistance(name, v.name); d < bestDistance {
			best, bestDistance = v.name, d
		}
	}
	return best
}

func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diagonal, row[j] = row[j], min(row[j]+1, row[j-1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

// String lists every variable with its value, one a line, and no secret.
func (c *Config) String() string {
	var b strings.Builder
	for _, v := range variables {
		fmt.Fprintf(&b, "%s%s=%s\n", envPrefix, v.name, show(v.name, v.get(c)))
	}
	return b.String()
}
