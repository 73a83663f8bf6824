package boltgraph

import (
	"bytes"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/bbolt"
)

// limits say when a store writes its file: one that defers, and a large
// transaction.
type limits struct {
	bytes int // that the latest table takes, about; at twice that writers wait
	every time.Duration
	large int // bytes of changes that a large transaction holds in memory
}

var defaultLimits = limits{bytes: 16 << 20, every: 2 * time.Second, large: 4 << 20}

// flusher is the goroutine of a store that defers.
type flusher struct {
	wake chan struct{}
	stop chan struct{}
	wg   sync.WaitGroup
}

func (f *flusher) rouse() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Defer implements replication.DeferringStorage.
func (s *Store) Defer(on bool) error {
	s.mu.Lock()
	old := s.deferred
	if on == (old != nil) {
		s.mu.Unlock()
		if on {
			return nil
		}
		return s.Flush()
	}
	s.deferred = nil
	if on {
		s.deferred = s.startFlusher()
	}
	s.mu.Unlock()
	if on {
		return nil
	}
	close(old.stop)
	old.wg.Wait()
	return s.Flush()
}

func (s *Store) startFlusher() *flusher {
	f := &flusher{wake: make(chan struct{}, 1), stop: make(chan struct{})}
	f.wg.Go(func() {
		tick := time.NewTicker(s.limits.every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-f.wake:
			case <-f.stop:
				return
			}
			_ = s.Flush() // the next write gets the error
		}
	})
	return f
}

// Flush implements replication.DeferringStorage.
func (s *Store) Flush() error {
	s.flushing.Lock()
	defer s.flushing.Unlock()
	return s.flush()
}

// flush is Flush; the caller holds flushing.
func (s *Store) flush() error {
	s.writer.Lock()
	s.mu.Lock()
	if s.failed != nil || s.latest.clean() {
		defer s.writer.Unlock()
		defer s.mu.Unlock()
		return s.failed
	}
	frozen, db := s.latest, s.db
	s.frozen, s.latest = frozen, &table{state: frozen.state, written: frozen.state}
	s.mu.Unlock()
	s.writer.Unlock()

	err := db.Update(frozen.write)

	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		// What the file now holds is for the next Open to find out; memory has
		// what readers see.
		s.failed = fmt.Errorf("boltgraph: writing %s: %w", s.path, err)
		return s.failed
	}
	s.frozen = nil
	return nil
}

// write puts a table into a file: its position, and with it everything else, as
// one.
func (t *table) write(btx *bbolt.Tx) error {
	for i, root := range t.roots {
		b := btx.Bucket(bucketNames[i])
		file := remover{cursor: b.Cursor()}
		for c := root.seek(nil); ; c.advance() {
			k, v := c.item()
			if k == nil {
				break
			}
			var err error
			if v != nil {
				err = b.Put(k, v)
			} else {
				err = file.remove(k)
			}
			if err != nil {
				return err
			}
		}
	}
	return btx.Bucket(bucketState).Put(keyState, t.state.encode())
}

// remover deletes keys, in order, of which most never reached the file: rows that
// came and went between two flushes, many beside each other.
type remover struct {
	cursor *bbolt.Cursor
	sought bool   // next is set
	next   []byte // what the file has first, not below the last key that was sought; nil: nothing
}

// remove deletes a key that is not below the one before. Other keys may have been
// put since.
func (r *remover) remove(key []byte) error {
	if r.sought && (r.next == nil || bytes.Compare(key, r.next) < 0) {
		return nil // it is not there
	}
	found, _ := r.cursor.Seek(key)
	if bytes.Equal(found, key) {
		r.sought = false
		return r.cursor.Delete()
	}
	r.sought, r.next = true, bytes.Clone(found)
	return nil
}

// clean: the file has everything.
func (t *table) clean() bool { return t.bytes == 0 && t.state == t.written }
