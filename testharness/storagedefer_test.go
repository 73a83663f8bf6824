package testharness

import (
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// TestCrashTakesBackWhatWasDeferred, and nothing that was flushed, in whatever
// way.
func TestCrashTakesBackWhatWasDeferred(t *testing.T) {
	var apps Applications
	store, disk := NewMemStore(), NewDisk(1)
	apps.Watch("n", store)
	volume := disk.NewStorage(store)
	var s replication.DeferringStorage
	reopen := func() uint64 {
		var err error
		s, err = volume.OpenDeferring()
		require.NoError(t, err)
		p, err := s.GetWALPosition()
		require.NoError(t, err)
		return p
	}
	apply := func(from, to uint64) {
		for p := from; p <= to; p++ {
			require.NoError(t, s.Update(func(tx replication.Tx) error {
				cmd, err := replication.NewNodeCommand(replication.CmdUpdateNode, &replication.Node{ID: "x"})
				require.NoError(t, err)
				cmd.RequestID = string(rune('a' + p))
				if err := tx.ApplyCommand(cmd); err != nil {
					_, verdict := replication.Verdict(err)
					require.True(t, verdict, err)
				}
				return tx.SetWALPosition(p)
			}))
		}
	}
	reopen()
	apply(1, 3)
	require.NoError(t, disk.Crash())
	require.Equal(t, uint64(3), reopen(), "it does not defer unless told to")
	require.NoError(t, s.Defer(true))
	apply(4, 5)
	require.NoError(t, s.Flush())
	apply(6, 8)
	require.NoError(t, disk.Crash())
	require.Error(t, s.SetWALPosition(9))
	back := reopen()
	require.Less(t, back, uint64(8))
	require.GreaterOrEqual(t, back, uint64(5))
	require.Equal(t, 1, apps.Count("n", string(rune('a'+5))))
	require.Zero(t, apps.Count("n", string(rune('a'+8))))
	require.NoError(t, s.Defer(true))
	apply(back+1, 12)
	require.NoError(t, s.Defer(false))
	apply(13, 13)
	require.NoError(t, disk.Crash())
	require.Equal(t, uint64(13), reopen())
	require.NoError(t, s.Defer(true))
	apply(14, 16)
	disk.SetFaults(DiskFaults{Full: true})
	require.Error(t, s.Flush())
	require.Error(t, s.SetWALPosition(17), "after a failed flush there are no more writes")
	require.Error(t, s.Defer(false))
	disk.SetFaults(DiskFaults{})
	require.Less(t, reopen(), uint64(16), "a process that is started anew finds what was flushed")
	require.NoError(t, apps.Check())
}
