package raftnode_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/stretchr/testify/require"
)

func withTimeout(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func TestWritesAndReadsOnAnyNode(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.startAll()
	leader := c.leader()
	for i, m := range c.members {
		id := fmt.Sprintf("node-%d", i)
		require.NoError(t, m.repl.Apply(putNode(t, id, i), patience))
		for _, reader := range c.others(m) {
			_, err := reader.repl.(replication.ConsistentReader).ReadBarrier(withTimeout(t), replication.ConsistencyQuorum)
			require.NoError(t, err)
			n, err := reader.store.Node(replication.NodeID(id))
			require.NoError(t, err, "a linearizable read misses an acknowledged write")
			require.Equal(t, int64(i), n.Properties["v"])
		}
	}
	_, err := c.others(leader)[0].repl.(replication.ConsistentReader).ReadBarrier(withTimeout(t), replication.ConsistencyAll)
	require.NoError(t, err)
	require.Equal(t, uint64(3), c.sameContent().Nodes)
}

func TestVerdictsCrossTheWireAndStopNobody(t *testing.T) {
	c := newCluster(t, 3, func(_ int, cfg *replication.Config) { cfg.MaxFrameSize = 1 << 20 })
	c.startAll()
	follower := c.others(c.leader())[0].repl
	create, err := replication.NewNodeCommand(replication.CmdCreateNode, &replication.Node{ID: "a"})
	require.NoError(t, err)
	require.NoError(t, follower.Apply(create, patience))
	require.ErrorIs(t, follower.Apply(create, patience), replication.ErrExists)
	require.ErrorIs(t, follower.Apply(&replication.Command{Type: 31}, patience), replication.ErrInvalidCommand)
	require.ErrorIs(t, follower.Apply(&replication.Command{Type: replication.CmdCypher, Data: []byte(`{"query":"CREATE ()"}`)}, patience),
		replication.ErrOpaqueWrite)
	require.ErrorIs(t, follower.Apply(create, 0), replication.ErrInvalidTimeout)
	big := putNode(t, "big", strings.Repeat("x", 1<<20))
	require.ErrorIs(t, follower.Apply(big, patience), replication.ErrCommandTooLarge)
	// An embedder's own command is carried to the storage, which does not know it.
	require.ErrorIs(t, follower.Apply(&replication.Command{Type: 64}, patience), replication.ErrInvalidCommand)
	require.NoError(t, follower.Apply(putNode(t, "b", 1), patience))
	require.True(t, follower.Health().Healthy, follower.Health().Reasons)
	require.Equal(t, uint64(2), c.sameContent().Nodes)
}

func TestBatchIsAllOrNone(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.startAll()
	edge, err := replication.NewEdgeCommand(replication.CmdCreateEdge, &replication.Edge{StartNode: "x", EndNode: "missing", Type: "R"})
	require.NoError(t, err)
	batch := c.members[1].repl.(replication.BatchApplier)
	_, err = batch.ApplyBatch(withTimeout(t), []*replication.Command{putNode(t, "x", 1), edge})
	require.ErrorIs(t, err, replication.ErrMissingEnd)
	position, err := batch.ApplyBatch(withTimeout(t), []*replication.Command{putNode(t, "y", 1), putNode(t, "z", 2)})
	require.NoError(t, err)
	require.NoError(t, c.members[2].repl.(replication.ConsistentReader).WaitApplied(withTimeout(t), position))
	require.Equal(t, uint64(2), c.sameContent().Nodes, "x must not be there")
}

func TestRequestIDsOutliveFailover(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.startAll()
	leader := c.leader()
	cmd, err := replication.NewNodeCommand(replication.CmdCreateNode, &replication.Node{ID: "once"})
	require.NoError(t, err)
	cmd.RequestID = "request-1"
	require.NoError(t, leader.repl.Apply(cmd, patience))
	c.stop(leader)
	next := c.leader()
	require.NoError(t, next.repl.Apply(cmd, patience), "the retry returns the first outcome, not ErrExists")
	other := putNode(t, "other", 1)
	other.RequestID = "request-1"
	require.ErrorIs(t, next.repl.Apply(other, patience), replication.ErrRequestIDReused)
}

// TestAcknowledgedWritesSurviveFailovers stops the leader again and again under
// load. Every node counts up; an acknowledged value must be there at the end.
func TestAcknowledgedWritesSurviveFailovers(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.startAll()
	c.leader()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	acked := make([]int, 8)
	var count atomic.Int64
	progress := func() {
		target := count.Load() + 100
		require.Eventually(t, func() bool { return count.Load() >= target }, patience, time.Millisecond, "writes go on")
	}
	for w := range acked {
		repl := c.members[2].repl // never stopped
		wg.Go(func() {
			for i := 1; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				cmd := putNode(t, fmt.Sprintf("w%d-%d", w, i), i)
				cmd.RequestID = fmt.Sprintf("w%d-%d", w, i)
				if err := repl.Apply(cmd, patience); err != nil {
					t.Errorf("write %d of %d: %v", i, w, err)
					return
				}
				acked[w] = i
				count.Add(1)
			}
		})
	}
	for round := range 3 {
		victim := c.members[round%2]
		before := victim.repl.(replication.ConsistentReader)
		_, err := before.ReadBarrier(withTimeout(t), replication.ConsistencyQuorum)
		require.NoError(t, err)
		progress()
		c.stop(victim)
		c.leader()
		progress()
		require.NoError(t, c.tryStart(victim))
	}
	progress()
	close(stop)
	wg.Wait()
	stats := c.sameContent()
	total := 0
	for w, n := range acked {
		total += n
		for i := 1; i <= n; i++ {
			_, err := c.members[0].store.Node(replication.NodeID(fmt.Sprintf("w%d-%d", w, i)))
			require.NoError(t, err)
		}
	}
	require.Equal(t, uint64(total), stats.Nodes)
	t.Logf("%d writes over 3 restarts", total)
}

func TestWipedVoterJoinsAsNonVoterAndIsRebuilt(t *testing.T) {
	c := newCluster(t, 3, func(_ int, cfg *replication.Config) {
		cfg.Raft.SnapshotThreshold, cfg.Raft.TrailingLogs = 20, 5
	})
	c.startAll()
	for i := range 60 {
		require.NoError(t, c.members[0].repl.Apply(putNode(t, fmt.Sprintf("n%d", i), i), patience))
	}
	for _, m := range c.members {
		require.NoError(t, m.repl.(replication.Snapshotter).TakeSnapshot(withTimeout(t)))
	}
	victim := c.others(c.leader())[0]
	c.stop(victim)
	require.NoError(t, os.RemoveAll(victim.cfg.DataDir))
	require.NoError(t, os.Remove(filepath.Join(victim.dir, "graph.db")))
	require.NoError(t, c.tryStart(victim))
	require.Equal(t, uint64(60), c.sameContent().Nodes)
	require.Eventually(t, func() bool {
		status, err := c.leader().repl.(replication.Membership).ClusterStatus(withTimeout(t))
		if err != nil {
			return false
		}
		voters := 0
		for _, m := range status.Members {
			if m.Voter {
				voters++
			}
		}
		return voters == 3
	}, patience, 20*time.Millisecond, "the node becomes a voter again")
}

func TestWipedVoterAloneWaits(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.startAll()
	require.NoError(t, c.members[0].repl.Apply(putNode(t, "a", 1), patience))
	for _, m := range c.members {
		c.stop(m)
	}
	victim := c.members[0] // also told to bootstrap: that must not found a second cluster
	require.NoError(t, os.RemoveAll(victim.cfg.DataDir))
	store, err := boltgraph.Open(filepath.Join(victim.dir, "graph.db"))
	require.NoError(t, err)
	defer store.Close()
	victim.store = nil
	ctx, cancel := context.WithTimeout(context.Background(), 1500*time.Millisecond)
	defer cancel()
	err = startWith(ctx, victim, store)
	require.ErrorIs(t, err, replication.ErrNotReady)
	require.ErrorContains(t, err, "cannot be asked")
}

func TestSecondBootstrapIsRefusedWhereAPeerHasACluster(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.startAll()
	stranger := newCluster(t, 1, func(_ int, cfg *replication.Config) {
		cfg.NodeID = "stranger"
		cfg.Raft.Peers = []replication.RaftPeer{{ID: "n1", Addr: c.members[0].cfg.BindAddr}}
	})
	c.leader()
	err := stranger.tryStart(stranger.members[0])
	require.ErrorIs(t, err, replication.ErrClusterExists)
}

func TestFourthNodeJoinsByItself(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.startAll()
	require.NoError(t, c.leader().repl.Apply(putNode(t, "a", 1), patience))
	fourth := newCluster(t, 1, func(_ int, cfg *replication.Config) {
		cfg.NodeID, cfg.Raft.Bootstrap = "n4", false
		cfg.Raft.Peers = []replication.RaftPeer{{Addr: c.members[0].cfg.BindAddr}, {Addr: c.members[1].cfg.BindAddr}}
	})
	require.NoError(t, fourth.tryStart(fourth.members[0]))
	require.Eventually(t, func() bool {
		h := fourth.members[0].repl.Health()
		return h.Role == "follower" && h.Ready && h.AppliedIndex > 0
	}, patience, 10*time.Millisecond)
	_, err := fourth.members[0].store.Node("a")
	require.NoError(t, err)
}

func TestStandaloneDataBecomesARaftCluster(t *testing.T) {
	c := newCluster(t, 3, nil)
	first := c.members[0]
	store, err := boltgraph.Open(filepath.Join(first.dir, "graph.db"))
	require.NoError(t, err)
	alone, err := replication.New(replication.DefaultConfig(), store, nil, replication.WithLogger(quietLogger()))
	require.NoError(t, err)
	require.NoError(t, alone.Start(withTimeout(t)))
	for i := range 50 {
		require.NoError(t, alone.Apply(putNode(t, fmt.Sprintf("old-%d", i), i), patience))
	}
	require.NoError(t, alone.Shutdown())
	require.NoError(t, store.Close())

	c.startAll()
	for i := range 20 {
		require.NoError(t, c.members[i%3].repl.Apply(putNode(t, fmt.Sprintf("new-%d", i), i), patience))
	}
	stats := c.sameContent()
	require.Equal(t, uint64(70), stats.Nodes)
	require.Greater(t, stats.Position, uint64(70), "the log goes on above the standalone positions")
}

func TestShutdownTwiceAndUseAfter(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.startAll()
	repl := c.leader().repl
	require.NoError(t, repl.Shutdown())
	require.NoError(t, repl.Shutdown())
	require.ErrorIs(t, repl.Apply(putNode(t, "a", 1), time.Second), replication.ErrClosed)
	require.Equal(t, "closed", repl.Health().State)
	require.True(t, errors.Is(repl.WaitForLeader(time.Second), replication.ErrNoLeader))
}

func TestSecondProcessOnTheDirectoryIsRefused(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.startAll()
	m := *c.members[0]
	m.dir = t.TempDir()
	m.store, m.repl = nil, nil
	err := c.tryStart(&m)
	require.ErrorIs(t, err, replication.ErrLocked)
	c.stop(&m)
}
