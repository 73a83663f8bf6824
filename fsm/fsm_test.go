package fsm

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openStore(t testing.TB) *boltgraph.Store {
	t.Helper()
	s, err := boltgraph.Open(filepath.Join(t.TempDir(), "graph.db"), boltgraph.WithNoSync())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func newFSM(t testing.TB, s replication.Storage) (*FSM, *replication.StorageApplier) {
	t.Helper()
	a, err := replication.NewStorageApplier(s)
	require.NoError(t, err)
	return New(s, a, Options{}), a
}

func create(id string) *replication.Command {
	return &replication.Command{Type: replication.CmdCreateNode, Data: []byte(fmt.Sprintf(`{"id":%q}`, id))}
}

func logOf(t testing.TB, index uint64, cmds ...*replication.Command) *raft.Log {
	t.Helper()
	data, err := EncodeEntry([]replication.Group{replication.NewGroup(cmds...)})
	require.NoError(t, err)
	return &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: data}
}

func TestEntryEncodingIsStable(t *testing.T) {
	cmd := create("a")
	cmd.RequestID, cmd.Timestamp = "r", time.Unix(1, 5).UTC()
	g := replication.NewGroup(cmd)
	g.Conditional, g.ValidAt = true, 7
	data, err := EncodeEntry([]replication.Group{g})
	require.NoError(t, err)
	// Version 1 as it was first written: it stays readable.
	const golden = "01fad3f4469195a172c0c307919401c40a7b226964223a2261227dd23b9aca05c3"
	require.Equal(t, golden, hex.EncodeToString(data))
	back, err := DecodeEntry(data)
	require.NoError(t, err)
	require.Equal(t, []replication.Group{g}, back)
	require.LessOrEqual(t, len(data), EncodedSize([]replication.Group{g})+entryHeaderLen)
	for i := range data {
		flipped := bytes.Clone(data)
		flipped[i] ^= 1
		_, err := DecodeEntry(flipped)
		require.ErrorIs(t, err, ErrCorruptEntry, "byte %d", i)
	}
}

func TestRestartReplaysOnlyWhatStorageLacks(t *testing.T) {
	s := openStore(t)
	f, _ := newFSM(t, s)
	logs := []*raft.Log{logOf(t, 2, create("a")), {Index: 3, Type: raft.LogConfiguration}, logOf(t, 4, create("b"))}
	for _, r := range f.ApplyBatch(logs) {
		if r != nil {
			require.NoError(t, r.(Response).Results[0].Err)
		}
	}
	g, a := newFSM(t, s)
	require.Equal(t, uint64(4), a.Position())
	responses := g.ApplyBatch(append(logs, logOf(t, 5, create("c"))))
	require.NoError(t, responses[3].(Response).Results[0].Err)
	st, err := s.Stats()
	require.NoError(t, err)
	require.Equal(t, uint64(3), st.Nodes)
}

func TestUnreadableEntryIsAStorageFailure(t *testing.T) {
	f, a := newFSM(t, openStore(t))
	bad := logOf(t, 3, create("b"))
	bad.Data[0] = 9
	responses := f.ApplyBatch([]*raft.Log{logOf(t, 2, create("a")), bad, logOf(t, 4, create("c"))})
	require.NoError(t, responses[0].(Response).Results[0].Err)
	for _, r := range responses[1:] {
		require.ErrorIs(t, r.(Response).Err, replication.ErrUnknownOutcome)
	}
	require.ErrorIs(t, a.Failure(), ErrCorruptEntry)
	_, err := f.Snapshot()
	require.ErrorIs(t, err, replication.ErrStorageFailed, "a snapshot now would cut the log above what is applied")
}

// snapshotOf returns a snapshot of a store with some content.
func snapshotOf(t testing.TB, history string) []byte {
	t.Helper()
	f, a := newFSM(t, openStore(t))
	require.NoError(t, a.Found(replication.Identity{History: history, Base: 1}))
	var cmds []*replication.Command
	for i := range 300 {
		cmds = append(cmds, create(fmt.Sprint("n", i)))
	}
	cmds[0].RequestID = "r"
	f.Apply(logOf(t, 9, cmds...))
	snap, err := f.Snapshot()
	require.NoError(t, err)
	defer snap.Release()
	var buf bytes.Buffer
	require.NoError(t, snap.(*Snapshot).Write(&buf))
	return buf.Bytes()
}

func TestRestoreIsAllOrNothing(t *testing.T) {
	data := snapshotOf(t, "h")
	s := openStore(t)
	f, a := newFSM(t, s)
	for cut := 0; cut < len(data); cut += 1 + len(data)/60 {
		require.Error(t, f.Restore(io.NopCloser(bytes.NewReader(data[:cut]))), "cut at %d", cut)
		flipped := bytes.Clone(data)
		flipped[cut] ^= 8
		require.Error(t, f.Restore(io.NopCloser(bytes.NewReader(flipped))), "flipped at %d", cut)
		require.Zero(t, a.Position())
	}
	require.NoError(t, f.Restore(io.NopCloser(bytes.NewReader(data))))
	require.Equal(t, uint64(9), a.Position())
	require.Equal(t, "h", a.Identity().History)
	st, err := s.Stats()
	require.NoError(t, err)
	require.Equal(t, uint64(300), st.Nodes)

	other := f.Restore(io.NopCloser(bytes.NewReader(snapshotOf(t, "foreign"))))
	require.ErrorIs(t, other, replication.ErrForeignHistory)
	f.Apply(logOf(t, 10, create("later")))
	require.NoError(t, f.Restore(io.NopCloser(bytes.NewReader(data))))
	require.Equal(t, uint64(10), a.Position(), "a snapshot with nothing new does not set the position back")
}

func FuzzDecodeEntry(f *testing.F) {
	f.Add(logOf(f, 1, create("a")).Data, true)
	f.Fuzz(func(t *testing.T, data []byte, fix bool) {
		if fix && len(data) >= entryHeaderLen { // reach the decoder behind the checksum
			data = bytes.Clone(data)
			data[0] = entryVersion1
			sum := entryChecksum(data)
			data[1], data[2], data[3], data[4] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
		}
		groups, err := DecodeEntry(data)
		if err != nil {
			require.True(t, errors.Is(err, ErrCorruptEntry))
			return
		}
		_, err = EncodeEntry(groups)
		require.NoError(t, err)
	})
}

func FuzzReadSnapshot(f *testing.F) {
	f.Add(snapshotOf(f, "h"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, body, err := ReadHeader(bytes.NewReader(data))
		if err == nil {
			_ = body.drain()
		}
	})
}
