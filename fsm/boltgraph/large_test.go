package boltgraph_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// large is a store all of whose transactions are large ones.
type large struct{ *boltgraph.Store }

func (l large) Update(fn func(replication.Tx) error) error { return l.UpdateLarge(fn) }

// TestLargeTransactionsAreTransactions: they keep what a TxStorage promises,
// however often their changes go to the file in between.
func TestLargeTransactionsAreTransactions(t *testing.T) {
	testharness.TestStorage(t, func(t *testing.T) testharness.Opened {
		dir := t.TempDir()
		open := func(dir string) (replication.Storage, error) {
			s, err := boltgraph.Open(filepath.Join(dir, "g.db"), boltgraph.WithNoSync())
			if err != nil {
				return nil, err
			}
			t.Cleanup(func() { require.NoError(t, s.Close()) })
			s.SpillAlways()
			return large{s}, nil
		}
		first, err := open(dir)
		require.NoError(t, err)
		return testharness.Opened{Storage: first,
			Crash: func() (replication.Storage, error) {
				copied := t.TempDir()
				if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
					return nil, err
				}
				return open(copied)
			},
			Digest: func(s replication.Storage) (string, error) {
				st, err := s.(large).Stats()
				return st.Digest, err
			}}
	})
}

// TestLargeTransactionBesideReadersAndFlushes: until it is done readers see
// nothing of it, after it everything; what was deferred before it is kept, and
// what it did is in the file.
func TestLargeTransactionBesideReadersAndFlushes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "g.db")
	s, err := boltgraph.Open(path)
	require.NoError(t, err)
	s.SpillAlways()
	require.NoError(t, s.Defer(true))
	node := func(id string) *replication.Node { return &replication.Node{ID: replication.NodeID(id)} }
	require.NoError(t, s.Update(func(tx replication.Tx) error { return errors.Join(tx.CreateNode(node("before")), tx.SetWALPosition(1)) }))
	pin, err := s.Snapshot()
	require.NoError(t, err)
	entered, leave := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		err = s.UpdateLarge(func(tx replication.Tx) error {
			for i := range 50 {
				if err := tx.CreateNode(node(fmt.Sprint("n", i))); err != nil {
					return err
				}
			}
			close(entered)
			<-leave
			return tx.SetWALPosition(2)
		})
	})
	<-entered
	flushed := make(chan error, 1)
	wg.Go(func() { flushed <- s.Flush() }) // waits
	st, statsErr := s.Stats()
	require.NoError(t, statsErr)
	require.EqualValues(t, 1, st.Nodes)
	close(leave)
	wg.Wait()
	require.NoError(t, err)
	require.NoError(t, <-flushed)
	st, err = s.Stats()
	require.NoError(t, err)
	require.EqualValues(t, 51, st.Nodes)
	require.EqualValues(t, 2, st.Position)
	var text strings.Builder
	_, err = pin.WriteTo(&text)
	require.NoError(t, err)
	require.NotContains(t, text.String(), `"n1"`, "an older snapshot stays as it was")
	pin.Release()
	require.NoError(t, s.UpdateLarge(func(tx replication.Tx) error { return tx.DeleteNode("before") }))
	require.NoError(t, s.Close())
	s, err = boltgraph.Open(path)
	require.NoError(t, err)
	again, err := s.Stats()
	require.NoError(t, err)
	require.EqualValues(t, 50, again.Nodes)
	require.NoError(t, s.Close())
}

// TestScanMetaFrom: a scan can begin in the middle, in the file and in what is
// over it.
func TestScanMetaFrom(t *testing.T) {
	s, err := boltgraph.Open(filepath.Join(t.TempDir(), "g.db"), boltgraph.WithNoSync())
	require.NoError(t, err)
	for _, key := range []string{"a1", "a2", "a3", "b1"} { // each is flushed
		require.NoError(t, s.Update(func(tx replication.Tx) error { return tx.SetMeta([]byte(key), []byte("v")) }))
	}
	require.ErrorContains(t, s.Update(func(tx replication.Tx) error {
		require.NoError(t, tx.SetMeta([]byte("a25"), []byte("v")))
		require.NoError(t, tx.SetMeta([]byte("a3"), nil))
		require.NoError(t, tx.SetMeta([]byte("a4"), []byte("v")))
		for from, want := range map[string]string{"": "a1 a2 a25 a4", "a": "a1 a2 a25 a4", "a2": "a2 a25 a4", "a2\x00": "a25 a4", "a5": "", "b": ""} {
			var got []string
			require.NoError(t, tx.(replication.MetaSeeker).ScanMetaFrom([]byte("a"), []byte(from), func(k, _ []byte) error {
				got = append(got, string(k))
				return nil
			}))
			require.Equal(t, want, strings.Join(got, " "), "from %q", from)
		}
		return errors.New("looked")
	}), "looked")
	require.NoError(t, s.Close())
}
