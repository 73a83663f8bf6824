package fsm

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/stretchr/testify/require"
)

// halfStore is a store whose restore, while it is told to, fails and leaves a
// half behind, as Storage allows; its Update does not know.
type halfStore struct {
	*boltgraph.Store
	failing, half bool
}

func (h *halfStore) GetWALPosition() (uint64, error) {
	if h.half {
		return 0, replication.ErrRestoreIncomplete
	}
	return h.Store.GetWALPosition()
}

func (h *halfStore) Restore(r io.Reader) error {
	if h.failing {
		h.half = true
		return errors.New("disk full")
	}
	h.half = false
	return h.Store.Restore(r)
}

// TestNothingIsAppliedAfterARestoreThatLeftAHalf: hashicorp/raft goes on after
// a failed restore, and another leader may send entries instead of a snapshot.
func TestNothingIsAppliedAfterARestoreThatLeftAHalf(t *testing.T) {
	s := &halfStore{Store: openStore(t), failing: true}
	f, a := newFSM(t, s)
	data := snapshotOf(t, "h")
	require.Error(t, f.Restore(io.NopCloser(bytes.NewReader(data))))
	response := f.Apply(logOf(t, 20, create("later"))).(Response)
	require.ErrorIs(t, response.Err, replication.ErrUnknownOutcome)
	_, err := f.Snapshot()
	require.Error(t, err, "a half is no snapshot")
	_, err = s.Node("later")
	require.ErrorIs(t, err, replication.ErrNotFound, "applied to half a graph")

	s.failing = false
	require.NoError(t, f.Restore(io.NopCloser(bytes.NewReader(data))), "the next restore makes it whole")
	require.NoError(t, a.Failure())
	require.NoError(t, f.Apply(logOf(t, 20, create("later"))).(Response).Results[0].Err)
}

// plainStore hides transactions.
type plainStore struct{ replication.Storage }

// TestPlainStorageRemembersAfterRestartWhatItRememberedBefore: effects that were
// stale when they came were not applied, and their request is still to come. A
// node that takes them for applied, after a restart, passes over what the others
// apply.
func TestPlainStorageRemembersAfterRestartWhatItRememberedBefore(t *testing.T) {
	entry := func(index, validAt uint64) *raft.Log {
		g := replication.NewGroup(create("drawn"))
		g.RequestID, g.Hash, g.Conditional, g.ValidAt = "query", [16]byte{1}, true, validAt
		data, err := EncodeEntry([]replication.Group{g})
		require.NoError(t, err)
		return &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: data}
	}
	logs := []*raft.Log{logOf(t, 2, create("a")), logOf(t, 3, create("b")), entry(4, 2) /* stale */, entry(5, 4)}
	stays, restarts := openStore(t), openStore(t)
	f, _ := newFSM(t, plainStore{stays})
	for _, l := range logs {
		f.Apply(l)
	}
	g, _ := newFSM(t, plainStore{restarts})
	for _, l := range logs[:3] {
		g.Apply(l)
	}
	g, a := newFSM(t, plainStore{restarts}) // as after a restart: the whole log comes again
	require.Equal(t, uint64(4), a.Position())
	g.ApplyBatch(logs)
	want, err := stays.Stats()
	require.NoError(t, err)
	require.Equal(t, uint64(3), want.Nodes)
	have, err := restarts.Stats()
	require.NoError(t, err)
	require.Equal(t, want, have, "the replicas differ")

	// What was applied is remembered: the retry does nothing on either.
	retry := entry(6, 5)
	for _, m := range []*FSM{f, g} {
		m.Apply(retry)
	}
	want, err = stays.Stats()
	require.NoError(t, err)
	have, err = restarts.Stats()
	require.NoError(t, err)
	require.Equal(t, want, have)
	require.Equal(t, uint64(3), want.Nodes)
}

// TestDecodingALargeEntryCostsNoMultipleOfItsSquare: every node decodes every
// entry before it applies anything behind it.
func TestDecodingALargeEntryCostsNoMultipleOfItsSquare(t *testing.T) {
	const size = 4 << 20
	entry := logOf(t, 1, &replication.Command{Type: replication.CmdEmbedder, Data: make([]byte, size)})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := DecodeEntry(entry.Data)
	require.NoError(t, err)
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(64*size))
}
