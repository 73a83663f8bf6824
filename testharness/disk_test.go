package testharness_test

import (
	"fmt"
	"maps"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication/internal/bubble"
	th "github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func entry(index, term uint64) *raft.Log {
	return &raft.Log{Index: index, Term: term, Data: fmt.Appendf(nil, "%d/%d", index, term)}
}

func entries(from, to, term uint64) (logs []*raft.Log) {
	for i := from; i <= to; i++ {
		logs = append(logs, entry(i, term))
	}
	return logs
}

// content is every entry of a log store, by index, and checks its bounds.
func content(t require.TestingT, s *th.LogStore) map[uint64]string {
	first, err := s.FirstIndex()
	require.NoError(t, err)
	last, err := s.LastIndex()
	require.NoError(t, err)
	got := make(map[uint64]string)
	for i := first; i <= last && i > 0; i++ {
		var l raft.Log
		if s.GetLog(i, &l) == nil {
			require.Equal(t, i, l.Index)
			got[i] = string(l.Data)
		}
	}
	if len(got) > 0 {
		require.Contains(t, got, first)
		require.Contains(t, got, last)
	} else {
		require.Zero(t, first+last)
	}
	return got
}

// TestLogStoreKeepsWhatItReturnedFor compares a log store with a map, over any
// calls and crashes in the middle of any of them.
func TestLogStoreKeepsWhatItReturnedFor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := th.NewDisk(rapid.Uint64().Draw(t, "seed"))
		s := d.OpenLog()
		model, vote := make(map[uint64]string), uint64(0)
		for range rapid.IntRange(1, 30).Draw(t, "calls") {
			crashes := rapid.IntRange(0, 4).Draw(t, "crash") == 0
			if crashes {
				d.CrashAt(1, nil)
			}
			var possible []map[uint64]string // after a crash, one of these
			var votes []uint64
			var err error
			switch rapid.IntRange(0, 2).Draw(t, "call") {
			case 0:
				from := rapid.Uint64Range(1, 20).Draw(t, "from")
				logs := entries(from, from+rapid.Uint64Range(0, 5).Draw(t, "more"), rapid.Uint64Range(1, 9).Draw(t, "term"))
				err = s.StoreLogs(logs)
				for _, l := range logs {
					possible = append(possible, maps.Clone(model))
					model[l.Index] = string(l.Data)
				}
			case 1:
				from := rapid.Uint64Range(1, 20).Draw(t, "from")
				to := from + rapid.Uint64Range(0, 20).Draw(t, "more")
				err = s.DeleteRange(from, to)
				possible = append(possible, maps.Clone(model))
				maps.DeleteFunc(model, func(i uint64, _ string) bool { return i >= from && i <= to })
			case 2:
				votes = append(votes, vote)
				vote = rapid.Uint64().Draw(t, "vote")
				err = s.SetUint64([]byte("vote"), vote)
			}
			if !crashes {
				require.NoError(t, err)
			} else {
				if votes == nil {
					require.ErrorIs(t, err, th.ErrCrashed)
				}
				s = d.OpenLog()
				got := content(t, s)
				require.Contains(t, append(possible, model), got)
				model = got
				was, err := s.GetUint64([]byte("vote"))
				require.NoError(t, err)
				require.Contains(t, append(votes, vote), was)
				vote = was
			}
			require.Equal(t, model, content(t, s))
		}
	})
}

func TestBatchCutShortByACrashLeavesEachPrefix(t *testing.T) {
	seen := make(map[int]bool)
	for seed := range uint64(50) {
		var sizes []int
		for range 2 { // the same seed does the same
			d := th.NewDisk(seed)
			d.CrashAt(1, nil)
			require.ErrorIs(t, d.OpenLog().StoreLogs(entries(1, 3, 1)), th.ErrCrashed)
			sizes = append(sizes, len(content(t, d.OpenLog())))
		}
		require.Equal(t, sizes[0], sizes[1])
		seen[sizes[0]] = true
	}
	require.Len(t, seen, 4)
}

func TestOldIncarnationIsDeadAndChangesNothing(t *testing.T) {
	d := th.NewDisk(1)
	old := d.OpenLog()
	require.NoError(t, old.StoreLogs(entries(1, 3, 1)))
	require.NoError(t, old.SetUint64([]byte("term"), 1))
	require.NoError(t, d.Crash())
	require.Equal(t, 1, d.Incarnation())
	require.ErrorIs(t, old.StoreLog(entry(4, 1)), th.ErrCrashed)
	require.ErrorIs(t, old.DeleteRange(1, 3), th.ErrCrashed)
	require.NoError(t, old.SetUint64([]byte("term"), 2), "hashicorp/raft would panic")
	term, err := old.GetUint64([]byte("term"))
	require.NoError(t, err)
	require.Equal(t, uint64(2), term)
	s := d.OpenLog()
	term, err = s.GetUint64([]byte("term"))
	require.NoError(t, err)
	require.Equal(t, uint64(1), term)
	require.NoError(t, s.StoreLog(entry(4, 2)))
	require.Len(t, content(t, old), 3)
	require.Len(t, content(t, s), 4)
}

func TestStoreKeepsItsOwnCopies(t *testing.T) {
	s := th.NewDisk(1).OpenLog()
	l := entry(1, 1)
	require.NoError(t, s.StoreLog(l))
	l.Data[0] = 'x'
	var got raft.Log
	require.NoError(t, s.GetLog(1, &got))
	got.Data[0] = 'y'
	require.Equal(t, map[uint64]string{1: "1/1"}, content(t, s))
	require.ErrorIs(t, s.GetLog(2, &got), raft.ErrLogNotFound)
}

func TestHungDiskWaitsForReleaseOrCrash(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		d := th.NewDisk(1)
		s := d.OpenLog()
		for name, end := range map[string]func(){"release": d.Release, "crash": func() { require.NoError(t, d.Crash()) }} {
			d.Hang()
			done := make(chan error, 1)
			go func() { done <- s.StoreLog(entry(7, 1)) }()
			virtual(time.Hour)
			synctest.Wait()
			require.Empty(t, done, name)
			end()
			if err := <-done; name == "crash" {
				require.ErrorIs(t, err, th.ErrCrashed)
			} else {
				require.NoError(t, err)
			}
			s = d.OpenLog()
		}
	})
}

func TestDiskTakesItsTime(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		d := th.NewDisk(1)
		s := d.OpenLog()
		d.SetFaults(th.DiskFaults{SyncLatency: time.Second, SyncJitter: time.Second})
		start := time.Now()
		require.NoError(t, s.StoreLogs(entries(1, 3, 1)))
		require.GreaterOrEqual(t, time.Since(start), time.Second)
		require.LessOrEqual(t, time.Since(start), 2*time.Second)
		done := make(chan error, 1)
		start = time.Now()
		go func() { done <- s.StoreLogs(entries(4, 6, 1)) }()
		virtual(time.Second / 2)
		require.NoError(t, d.Crash())
		require.ErrorIs(t, <-done, th.ErrCrashed)
		require.Equal(t, time.Second/2, time.Since(start), "a crash ends the wait")
	})
}

func TestFailingAndFullDisksChangeNothing(t *testing.T) {
	d := th.NewDisk(1)
	var events []string
	d.SetLog(func(e th.DiskEvent) { events = append(events, e.Kind) })
	s := d.OpenLog()
	require.NoError(t, s.StoreLogs(entries(1, 3, 1)))
	for want, f := range map[error]th.DiskFaults{syscall.EIO: {Fail: 1}, syscall.ENOSPC: {Full: true}} {
		d.SetFaults(f)
		require.ErrorIs(t, s.StoreLogs(entries(4, 6, 1)), want)
		require.ErrorIs(t, s.DeleteRange(1, 2), want)
		require.NoError(t, s.SetUint64([]byte("term"), 1), "spared, for hashicorp/raft panics")
		f.Stable = true
		d.SetFaults(f)
		require.ErrorIs(t, s.SetUint64([]byte("term"), 2), want)
		require.Len(t, content(t, s), 3)
	}
	require.ElementsMatch(t, []string{"fail", "fail", "fail", "full", "full", "full"}, events)

	d.SetFaults(th.DiskFaults{CapacityBytes: 12}) // four entries of three bytes
	require.NoError(t, s.StoreLog(entry(4, 1)))
	require.ErrorIs(t, s.StoreLog(entry(5, 1)), syscall.ENOSPC)
	require.NoError(t, s.DeleteRange(1, 2))
	require.NoError(t, s.StoreLog(entry(5, 1)), "compaction makes room")
}

func TestLyingDiskForgets(t *testing.T) {
	d := th.NewDisk(1)
	s := d.OpenLog()
	require.NoError(t, s.StoreLogs(entries(1, 2, 1)))
	require.NoError(t, d.Lie(0))
	require.NoError(t, s.StoreLogs(entries(3, 4, 1)))
	require.NoError(t, s.SetUint64([]byte("term"), 5))
	require.Len(t, content(t, s), 4)
	require.NoError(t, d.Crash())
	s = d.OpenLog()
	require.Equal(t, map[uint64]string{1: "1/1", 2: "2/1"}, content(t, s))
	term, err := s.GetUint64([]byte("term"))
	require.NoError(t, err)
	require.Zero(t, term)

	require.NoError(t, d.Lie(1)) // lies, and does what it says it did
	require.NoError(t, s.StoreLogs(entries(3, 4, 1)))
	require.NoError(t, d.Crash())
	require.Len(t, content(t, d.OpenLog()), 4)
	d.Honest()
	require.NoError(t, d.OpenLog().StoreLog(entry(5, 1)))
	require.NoError(t, d.Crash())
	require.Len(t, content(t, d.OpenLog()), 5)
}

func TestPlannedCrashIsToldBeforeTheWriteReturns(t *testing.T) {
	d := th.NewDisk(1)
	s := d.OpenLog()
	told := 0
	d.CrashAt(3, func() { told++; require.Equal(t, 1, d.Incarnation()) })
	require.NoError(t, s.StoreLog(entry(1, 1)))
	require.NoError(t, s.StoreLog(entry(2, 1)))
	require.Zero(t, told)
	require.ErrorIs(t, s.StoreLog(entry(3, 1)), th.ErrCrashed)
	require.Equal(t, 1, told)
	require.NoError(t, d.OpenLog().StoreLog(entry(4, 1)))
}
