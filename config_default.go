package replication

import "time"

// DefaultConfig returns the defaults of the configuration reference.
func DefaultConfig() *Config {
	return &Config{
		Mode:         ModeStandalone,
		BindAddr:     "0.0.0.0:7688",
		DataDir:      "./data/replication",
		MaxFrameSize: 64 << 20,
		LogStore:     "bolt",
		HA: HAConfig{
			SyncMode:            SyncSemi,
			Heartbeat:           time.Second,
			FailoverTimeout:     30 * time.Second,
			AutoFailover:        true,
			PartitionPolicy:     "availability",
			WALBatchSize:        1000,
			WALBatchTimeout:     10 * time.Millisecond,
			MaxUnconfirmed:      10000,
			WALRetain:           1000000,
			ReconnectInterval:   5 * time.Second,
			MaxReconnectBackoff: 30 * time.Second,
		},
		Raft: RaftConfig{
			ClusterID:          "nornicdb",
			ElectionTimeout:    time.Second,
			HeartbeatTimeout:   100 * time.Millisecond,
			LeaderLeaseTimeout: 500 * time.Millisecond,
			SnapshotInterval:   300 * time.Second,
			SnapshotThreshold:  10000,
			SnapshotRetain:     3,
			TrailingLogs:       10000,
			MaxAppendEntries:   64,
			CommitTimeout:      10 * time.Millisecond,
			MaxInflightLogs:    512,
			ForwardWrites:      true,
		},
		Region: RegionConfig{
			CrossRegionMode:  SyncAsync,
			BatchSize:        100,
			BatchTimeout:     100 * time.Millisecond,
			FederationID:     "nornicdb",
			MaxClockOffset:   500 * time.Millisecond,
			ClockSkewPolicy:  "warn",
			OutboxMaxEntries: 1000000,
			OutboxMaxBytes:   1 << 30,
			ConflictStrategy: "last_write_wins",
		},
		ReadConsistency: ConsistencyOne,
		TLS:             TLSConfig{VerifyClient: true, MinVersion: "1.2"},
	}
}
