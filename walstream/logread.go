package walstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nornicdb/replication"
)

// Read returns entries from the one after a position: at most maxEntries, and
// no more than maxBytes of them but at least one where there is one. ErrCompacted
// where the log no longer has the first, ErrAhead where the position is above
// its end. The entries are shared: they must not be changed.
func (l *Log) Read(after uint64, maxEntries, maxBytes int) ([]*Entry, error) {
	entries, count, err := l.readCache(after, maxEntries, maxBytes)
	if err != nil || len(entries) > 0 || count == 0 {
		return entries, err
	}
	entries = make([]*Entry, 0, min(count, 1024))
	size := 0
	for p := after + 1; p <= after+uint64(count); p++ {
		e, err := l.readStore(p)
		if err != nil {
			return nil, l.readError(p, err)
		}
		if size += e.size; size > maxBytes && len(entries) > 0 {
			break
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// readError explains an entry that was not found: it may have been compacted, or
// cut, since the log's bounds were read.
func (l *Log) readError(position uint64, err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case position < l.first:
		return fmt.Errorf("%w: entry %d, the log begins at %d", ErrCompacted, position, l.first)
	case position > l.last.Position && errors.Is(err, ErrCorrupt):
		return fmt.Errorf("%w: %d, it ends at %d", ErrAhead, position, l.last.Position)
	}
	return err
}

// readCache reads what the cache has. Where it has not the first entry, count is
// how many are to be read from the store.
func (l *Log) readCache(after uint64, maxEntries, maxBytes int) (entries []*Entry, count int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last := l.last.Position
	switch {
	case after > last:
		return nil, 0, fmt.Errorf("%w: %d, it ends at %d", ErrAhead, after, last)
	case after == last:
		return nil, 0, nil
	case after+1 < l.first:
		return nil, 0, fmt.Errorf("%w: entry %d, the log begins at %d", ErrCompacted, after+1, l.first)
	}
	count = int(min(uint64(maxEntries), last-after))
	if len(l.cache) == 0 {
		return nil, count, nil
	}
	if begin := l.cache[0].Position; begin > after+1 { // what the cache has need not be read from the disk
		return nil, int(min(uint64(count), begin-after-1)), nil
	}
	cached := l.cache[after+1-l.cache[0].Position:][:count]
	return slices.Clone(limitBytes(cached, maxBytes)), count, nil
}

func limitBytes(entries []*Entry, maxBytes int) []*Entry {
	size := 0
	for i, e := range entries {
		if size += e.size; size > maxBytes && i > 0 {
			return entries[:i]
		}
	}
	return entries
}

// EpochAt is the epoch of the entry at a position, or of the base. ErrCompacted
// and ErrAhead as for Read.
func (l *Log) EpochAt(position uint64) (replication.Epoch, error) {
	l.mu.Lock()
	base, last := l.base, l.last
	l.mu.Unlock()
	switch position {
	case last.Position:
		return last.Epoch, nil
	case base.Position:
		return base.Epoch, nil
	}
	if position < base.Position {
		return replication.Epoch{}, fmt.Errorf("%w: entry %d, the log was founded at %d", ErrCompacted, position, base.Position)
	}
	entries, err := l.Read(position-1, 1, 1)
	if err != nil {
		return replication.Epoch{}, err
	}
	if len(entries) == 0 {
		return replication.Epoch{}, fmt.Errorf("%w: %d", ErrAhead, position)
	}
	return entries[0].Epoch, nil
}

// Handed is the position up to which the disk has the entries or is being given
// them: a stream that goes no further sends as much at once as one sync takes.
func (l *Log) Handed() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.handed
}

// Changed returns a channel that is closed when Handed is above the position. It
// can be closed sooner: look again.
func (l *Log) Changed(after uint64) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.handed > after {
		ready := make(chan struct{})
		close(ready)
		return ready
	}
	return l.begun.wait()
}

// DurableChanged returns a channel that is closed when Durable changes, or the
// log ends.
func (l *Log) DurableChanged() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.synced.wait()
}

// Sync waits until everything accepted so far is durable.
func (l *Log) Sync(ctx context.Context) error { return l.WaitDurable(ctx, l.Last().Position) }

// Last is the mark of the last entry accepted, durable or not.
func (l *Log) Last() Mark {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// Durable is the mark of the last entry that the disk has.
func (l *Log) Durable() Mark {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.durable
}

// First is the lowest position that can be read; one above Last where none can.
func (l *Log) First() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.first
}

// Bytes is the size of the log's entries.
func (l *Log) Bytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.total
}

// Err is the error that ended the log; nil while it works.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// HungFor is for how long the sync under way has lasted; 0 where none is.
func (l *Log) HungFor() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.syncing.IsZero() {
		return 0
	}
	return time.Since(l.syncing)
}
