package testharness

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	"github.com/nornicdb/replication"
)

// FaultyStorage lays a storage on a Disk: its transactions take the disk's time
// and meet its faults, and a crash ends it. What survives a crash is in the
// storage itself, which so has to outlive the node: one in memory will do.
type FaultyStorage struct {
	disk  *Disk
	inner replication.TxStorage

	torn atomic.Bool // a crash has cut a restore short

	// commit is held while inner changes; it guards the fields below.
	commit  sync.Mutex
	rng     *rand.Rand
	durable []byte // a snapshot of what a lying disk really has
	flushed []byte // a snapshot of what a crash leaves; nil: it does not defer
	failed  error  // of a flush: there are no more writes
}

// NewStorage lays inner on the disk. A lying disk needs a StorageSnapshotter.
func (d *Disk) NewStorage(inner replication.TxStorage) *FaultyStorage {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := &FaultyStorage{disk: d, inner: inner, rng: d.rng(len(d.volumes))}
	d.volumes = append(d.volumes, s)
	return s
}

// Open gives the storage to the present incarnation: a replication.TxStorage
// with the optional abilities that the inner one has, and no others.
func (s *FaultyStorage) Open() replication.TxStorage {
	base := &openStorage{s: s, incarnation: s.disk.Incarnation()}
	snaps, canSnap := s.inner.(replication.StorageSnapshotter)
	edges, canEdge := s.inner.(replication.EdgeStorage)
	effects, canRecord := s.inner.(replication.EffectRecorder)
	sn, ed, ef := snapAbility{base, snaps}, edgeAbility{base, edges}, effectAbility{base, effects}
	type snap = snapAbility
	type edge = edgeAbility
	type effect = effectAbility
	switch {
	case canSnap && canEdge && canRecord:
		return struct {
			*openStorage
			snap
			edge
			effect
		}{base, sn, ed, ef}
	case canSnap && canEdge:
		return struct {
			*openStorage
			snap
			edge
		}{base, sn, ed}
	case canSnap && canRecord:
		return struct {
			*openStorage
			snap
			effect
		}{base, sn, ef}
	case canEdge && canRecord:
		return struct {
			*openStorage
			edge
			effect
		}{base, ed, ef}
	case canSnap:
		return struct {
			*openStorage
			snap
		}{base, sn}
	case canEdge:
		return struct {
			*openStorage
			edge
		}{base, ed}
	case canRecord:
		return struct {
			*openStorage
			effect
		}{base, ef}
	}
	return base
}

// checkpoint implements volume.
func (s *FaultyStorage) checkpoint() error {
	s.commit.Lock()
	defer s.commit.Unlock()
	return s.checkpointLocked()
}

func (s *FaultyStorage) checkpointLocked() (err error) {
	s.durable, err = s.image()
	return err
}

// image is a snapshot of the inner storage.
func (s *FaultyStorage) image() ([]byte, error) {
	snaps, ok := s.inner.(replication.StorageSnapshotter)
	if !ok {
		return nil, fmt.Errorf("%w: a lying disk under a storage without snapshots", replication.ErrUnsupported)
	}
	snap, err := snaps.Snapshot()
	if err != nil {
		return nil, err
	}
	defer snap.Release()
	var buf bytes.Buffer
	_, err = snap.WriteTo(&buf)
	return buf.Bytes(), err
}

// crash implements volume.
func (s *FaultyStorage) crash(forget bool) error {
	s.commit.Lock()
	defer s.commit.Unlock()
	if err := s.takeBack(); err != nil || !forget || s.durable == nil {
		return err
	}
	s.torn.Store(false)
	return s.inner.(replication.StorageSnapshotter).Restore(bytes.NewReader(s.durable))
}

// openStorage is a storage as one incarnation of a node has it.
type openStorage struct {
	s           *FaultyStorage
	incarnation int
}

var _ replication.TxStorage = (*openStorage)(nil)

// whole is the error of every call to a storage whose restore was cut short.
func (s *FaultyStorage) whole() error {
	if s.torn.Load() {
		return fmt.Errorf("%w: the node crashed", replication.ErrRestoreIncomplete)
	}
	return nil
}

// change runs a write of the inner storage. A crash leaves all of it or nothing.
func (o *openStorage) change(apply func() error) error {
	o.s.commit.Lock()
	deferring := o.s.flushed != nil
	o.s.commit.Unlock()
	if deferring {
		return o.changeInMemory(apply)
	}
	return o.steps(1, func(int) error {
		if err := o.s.whole(); err != nil {
			return err
		}
		return apply()
	})
}

func (o *openStorage) steps(steps int, step func(i int) error) error {
	s := o.s
	s.commit.Lock()
	dice := rollDiskDice(s.rng)
	s.commit.Unlock()
	w := &write{incarnation: o.incarnation, steps: steps}
	w.commit = func(from, to int) error {
		s.commit.Lock()
		defer s.commit.Unlock()
		if err := s.disk.alive(o.incarnation); err != nil {
			return err
		}
		for i := from; i < to; i++ {
			if err := step(i); err != nil {
				return err
			}
		}
		if to == steps && s.disk.wroteBack(dice) {
			return s.checkpointLocked()
		}
		return nil
	}
	return s.disk.do(w, dice)
}

// read runs a read of the inner storage.
func (o *openStorage) read(f func() error) error {
	if err := o.s.disk.alive(o.incarnation); err != nil {
		return err
	}
	if err := o.s.whole(); err != nil {
		return err
	}
	return f()
}

// Update implements replication.TxStorage.
func (o *openStorage) Update(fn func(replication.Tx) error) error {
	return o.change(func() error { return o.s.inner.Update(fn) })
}

// View implements replication.TxStorage.
func (o *openStorage) View(fn func(replication.Meta) error) error {
	return o.read(func() error { return o.s.inner.View(fn) })
}

// ApplyCommand implements replication.Storage.
func (o *openStorage) ApplyCommand(cmd *replication.Command) error {
	return o.change(func() error { return o.s.inner.ApplyCommand(cmd) })
}

// GetWALPosition implements replication.Storage.
func (o *openStorage) GetWALPosition() (position uint64, err error) {
	err = o.read(func() error {
		position, err = o.s.inner.GetWALPosition()
		return err
	})
	return position, err
}

// SetWALPosition implements replication.Storage.
func (o *openStorage) SetWALPosition(position uint64) error {
	return o.change(func() error { return o.s.inner.SetWALPosition(position) })
}

// CreateNode implements replication.Storage.
func (o *openStorage) CreateNode(n *replication.Node) error {
	return o.change(func() error { return o.s.inner.CreateNode(n) })
}

// UpdateNode implements replication.Storage.
func (o *openStorage) UpdateNode(n *replication.Node) error {
	return o.change(func() error { return o.s.inner.UpdateNode(n) })
}

// DeleteNode implements replication.Storage.
func (o *openStorage) DeleteNode(id replication.NodeID) error {
	return o.change(func() error { return o.s.inner.DeleteNode(id) })
}

// CreateEdge implements replication.Storage.
func (o *openStorage) CreateEdge(e *replication.Edge) error {
	return o.change(func() error { return o.s.inner.CreateEdge(e) })
}

// DeleteEdge implements replication.Storage.
func (o *openStorage) DeleteEdge(from, to replication.NodeID, relType string) error {
	return o.change(func() error { return o.s.inner.DeleteEdge(from, to, relType) })
}

// SetProperty implements replication.Storage.
func (o *openStorage) SetProperty(id replication.NodeID, key string, value any) error {
	return o.change(func() error { return o.s.inner.SetProperty(id, key, value) })
}

// edgeAbility adds replication.EdgeStorage.
type edgeAbility struct {
	o     *openStorage
	inner replication.EdgeStorage
}

// UpdateEdge implements replication.EdgeStorage.
func (a edgeAbility) UpdateEdge(e *replication.Edge) error {
	return a.o.change(func() error { return a.inner.UpdateEdge(e) })
}

// DeleteEdgeByID implements replication.EdgeStorage.
func (a edgeAbility) DeleteEdgeByID(id replication.EdgeID) error {
	return a.o.change(func() error { return a.inner.DeleteEdgeByID(id) })
}

// effectAbility adds replication.EffectRecorder.
type effectAbility struct {
	o     *openStorage
	inner replication.EffectRecorder
}

// RecordEffects implements replication.EffectRecorder.
func (a effectAbility) RecordEffects(cmd *replication.Command) (effects []*replication.Command, at uint64, err error) {
	err = a.o.read(func() error {
		effects, at, err = a.inner.RecordEffects(cmd)
		return err
	})
	return effects, at, err
}

// snapAbility adds replication.StorageSnapshotter.
type snapAbility struct {
	o     *openStorage
	inner replication.StorageSnapshotter
}

// Snapshot implements replication.StorageSnapshotter.
func (a snapAbility) Snapshot() (snap replication.StorageSnapshot, err error) {
	err = a.o.read(func() error {
		snap, err = a.inner.Snapshot()
		return err
	})
	if err != nil {
		return nil, err
	}
	return openSnapshot{snap, a.o}, nil
}

// Restore implements replication.StorageSnapshotter. A crash before it returns
// leaves the old state, the new one, or replication.ErrRestoreIncomplete. The
// snapshot is read as a whole first.
func (a snapAbility) Restore(r io.Reader) error {
	data, readErr := io.ReadAll(r)
	s := a.o.s
	return a.o.steps(2, func(i int) error {
		if i == 0 {
			s.torn.Store(true)
			return nil
		}
		err := a.inner.Restore(io.MultiReader(bytes.NewReader(data), failingReader{readErr}))
		_, broken := s.inner.GetWALPosition()
		s.torn.Store(broken != nil)
		if err == nil && s.flushed != nil {
			s.failed, err = nil, s.flushLocked()
		}
		return err
	})
}

// failingReader ends with an error; io.EOF where there is none.
type failingReader struct{ err error }

func (f failingReader) Read([]byte) (int, error) {
	if f.err == nil {
		return 0, io.EOF
	}
	return 0, f.err
}

// openSnapshot is a pinned state that a crash ends the reading of.
type openSnapshot struct {
	replication.StorageSnapshot
	o *openStorage
}

// WriteTo implements replication.StorageSnapshot.
func (s openSnapshot) WriteTo(w io.Writer) (int64, error) {
	if err := s.o.s.disk.alive(s.o.incarnation); err != nil {
		return 0, err
	}
	return s.StorageSnapshot.WriteTo(w)
}
