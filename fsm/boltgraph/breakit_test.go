package boltgraph

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// TestEdgeWhoseKeyIsTooLongIsAVerdict: four identifiers, each within its own
// bound, whose escaped forms together exceed a key of the file. If that is a
// storage failure, one write stops every replica for good: the log holds it.
func TestEdgeWhoseKeyIsTooLongIsAVerdict(t *testing.T) {
	s := temp(t)
	id := strings.Repeat("\x00", MaxIDBytes)
	require.NoError(t, s.CreateNode(&replication.Node{ID: replication.NodeID(id)}))
	e := &replication.Edge{ID: replication.EdgeID(id), StartNode: replication.NodeID(id), EndNode: replication.NodeID(id), Type: id}
	for name, err := range map[string]error{"create": s.CreateEdge(e), "update": s.UpdateEdge(e)} {
		_, verdict := replication.Verdict(err)
		require.True(t, verdict, "%s: %v", name, err)
	}
	check(t, s)
}

// within fails the test if f does not return soon. It is not waited for then,
// so release must make it return.
func within(t *testing.T, what string, release func(), f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		release()
		require.NoError(t, err, what)
	case <-time.After(30 * time.Second):
		release()
		<-done
		require.Fail(t, what+" waited for the reader")
	}
}

// TestWritesDoNotWaitForReaders: a snapshot that is being sent, or an export to
// a slow client, must not hold up what the log brings, however much that is.
func TestWritesDoNotWaitForReaders(t *testing.T) {
	s := temp(t)
	require.NoError(t, s.CreateNode(&replication.Node{ID: "first"}))
	snap, err := s.Snapshot()
	require.NoError(t, err)
	value := strings.Repeat("x", 256<<10)
	within(t, "writing", snap.Release, func() error {
		for i := range 16 {
			if err := s.CreateNode(&replication.Node{ID: replication.NodeID(fmt.Sprint(i)), Properties: map[string]any{"v": value}}); err != nil {
				return err
			}
		}
		return nil
	})
}

// TestRestoreDoesNotWaitForReaders: nor must a slow reader hold up a node that
// is being rebuilt, and everybody who asks it for its position meanwhile.
func TestRestoreDoesNotWaitForReaders(t *testing.T) {
	source, s := temp(t), temp(t)
	require.NoError(t, source.CreateNode(&replication.Node{ID: "new"}))
	require.NoError(t, s.CreateNode(&replication.Node{ID: "old"}))
	snap, err := source.Snapshot()
	require.NoError(t, err)
	defer snap.Release()
	path := filepath.Join(t.TempDir(), "snapshot")
	f, err := os.Create(path)
	require.NoError(t, err)
	_, err = snap.WriteTo(f)
	require.NoError(t, errors.Join(err, f.Close()))

	reading, release := make(chan struct{}), make(chan struct{})
	walked := make(chan error, 1)
	go func() {
		_, err := s.Walk(func(n *replication.Node) error {
			close(reading)
			<-release
			if n.ID != "old" {
				return fmt.Errorf("node %s within one read", n.ID)
			}
			return nil
		}, func(*replication.Edge) error { return nil })
		walked <- err
	}()
	<-reading
	within(t, "restoring", func() { close(release) }, func() error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := s.Restore(f); err != nil {
			return err
		}
		_, err = s.Node("new")
		return err
	})
	require.NoError(t, <-walked)
}

// TestOpeningALockedStoreTouchesNothing: a second process that is turned away
// must not have removed the file that a restore of the first is building.
func TestOpeningALockedStoreTouchesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "g.db")
	s := open(t, path)
	defer s.Close()
	require.NoError(t, os.WriteFile(path+restoreSuffix, []byte("half a file"), 0o600))
	_, err := Open(path)
	require.ErrorIs(t, err, replication.ErrLocked)
	require.FileExists(t, path+restoreSuffix)
}
