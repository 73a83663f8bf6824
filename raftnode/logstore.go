package raftnode

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// cachedEntries and cachedEntryBytes bound what the cache of recent entries
	// holds: entries above the size, and so any that did not fit a joined one,
	// are read from the store.
	cachedEntries    = 512
	cachedEntryBytes = maxJoinedBytes + 64<<10
)

// watchedStore is a log store that keeps recent entries in memory and knows for
// how long a call of it has been under way: a hung disk blocks hashicorp/raft's
// main loop while its heartbeats go on.
type watchedStore struct {
	LogStore
	now func() time.Time

	// mu guards the fields below.
	mu      sync.Mutex
	calls   map[int]time.Time // calls under way, by a running number
	lastID  int
	entries [cachedEntries]*raft.Log // at index modulo the size
	cut     bool                     // a tail was deleted, and nothing stored since
	lost    error                    // why nothing was stored behind the cut
	refused time.Time                // when entries were last not stored; zero: the latest were
}

var (
	_ raft.LogStore          = (*watchedStore)(nil)
	_ raft.MonotonicLogStore = (*watchedStore)(nil)
)

func newWatchedStore(s LogStore, now func() time.Time) *watchedStore {
	return &watchedStore{LogStore: s, now: now, calls: make(map[int]time.Time)}
}

// IsMonotonic implements raft.MonotonicLogStore.
func (w *watchedStore) IsMonotonic() bool {
	m, ok := w.LogStore.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

// stuckFor is the age of the oldest call under way; 0 where there is none.
func (w *watchedStore) stuckFor() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	var longest time.Duration
	for _, start := range w.calls {
		longest = max(longest, w.now().Sub(start))
	}
	return longest
}

// watch runs a call of the store under watch.
func (w *watchedStore) watch(f func() error) error {
	w.mu.Lock()
	w.lastID++
	id := w.lastID
	w.calls[id] = w.now()
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.calls, id)
	}()
	return f()
}

// StoreLog implements raft.LogStore.
func (w *watchedStore) StoreLog(log *raft.Log) error { return w.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore.
func (w *watchedStore) StoreLogs(logs []*raft.Log) error {
	err := w.watch(func() error { return w.LogStore.StoreLogs(logs) })
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range logs {
		slot := &w.entries[l.Index%cachedEntries]
		*slot = nil
		if err == nil && len(l.Data) <= cachedEntryBytes {
			*slot = l
		}
	}
	if err != nil && w.cut {
		w.lost = err
	}
	w.refused = time.Time{}
	if err != nil {
		w.refused = w.now()
	}
	w.cut = w.cut && err != nil
	return err
}

// refusing says that the store did not take the latest entries, not longer ago
// than within. hashicorp/raft would stand for election all the same, win by its
// complete log, fail at the first entry, and begin again.
func (w *watchedStore) refusing(within time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.refused.IsZero() && w.now().Sub(w.refused) < within
}

// broken says that hashicorp/raft believes in entries that are gone: it deleted
// a tail that conflicts with the leader's log and then could not store what
// belongs there. It takes no entries any more until it is started anew.
func (w *watchedStore) broken() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost
}

// GetLog implements raft.LogStore.
func (w *watchedStore) GetLog(index uint64, out *raft.Log) error {
	w.mu.Lock()
	cached := w.entries[index%cachedEntries]
	w.mu.Unlock()
	if cached != nil && cached.Index == index {
		*out = *cached
		return nil
	}
	return w.watch(func() error { return w.LogStore.GetLog(index, out) })
}

// FirstIndex implements raft.LogStore.
func (w *watchedStore) FirstIndex() (index uint64, err error) {
	err = w.watch(func() error { index, err = w.LogStore.FirstIndex(); return err })
	return index, err
}

// LastIndex implements raft.LogStore.
func (w *watchedStore) LastIndex() (index uint64, err error) {
	err = w.watch(func() error { index, err = w.LogStore.LastIndex(); return err })
	return index, err
}

// DeleteRange implements raft.LogStore.
func (w *watchedStore) DeleteRange(first, last uint64) error {
	w.mu.Lock()
	for i, l := range w.entries {
		if l != nil && l.Index >= first && l.Index <= last {
			w.entries[i] = nil
		}
	}
	w.mu.Unlock()
	return w.watch(func() error {
		begin, err := w.LogStore.FirstIndex()
		if err == nil {
			err = w.LogStore.DeleteRange(first, last)
		}
		if err == nil && first > begin {
			w.mu.Lock()
			w.cut = true
			w.mu.Unlock()
		}
		return err
	})
}

// Set implements raft.StableStore.
func (w *watchedStore) Set(key, value []byte) error {
	return w.watch(func() error { return w.LogStore.Set(key, value) })
}

// SetUint64 implements raft.StableStore.
func (w *watchedStore) SetUint64(key []byte, value uint64) error {
	return w.watch(func() error { return w.LogStore.SetUint64(key, value) })
}
