package walstream

import "fmt"

// Retention says which entries a log may let go.
type Retention struct {
	Applied    uint64 // the own Storage's position; it and what is above stays
	Peer       uint64 // what the peer has durably; 0: not known
	MaxEntries uint64 // kept for a peer that is away
	MaxBytes   int64
}

// compactTo decides up to which position a log of these entries is compacted;
// below first: not at all. The last entry always stays, as its epoch is what the
// next batch is checked against.
//
// What the peer has goes, but for the last of it, whose epoch is what the peer
// checks the next batch against. What it lacks stays, up to the caps; what the
// own Storage lacks, and so a crash needs, stays in any case.
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

// deleteChunk bounds the entries of one DeleteRange: stores do it in one
// transaction, during which nothing else is written.
const deleteChunk = 10000

// Compact lets go of entries as r allows. It deletes from the lowest position
// up, so that a crash between leaves a log without a hole.
func (l *Log) Compact(r Retention) error {
	for {
		done, err := l.compactChunk(r)
		if err != nil || done {
			return err
		}
	}
}

func (l *Log) compactChunk(r Retention) (done bool, err error) {
	l.lockStore()
	defer l.unlockStore()
	l.mu.Lock()
	if l.err != nil {
		defer l.mu.Unlock()
		return true, l.err
	}
	first := l.first
	to := min(r.compactTo(first, l.sizes, l.total), l.durable.Position)
	l.mu.Unlock()
	if to < first {
		return true, nil
	}
	to = min(to, first+deleteChunk-1)
	// Readers stop using these before they are gone.
	l.mu.Lock()
	n := to - first + 1
	for _, size := range l.sizes[:n] {
		l.total -= int64(size)
	}
	l.sizes = l.sizes[n:]
	l.first = to + 1
	for len(l.cache) > 0 && l.cache[0].Position <= to {
		l.cached -= l.cache[0].size
		l.cache = l.cache[1:]
	}
	l.mu.Unlock()
	if err := l.store.DeleteRange(first, to); err != nil {
		l.fail(err)
		return true, l.Err()
	}
	return false, nil
}

// Truncate cuts off the entries after a position. Everything accepted must be
// durable (see Sync), and nobody may append meanwhile. It deletes from the
// highest position down, so that a crash between leaves a log without a hole,
// which is cut again.
func (l *Log) Truncate(after uint64) error {
	l.lockStore()
	defer l.unlockStore()
	l.mu.Lock()
	first, last, base, pending, err := l.first, l.last.Position, l.base, len(l.pending), l.err
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
	return l.cut(mark, last)
}

// cut deletes the entries after mark, up to last. the store is locked.
func (l *Log) cut(mark Mark, last uint64) error {
	l.mu.Lock()
	keep := mark.Position + 1 - l.first
	for _, size := range l.sizes[keep:] {
		l.total -= int64(size)
	}
	l.sizes = l.sizes[:keep]
	for n := len(l.cache); n > 0 && l.cache[n-1].Position > mark.Position; n-- {
		l.cached -= l.cache[n-1].size
		l.cache = l.cache[: n-1 : n-1] // what a reader holds is not written over
	}
	l.last, l.durable, l.handed = mark, mark, mark.Position
	l.mu.Unlock()
	for to := last; to > mark.Position; {
		from := max(mark.Position+1, to-min(to, deleteChunk)+1)
		if err := l.store.DeleteRange(from, to); err != nil {
			l.fail(err)
			return l.Err()
		}
		to = from - 1
	}
	return nil
}

// Reset empties the log, which then begins at base: it no longer is the log it
// was. The caller keeps base durably, and that the log is being replaced from
// before the call until after (hot standby, "rebuilding").
func (l *Log) Reset(base Mark) error {
	l.lockStore()
	defer l.unlockStore()
	l.mu.Lock()
	first, last, pending, err := l.first, l.last.Position, len(l.pending), l.err
	l.mu.Unlock()
	if err != nil {
		return err
	}
	if pending > 0 {
		return fmt.Errorf("emptying the log: %d entries are not durable", pending)
	}
	for to := last; to >= first && to > 0; {
		from := max(first, to-min(to, deleteChunk)+1)
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
	l.tellAll()
	return nil
}
