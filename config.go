package replication

import (
	"log/slog"
	"time"
)

// SyncMode says what a hot-standby write waits for.
type SyncMode string

// The sync modes.
const (
	SyncAsync SyncMode = "async"
	SyncSemi  SyncMode = "semi_sync"
	SyncFull  SyncMode = "sync"
)

// Secret is text that never shows itself in logs or dumps.
type Secret string

// String hides the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "***"
}

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return s.String() }

// LogValue hides the secret from slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText hides the secret from encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Config is the configuration of one node: a field for each variable
// NORNICDB_CLUSTER_* of the configuration reference.
type Config struct {
	Mode          ReplicationMode // MODE
	NodeID        string          // NODE_ID; empty: the host name, else generated once
	BindAddr      string          // BIND_ADDR, host:port
	AdvertiseAddr string          // ADVERTISE_ADDR; empty: BindAddr
	DataDir       string          // DATA_DIR
	Secret        Secret          // SECRET, at least 16 bytes
	SecretFile    string          // SECRET_FILE
	MaxFrameSize  int             // MAX_FRAME_SIZE, bytes
	LogStore      string          // LOG_STORE

	HA     HAConfig
	Raft   RaftConfig
	Region RegionConfig
	TLS    TLSConfig

	WriteConsistency Consistency // WRITE_CONSISTENCY; empty: what the mode gives
	// ReadConsistency is READ_CONSISTENCY: the level that the embedder gives to
	// ReadBarrier for a read that names none. The modes themselves do not look at it.
	ReadConsistency Consistency
}

// HAConfig configures hot standby (NORNICDB_CLUSTER_HA_*).
type HAConfig struct {
	Role                string // ROLE: primary or standby, on first start
	PeerAddr            string // PEER_ADDR
	SyncMode            SyncMode
	Heartbeat           time.Duration // HEARTBEAT_MS
	FailoverTimeout     time.Duration
	AutoFailover        bool
	PartitionPolicy     string // availability or consistency
	WALBatchSize        int    // entries
	WALBatchTimeout     time.Duration
	MaxUnconfirmed      int // writes
	WALRetain           int // entries
	ReconnectInterval   time.Duration
	MaxReconnectBackoff time.Duration
}

// RaftPeer is one listed peer. ID is empty where it is to be asked of the peer.
type RaftPeer struct {
	ID   string
	Addr string
}

// RaftConfig configures Raft mode (NORNICDB_CLUSTER_RAFT_*).
type RaftConfig struct {
	ClusterID          string
	Bootstrap          bool
	Peers              []RaftPeer
	ElectionTimeout    time.Duration
	HeartbeatTimeout   time.Duration // the leader's heartbeat interval
	LeaderLeaseTimeout time.Duration
	SnapshotInterval   time.Duration
	SnapshotThreshold  uint64        // log entries
	SnapshotRetain     int           // snapshots
	TrailingLogs       uint64        // log entries
	MaxAppendEntries   int           // log entries a message
	CommitTimeout      time.Duration // idle interval after which followers learn of a commit
	MaxInflightLogs    int           // writes
	ForwardWrites      bool
}

// RemoteRegion is one address of a remote region.
type RemoteRegion struct {
	Region string
	Addr   string
}

// RegionConfig configures multi-region mode.
type RegionConfig struct {
	RegionID         string
	RemoteRegions    []RemoteRegion
	CrossRegionMode  SyncMode // CROSS_REGION_MODE: async or semi_sync
	BatchSize        int      // CROSS_REGION_BATCH_SIZE, entries
	BatchTimeout     time.Duration
	WriteRegion      string
	FederationID     string
	MaxClockOffset   time.Duration // 0: no bound
	ClockSkewPolicy  string        // warn or reject
	OutboxMaxEntries int
	OutboxMaxBytes   int64
	ConflictStrategy string // last_write_wins, first_write_wins, manual
}

// TLSConfig configures TLS (NORNICDB_CLUSTER_TLS_*). It holds file paths; the
// transport package makes a *tls.Config of it.
type TLSConfig struct {
	Enabled            bool
	CertFile           string
	KeyFile            string
	CAFile             string
	VerifyClient       bool
	InsecureSkipVerify bool
	ServerName         string
	MinVersion         string // 1.2 or 1.3
	CipherSuites       []string
}
