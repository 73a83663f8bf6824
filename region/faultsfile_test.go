package region

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/region/conflict"
	"github.com/stretchr/testify/require"
)

// errCrash ends a process: what its disk holds at that moment is what the next
// one finds.
var errCrash = errors.New("the process has ended")

// fileStore is a boltgraph store of which the call number left fails, large
// transactions and long scans included.
type fileStore struct {
	*boltgraph.Store
	dir   string
	crash string // where a crash leaves what the disk holds; empty: the call fails
	left  int    // until the fault; below 0: it has been
}

const fileName = "graph.db"

func openFileStore(t testing.TB, dir string) *fileStore {
	s, err := boltgraph.Open(filepath.Join(dir, fileName), boltgraph.WithNoSync())
	require.NoError(t, err)
	return &fileStore{Store: s, dir: dir, left: -1}
}

func (s *fileStore) call() error {
	s.left--
	switch {
	case s.left != -1:
		return nil
	case s.crash == "":
		return errDisk
	}
	if err := os.CopyFS(s.crash, os.DirFS(s.dir)); err != nil {
		panic(err)
	}
	panic(errCrash)
}

func (s *fileStore) faulty(tx replication.Tx) replication.Tx {
	t := &faultyTx{tx, tx.(conflict.Store), s}
	return &seekingTx{t, tx.(replication.MetaSeeker)}
}

func (s *fileStore) Update(fn func(replication.Tx) error) error {
	return s.Store.Update(func(tx replication.Tx) error { return fn(s.faulty(tx)) })
}

func (s *fileStore) UpdateLarge(fn func(replication.Tx) error) error {
	return s.Store.UpdateLarge(func(tx replication.Tx) error { return fn(s.faulty(tx)) })
}

func (s *fileStore) View(fn func(replication.Meta) error) error {
	if err := s.call(); err != nil {
		return err
	}
	return s.Store.View(fn)
}

func (s *fileStore) Restore(r io.Reader) error {
	return s.Store.Restore(&faultyReader{r, s})
}

// faultyReader gives a snapshot in small pieces.
type faultyReader struct {
	r io.Reader
	s *fileStore
}

func (f *faultyReader) Read(p []byte) (int, error) {
	if err := f.s.call(); err != nil {
		return 0, err
	}
	return f.r.Read(p[:min(len(p), 512)])
}

// seekingTx is a faultyTx whose scans can begin in the middle. A scan fails after
// some of its rows, too.
type seekingTx struct {
	*faultyTx
	seeker replication.MetaSeeker
}

func (t *seekingTx) ScanMetaFrom(prefix, from []byte, fn func(k, v []byte) error) error {
	return t.do(func() error {
		return t.seeker.ScanMetaFrom(prefix, from, func(k, v []byte) error {
			if err := t.s.call(); err != nil {
				return err
			}
			return fn(k, v)
		})
	})
}

// fileContent is all that a store holds.
func fileContent(t testing.TB, s *boltgraph.Store) string {
	var b strings.Builder
	require.NoError(t, s.View(func(m replication.Meta) error {
		return m.ScanMeta(nil, func(k, v []byte) error {
			fmt.Fprintf(&b, "%q %q\n", k, v)
			return nil
		})
	}))
	st, err := s.Stats()
	require.NoError(t, err)
	fmt.Fprintln(&b, st)
	return b.String()
}

// fileTrial is trial over a file: the store defers, so that a crash takes back
// what was not flushed, and half-way a snapshot is taken and restored.
func (sc *script) fileTrial(t *testing.T, start string, crash bool, n, batch int) (content string, met bool) {
	dir := filepath.Join(t.TempDir(), fmt.Sprint(n))
	require.NoError(t, os.CopyFS(dir, os.DirFS(start)))
	s := openFileStore(t, dir)
	if s.left = n; crash {
		s.crash = dir + "-crashed"
	}
	for life := 0; ; life++ {
		require.Less(t, life, 3, "it fails again")
		done := sc.fileLife(t, s, batch)
		if done {
			break
		}
		met = true
		require.NoError(t, s.Close())
		if crash {
			dir = s.crash
		}
		s = openFileStore(t, dir)
	}
	content = fileContent(t, s.Store)
	require.NoError(t, s.Close())
	return content, met
}

// fileLife is one life of a node; done: it has come to the end of the script.
func (sc *script) fileLife(t *testing.T, s *fileStore, batch int) (done bool) {
	defer func() {
		if p := recover(); p != nil && p != errCrash {
			panic(p)
		}
	}()
	expected := func(err error) bool {
		if err != nil {
			require.ErrorIs(t, err, errDisk)
		}
		return err != nil
	}
	m, err := newMachine(s)
	if expected(err) {
		return false
	}
	a, err := replication.NewStorageApplier(m.storage())
	if expected(err) {
		return false
	}
	if expected(m.storage().(replication.DeferringStorage).Defer(true)) {
		return false
	}
	for restored := false; ; {
		next := int(a.Position() - sc.entries[0].Position + 1)
		if next >= len(sc.entries) {
			return true
		}
		if next >= len(sc.entries)/2 && !restored {
			restored = true
			if !restoreOver(t, m, expected) {
				return false
			}
		}
		part := sc.entries[next:min(next+batch, len(sc.entries))]
		results, err := a.Apply(part)
		for i, r := range results {
			require.Equal(t, answerOf(sc.results[next+i]), answerOf(r[0]), "entry %d", next+i)
		}
		if expected(err) {
			return false
		}
	}
}

// restoreOver replaces the state by a snapshot of itself.
func restoreOver(t *testing.T, m *machine, expected func(error) bool) bool {
	snap, err := m.Snapshot()
	require.NoError(t, err)
	var image strings.Builder
	_, err = snap.WriteTo(&image)
	require.NoError(t, err)
	snap.Release()
	return !expected(m.Restore(strings.NewReader(image.String())))
}

// TestFileFailsAnywhere: as TestStorageFailsAnywhere, with the embedded store: it
// defers its syncs, merges a state as a large transaction, and is restored from a
// snapshot; and what fails is any call, or the process.
func TestFileFailsAnywhere(t *testing.T) {
	defer func(was uint64) { largeBytes = was }(largeBytes)
	largeBytes = 0
	sc, _ := everything(t)
	start := t.TempDir()
	first := openFileStore(t, start)
	newSoloOf(t, first, "us", func(s *settings) { s.OutboxMaxEntries, s.MaxEntryBytes, s.WriteRegion = 6, 8<<10, "eu" })
	require.NoError(t, first.Close())
	want, _ := sc.fileTrial(t, start, false, -1, 7)
	stride := 11
	if testing.Short() {
		stride = 61
	}
	for _, crash := range []bool{false, true} {
		for _, batch := range []int{1, 7, len(sc.entries)} {
			t.Run(fmt.Sprintf("crash: %v, entries at a time: %d", crash, batch), func(t *testing.T) {
				n := 0
				for {
					have, met := sc.fileTrial(t, start, crash, n, batch)
					if have != want {
						require.Equal(t, strings.Split(want, "\n"), strings.Split(have, "\n"), "call %d", n)
					}
					if !met {
						break
					}
					n += stride
				}
				require.Greater(t, n, 500)
			})
		}
	}
}
