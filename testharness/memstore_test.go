package testharness

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func openBolt(t testing.TB) *boltgraph.Store {
	t.Helper()
	s, err := boltgraph.Open(filepath.Join(t.TempDir(), "g.db"), boltgraph.WithNoSync())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// TestTreeIsAnImmutableSortedMap compares it with a map, and every version with
// what it was when it was made.
func TestTreeIsAnImmutableSortedMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tr := tree[string, int]{compare: strings.Compare}
		want := map[string]int{}
		type version struct {
			tr   tree[string, int]
			want map[string]int
		}
		var versions []version
		for i := range rapid.IntRange(0, 200).Draw(t, "steps") {
			key := fmt.Sprint(rapid.IntRange(0, 60).Draw(t, "key"))
			if rapid.Bool().Draw(t, "set") {
				tr, want[key] = tr.set(key, i), i
			} else {
				tr = tr.remove(key)
				delete(want, key)
			}
			versions = append(versions, version{tr, maps.Clone(want)})
		}
		for _, v := range versions {
			require.Equal(t, v.want, maps.Collect(v.tr.all()))
			require.Equal(t, len(v.want), v.tr.len())
			requireBalanced(t, v.tr.root)
			var keys []string
			for k := range v.tr.from("3") {
				keys = append(keys, k)
			}
			require.Equal(t, slices.Sorted(func(yield func(string) bool) {
				for k := range v.want {
					if k >= "3" && !yield(k) {
						return
					}
				}
			}), keys)
		}
	})
}

func requireBalanced(t require.TestingT, b *branch[string, int]) {
	if b == nil {
		return
	}
	l, r := b.left.len(), b.right.len()
	require.Equal(t, 1+l+r, b.size)
	if l+r >= 2 {
		require.LessOrEqual(t, max(l, r), balanceDelta*min(l, r), "a side is too heavy")
	}
	requireBalanced(t, b.left)
	requireBalanced(t, b.right)
}

// TestMemStoreIsBoltgraphInMemory runs the same commands on both stores: equal
// verdicts, equal digests, equal counts.
func TestMemStoreIsBoltgraphInMemory(t *testing.T) {
	bolt := openBolt(t)
	empty, err := bolt.Snapshot()
	require.NoError(t, err)
	var blank bytes.Buffer
	_, err = empty.WriteTo(&blank)
	require.NoError(t, err)
	empty.Release()
	rapid.Check(t, func(t *rapid.T) {
		require.NoError(t, bolt.Restore(bytes.NewReader(blank.Bytes())))
		mem := NewMemStore()
		for range rapid.IntRange(1, 60).Draw(t, "commands") {
			cmd := drawCommand(t, true)
			want, got := bolt.ApplyCommand(cmd), mem.ApplyCommand(cmd)
			require.Equal(t, replication.ErrorCode(want), replication.ErrorCode(got), "%s %s: %v", cmd.Type, cmd.Data, want)
		}
		st, err := bolt.Stats()
		require.NoError(t, err)
		ms := mem.Stats()
		require.Equal(t, st, boltgraph.Stats{Nodes: uint64(ms.Nodes), Edges: uint64(ms.Edges), Position: ms.Position, Digest: ms.Digest})
	})
}

func TestMemStoreRefusesTheSameIdentifiersAsBoltgraph(t *testing.T) {
	require.Equal(t, boltgraph.MaxIDBytes, maxIDBytes)
	long := strings.Repeat("x", maxIDBytes+1)
	for _, s := range []interface {
		replication.Storage
		replication.EdgeStorage
	}{NewMemStore(), openBolt(t)} {
		for _, id := range []string{"", long} {
			n := replication.NodeID(id)
			for i, err := range []error{
				s.CreateNode(&replication.Node{ID: n}), s.DeleteNode(n), s.SetProperty(n, "k", 1), s.UpdateNode(&replication.Node{ID: n}),
				s.CreateEdge(&replication.Edge{StartNode: n, EndNode: "b", Type: "R"}), s.DeleteEdge("a", "b", id),
				s.DeleteEdgeByID(replication.EdgeID(id)), s.UpdateEdge(&replication.Edge{StartNode: "a", EndNode: n, Type: "R"}),
			} {
				require.ErrorIs(t, err, replication.ErrInvalidCommand, "%T %d", s, i)
			}
		}
		require.ErrorIs(t, s.CreateEdge(&replication.Edge{ID: replication.EdgeID(long), StartNode: "a", EndNode: "b", Type: "R"}), replication.ErrInvalidCommand)
	}
}

func TestMemStoreCloneIsWhatACrashLeaves(t *testing.T) {
	s := NewMemStore()
	require.NoError(t, s.CreateNode(&replication.Node{ID: "a", Properties: map[string]any{"k": "v"}}))
	var within *MemStore
	require.NoError(t, s.Update(func(tx replication.Tx) error {
		require.NoError(t, tx.CreateNode(&replication.Node{ID: "b"}))
		within = s.Clone()
		return nil
	}))
	require.Equal(t, 1, within.Stats().Nodes, "a transaction that runs is not in it")
	after := s.Clone()
	require.NoError(t, s.DeleteNode("a"))
	require.Equal(t, 2, after.Stats().Nodes)
	n, err := after.Node("a")
	require.NoError(t, err)
	n.Properties["k"] = "changed"
	v, err := after.Property("a", "k")
	require.NoError(t, err)
	require.Equal(t, "v", v, "what a reader gets is a copy")
	_, err = s.Property("a", "k")
	require.ErrorIs(t, err, replication.ErrNotFound)
}

func TestOnCommitTellsWhatWasExecutedAndCommitted(t *testing.T) {
	s := NewMemStore()
	var commits []Commit
	s.OnCommit(func(c Commit) { commits = append(commits, c) })
	create := func(id string) *replication.Command {
		return &replication.Command{Type: replication.CmdCreateNode, Data: []byte(fmt.Sprintf(`{"id":%q}`, id))}
	}
	a, b := create("a"), create("b")
	require.ErrorIs(t, s.Update(func(tx replication.Tx) error {
		require.NoError(t, tx.ApplyCommand(b))
		return errors.ErrUnsupported
	}), errors.ErrUnsupported)
	require.NoError(t, s.Update(func(tx replication.Tx) error {
		require.NoError(t, tx.ApplyCommand(a))
		require.ErrorIs(t, tx.ApplyCommand(a), replication.ErrExists)
		return tx.SetWALPosition(7)
	}))
	require.Len(t, commits, 1, "a transaction that was rolled back is in no commit")
	require.Equal(t, uint64(7), commits[0].Position)
	require.Len(t, commits[0].Executed, 2)
	require.NoError(t, commits[0].Executed[0].Err)
	require.ErrorIs(t, commits[0].Executed[1].Err, replication.ErrExists)
	s.OnCommit(nil)
	require.NoError(t, s.SetWALPosition(8))
	require.Len(t, commits, 1)
}

func TestMemStoreSnapshotsOfEqualStatesHaveEqualBytes(t *testing.T) {
	write := func(s *MemStore) []byte {
		snap, err := s.Snapshot()
		require.NoError(t, err)
		defer snap.Release()
		var buf bytes.Buffer
		n, err := snap.WriteTo(&buf)
		require.NoError(t, err)
		require.Equal(t, int64(buf.Len()), n)
		return buf.Bytes()
	}
	a, b := NewMemStore(), NewMemStore()
	for i := range 100 {
		require.NoError(t, a.CreateNode(&replication.Node{ID: replication.NodeID(fmt.Sprint(i))}))
		require.NoError(t, b.CreateNode(&replication.Node{ID: replication.NodeID(fmt.Sprint(99 - i))}))
	}
	require.Equal(t, write(a), write(b))
	require.NoError(t, b.Update(func(tx replication.Tx) error { return tx.SetMeta([]byte("k"), []byte{}) }))
	require.NotEqual(t, write(a), write(b))
	require.NoError(t, a.Restore(bytes.NewReader(write(b))))
	require.Equal(t, write(a), write(b))
	require.Equal(t, 1, a.Stats().Rows, "an empty row is a row")
}

// TestEveryChangedByteOfASnapshotIsNoticed: unlike fsm/boltgraph's, the format
// is checked as a whole.
func TestEveryChangedByteOfASnapshotIsNoticed(t *testing.T) {
	s := NewMemStore()
	require.NoError(t, s.CreateNode(&replication.Node{ID: "a", Properties: map[string]any{"k": 1}}))
	require.NoError(t, s.CreateEdge(&replication.Edge{StartNode: "a", EndNode: "a", Type: "R"}))
	snap, err := s.Snapshot()
	require.NoError(t, err)
	var buf bytes.Buffer
	_, err = snap.WriteTo(&buf)
	require.NoError(t, err)
	snap.Release()
	_, err = snap.WriteTo(&bytes.Buffer{})
	require.ErrorIs(t, err, errReleased)
	target := NewMemStore()
	for i := range buf.Len() {
		flipped := bytes.Clone(buf.Bytes())
		flipped[i] ^= 1
		require.Error(t, target.Restore(bytes.NewReader(flipped)), "byte %d", i)
	}
	require.Equal(t, NewMemStore().Stats(), target.Stats())
	require.NoError(t, target.Restore(&buf))
	require.Equal(t, s.Stats(), target.Stats())
}

func TestTxIsOverWhenUpdateReturns(t *testing.T) {
	var kept replication.Tx
	s := NewMemStore()
	require.NoError(t, s.Update(func(tx replication.Tx) error { kept = tx; return nil }))
	require.Panics(t, func() { _ = kept.SetWALPosition(1) })
}

func FuzzMemStoreRestore(f *testing.F) {
	s := NewMemStore()
	require.NoError(f, s.CreateNode(&replication.Node{ID: "a"}))
	require.NoError(f, s.Update(func(tx replication.Tx) error { return tx.SetMeta([]byte("k"), []byte("v")) }))
	snap, err := s.Snapshot()
	require.NoError(f, err)
	var buf bytes.Buffer
	_, err = snap.WriteTo(&buf)
	require.NoError(f, err)
	f.Add(buf.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		target := NewMemStore()
		if err := target.Restore(bytes.NewReader(data)); err != nil {
			require.Equal(t, NewMemStore().Stats(), target.Stats(), "a failed restore changes nothing")
		}
	})
}

// BenchmarkMemStore writes 256 bytes: through ApplyCommand, most of which is
// replication.Dispatch decoding JSON, and directly, which is the store alone.
func BenchmarkMemStore(b *testing.B) {
	value := strings.Repeat("x", 256)
	for _, held := range []int{1, 100_000} {
		s := NewMemStore()
		ids := make([]replication.NodeID, held)
		for i := range held {
			ids[i] = replication.NodeID(fmt.Sprint("node", i))
			require.NoError(b, s.CreateNode(&replication.Node{ID: ids[i]}))
		}
		cmd, err := replication.NewSetProperty(ids[0], "v", value)
		require.NoError(b, err)
		b.Run(fmt.Sprintf("apply/nodes=%d", held), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				require.NoError(b, s.ApplyCommand(cmd))
			}
		})
		b.Run(fmt.Sprintf("direct/nodes=%d", held), func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				require.NoError(b, s.SetProperty(ids[i*7919%held], "v", value))
			}
		})
	}
}
