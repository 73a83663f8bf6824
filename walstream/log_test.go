package walstream

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func appendN(t testing.TB, l *Log, e replication.Epoch, n int) {
	t.Helper()
	for range n {
		_, err := l.Propose(e, time.Unix(7, 0), group(int(l.Last().Position)+1))
		require.NoError(t, err)
	}
	require.NoError(t, l.Sync(t.Context()))
}

func TestLogSurvivesRestart(t *testing.T) {
	store, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(t.TempDir(), "wal.db")})
	require.NoError(t, err)
	defer store.Close()
	base := Mark{41, epoch(1, "z")}
	l := openLog(t, store, LogOptions{Base: base})
	require.Equal(t, base, l.Last())
	p, err := l.Append(t.Context(), epoch(2, "a"), time.Unix(9, 1), group(1))
	require.NoError(t, err)
	require.EqualValues(t, 42, p, "a log founded at P begins at P+1")
	appendN(t, l, epoch(3, "b"), 3)
	before, err := l.Read(41, 10, 1<<20)
	require.NoError(t, err)
	require.NoError(t, l.Close())

	l = openLog(t, store, LogOptions{Base: base})
	require.Equal(t, Mark{45, epoch(3, "b")}, l.Durable())
	after, err := l.Read(41, 10, 1<<20)
	require.NoError(t, err)
	require.Len(t, after, 4)
	for i := range after {
		require.Equal(t, before[i].Checksum, after[i].Checksum)
		require.Equal(t, before[i].Group, after[i].Group)
		require.True(t, before[i].Timestamp.Equal(after[i].Timestamp))
		require.Equal(t, before[i].Epoch, after[i].Epoch)
	}
	_, err = l.Propose(epoch(2, "z"), time.Now(), group(9))
	require.ErrorIs(t, err, replication.ErrNotLeader, "epochs do not go back")
}

// Callers that come while a sync runs share the next one, and see their entry in
// the log before it is durable.
func TestGroupCommit(t *testing.T) {
	store := newCrashStore()
	store.gate, store.entered = make(chan struct{}), make(chan struct{}, 16)
	l := openLog(t, store, LogOptions{})
	const callers = 100
	var wg sync.WaitGroup
	start := func(n int) {
		for range n {
			wg.Go(func() {
				p, err := l.Append(context.Background(), e1, time.Now(), group(1))
				require.NoError(t, err)
				require.GreaterOrEqual(t, l.Durable().Position, p, "Append returned before the entry was durable")
			})
		}
	}
	start(1)
	<-store.entered
	start(callers)
	require.NoError(t, l.Wait(t.Context(), callers))
	require.Zero(t, l.Durable().Position)
	entries, err := l.Read(0, 1000, 1<<20)
	require.NoError(t, err)
	require.Len(t, entries, callers+1, "readers get entries while their sync runs")
	require.EqualValues(t, 1, LogSource{Log: l}.Last(), "a stream sends what a sync takes, when it begins")
	close(store.gate)
	wg.Wait()
	require.Equal(t, 2, store.calls, "one sync for the first, one for all others")
	require.EqualValues(t, callers+1, LogSource{Log: l}.Last())
}

func TestFailedSyncEndsTheLog(t *testing.T) {
	store := newCrashStore()
	store.fail = errDisk
	told := make(chan error, 2)
	l := openLog(t, store, LogOptions{OnFailure: func(err error) { told <- err }})
	_, err := l.Append(t.Context(), e1, time.Now(), group(1))
	require.ErrorIs(t, err, replication.ErrUnknownOutcome)
	require.ErrorIs(t, err, errDisk)
	require.ErrorIs(t, <-told, ErrFailed)
	store.mu.Lock()
	store.fail = nil
	store.mu.Unlock()
	_, err = l.Append(t.Context(), e1, time.Now(), group(2))
	require.ErrorIs(t, err, ErrFailed, "the error sticks")
	require.NotErrorIs(t, err, replication.ErrUnknownOutcome)
	require.ErrorIs(t, l.Close(), errDisk)
	require.Empty(t, told)
}

func TestAppendGivesUpWithoutAHole(t *testing.T) {
	store := newCrashStore()
	store.gate = make(chan struct{})
	l := openLog(t, store, LogOptions{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p, err := l.Append(ctx, e1, time.Now(), group(1))
	require.ErrorIs(t, err, replication.ErrUnknownOutcome)
	require.EqualValues(t, 1, p)
	close(store.gate)
	p, err = l.Append(t.Context(), e1, time.Now(), group(2))
	require.NoError(t, err)
	require.EqualValues(t, 2, p)
	require.Equal(t, []uint64{1, 2}, store.positions())
}

func TestPendingIsBounded(t *testing.T) {
	store := newCrashStore()
	store.gate, store.entered = make(chan struct{}), make(chan struct{}, 16)
	l := openLog(t, store, LogOptions{MaxPendingEntries: 3, CacheEntries: 2})
	for i := range 3 {
		_, err := l.Propose(e1, time.Now(), group(i))
		require.NoError(t, err)
	}
	_, err := l.Propose(e1, time.Now(), group(4))
	require.ErrorIs(t, err, replication.ErrOverloaded)
	close(store.gate)
	require.NoError(t, l.Sync(t.Context()))
	l.mu.Lock()
	cached := len(l.cache)
	l.mu.Unlock()
	require.Equal(t, 2, cached)
	entries, err := l.Read(0, 10, 1<<20)
	require.NoError(t, err)
	require.Len(t, entries, 1, "up to what the cache has")
	one, err := l.Read(0, 10, 1)
	require.NoError(t, err)
	require.Len(t, one, 1, "an entry larger than the limit goes alone")
}

// A crash at any moment leaves a log that opens, without a hole, and with every
// entry that was said to be durable.
func TestCrashAtAnyPoint(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := newCrashStore()
		var acked uint64
		base := Mark{Position: rapid.Uint64Range(0, 5).Draw(t, "base")}
		for range rapid.IntRange(1, 4).Draw(t, "incarnations") {
			store.gate, store.entered = make(chan struct{}), make(chan struct{}, 64)
			l, err := OpenLog(store, LogOptions{Base: base, SyncEntries: 3, blockEntries: rapid.IntRange(1, 3).Draw(t, "block")})
			require.NoError(t, err)
			require.GreaterOrEqual(t, l.Durable().Position, acked, "a durable entry is lost")
			count := rapid.IntRange(0, 10).Draw(t, "entries")
			for i := range count {
				_, err := l.Propose(e1, time.Now(), group(i))
				require.NoError(t, err)
			}
			syncs := rapid.IntRange(0, (count+2)/3).Draw(t, "syncs")
			for range syncs {
				<-store.entered
				before := l.Durable().Position
				store.gate <- struct{}{}
				require.NoError(t, l.WaitDurable(context.Background(), before+1))
			}
			acked = l.Durable().Position
			if l.Last().Position > acked {
				<-store.entered
			}
			crashed := store.crash(rapid.IntRange(0, 3).Draw(t, "kept"))
			close(store.gate)
			require.NoError(t, l.Close())
			store = crashed
		}
		l, err := OpenLog(store, LogOptions{Base: base})
		require.NoError(t, err)
		require.GreaterOrEqual(t, l.Durable().Position, acked)
		require.NoError(t, l.Close())
	})
}

func TestDamagedLogIsRefused(t *testing.T) {
	fill := func() *crashStore {
		store := newCrashStore()
		l := openLog(t, store, LogOptions{blockEntries: 2})
		for i := range 10 {
			_, err := l.Propose(e1, time.Unix(7, 0), group(i))
			require.NoError(t, err)
		}
		require.NoError(t, l.Sync(t.Context()))
		require.NoError(t, l.Close())
		return store
	}
	for name, damage := range map[string]func(s *crashStore){
		"hole":         func(s *crashStore) { delete(s.durable, 3) },
		"flipped bit":  func(s *crashStore) { s.durable[3].Data[blockHeadBytes+9] ^= 1 },
		"in the head":  func(s *crashStore) { s.durable[3].Data[blockHeadBytes-5] ^= 1 },
		"in a length":  func(s *crashStore) { s.durable[3].Data[blockHeadBytes+3] ^= 1 },
		"cut block":    func(s *crashStore) { s.durable[3].Data = s.durable[3].Data[:40] },
		"no head":      func(s *crashStore) { s.durable[3].Data = s.durable[3].Data[:4] },
		"appended":     func(s *crashStore) { s.durable[3].Data = append(s.durable[3].Data, 0) },
		"swapped":      func(s *crashStore) { s.durable[3], s.durable[4] = s.durable[4], s.durable[3] },
		"new version":  func(s *crashStore) { s.durable[3].Data[0] = 9 },
		"below a base": func(*crashStore) {},
		"begins late":  func(s *crashStore) { s.durable[1] = newBlock(1, 3, 1, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			store := fill()
			damage(store)
			base := Mark{}
			if name == "below a base" {
				base.Position = 2
			}
			_, err := OpenLog(store, LogOptions{Base: base})
			require.ErrorIs(t, err, ErrCorrupt)
		})
	}
}

func TestTruncate(t *testing.T) {
	store := newCrashStore()
	l := openLog(t, store, LogOptions{Base: Mark{Position: 2}})
	appendN(t, l, e1, 5)
	appendN(t, l, epoch(2, "b"), 5)
	require.NoError(t, l.Truncate(8))
	require.Equal(t, Mark{8, epoch(2, "b")}, l.Last())
	require.NoError(t, l.Truncate(6))
	require.Equal(t, Mark{6, e1}, l.Last())
	appendN(t, l, epoch(3, "c"), 1)
	entries, err := l.Read(5, 10, 1<<20)
	require.NoError(t, err)
	require.Len(t, entries, 2)
	require.Equal(t, Mark{7, epoch(3, "c")}, entries[1].Mark())
	require.ErrorIs(t, l.Truncate(1), ErrCompacted)
	require.NoError(t, l.Truncate(2))
	require.Equal(t, Mark{Position: 2}, l.Last())
	require.Zero(t, l.Bytes())
	require.NoError(t, l.Close())
	l = openLog(t, store, LogOptions{Base: Mark{Position: 2}})
	require.Equal(t, Mark{Position: 2}, l.Last(), "what was cut does not come back")
	appendN(t, l, e1, 1)
	require.NoError(t, l.Compact(Retention{Applied: 3, Peer: 3}))
	require.Equal(t, []uint64{3}, store.positions(), "the blocks of what was cut are deleted with those before them")
}

// Whatever is cut or compacted, a crash between the steps leaves no hole.
func TestCrashWhileDeleting(t *testing.T) {
	const entries = 3*deleteBlocks + 7
	for name, delete := range map[string]func(*Log) error{
		"reset": func(l *Log) error { return l.Reset(Mark{Position: 5}) },
		"compact": func(l *Log) error {
			return l.Compact(Retention{Applied: entries, Peer: entries - 5, MaxEntries: entries})
		},
	} {
		for crashAt := 1; crashAt <= 3; crashAt++ {
			t.Run(fmt.Sprint(name, crashAt), func(t *testing.T) {
				store := newCrashStore()
				l := openLog(t, store, LogOptions{blockEntries: 1})
				appendN(t, l, e1, entries)
				store.deletes = crashAt
				require.ErrorIs(t, delete(l), errDisk)
				l = openLog(t, store.crash(0), LogOptions{})
				require.NoError(t, delete(l))
			})
		}
	}
}

func TestCompaction(t *testing.T) {
	store := newCrashStore()
	l := openLog(t, store, LogOptions{})
	appendN(t, l, e1, 20)
	require.NoError(t, l.Compact(Retention{Applied: 20, Peer: 8, MaxEntries: 100, MaxBytes: 1 << 30}))
	require.EqualValues(t, 8, l.First(), "the peer's last stays, to check the next batch against")
	_, err := LogSource{l, "h"}.Read(8, 5, 1<<20)
	require.NoError(t, err)
	_, err = l.Read(6, 5, 1<<20)
	require.ErrorIs(t, err, ErrCompacted)
	require.NoError(t, l.Compact(Retention{Applied: 20, Peer: 8, MaxEntries: 5, MaxBytes: 1 << 30}))
	require.EqualValues(t, 16, l.First(), "the cap counts entries")
	require.NoError(t, l.Compact(Retention{Applied: 18, Peer: 8, MaxEntries: 5, MaxBytes: 1}))
	require.EqualValues(t, 18, l.First(), "never past the own Storage")
	require.NoError(t, l.Compact(Retention{Applied: 20, Peer: 20, MaxEntries: 0, MaxBytes: 0}))
	require.EqualValues(t, 20, l.First(), "the last stays")
	require.NoError(t, l.Close())
	l = openLog(t, store, LogOptions{})
	require.Equal(t, Mark{20, e1}, l.Last())
	appendN(t, l, e1, 1)
}

func TestRetentionKeepsItsRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.Uint64Range(1, 100).Draw(t, "first")
		sizes := rapid.SliceOfN(rapid.Uint32Range(1, 50), 0, 40).Draw(t, "sizes")
		var total int64
		for _, s := range sizes {
			total += int64(s)
		}
		r := Retention{
			Applied: rapid.Uint64Range(0, 160).Draw(t, "applied"), Peer: rapid.Uint64Range(0, 160).Draw(t, "peer"),
			MaxEntries: rapid.Uint64Range(0, 50).Draw(t, "max"), MaxBytes: rapid.Int64Range(0, 1000).Draw(t, "bytes"),
			Snapshot: rapid.Uint64Range(0, 160).Draw(t, "snapshot"), SnapshotBytes: rapid.Int64Range(0, 1000).Draw(t, "snapshotBytes"),
		}
		to := r.compactTo(first, sizes, total)
		require.GreaterOrEqual(t, to, first-1)
		if to < first {
			return
		}
		last := first + uint64(len(sizes)) - 1
		require.Less(t, to, max(r.Applied, 1))
		require.Less(t, to, last)
		if r.Snapshot > 0 && to >= r.Snapshot && r.Snapshot+1 >= first { // what a snapshot needs: only where it is too much
			needed := int64(0)
			for _, s := range sizes[max(r.Snapshot, first)-first:] {
				needed += int64(s)
			}
			require.Greater(t, needed, r.SnapshotBytes)
		}
		if to >= r.Peer && to >= first { // more than the peer has: only for a cap
			before := int64(0)
			for _, s := range sizes[to-first:] { // what was kept had to went once not
				before += int64(s)
			}
			require.True(t, last-to+1 > r.MaxEntries || before > r.MaxBytes, "%d given up without need", to)
		}
	})
}

func TestReset(t *testing.T) {
	store := newCrashStore()
	l := openLog(t, store, LogOptions{})
	appendN(t, l, e1, 3)
	base := Mark{100, epoch(4, "b")}
	require.NoError(t, l.Reset(base))
	require.Equal(t, base, l.Last())
	got, err := l.EpochAt(100)
	require.NoError(t, err)
	require.Equal(t, base.Epoch, got)
	appendN(t, l, epoch(4, "b"), 1)
	require.Equal(t, []uint64{101}, store.positions())
}
