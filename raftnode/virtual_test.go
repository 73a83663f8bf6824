package raftnode_test

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	"github.com/nornicdb/replication/raftnode"
	th "github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// TestFailoverOnHashicorpsTransport: Raft runs over hashicorp's in-memory
// transport, and only what nodes send each other besides over ours.
func TestFailoverOnHashicorpsTransport(t *testing.T) {
	t.Parallel()
	bubble.Test(t, func(t *testing.T) {
		t.Cleanup(func() { <-time.After(time.Minute) }) // virtual: it leaves what was cut off to its timeout
		inmem := make(map[*th.Member]*raft.InmemTransport)
		cfg := th.RaftConfig(1)
		cfg.Modes = func(m *th.Member) replication.Modes {
			return replication.Modes{replication.ModeRaft: raftnode.Mode(append(m.RaftStores(), raftnode.WithRaftTransport(inmem[m]))...)}
		}
		c := th.NewCluster(t, cfg)
		addr := func(m *th.Member) raft.ServerAddress { return raft.ServerAddress(m.Addr) }
		for _, m := range c.Members {
			_, inmem[m] = raft.NewInmemTransport(addr(m))
		}
		connect := func() {
			for _, m := range c.Members {
				for _, peer := range m.Peers() {
					inmem[m].Connect(addr(peer), inmem[peer])
				}
			}
		}
		connect()
		c.StartAll(t.Context())
		old := c.WaitLeader(time.Minute)
		for _, m := range c.Members {
			apply(t, m, putNode(t, "before/"+m.ID, 1))
		}

		c.Net.Isolate(old.ID)
		inmem[old].DisconnectAll()
		for _, m := range old.Peers() {
			inmem[m].Disconnect(addr(old))
		}
		start := time.Now()
		next := c.WaitLeader(time.Minute, old)
		require.Less(t, time.Since(start), 5*time.Second)
		apply(t, next, putNode(t, "after", 1))
		_, err := old.Reader().ReadBarrier(withTimeout(t), replication.ConsistencyQuorum)
		require.Error(t, err, "it is alone, and answers no linearizable read")
		require.Error(t, old.Replicator().Apply(putNode(t, "lost", 1), 10*time.Second), "and takes no write")
		require.False(t, old.Health().Healthy)

		c.Net.Heal()
		connect()
		apply(t, old, putNode(t, "healed", 1))
		stats, _ := c.WaitSame(time.Minute)
		require.Equal(t, 5, stats.Nodes)
		_, err = old.Store().Node("lost")
		require.ErrorIs(t, err, replication.ErrNotFound)
	})
}

// TestLargeCommandGetsThroughASlowLink: what is accepted into the log must reach
// the others. If it cannot, nothing behind it can either, on any leader.
func TestLargeCommandGetsThroughASlowLink(t *testing.T) {
	scenario(t, nil, func(t *testing.T, c *th.Cluster, leader, _ *th.Member) {
		c.Net.SetDefaultFaults(th.Faults{Bandwidth: 2 << 20})
		apply(t, leader, putNode(t, "small", 1))
		require.NoError(t, leader.Replicator().Apply(putNode(t, "large", strings.Repeat("x", 8<<20)), 5*time.Minute))
		apply(t, leader, putNode(t, "behind", 1))
	})
}
