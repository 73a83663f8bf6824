package raftnode_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	th "github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// gatedCluster is three nodes of which each one's storage can be made to hang.
func gatedCluster(t *testing.T) (*th.Cluster, map[*th.Member]*th.Gate) {
	gates := make(map[*th.Member]*th.Gate)
	cfg := th.RaftConfig(1)
	cfg.Wrap = func(m *th.Member, s replication.TxStorage) replication.Storage {
		return gates[m].Guard(s)
	}
	c := th.NewCluster(t, cfg)
	for _, m := range c.Members {
		gates[m] = new(th.Gate)
		t.Cleanup(gates[m].Lift)
	}
	c.StartAll(t.Context())
	return c, gates
}

// TestHungStorageDoesNotKeepLeadership: a leader whose storage hangs hands
// leadership to a node that has applied what hangs; and lets the others elect one
// where so many entries wait for the storage that its main loop does, too.
func TestHungStorageDoesNotKeepLeadership(t *testing.T) {
	for name, each := range map[string]time.Duration{"few entries": 250 * time.Millisecond, "many entries": 20 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				c, gates := gatedCluster(t)
				old := c.WaitLeader(time.Minute)
				apply(t, old, putNode(t, "before", 1))
				timeout := old.Config.Raft.ElectionTimeout

				gates[old].Shut()
				start, writes := time.Now(), 0
				for old.Health().IsLeader && time.Since(start) < 30*timeout {
					err := old.Replicator().Apply(putNode(t, fmt.Sprint(writes), 1), each)
					if err == nil || errors.Is(err, replication.ErrUnknownOutcome) {
						writes++
					}
					require.False(t, err == nil && old.Health().IsLeader, "who hangs has answered")
				}
				next := c.WaitLeader(10*timeout, old)
				t.Logf("another leader after %v and %d writes, at an election timeout of %v", time.Since(start), writes, timeout)
				require.Contains(t, strings.Join(old.Health().Reasons, "; "), "a call of the storage has not returned")
				apply(t, next, putNode(t, "after", 1))

				gates[old].Lift()
				apply(t, old, putNode(t, "lifted", 1))
				stats, _ := c.WaitSame(time.Minute)
				require.LessOrEqual(t, stats.Nodes, 3+writes, "what was not proposed is nowhere")
				c.Eventually(time.Minute, "it is healthy again", func() bool { return old.Health().Healthy })
			})
		})
	}
}

// TestSlowCommandKeepsItsLeader: what takes as long everywhere is no reason for
// another leader.
func TestSlowCommandKeepsItsLeader(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, gates := gatedCluster(t)
		leader := c.WaitLeader(time.Minute)
		apply(t, leader, putNode(t, "before", 1))
		term := leader.Health().Term
		for _, g := range gates {
			g.Shut()
		}
		require.ErrorIs(t, leader.Replicator().Apply(putNode(t, "slow", 1), 100*leader.Config.Raft.ElectionTimeout), replication.ErrUnknownOutcome)
		for _, m := range c.Members {
			require.Equal(t, "storage_hung", m.Health().State)
		}
		for _, g := range gates {
			g.Lift()
		}
		apply(t, leader, putNode(t, "after", 1))
		require.True(t, leader.Replicator().IsLeader())
		require.Equal(t, term, leader.Health().Term)
		c.WaitSame(time.Minute)
	})
}
