package boltgraph

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"
)

const (
	sector   = 512
	metaEnd  = 2 // pages 0 and 1 of a bbolt file are its two metas
	pageSize = 4096
)

// openDeferred opens a store that defers, and flushes when it is told to only.
func openDeferred(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(path)
	require.NoError(t, err)
	s.limits.every = time.Hour
	require.NoError(t, s.Defer(true))
	return s
}

// grow makes transactions that take the store to position to; each adds a node,
// an edge and changes an older node, so that pages in use are written anew.
func grow(t testing.TB, s *Store, to uint64) {
	t.Helper()
	from, err := s.GetWALPosition()
	require.NoError(t, err)
	for p := from + 1; p <= to; p++ {
		require.NoError(t, s.Update(func(tx replication.Tx) error {
			id := replication.NodeID(fmt.Sprint("n", p))
			if err := tx.CreateNode(&replication.Node{ID: id, Properties: map[string]any{"v": strings.Repeat("x", 200)}}); err != nil {
				return err
			}
			if p > 1 {
				older := replication.NodeID(fmt.Sprint("n", 1+p*7919%(p-1)))
				if err := tx.CreateEdge(&replication.Edge{StartNode: id, EndNode: older, Type: "NEXT"}); err != nil {
					return err
				}
				if err := tx.SetProperty(older, "touched", int64(p)); err != nil {
					return err
				}
			}
			if err := tx.SetMeta([]byte("last"), []byte(fmt.Sprint(p))); err != nil {
				return err
			}
			return tx.SetWALPosition(p)
		}))
	}
}

// whole opens an image of the file and returns the state in it, after checking
// that it is one: counts, digest, indexes, metadata and every page.
func whole(t testing.TB, dir string, image []byte) (Stats, error) {
	t.Helper()
	path := filepath.Join(dir, "image.db")
	require.NoError(t, os.WriteFile(path, image, 0o600))
	s, err := Open(path, WithNoSync())
	if err != nil {
		return Stats{}, err
	}
	defer func() { require.NoError(t, s.Close()) }()
	damage := s.db.View(func(btx *bbolt.Tx) error {
		var errs []error
		for err := range btx.Check() {
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	if damage != nil {
		return Stats{}, damage
	}
	st, err := s.Stats()
	if err != nil {
		return st, err
	}
	check(t, s)
	require.Equal(t, st.Position, st.Nodes)
	return st, s.View(func(m replication.Meta) error {
		v, err := m.GetMeta([]byte("last"))
		require.Equal(t, fmt.Sprint(st.Position), string(v))
		return err
	})
}

// flushImages returns the file before and after a flush, and both states. Both
// are wholly on the disk: Flush returns after its last sync.
func flushImages(t testing.TB, dir string) (before, after []byte, old, new Stats) {
	t.Helper()
	path := filepath.Join(dir, "g.db")
	s := openDeferred(t, path)
	grow(t, s, 300)
	require.NoError(t, s.Flush())
	before = read(t, path)
	old, err := s.Stats()
	require.NoError(t, err)
	grow(t, s, 400)
	require.Equal(t, before, read(t, path), "nothing reaches the file before a flush")
	require.NoError(t, s.Flush())
	after = read(t, path)
	new, err = s.Stats()
	require.NoError(t, err)
	grow(t, s, 450)
	require.NoError(t, s.Close())
	return before, after, old, new
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return data
}

// TestPowerFailureDuringFlushLeavesTheOldStateOrTheNew loses unsynced bytes. A
// flush writes data pages, syncs, writes one meta page, syncs. So what a power
// failure leaves is, before the first sync, the old file with any sectors of
// the new data pages; after it all data pages, and any sectors of the meta. Each
// must open as the whole old state, or the whole new one.
func TestPowerFailureDuringFlushLeavesTheOldStateOrTheNew(t *testing.T) {
	dir := t.TempDir()
	before, after, old, new := flushImages(t, dir)
	base := append(bytes.Clone(before), make([]byte, len(after)-len(before))...)
	var data, meta []int // offsets of sectors that the flush changed
	for off := 0; off < len(after); off += sector {
		if bytes.Equal(base[off:off+sector], after[off:off+sector]) {
			continue
		}
		if off < metaEnd*pageSize {
			meta = append(meta, off)
		} else {
			data = append(data, off)
		}
	}
	require.NotEmpty(t, meta)
	require.Greater(t, len(data), 20)
	write := func(image []byte, offsets []int, part float64, r *rand.Rand) []byte {
		image = bytes.Clone(image)
		for _, off := range offsets {
			if r.Float64() < part {
				copy(image[off:off+sector], after[off:off+sector])
			}
		}
		return image
	}
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		st, err := whole(t, dir, write(base, data, r.Float64(), r))
		require.NoError(t, err, "seed %d", seed)
		require.Equal(t, old, st)
	}
	synced := write(base, data, 1, rand.New(rand.NewPCG(0, 0)))
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 2))
		st, err := whole(t, dir, write(synced, meta, r.Float64(), r))
		require.NoError(t, err, "seed %d", seed)
		require.Contains(t, []Stats{old, new}, st)
	}
	st, err := whole(t, dir, after)
	require.NoError(t, err)
	require.Equal(t, new, st)
	// The check bites: a meta page that overtakes its data pages, as it may
	// without the first sync, leaves what is neither state. bbolt may crash on
	// it, so a process of its own looks.
	look := func(image []byte) (string, error) {
		path := filepath.Join(dir, "looked_at.db")
		require.NoError(t, os.WriteFile(path, image, 0o600))
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), asReader+"="+path)
		out, err := cmd.Output()
		return string(out), err
	}
	seen, err := look(after)
	require.NoError(t, err)
	require.Equal(t, fmt.Sprint(new), seen)
	broken := 0
	for seed := range uint64(5) {
		r := rand.New(rand.NewPCG(seed, 3))
		seen, err := look(write(write(base, meta, 1, r), data, 0.5, r))
		if err != nil || seen != fmt.Sprint(old) && seen != fmt.Sprint(new) {
			broken++
		}
	}
	require.Positive(t, broken)
}

// asReader makes the test binary check the file named by it and print its state.
const asReader = "BOLTGRAPH_TEST_READER"

func beReader(path string) error {
	s, err := Open(path, WithNoSync())
	if err != nil {
		return err
	}
	var errs []error
	err = s.db.View(func(btx *bbolt.Tx) error {
		for err := range btx.Check() {
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	if err != nil {
		return err
	}
	st, err := s.Stats()
	fmt.Print(st)
	return err
}

// TestDeferredTransactionsAreSeenAtOnceAndFlushedOnClose.
func TestDeferredTransactionsAreSeenAtOnceAndFlushedOnClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "g.db")
	s := openDeferred(t, path)
	grow(t, s, 50)
	st, err := s.Stats()
	require.NoError(t, err)
	check(t, s)
	require.NoError(t, s.Close())
	s, err = Open(path)
	require.NoError(t, err)
	again, err := s.Stats()
	require.NoError(t, err)
	require.Equal(t, st, again)
	grow(t, s, 60) // not deferred
	image := read(t, path)
	last, err := s.Stats()
	require.NoError(t, err)
	require.NoError(t, s.Close())
	seen, err := whole(t, t.TempDir(), image)
	require.NoError(t, err)
	require.Equal(t, last, seen, "without Defer a transaction is in the file when Update returns")
}

// TestMemoryOfADeferringStoreIsBounded: a writer that is faster than the disk
// waits for it.
func TestMemoryOfADeferringStoreIsBounded(t *testing.T) {
	s := openDeferred(t, filepath.Join(t.TempDir(), "g.db"))
	s.limits.bytes = 20 << 10
	for p := uint64(1); p <= 600; p++ {
		grow(t, s, p)
		s.mu.Lock()
		require.Less(t, s.latest.bytes, 2*s.limits.bytes)
		s.mu.Unlock()
	}
	check(t, s)
	require.NoError(t, s.Close())
}

// TestSnapshotDuringFlushes: a pinned state stays what it was while layers are
// frozen, written and dropped under it.
func TestSnapshotDuringFlushes(t *testing.T) {
	dir := t.TempDir()
	s := openDeferred(t, filepath.Join(dir, "g.db"))
	grow(t, s, 100)
	require.NoError(t, s.Flush())
	grow(t, s, 130)
	want, err := s.Stats()
	require.NoError(t, err)
	snap, err := s.Snapshot()
	require.NoError(t, err)
	require.Equal(t, uint64(130), snap.Position())
	grow(t, s, 160)
	require.NoError(t, s.Flush())
	grow(t, s, 200)
	require.NoError(t, s.Flush())
	var buf bytes.Buffer
	_, err = snap.WriteTo(&buf)
	require.NoError(t, err)
	snap.Release()
	other := temp(t)
	require.NoError(t, other.Restore(bytes.NewReader(buf.Bytes())))
	got, err := other.Stats()
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.NoError(t, s.Restore(bytes.NewReader(buf.Bytes())), "what was deferred is replaced too")
	got, err = s.Stats()
	require.NoError(t, err)
	require.Equal(t, want, got)
	grow(t, s, 140)
	check(t, s)
	require.NoError(t, s.Close())
}

// TestFailedFlushStopsWrites: what the file then holds is not known, so no write
// may build on it.
func TestFailedFlushStopsWrites(t *testing.T) {
	s := openDeferred(t, filepath.Join(t.TempDir(), "g.db"))
	grow(t, s, 10)
	require.NoError(t, s.Flush())
	grow(t, s, 20)
	require.NoError(t, s.db.Close()) // the disk goes away
	require.Error(t, s.Flush())
	require.Error(t, s.SetWALPosition(21))
	require.Error(t, s.Flush())
	require.Error(t, s.Close())
}
