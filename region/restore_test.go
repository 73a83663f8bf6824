package region

import (
	"bytes"
	"io"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm"
	"github.com/stretchr/testify/require"
)

// TestARestoreThatCannotBeReadIsNone: a snapshot is in the Storage, and then the
// Storage fails to tell what is in it. What this node knows is of before, and
// hashicorp/raft goes on after a failed restore: an entry that is sent instead must
// not be applied to what holds it already.
func TestARestoreThatCannotBeReadIsNone(t *testing.T) {
	sc, start := everything(t)
	snap, err := fsm.TakeSnapshot(sc.last.storage(), sc.last.applier)
	require.NoError(t, err)
	defer snap.Release()
	var data bytes.Buffer
	require.NoError(t, snap.Write(&data))
	restored := false
	for n := 0; !restored; n++ {
		store := &faultyStore{MemStore: start.Clone(), kind: failsPlainly, left: -1}
		m, err := newMachine(store)
		require.NoError(t, err)
		a, err := replication.NewStorageApplier(m.storage())
		require.NoError(t, err)
		f := fsm.New(m.storage(), a, fsm.Options{})
		store.left = n
		if err = f.Restore(io.NopCloser(bytes.NewReader(data.Bytes()))); err == nil {
			restored = store.left >= 0
		} else {
			require.ErrorIs(t, err, errDisk)
			entry, err := fsm.EncodeEntry(sc.entries[0].Groups)
			require.NoError(t, err)
			answer := f.Apply(&raft.Log{Index: sc.entries[0].Position, Term: 1, Type: raft.LogCommand, Data: entry}).(fsm.Response)
			require.ErrorIs(t, answer.Err, replication.ErrUnknownOutcome)
			require.NoError(t, f.Restore(io.NopCloser(bytes.NewReader(data.Bytes()))), "the next one makes it whole")
		}
		require.Equal(t, sc.rows, content(t, store.MemStore))
		is, _ := m.now()
		want, _ := sc.last.now()
		require.Equal(t, jsonBody(&want.head), jsonBody(&is.head))
		require.NoError(t, a.Failure())
	}
}
