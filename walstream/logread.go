package walstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
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
	return l.readStore(after+1, after+uint64(count), maxBytes)
}

// readStore reads what the store has of positions from … to, no more than maxBytes
// but at least one entry.
func (l *Log) readStore(from, to uint64, maxBytes int) ([]*Entry, error) {
	entries := make([]*Entry, 0, min(to-from+1, 1024))
	size := 0
	for from <= to {
		part, err := l.readSegment(from, to)
		if err != nil {
			return nil, err
		}
		for _, e := range part {
			if size += e.size; size > maxBytes && len(entries) > 0 {
				return entries, nil
			}
			entries = append(entries, e)
		}
		from += uint64(len(part))
	}
	return entries, nil
}

// readSegment reads, of positions from … to, those that are in one block.
func (l *Log) readSegment(from, to uint64) ([]*Entry, error) {
	l.mu.Lock()
	first, durable, cuts := l.first, l.durable.Position, l.cuts
	if from < first || from > durable {
		l.mu.Unlock()
		return nil, readError(from, first, durable)
	}
	s, end := l.segmentOf(from)
	l.mu.Unlock()
	entries, err := l.readFrom(s, from, min(to, end))
	l.mu.Lock()
	defer l.mu.Unlock()
	if cuts != l.cuts { // what was read may be what was cut off
		return nil, fmt.Errorf("%w: entry %d: the log was cut", ErrAhead, from)
	}
	if from < l.first {
		return nil, readError(from, l.first, l.durable.Position)
	}
	return entries, err
}

// readBlock reads one block of the store.
func (l *Log) readBlock(index uint64) (block, error) {
	var raw raft.Log
	if err := l.store.GetLog(index, &raw); err != nil {
		if errors.Is(err, raft.ErrLogNotFound) {
			return block{}, fmt.Errorf("%w: block %d is missing", ErrCorrupt, index)
		}
		return block{}, fmt.Errorf("reading block %d of the log: %w", index, err)
	}
	return openBlock(index, raw.Data)
}

// readFrom decodes the entries from … to of a segment, as many as its block has.
func (l *Log) readFrom(s segment, from, to uint64) ([]*Entry, error) {
	b, err := l.readBlock(s.index)
	if err != nil {
		return nil, err
	}
	end := b.first + uint64(len(b.entries)) // above the last
	if b.first != s.first || from >= end {
		return nil, fmt.Errorf("%w: block %d has entries %d to %d, not %d", ErrCorrupt, s.index, b.first, end-1, from)
	}
	entries := make([]*Entry, 0, min(to+1, end)-from)
	for p := from; p <= to && p < end; p++ {
		e, err := decode(p, b.entries[p-b.first])
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// readError explains why an entry cannot be read.
func readError(position, first, last uint64) error {
	if position < first {
		return fmt.Errorf("%w: entry %d, the log begins at %d", ErrCompacted, position, first)
	}
	return fmt.Errorf("%w: %d, it ends at %d", ErrAhead, position, last)
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
