package testharness_test

import (
	"io"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication/internal/bubble"
	th "github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// begin begins a snapshot; it is complete when the sink is closed.
func begin(t *testing.T, s *th.SnapshotStore, index, term uint64, data string) raft.SnapshotSink {
	t.Helper()
	sink, err := s.Create(1, index, term, raft.Configuration{Servers: []raft.Server{{ID: "n1"}}}, index-1, nil)
	require.NoError(t, err)
	_, err = io.WriteString(sink, data)
	require.NoError(t, err)
	return sink
}

// snapshots are the contents of a store, in its order.
func snapshots(t *testing.T, s *th.SnapshotStore) (got []string) {
	t.Helper()
	list, err := s.List()
	require.NoError(t, err)
	for _, m := range list {
		meta, r, err := s.Open(m.ID)
		require.NoError(t, err)
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		require.NoError(t, r.Close())
		require.Equal(t, m, meta)
		require.Equal(t, int64(len(data)), meta.Size)
		require.Equal(t, meta.Index-1, meta.ConfigurationIndex)
		require.Equal(t, raft.ServerID("n1"), meta.Configuration.Servers[0].ID)
		got = append(got, string(data))
	}
	return got
}

func TestSnapshotStoreKeepsTheNewest(t *testing.T) {
	s := th.NewDisk(1).OpenSnapshots(2)
	require.Empty(t, snapshots(t, s))
	require.NoError(t, begin(t, s, 5, 2, "a").Close())
	require.NoError(t, begin(t, s, 9, 1, "an older term").Close())
	require.Equal(t, []string{"a", "an older term"}, snapshots(t, s))
	cancelled := begin(t, s, 8, 2, "cancelled")
	require.NoError(t, cancelled.Cancel())
	require.NoError(t, cancelled.Close())
	require.NoError(t, begin(t, s, 7, 2, "b").Close())
	require.Equal(t, []string{"b", "a"}, snapshots(t, s))
	require.NoError(t, begin(t, s, 7, 2, "b again").Close())
	require.Equal(t, []string{"b again", "b"}, snapshots(t, s))
	_, _, err := s.Open("1-9-2")
	require.Error(t, err, "it is no more")
}

func TestSnapshotIsThereWhenCloseHasReturned(t *testing.T) {
	seen := make(map[int]bool)
	for seed := range uint64(30) {
		d := th.NewDisk(seed)
		s := d.OpenSnapshots(3)
		require.NoError(t, begin(t, s, 1, 1, "a").Close())
		sink := begin(t, s, 2, 1, "b")
		d.CrashAt(1, nil)
		require.ErrorIs(t, sink.Close(), th.ErrCrashed)
		left := snapshots(t, d.OpenSnapshots(3))
		require.Equal(t, "a", left[len(left)-1])
		seen[len(left)] = true
	}
	require.Len(t, seen, 2, "a crash within leaves it, or does not")

	d := th.NewDisk(1)
	s := d.OpenSnapshots(3)
	late := begin(t, s, 2, 1, "late")
	require.NoError(t, d.Crash())
	require.ErrorIs(t, late.Close(), th.ErrCrashed)
	_, err := s.List()
	require.ErrorIs(t, err, th.ErrCrashed)
	_, _, err = s.Open("1-1-1")
	require.ErrorIs(t, err, th.ErrCrashed)
	_, err = s.Create(1, 3, 1, raft.Configuration{}, 1, nil)
	require.ErrorIs(t, err, th.ErrCrashed)
	require.Empty(t, snapshots(t, d.OpenSnapshots(3)))
}

func TestSnapshotMeetsTheDisksFaults(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		d := th.NewDisk(1)
		s := d.OpenSnapshots(3)
		for want, f := range map[error]th.DiskFaults{syscall.EIO: {Fail: 1}, syscall.ENOSPC: {Full: true}} {
			d.SetFaults(f)
			require.ErrorIs(t, begin(t, s, 1, 1, "a").Close(), want)
			require.Empty(t, snapshots(t, s))
		}
		d.SetFaults(th.DiskFaults{})
		d.Hang()
		done := make(chan error, 1)
		sink := begin(t, s, 1, 1, "a")
		go func() { done <- sink.Close() }()
		virtual(time.Hour)
		synctest.Wait()
		require.Empty(t, done)
		d.Release()
		require.NoError(t, <-done)
		require.NoError(t, d.Lie(0))
		require.NoError(t, begin(t, s, 2, 1, "b").Close())
		require.NoError(t, d.Crash())
		require.Equal(t, []string{"b", "a"}, snapshots(t, d.OpenSnapshots(3)), "a lie spares them")
	})
}
