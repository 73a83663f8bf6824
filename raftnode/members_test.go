package raftnode_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/raftnode"
	"github.com/stretchr/testify/require"
)

func TestMembershipGuardsTheQuorum(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.startAll()
	leader := c.leader()
	members := orders(leader)
	require.NoError(t, leader.repl.Apply(putNode(t, "a", 1), patience))
	followers := c.others(leader)
	for _, asked := range []replication.Membership{members, followers[0].repl.(replication.Membership)} { // itself, and over the wire
		for _, err := range []error{asked.RemoveMember(withTimeout(t), "nobody", false), asked.TransferLeadership(withTimeout(t), "nobody")} {
			require.ErrorIs(t, err, replication.ErrNotFound)
			require.ErrorContains(t, err, "no member nobody")
		}
	}

	c.stop(followers[1])
	require.ErrorIs(t, members.RemoveMember(withTimeout(t), followers[0].cfg.NodeID, false), replication.ErrQuorumAtRisk,
		"at once after the other voter died")
	require.NoError(t, members.RemoveMember(withTimeout(t), followers[1].cfg.NodeID, false), "the dead one may go")
	require.NoError(t, members.TransferLeadership(withTimeout(t), followers[0].cfg.NodeID))
	require.Eventually(t, followers[0].repl.IsLeader, patience, 5*time.Millisecond)
	require.NoError(t, leader.repl.Apply(putNode(t, "b", 1), patience))
	last := orders(followers[0])
	require.NoError(t, last.RemoveMember(withTimeout(t), leader.cfg.NodeID, true))
	require.ErrorIs(t, last.RemoveMember(withTimeout(t), followers[0].cfg.NodeID, false), replication.ErrQuorumAtRisk)
}

// txOnly hides a store's snapshots.
type txOnly struct{ replication.TxStorage }

func TestStorageOfAHistoryThatCannotBeComparedIsRefused(t *testing.T) {
	c := newCluster(t, 2, nil)
	m := c.members[1] // not the founder
	err := c.startMember(m, func(s *boltgraph.Store) replication.Storage {
		require.NoError(t, s.Update(func(tx replication.Tx) error {
			if err := tx.SetMeta([]byte("replication/history"), []byte("another")); err != nil {
				return err
			}
			return tx.SetWALPosition(100)
		}))
		return txOnly{s}
	}, raftnode.New)
	require.ErrorIs(t, err, replication.ErrForeignHistory)
}

// TestStorageWithoutAbilities: a plain Storage forms a cluster through the log,
// keeps request IDs while it runs, and refuses batches.
func TestStorageWithoutAbilities(t *testing.T) {
	type plain struct{ replication.Storage }
	c := newCluster(t, 3, nil)
	errs := make(chan error, 3)
	for _, m := range c.members {
		go func() {
			errs <- c.startMember(m, func(s *boltgraph.Store) replication.Storage { return plain{s} }, raftnode.New)
		}()
	}
	for range c.members {
		require.NoError(t, <-errs)
	}
	leader := c.leader()
	cmd, err := replication.NewNodeCommand(replication.CmdCreateNode, &replication.Node{ID: "once"})
	require.NoError(t, err)
	cmd.RequestID = "r"
	for _, m := range c.members {
		require.NoError(t, m.repl.Apply(cmd, patience))
	}
	_, err = leader.repl.(replication.BatchApplier).ApplyBatch(withTimeout(t), []*replication.Command{cmd, cmd})
	require.ErrorIs(t, err, replication.ErrUnsupported)
	require.Contains(t, leader.repl.Health().Reasons[0], "no snapshots")
	require.Equal(t, uint64(1), c.sameContent().Nodes)

	// Its position is in the storage, its history beside the log: a member that
	// restarts goes on where it was, and the log brings what it missed.
	away := c.others(leader)[0]
	c.stop(away)
	for i := range 10 {
		require.NoError(t, leader.repl.Apply(putNode(t, fmt.Sprint("while-away-", i), i), patience))
	}
	require.NoError(t, c.startMember(away, func(s *boltgraph.Store) replication.Storage { return plain{s} }, raftnode.New))
	require.NoError(t, away.repl.Apply(putNode(t, "back", 1), patience))
	require.Equal(t, uint64(12), c.sameContent().Nodes)
}
