package testharness_test

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/internal/bubble"
	th "github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

func graph(t *testing.T) *boltgraph.Store {
	t.Helper()
	s, err := boltgraph.Open(filepath.Join(t.TempDir(), "graph.db"), boltgraph.WithNoSync())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// step creates node n<position> and sets the position, in one transaction.
func step(s replication.TxStorage, position uint64) error {
	return s.Update(func(tx replication.Tx) error {
		if err := tx.CreateNode(&replication.Node{ID: replication.NodeID(fmt.Sprint("n", position))}); err != nil {
			return err
		}
		if err := tx.SetMeta([]byte("m"), fmt.Append(nil, position)); err != nil {
			return err
		}
		return tx.SetWALPosition(position)
	})
}

// requireAt checks that a graph holds what position steps left, and no more.
func requireAt(t *testing.T, s replication.TxStorage, g *boltgraph.Store, position uint64) {
	t.Helper()
	at, err := s.GetWALPosition()
	require.NoError(t, err)
	require.Equal(t, position, at)
	st, err := g.Stats()
	require.NoError(t, err)
	require.Equal(t, position, st.Nodes)
	require.NoError(t, s.View(func(m replication.Meta) error {
		v, err := m.GetMeta([]byte("m"))
		require.Equal(t, fmt.Sprint(position), string(v))
		return err
	}))
}

func TestStorageCrashesBetweenAnyTwoCallsAndWithinEach(t *testing.T) {
	before, after := 0, 0
	for seed := range uint64(10) {
		d, g := th.NewDisk(seed), graph(t)
		volume := d.NewStorage(g)
		s := volume.Open()
		require.NoError(t, step(s, 1))
		for position := uint64(2); position < 8; {
			d.CrashAt(1, nil)
			require.ErrorIs(t, step(s, position), th.ErrCrashed)
			_, err := s.GetWALPosition()
			require.ErrorIs(t, err, th.ErrCrashed)
			require.ErrorIs(t, s.View(func(replication.Meta) error { return nil }), th.ErrCrashed)
			require.ErrorIs(t, s.DeleteNode("n1"), th.ErrCrashed)
			s = volume.Open()
			at, err := s.GetWALPosition()
			require.NoError(t, err)
			requireAt(t, s, g, at)
			if at == position {
				after++
			} else {
				require.Equal(t, position-1, at)
				before++
				require.NoError(t, step(s, position))
			}
			require.NoError(t, d.Crash())
			s = volume.Open()
			requireAt(t, s, g, position)
			position++
		}
	}
	require.Positive(t, before)
	require.Positive(t, after)
}

func TestLyingDiskLosesTransactions(t *testing.T) {
	d, g := th.NewDisk(1), graph(t)
	volume := d.NewStorage(g)
	s := volume.Open()
	require.NoError(t, step(s, 1))
	require.NoError(t, d.Lie(0))
	for i := range uint64(5) {
		require.NoError(t, step(s, 2+i))
	}
	requireAt(t, s, g, 6)
	require.NoError(t, d.Crash())
	requireAt(t, volume.Open(), g, 1)
}

type plainStorage struct{ replication.TxStorage }

func TestAbilitiesAreThoseOfTheInnerStorage(t *testing.T) {
	g := graph(t)
	type snap = replication.StorageSnapshotter
	type edge = replication.EdgeStorage
	type record = replication.EffectRecorder
	for i, inner := range []replication.TxStorage{
		g, plainStorage{g},
		struct {
			plainStorage
			snap
		}{plainStorage{g}, g},
		struct {
			plainStorage
			edge
		}{plainStorage{g}, g},
		struct {
			plainStorage
			record
		}{plainStorage{g}, nil},
		struct {
			plainStorage
			snap
			record
		}{plainStorage{g}, g, nil},
		struct {
			plainStorage
			edge
			record
		}{plainStorage{g}, g, nil},
		struct {
			plainStorage
			snap
			edge
			record
		}{plainStorage{g}, g, g, nil},
	} {
		d := th.NewDisk(1)
		s := d.NewStorage(inner).Open()
		_, wantSnap := inner.(snap)
		_, wantEdge := inner.(edge)
		_, wantRecord := inner.(record)
		_, hasSnap := s.(snap)
		_, hasEdge := s.(edge)
		_, hasRecord := s.(record)
		require.Equal(t, []bool{wantSnap, wantEdge, wantRecord}, []bool{hasSnap, hasEdge, hasRecord}, i)
		if !wantSnap {
			require.ErrorIs(t, d.Lie(0), replication.ErrUnsupported)
		}
	}
}

func TestStorageFailsAndHangs(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		d, g := th.NewDisk(1), graph(t)
		s := d.NewStorage(g).Open()
		require.NoError(t, step(s, 1))
		d.SetFaults(th.DiskFaults{Fail: 1})
		require.ErrorIs(t, step(s, 2), syscall.EIO)
		d.SetFaults(th.DiskFaults{Full: true})
		require.ErrorIs(t, s.CreateNode(&replication.Node{ID: "x"}), syscall.ENOSPC)
		requireAt(t, s, g, 1)
		d.SetFaults(th.DiskFaults{SyncLatency: time.Second})
		start := time.Now()
		require.ErrorIs(t, s.DeleteNode("none"), replication.ErrNotFound, "verdicts pass through")
		require.NoError(t, step(s, 2))
		require.GreaterOrEqual(t, time.Since(start), time.Second)
		d.Hang()
		done := make(chan error, 1)
		go func() { done <- step(s, 3) }()
		synctest.Wait()
		require.NoError(t, s.View(func(replication.Meta) error { return nil }), "reads go on")
		d.Release()
		require.NoError(t, <-done)
		requireAt(t, s, g, 3)
		boom := errors.New("boom")
		require.ErrorIs(t, s.Update(func(replication.Tx) error { return boom }), boom)
	})
}

func TestRestoreCutShort(t *testing.T) {
	g := graph(t)
	require.NoError(t, step(g, 1))
	require.NoError(t, step(g, 2))
	snap, err := g.Snapshot()
	require.NoError(t, err)
	var image bytes.Buffer
	_, err = snap.WriteTo(&image)
	require.NoError(t, err)
	snap.Release()
	outcomes := make(map[string]bool)
	for seed := range uint64(30) {
		d, g := th.NewDisk(seed), graph(t)
		volume := d.NewStorage(g)
		s := volume.Open()
		require.NoError(t, step(s, 1))
		d.CrashAt(1, nil)
		restore := func() error {
			return s.(replication.StorageSnapshotter).Restore(bytes.NewReader(image.Bytes()))
		}
		require.ErrorIs(t, restore(), th.ErrCrashed)
		s = volume.Open()
		at, err := s.GetWALPosition()
		outcomes[fmt.Sprint(at, errors.Is(err, replication.ErrRestoreIncomplete))] = true
		if err != nil {
			require.ErrorIs(t, step(s, 2), replication.ErrRestoreIncomplete)
		}
		require.NoError(t, restore())
		requireAt(t, s, g, 2)
		short := iotest.TimeoutReader(bytes.NewReader(image.Bytes()))
		require.Error(t, s.(replication.StorageSnapshotter).Restore(short))
	}
	require.Equal(t, map[string]bool{"1 false": true, "2 false": true, "0 true": true}, outcomes)
}

func TestSnapshotOfADeadIncarnationIsNotRead(t *testing.T) {
	d, g := th.NewDisk(1), graph(t)
	s := d.NewStorage(g).Open()
	snap, err := s.(replication.StorageSnapshotter).Snapshot()
	require.NoError(t, err)
	defer snap.Release()
	require.NoError(t, d.Crash())
	_, err = snap.WriteTo(&bytes.Buffer{})
	require.ErrorIs(t, err, th.ErrCrashed)
	_, err = s.(replication.StorageSnapshotter).Snapshot()
	require.ErrorIs(t, err, th.ErrCrashed)
}
