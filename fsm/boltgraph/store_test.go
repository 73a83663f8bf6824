package boltgraph

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(asVictim); path != "" {
		fmt.Fprintln(os.Stderr, beVictim(path))
		os.Exit(1)
	}
	if path := os.Getenv(asReader); path != "" {
		if err := beReader(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(path, WithNoSync())
	require.NoError(t, err)
	return s
}

func temp(t testing.TB) *Store {
	t.Helper()
	s := open(t, filepath.Join(t.TempDir(), "g.db"))
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// check recomputes counts and digest from the content, and looks for index
// rows without edge and edges without end.
func check(t testing.TB, s *Store) {
	t.Helper()
	var want state
	nodes := map[replication.NodeID]bool{}
	in := 0
	st, err := s.Walk(func(n *replication.Node) error {
		labels := slices.Clone(n.Labels)
		slices.Sort(labels)
		data, err := (&replication.Node{ID: n.ID, Labels: slices.Compact(labels), Properties: n.Properties}).MarshalJSON()
		d := elementDigest('n', data)
		want.digest.add(d)
		want.nodes++
		nodes[n.ID] = true
		return err
	}, func(e *replication.Edge) error {
		d, err := edgeDigest(e)
		want.digest.add(d)
		want.edges++
		require.True(t, nodes[e.StartNode] && nodes[e.EndNode], "dangling edge")
		return err
	})
	require.NoError(t, err)
	for id := range nodes {
		require.NoError(t, s.Edges(id, In, func(*replication.Edge) error { in++; return nil }))
	}
	want.position = st.Position
	require.Equal(t, (&tx{state: want}).stats(), st)
	require.Equal(t, st.Edges, uint64(in))
}

func TestRandomOperationsKeepIndexesAndDigest(t *testing.T) {
	s := temp(t)
	r := rand.New(rand.NewPCG(1, 2))
	id := func() replication.NodeID { return replication.NodeID(fmt.Sprintf("n\x00/%d", r.IntN(12))) }
	for range 3000 {
		e := &replication.Edge{StartNode: id(), EndNode: id(), Type: "R", Properties: map[string]any{"v": r.IntN(3)}}
		if r.IntN(3) == 0 {
			e.ID = replication.EdgeID(fmt.Sprint("e", r.IntN(5)))
		}
		n := &replication.Node{ID: id(), Labels: []string{"B", "A"}, Properties: map[string]any{"v": r.Float64()}}
		var err error
		switch r.IntN(8) {
		case 0:
			err = s.CreateNode(n)
		case 1:
			err = s.UpdateNode(n)
		case 2:
			err = s.DeleteNode(n.ID)
		case 3, 4:
			err = s.CreateEdge(e)
		case 5:
			err = s.UpdateEdge(e)
		case 6:
			err = s.DeleteEdge(e.StartNode, e.EndNode, e.Type)
		default:
			err = s.SetProperty(n.ID, "v", r.IntN(2))
		}
		if err != nil {
			_, verdict := replication.Verdict(err)
			require.True(t, verdict, "%v", err)
		}
	}
	check(t, s)
	first, err := s.Stats()
	require.NoError(t, err)

	snap, err := s.Snapshot()
	require.NoError(t, err)
	require.NoError(t, s.DeleteNode(firstNode(t, s))) // goes on while the snapshot is written
	var buf bytes.Buffer
	_, err = snap.WriteTo(&buf)
	require.NoError(t, err)
	other := temp(t)
	require.NoError(t, other.Restore(bytes.NewReader(buf.Bytes())))
	st, err := other.Stats()
	require.NoError(t, err)
	require.Equal(t, first, st)
	check(t, other)
	require.NoError(t, s.Restore(bytes.NewReader(buf.Bytes())), "over the file that the snapshot still reads")
	snap.Release()
	snap.Release()
	check(t, s)
	for cut := 0; cut < buf.Len(); cut += 1 + buf.Len()/50 {
		require.Error(t, other.Restore(bytes.NewReader(buf.Bytes()[:cut])))
	}
	st, err = other.Stats()
	require.NoError(t, err)
	require.Equal(t, first, st, "a failed restore changes nothing")
}

func firstNode(t *testing.T, s *Store) (id replication.NodeID) {
	t.Helper()
	_, err := s.Walk(func(n *replication.Node) error { id = n.ID; return nil }, func(*replication.Edge) error { return nil })
	require.NoError(t, err)
	return id
}

func TestNumbersKeepTheirTypes(t *testing.T) {
	s := temp(t)
	require.NoError(t, replication.Dispatch(s, &replication.Command{Type: replication.CmdCreateNode,
		Data: []byte(`{"id":"a","properties":{"i":9007199254740993,"f":3.0,"n":null}}`)}))
	n, err := s.Node("a")
	require.NoError(t, err)
	require.Equal(t, map[string]any{"i": int64(9007199254740993), "f": 3.0}, n.Properties)
}

func TestFilesThatAreNotOurs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "g.db")
	s := open(t, path)
	_, err := Open(path)
	require.ErrorIs(t, err, replication.ErrLocked)
	require.NoError(t, s.update(func(t *tx) error { return nil }))
	require.NoError(t, s.Close())
	garbage := filepath.Join(dir, "garbage")
	require.NoError(t, os.WriteFile(garbage, bytes.Repeat([]byte("no"), 5000), 0o600))
	_, err = Open(garbage)
	require.Error(t, err)
	require.NoError(t, os.WriteFile(path+restoreSuffix, []byte("left by a crash"), 0o600))
	s = open(t, path)
	require.NoFileExists(t, path+restoreSuffix)
	require.NoError(t, s.Close())
}

func TestRollbackLeavesNoTrace(t *testing.T) {
	s := temp(t)
	require.Error(t, s.Update(func(tx replication.Tx) error {
		require.NoError(t, tx.CreateNode(&replication.Node{ID: "a"}))
		require.NoError(t, tx.SetMeta([]byte("k"), []byte("v")))
		require.NoError(t, tx.SetWALPosition(5))
		return os.ErrClosed
	}))
	st, err := s.Stats()
	require.NoError(t, err)
	require.Equal(t, (&tx{}).stats(), st)
}

func TestOverlongIDIsAVerdict(t *testing.T) {
	s := temp(t)
	long := replication.NodeID(bytes.Repeat([]byte("x"), MaxIDBytes+1))
	require.ErrorIs(t, s.CreateNode(&replication.Node{ID: long}), replication.ErrInvalidCommand)
}

func FuzzRestore(f *testing.F) {
	s := temp(f)
	require.NoError(f, s.CreateNode(&replication.Node{ID: "a"}))
	snap, err := s.Snapshot()
	require.NoError(f, err)
	var buf bytes.Buffer
	_, err = snap.WriteTo(&buf)
	require.NoError(f, err)
	snap.Release()
	f.Add(buf.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		target := temp(t)
		if err := target.Restore(bytes.NewReader(data)); err == nil {
			check(t, target)
		}
	})
}
