package raftnode_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/stretchr/testify/require"
)

// TestStorageThatLostUnflushedWritesIsCaughtUpFromTheLog: a power failure takes
// back what a node's graph file had not flushed; the log has it.
func TestStorageThatLostUnflushedWritesIsCaughtUpFromTheLog(t *testing.T) {
	for _, snapshot := range []bool{false, true} {
		t.Run(fmt.Sprint("snapshot=", snapshot), func(t *testing.T) {
			c := newCluster(t, 1, func(_ int, cfg *replication.Config) { cfg.Raft.TrailingLogs = 3 })
			c.startAll()
			m := c.leader()
			for i := range 20 {
				require.NoError(t, m.repl.Apply(putNode(t, fmt.Sprint("n", i), i), patience))
			}
			require.NoError(t, m.store.Flush())
			path := filepath.Join(m.dir, "graph.db")
			flushed, err := os.ReadFile(path)
			require.NoError(t, err)
			repeated := putNode(t, "once", 1)
			repeated.Type = replication.CmdCreateNode
			require.NoError(t, m.repl.Apply(repeated, patience))
			for i := range 20 {
				require.NoError(t, m.repl.Apply(putNode(t, fmt.Sprint("n", 10+i), "new"), patience))
			}
			if snapshot { // the log is cut above what the old file has
				require.NoError(t, m.repl.(replication.Snapshotter).TakeSnapshot(t.Context()))
			}
			require.NoError(t, m.repl.Apply(putNode(t, "last", 1), patience))
			want, err := m.store.Stats()
			require.NoError(t, err)
			c.stop(m)
			require.NoError(t, os.WriteFile(path, flushed, 0o600))
			old, err := boltgraph.Open(path)
			require.NoError(t, err)
			before, err := old.Stats()
			require.NoError(t, err)
			require.NoError(t, old.Close())
			require.Less(t, before.Position, want.Position)

			require.NoError(t, c.tryStart(m))
			require.NoError(t, c.leader().repl.Apply(repeated, patience), "the request is known: it is answered, not run again")
			got, err := m.store.Stats()
			require.NoError(t, err)
			require.Equal(t, [2]uint64{want.Nodes, want.Edges}, [2]uint64{got.Nodes, got.Edges})
			require.Equal(t, want.Digest, got.Digest)
		})
	}
}

// TestSnapshotIsCompleteOnlyWhenTheStorageIsFlushed, as the log is cut below it.
func TestSnapshotIsCompleteOnlyWhenTheStorageIsFlushed(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.startAll()
	m := c.leader()
	for i := range 10 {
		require.NoError(t, m.repl.Apply(putNode(t, fmt.Sprint("n", i), i), patience))
	}
	require.NoError(t, m.repl.(replication.Snapshotter).TakeSnapshot(t.Context()))
	image, err := os.ReadFile(filepath.Join(m.dir, "graph.db"))
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "image.db")
	require.NoError(t, os.WriteFile(path, image, 0o600))
	s, err := boltgraph.Open(path)
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	st, err := s.Stats()
	require.NoError(t, err)
	want, err := m.store.Stats()
	require.NoError(t, err)
	require.Equal(t, want, st)
}
