package raftnode_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/raftnode"
	"github.com/stretchr/testify/require"
)

// nextEvent waits for an event of a type.
func nextEvent(t *testing.T, events <-chan replication.Event, want replication.EventType) replication.Event {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case e := <-events:
			if e.Type == want {
				return e
			}
		case <-timer.C:
			require.FailNow(t, "no event", "%v", want)
		}
	}
}

// TestFollowerAwayPastCompactionComesBackBySnapshot: the others no longer have
// the log that it lacks. It keeps its disk; nothing is replayed twice.
func TestFollowerAwayPastCompactionComesBackBySnapshot(t *testing.T) {
	c := newCluster(t, 3, func(_ int, cfg *replication.Config) { cfg.Raft.SnapshotThreshold, cfg.Raft.TrailingLogs = 1<<40, 5 })
	c.startAll()
	for i := range 10 {
		require.NoError(t, c.members[0].repl.Apply(putNode(t, fmt.Sprint("before-", i), i), patience))
	}
	away := c.others(c.leader())[0]
	require.Eventually(t, func() bool { s, err := away.store.Stats(); return err == nil && s.Nodes == 10 }, patience, 5*time.Millisecond)
	c.stop(away)
	for i := range 60 {
		require.NoError(t, c.leader().repl.Apply(putNode(t, fmt.Sprint("during-", i), i), patience))
	}
	for _, m := range c.others(away) {
		require.NoError(t, m.repl.(replication.Snapshotter).TakeSnapshot(withTimeout(t)))
	}
	var events <-chan replication.Event
	require.NoError(t, c.startMember(away, func(s *boltgraph.Store) replication.Storage { return s }, func(cfg *replication.Config, s replication.Storage, rt replication.Runtime) (replication.Replicator, error) {
		r, err := raftnode.New(cfg, s, rt)
		if err == nil {
			var cancel func()
			events, cancel = r.(replication.Subscriber).Subscribe(1024)
			t.Cleanup(cancel)
		}
		return r, err
	}))
	restored := nextEvent(t, events, replication.EventSnapshotInstalled)
	require.Greater(t, restored.Position, uint64(60))
	require.NoError(t, c.leader().repl.Apply(putNode(t, "after", 1), patience))
	require.Equal(t, uint64(71), c.sameContent().Nodes)
}

// TestNonVoterThatRestartsStillBecomesAVoter: it reminds whoever leads then.
func TestNonVoterThatRestartsStillBecomesAVoter(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.startAll()
	require.NoError(t, c.members[0].repl.Apply(putNode(t, "a", 1), patience))
	fourth := newCluster(t, 1, func(_ int, cfg *replication.Config) {
		cfg.NodeID, cfg.Raft.Bootstrap = "n4", false
		for _, m := range c.members {
			cfg.Raft.Peers = append(cfg.Raft.Peers, replication.RaftPeer{Addr: m.cfg.BindAddr})
		}
	})
	m := fourth.members[0]
	require.NoError(t, fourth.tryStart(m))
	fourth.stop(m) // most likely before the leader has made it a voter; either way it must be one in the end
	old := c.leader()
	c.stop(old) // what it wanted to do with the non-voter goes with it
	c.leader()
	require.NoError(t, fourth.tryStart(m))
	isVoter := func() bool {
		status, err := c.leader().repl.(replication.Membership).ClusterStatus(withTimeout(t))
		if err != nil {
			return false
		}
		for _, s := range status.Members {
			if s.ID == "n4" {
				return s.Voter
			}
		}
		return false
	}
	require.Eventually(t, isVoter, patience, 20*time.Millisecond)
	require.NoError(t, c.tryStart(old))
	require.NoError(t, m.repl.Apply(putNode(t, "b", 1), patience))
	c.sameContent()
}

// TestForcedFounding: with WithForce a founder does without the answer of a
// listed peer; without it, it waits.
func TestForcedFounding(t *testing.T) {
	c := newCluster(t, 3, nil)
	m := c.members[0]
	ctx, cancel := context.WithTimeout(t.Context(), 600*time.Millisecond)
	defer cancel()
	store, err := boltgraph.Open(t.TempDir()+"/g.db", boltgraph.WithNoSync())
	require.NoError(t, err)
	require.ErrorIs(t, startWith(ctx, m, store), replication.ErrNotReady)
	require.NoError(t, store.Close())

	started := make(chan error, 1)
	go func() {
		started <- c.startMember(m, func(s *boltgraph.Store) replication.Storage { return s }, raftnode.Mode(raftnode.WithForce()))
	}()
	require.NoError(t, <-started, "founded alone, for three")
	errs := make(chan error, 2)
	for _, o := range c.members[1:] {
		go func() { errs <- c.tryStart(o) }()
	}
	require.NoError(t, <-errs)
	require.NoError(t, <-errs)
	require.NoError(t, c.members[1].repl.Apply(putNode(t, "a", 1), patience))
	require.Equal(t, uint64(1), c.sameContent().Nodes)
}

// recorder is a graph store whose server knows one query: it creates a node
// with a random ID and counts the nodes before it.
type recorder struct {
	*boltgraph.Store
	mu   sync.Mutex
	runs int
}

func (r *recorder) RecordEffects(cmd *replication.Command) ([]*replication.Command, uint64, error) {
	r.mu.Lock()
	r.runs++
	r.mu.Unlock()
	st, err := r.Stats()
	if err != nil {
		return nil, 0, err
	}
	node, err := replication.NewNodeCommand(replication.CmdCreateNode, &replication.Node{
		ID: replication.NodeID(fmt.Sprintf("drawn-%x", rand.Uint64())), Properties: map[string]any{"before": int64(st.Nodes)}})
	return []*replication.Command{node}, st.Position, err
}

// TestOpaqueQueriesReplicateAsTheirEffects: what a query draws at random is
// drawn once, and each query sees the state that it is applied to, although
// writes come from all nodes at once.
func TestOpaqueQueriesReplicateAsTheirEffects(t *testing.T) {
	c := newCluster(t, 3, nil)
	stores := make([]*recorder, 3)
	errs := make(chan error, 3)
	for i, m := range c.members {
		stores[i] = &recorder{}
		go func() {
			errs <- c.startMember(m, func(s *boltgraph.Store) replication.Storage { stores[i].Store = s; return stores[i] }, raftnode.New)
		}()
	}
	for range c.members {
		require.NoError(t, <-errs)
	}
	c.leader()
	const queries, writes = 20, 20
	var wg sync.WaitGroup
	for i, m := range c.members {
		wg.Go(func() {
			for j := range queries {
				cmd := &replication.Command{Type: replication.CmdCypher, Data: []byte(`{"query":"CREATE (n) RETURN n"}`), RequestID: fmt.Sprintf("q-%d-%d", i, j)}
				if err := m.repl.Apply(cmd, patience); err != nil {
					t.Errorf("query: %v", err)
				}
				if err := m.repl.Apply(cmd, patience); err != nil { // a retry
					t.Errorf("query again: %v", err)
				}
			}
		})
		wg.Go(func() {
			for j := range writes {
				if err := m.repl.Apply(putNode(t, fmt.Sprintf("w-%d-%d", i, j), j), patience); err != nil {
					t.Errorf("write: %v", err)
				}
			}
		})
	}
	wg.Wait()
	require.Equal(t, uint64(3*(queries+writes)), c.sameContent().Nodes)
	seen := map[int64]bool{}
	_, err := c.members[0].store.Walk(func(n *replication.Node) error {
		if before, ok := n.Properties["before"].(int64); ok {
			if seen[before] {
				t.Errorf("two queries saw %d nodes: one of them did not see the other's", before)
			}
			seen[before] = true
		}
		return nil
	}, func(*replication.Edge) error { return nil })
	require.NoError(t, err)
	require.Len(t, seen, 3*queries)
}

// TestEventsTellWhatHappens: to those who ask, in order.
func TestEventsTellWhatHappens(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.startAll()
	leader := c.leader()
	watcher := c.others(leader)[0]
	events, cancel := watcher.repl.(replication.Subscriber).Subscribe(1024)
	defer cancel()
	c.stop(leader)
	e := nextEvent(t, events, replication.EventLeaderChanged)
	require.NotEqual(t, leader.cfg.NodeID, e.Leader)
	next := c.leader()
	for e.Leader != next.cfg.NodeID {
		e = nextEvent(t, events, replication.EventLeaderChanged)
	}
	require.False(t, e.Time.IsZero())
	require.NoError(t, watcher.repl.(replication.Snapshotter).TakeSnapshot(withTimeout(t)))
	require.NoError(t, next.repl.Apply(putNode(t, "a", 1), patience))
	require.NoError(t, watcher.repl.(replication.Snapshotter).TakeSnapshot(withTimeout(t)))
	nextEvent(t, events, replication.EventSnapshotTaken)
	c.stop(watcher)
	nextEvent(t, events, replication.EventStopped)
	for range events { // and it ends
	}
}
