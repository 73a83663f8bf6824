package testharness

import (
	"bytes"

	"github.com/nornicdb/replication"
)

// flushPart is the part of the transactions of a deferring storage after which
// it flushes by itself.
const flushPart = 1.0 / 20

// OpenDeferring is Open for a storage that is also a
// replication.DeferringStorage. While it defers, its transactions take no time
// and meet no fault, and a crash takes back those since the last flush, of which
// some happen by themselves. The inner storage is a MemStore.
func (s *FaultyStorage) OpenDeferring() (replication.DeferringStorage, error) {
	s.commit.Lock()
	err := s.takeBack() // the process that wrote it is gone
	s.commit.Unlock()
	base := &openStorage{s: s, incarnation: s.disk.Incarnation()}
	store := s.inner.(*MemStore)
	type snap = snapAbility
	type edge = edgeAbility
	return struct {
		*openStorage
		snap
		edge
		deferAbility
	}{base, snap{base, store}, edge{base, store}, deferAbility{base}}, err
}

// takeBack leaves what was flushed. s.commit is held.
func (s *FaultyStorage) takeBack() error {
	flushed := s.flushed
	s.flushed, s.failed = nil, nil
	if flushed == nil || s.torn.Load() {
		return nil
	}
	store := s.inner.(*MemStore)
	if err := store.Restore(bytes.NewReader(flushed)); err != nil {
		return err
	}
	store.tellTakenBack()
	return nil
}

// changeInMemory runs a write that is durable with the next flush.
func (o *openStorage) changeInMemory(apply func() error) error {
	s := o.s
	s.commit.Lock()
	defer s.commit.Unlock()
	if err := s.disk.alive(o.incarnation); err != nil {
		return err
	}
	if s.failed != nil {
		return s.failed
	}
	if err := s.whole(); err != nil {
		return err
	}
	if err := apply(); err != nil || s.rng.Float64() >= flushPart {
		return err
	}
	return s.flushLocked()
}

// flushLocked notes the present state as what a crash leaves.
func (s *FaultyStorage) flushLocked() (err error) {
	s.flushed, err = s.image()
	return err
}

// deferAbility adds replication.DeferringStorage.
type deferAbility struct{ o *openStorage }

// Defer implements replication.DeferringStorage.
func (a deferAbility) Defer(on bool) error {
	s := a.o.s
	if !on {
		if err := a.Flush(); err != nil {
			return err
		}
	}
	s.commit.Lock()
	defer s.commit.Unlock()
	if err := s.disk.alive(a.o.incarnation); err != nil {
		return err
	}
	switch {
	case !on:
		s.flushed = nil
		return nil
	case s.flushed != nil: // it does already
		return nil
	}
	return s.flushLocked()
}

// Flush implements replication.DeferringStorage.
func (a deferAbility) Flush() error {
	s := a.o.s
	s.commit.Lock()
	deferring, failed := s.flushed != nil, s.failed
	s.commit.Unlock()
	if !deferring || failed != nil {
		return failed
	}
	err := a.o.steps(1, func(int) error { return s.flushLocked() })
	if err != nil {
		s.commit.Lock()
		defer s.commit.Unlock()
		if s.disk.alive(a.o.incarnation) == nil {
			s.failed = err
		}
	}
	return err
}
