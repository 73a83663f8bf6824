package walstream

import (
	"fmt"

	"github.com/hashicorp/raft"
)

// Retention says which entries a log may let go.
type Retention struct {
	Applied    uint64 // the own Storage's position; it and what is above stays
	Peer       uint64 // what the peer has durably; 0: not known
	MaxEntries uint64 // kept for a peer that is away
	MaxBytes   int64
	// Snapshot is where a snapshot stands that the peer is being given; 0: none.
	// The entry there and what is above stays, whatever the caps above say, as
	// long as it takes no more than SnapshotBytes.
	Snapshot      uint64
	SnapshotBytes int64
}

// compactTo decides up to which position a log of these entries is compacted;
// below first: not at all. The last entry always stays, as its epoch is what the
// next batch is checked against.
//
// What the peer has goes, but for the last of it, whose epoch is what the peer
// checks the next batch against. What it lacks stays, up to the caps; what the
// own Storage lacks, and so a crash needs, stays in any case. So does what follows
// on a snapshot for the peer, which would be of no use without it.
func (r Retention) compactTo(first uint64, sizes []uint32, total int64) uint64 {
	if len(sizes) == 0 {
		return first - 1
	}
	last := first + uint64(len(sizes)) - 1
	limit := min(max(r.Applied, 1), last) - 1
	to := min(max(r.Peer, 1)-1, limit)
	if kept := last - to; kept > r.MaxEntries {
		to = last - r.MaxEntries
	}
	if keep := max(r.Snapshot, first); r.Snapshot+1 >= first && r.Snapshot > 0 && sum(sizes[min(keep-first, uint64(len(sizes))):]) <= r.SnapshotBytes {
		limit = min(limit, r.Snapshot-1)
	}
	at := first
	for ; at <= min(to, limit); at++ {
		total -= int64(sizes[at-first])
	}
	for ; at <= limit && total > r.MaxBytes; at++ {
		total -= int64(sizes[at-first])
		to = at
	}
	return max(min(to, limit), first-1)
}

func sum(sizes []uint32) (total int64) {
	for _, size := range sizes {
		total += int64(size)
	}
	return total
}

// deleteBlocks bounds the blocks of one DeleteRange: stores do it in one
// transaction, during which nothing else is written.
const deleteBlocks = 10000

// Compact lets go of entries as r allows, and of the blocks that have no others.
// It deletes from the lowest block up, so that a crash between leaves a log
// without a hole.
func (l *Log) Compact(r Retention) error {
	if err := l.letGo(r); err != nil {
		return err
	}
	for {
		done, err := l.deleteChunk()
		if err != nil || done {
			return err
		}
	}
}

// letGo makes the log begin where r allows: readers stop using what is before that
// before it is gone.
func (l *Log) letGo(r Retention) error {
	l.lockStore() // nothing is being cut
	defer l.unlockStore()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	to := min(r.compactTo(l.first, l.sizes, l.total), l.durable.Position)
	if to < l.first {
		return nil
	}
	n := to - l.first + 1
	for _, size := range l.sizes[:n] {
		l.total -= int64(size)
	}
	l.sizes = l.sizes[n:]
	l.first = to + 1
	for len(l.cache) > 0 && l.cache[0].Position <= to {
		l.cached -= l.cache[0].size
		l.cache = l.cache[1:]
	}
	n = 0
	for int(n)+1 < len(l.segments) && l.segments[n+1].first <= l.first {
		n++
	}
	l.segments = l.segments[n:]
	return nil
}

// deleteChunk deletes blocks before the first segment.
func (l *Log) deleteChunk() (done bool, err error) {
	l.lockStore()
	defer l.unlockStore()
	l.mu.Lock()
	if l.err != nil || len(l.segments) == 0 || l.segments[0].index <= l.lowest {
		defer l.mu.Unlock()
		return true, l.err
	}
	from := l.lowest
	to := min(l.segments[0].index-1, from+deleteBlocks-1)
	l.lowest = to + 1
	l.mu.Unlock()
	if err := l.store.DeleteRange(from, to); err != nil {
		l.fail(err)
		return true, l.Err()
	}
	return false, nil
}

// Truncate cuts off the entries after a position. Everything accepted must be
// durable (see Sync), and nobody may append meanwhile. When it returns the cut is
// durable; a crash before leaves the log as it was.
func (l *Log) Truncate(after uint64) error {
	l.lockStore()
	defer l.unlockStore()
	l.mu.Lock()
	first, last, base, pending, next, err := l.first, l.last.Position, l.base, len(l.pending), l.next, l.err
	l.mu.Unlock()
	switch {
	case err != nil:
		return err
	case after >= last:
		return nil
	case pending > 0:
		return fmt.Errorf("cutting the log at %d: %d entries are not durable", after, pending)
	case after < base.Position || after+1 < first:
		return fmt.Errorf("%w: cutting the log at %d, it begins at %d", ErrCompacted, after, first)
	}
	mark := base
	if after > base.Position {
		if mark.Epoch, err = l.EpochAt(after); err != nil {
			return err
		}
		mark.Position = after
	}
	if err := l.storeLogs([]*raft.Log{newBlock(next, after+1, mark.Epoch.Number, nil)}); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	l.forget(mark)
	return nil
}

// Reset empties the log, which then begins at base: it no longer is the log it
// was. The caller keeps base durably, and that the log is being replaced from
// before the call until after (hot standby, "rebuilding"). It deletes from the
// highest block down, so that a crash between leaves a log that opens.
func (l *Log) Reset(base Mark) error {
	l.lockStore()
	defer l.unlockStore()
	l.mu.Lock()
	lowest, next, pending, err := l.lowest, l.next, len(l.pending), l.err
	l.mu.Unlock()
	if err != nil {
		return err
	}
	if pending > 0 {
		return fmt.Errorf("emptying the log: %d entries are not durable", pending)
	}
	for to := next - 1; to >= lowest; {
		from := max(lowest, to-min(to, deleteBlocks)+1)
		if err := l.store.DeleteRange(from, to); err != nil {
			l.fail(err)
			return l.Err()
		}
		to = from - 1
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.base, l.first, l.durable, l.last, l.handed = base, base.Position+1, base, base, base.Position
	l.cache, l.cached, l.sizes, l.total = nil, 0, nil, 0
	l.segments, l.lowest = nil, next
	l.cuts++
	l.tellAll()
	return nil
}
