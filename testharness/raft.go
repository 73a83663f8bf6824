package testharness

import (
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/raftnode"
)

// RaftConfig is a ClusterConfig of a Raft cluster, whose first member founds
// it. Its logs and snapshots are on the members' disks.
func RaftConfig(seed uint64, opts ...raftnode.Option) ClusterConfig {
	return ClusterConfig{
		Seed:      seed,
		Configure: ConfigureRaft,
		Modes: func(m *Member) replication.Modes {
			return replication.Modes{replication.ModeRaft: raftnode.Mode(append(m.RaftStores(), opts...)...)}
		},
	}
}

// ConfigureRaft makes a member one of a Raft cluster of all members.
func ConfigureRaft(m *Member, cfg *replication.Config) {
	cfg.Mode = replication.ModeRaft
	cfg.Raft.Bootstrap = m.index == 0
	for _, o := range m.Peers() {
		cfg.Raft.Peers = append(cfg.Raft.Peers, replication.RaftPeer{ID: o.ID, Addr: o.Addr})
	}
}

// RaftStores make Raft mode keep its log and its snapshots on the member's disk.
func (m *Member) RaftStores() []raftnode.Option {
	return []raftnode.Option{
		raftnode.WithLogStore(m.Config.LogStore, func(string) (raftnode.LogStore, error) { return m.Disk().OpenLog(), nil }),
		raftnode.WithSnapshotStore(func(_ string, retain int) (raft.SnapshotStore, error) { return m.Disk().OpenSnapshots(retain), nil }),
	}
}

// WaitVoters waits until a leader counts every member as a voter: a node that
// was wiped is one only after it has caught up.
func (c *Cluster) WaitVoters(within time.Duration) bool {
	c.tb.Helper()
	return c.Eventually(within, "all members are voters", func() bool {
		for _, m := range c.Members {
			r := m.Replicator()
			if r == nil || !r.IsLeader() {
				continue
			}
			voters := 1 // itself
			for _, p := range r.Health().Peers {
				if p.Voter {
					voters++
				}
			}
			return voters == len(c.Members)
		}
		return false
	})
}
