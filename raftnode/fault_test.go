package raftnode_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/raftnode"
	"github.com/stretchr/testify/require"
)

// failingStore fails with a plain error once it is told to.
type failingStore struct {
	*boltgraph.Store
	fail atomic.Bool
}

func (f *failingStore) Update(fn func(replication.Tx) error) error {
	if f.fail.Load() {
		return errors.New("input/output error")
	}
	return f.Store.Update(fn)
}

func (c *cluster) startMember(m *member, wrap func(*boltgraph.Store) replication.Storage, mode replication.Constructor) error {
	store, err := boltgraph.Open(filepath.Join(m.dir, "graph.db"), boltgraph.WithNoSync())
	if err != nil {
		return err
	}
	m.store = store
	m.repl, err = replication.New(m.cfg, wrap(store), replication.Modes{replication.ModeRaft: mode}, replication.WithLogger(quietLogger()))
	if err != nil {
		return err
	}
	return m.repl.Start(c.t.Context())
}

func TestFailedStorageStopsItsNodeAndForksNothing(t *testing.T) {
	c := newCluster(t, 3, nil)
	stores := make(map[*member]*failingStore)
	errs := make(chan error, 3)
	for _, m := range c.members {
		f := &failingStore{}
		stores[m] = f
		go func() {
			errs <- c.startMember(m, func(s *boltgraph.Store) replication.Storage { f.Store = s; return f }, raftnode.New)
		}()
	}
	for range c.members {
		require.NoError(t, <-errs)
	}
	leader := c.leader()
	require.NoError(t, leader.repl.Apply(putNode(t, "before", 1), patience))
	stores[leader].fail.Store(true)
	cmd := putNode(t, "during", 1)
	cmd.RequestID = "during"
	require.NoError(t, c.others(leader)[0].repl.Apply(cmd, patience), "another node takes over, and the retry is safe")
	require.Eventually(t, func() bool { return leader.repl.Health().State == "storage_failed" }, patience, time.Millisecond)
	next := c.leader()
	require.NotEqual(t, leader, next)
	require.NoError(t, next.repl.Apply(putNode(t, "after", 1), patience))
	_, err := leader.store.Node("during")
	require.ErrorIs(t, err, replication.ErrNotFound, "the failed node applies nothing more")
	c.stop(leader)
	require.NoError(t, c.tryStart(leader))
	require.Equal(t, uint64(3), c.sameContent().Nodes, "after a restart it has everything")
}

// hangingLog is a log store whose writes hang while it is told to.
type hangingLog struct {
	raftnode.LogStore
	gate chan chan struct{} // holds what the next writes wait for
}

func (h *hangingLog) StoreLogs(logs []*raft.Log) error {
	select {
	case wait := <-h.gate:
		<-wait
	default:
	}
	return h.LogStore.StoreLogs(logs)
}

func (h *hangingLog) StoreLog(l *raft.Log) error { return h.StoreLogs([]*raft.Log{l}) }

func TestLeaderWithHungDiskIsReplaced(t *testing.T) {
	c := newCluster(t, 3, nil)
	logs := make(map[*member]*hangingLog)
	errs := make(chan error, 3)
	for _, m := range c.members {
		h := &hangingLog{gate: make(chan chan struct{}, 1)}
		logs[m] = h
		mode := raftnode.Mode(raftnode.WithLogStore("bolt", func(dir string) (raftnode.LogStore, error) {
			store, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(dir, "raft.db")})
			h.LogStore = store
			return h, err
		}))
		go func() { errs <- c.startMember(m, func(s *boltgraph.Store) replication.Storage { return s }, mode) }()
	}
	for range c.members {
		require.NoError(t, <-errs)
	}
	leader := c.leader()
	require.NoError(t, leader.repl.Apply(putNode(t, "a", 1), patience))
	wait := make(chan struct{})
	logs[leader].gate <- wait
	require.ErrorIs(t, leader.repl.Apply(putNode(t, "hung", 1), 200*time.Millisecond), replication.ErrUnknownOutcome)
	start := time.Now()
	require.Eventually(t, func() bool {
		for _, m := range c.others(leader) {
			if m.repl.IsLeader() {
				return true
			}
		}
		return false
	}, patience, 5*time.Millisecond)
	t.Logf("another leader after %s at an election timeout of %s", time.Since(start), leader.cfg.Raft.ElectionTimeout)
	require.False(t, leader.repl.IsLeader())
	require.NoError(t, c.others(leader)[0].repl.Apply(putNode(t, "b", 1), patience))
	close(wait)
	require.NoError(t, leader.repl.Apply(putNode(t, "c", 1), patience), "it follows when its disk answers again")
	for i := range 3 {
		require.NoError(t, c.members[i].repl.Apply(putNode(t, fmt.Sprint("d", i), 1), patience))
	}
	c.sameContent()
}
