package boltgraph

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// TestALargeTransactionThatEndsAnywhere: after each of its calls the disk
// fails, or the process ends. The store is as it was before, there and for who
// opens what the disk holds, and takes the transaction when it is made again.
func TestALargeTransactionThatEndsAnywhere(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "g.db")
	s := openDeferred(t, path)
	s.SpillAlways()
	grow(t, s, 40)
	require.NoError(t, s.UpdateLarge(func(tx replication.Tx) error { return tx.SetMeta([]byte("x1"), []byte("v")) }))
	before, err := s.Stats()
	require.NoError(t, err)

	// many makes calls of every kind; each may be the last.
	many := func(tx replication.Tx, called func() error) error {
		for i := range 12 {
			id := replication.NodeID(fmt.Sprint("n", i+1))
			for _, call := range []func() error{
				func() error { return tx.SetMeta([]byte(fmt.Sprint("x", i+2)), []byte("v")) },
				func() error { return tx.SetProperty(id, "k", int64(i)) },
				func() error {
					return tx.(replication.MetaSeeker).ScanMetaFrom([]byte("x"), []byte("x1"), func(k, _ []byte) error {
						if err := called(); err != nil {
							return err
						}
						return tx.SetMeta(append([]byte("y"), k...), k)
					})
				},
				func() error { return tx.DeleteNode(id) },
				func() error { return tx.CreateNode(&replication.Node{ID: id}) },
			} {
				if err := errors.Join(call(), called()); err != nil {
					return err
				}
			}
		}
		return tx.SetWALPosition(41)
	}
	errDisk, errCrash := errors.New("the disk has failed"), errors.New("the process has ended")
	stride := 3
	if testing.Short() {
		stride = 11
	}
	for _, crash := range []bool{false, true} {
		n, ended := 0, true
		for ; ended; n += stride {
			calls := 0
			err := s.UpdateLarge(func(tx replication.Tx) error {
				return many(tx, func() error {
					if calls++; calls != n+1 {
						return nil
					}
					if crash {
						left := filepath.Join(t.TempDir(), "left")
						require.NoError(t, os.CopyFS(left, os.DirFS(dir)))
						requireStats(t, filepath.Join(left, "g.db"), before)
						return errCrash
					}
					tx.(*largeTx).store.failed = errDisk // of its next flush
					return nil
				})
			})
			if ended = calls > n; ended {
				require.Error(t, err)
				have, err := s.Stats()
				require.NoError(t, err)
				require.Equal(t, before, have)
				require.NoFileExists(t, path+restoreSuffix)
				continue
			}
			require.NoError(t, err)
		}
		require.Greater(t, n, 100)
		after, err := s.Stats()
		require.NoError(t, err)
		require.EqualValues(t, 41, after.Position)
		check(t, s)
		before = after
	}
	require.NoError(t, s.Close())
	requireStats(t, path, before)
}

// requireStats opens a file, in which there must be a whole state.
func requireStats(t *testing.T, path string, want Stats) {
	s, err := Open(path, WithNoSync())
	require.NoError(t, err)
	have, err := s.Stats()
	require.NoError(t, err)
	require.Equal(t, want, have)
	require.NoFileExists(t, path+restoreSuffix)
	require.NoError(t, s.Close())
}
