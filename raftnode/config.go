package raftnode

import (
	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
)

// raftConfig maps the configuration to hashicorp/raft's. HeartbeatTimeout there
// is how long a follower waits before it stands for election, and the leader
// sends heartbeats at a tenth to a fifth of it: ten times the configured
// interval, at most the election timeout (RaftConfig.FollowerTimeout).
func raftConfig(cfg *replication.Config, id raft.ServerID, logger replication.Logger, notify chan<- bool) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = id
	c.HeartbeatTimeout = cfg.Raft.FollowerTimeout()
	c.ElectionTimeout = cfg.Raft.ElectionTimeout
	c.LeaderLeaseTimeout = cfg.Raft.LeaderLeaseTimeout
	c.CommitTimeout = cfg.Raft.CommitTimeout
	c.MaxAppendEntries = cfg.Raft.MaxAppendEntries
	c.SnapshotInterval = cfg.Raft.SnapshotInterval
	c.SnapshotThreshold = cfg.Raft.SnapshotThreshold
	c.TrailingLogs = cfg.Raft.TrailingLogs
	c.ShutdownOnRemove = false // a removed node stays up, so that it can join again
	c.NoLegacyTelemetry = true
	c.NotifyCh = notify
	c.Logger = hclogAdapter(logger)
	return c
}
