package walstream

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
)

var (
	// ErrFailed: a write to the log's store failed. What is on the disk is not
	// known until the log is opened again; it takes nothing more.
	ErrFailed = errors.New("write-ahead log failed")
	// ErrCompacted: the log no longer has the entry; a snapshot is needed.
	ErrCompacted = errors.New("compacted away")
	// ErrAhead: the position is above the end of the log.
	ErrAhead = errors.New("position is above the end of the log")
)

// LogOptions of a Log. Zero fields get the defaults named beside them.
type LogOptions struct {
	// Base is where a log without entries begins: the next position is
	// Base.Position + 1.
	Base Mark
	// MaxPendingEntries and MaxPendingBytes bound what was accepted and is not
	// durable yet, 65,536 and 128 MiB. Past them Propose is refused.
	MaxPendingEntries int
	MaxPendingBytes   int
	// SyncEntries and SyncBytes bound one StoreLogs, 4,096 and 16 MiB.
	SyncEntries int
	SyncBytes   int
	// CacheEntries and CacheBytes bound the entries kept in memory after they
	// are durable, 8,192 and 8 MiB.
	CacheEntries int
	CacheBytes   int
	// OnFailure is told once that the log failed. It must not block.
	OnFailure func(error)

	blockEntries int // of one block at most, 256; tests have less
}

func defaultTo(field *int, value int) {
	if *field <= 0 {
		*field = value
	}
}

func (o *LogOptions) setDefaults() {
	defaultTo(&o.MaxPendingEntries, 1<<16)
	defaultTo(&o.MaxPendingBytes, 128<<20)
	defaultTo(&o.SyncEntries, 4096)
	defaultTo(&o.SyncBytes, 16<<20)
	defaultTo(&o.CacheEntries, 8192)
	defaultTo(&o.CacheBytes, 8<<20)
	defaultTo(&o.blockEntries, blockEntries)
}

// Log is a durable write-ahead log: entries at positions without gaps, each
// with its epoch, many to a block in a raft.LogStore whose StoreLogs is durable
// when it returns. Safe for concurrent use. Callers that come while a sync runs share
// the next one. An entry can be read as soon as it was accepted, while its own
// sync runs; Durable says how far the disk has it.
type Log struct {
	store raft.LogStore
	opts  LogOptions
	wake  chan struct{} // one token: something is pending, or the log ends
	done  chan struct{} // closed when the writer has ended

	// storeLock has its one token taken during every write of the store: the
	// writer's syncs, Truncate, Compact, Reset. It is taken before mu.
	storeLock chan struct{}

	// mu guards the fields below.
	mu      sync.Mutex
	base    Mark   // of an empty log: base ≤ durable ≤ last
	first   uint64 // lowest position in the log; last.Position + 1 where it is empty
	durable Mark
	last    Mark     // of what was accepted
	pending []stored // positions durable+1 … last
	idle    bool     // the writer waits for an entry: none is pending
	bytes   int      // of pending
	cache   []*Entry // the newest entries, pending ones included, up to last
	cached  int      // bytes of cache
	sizes   []uint32 // stored sizes of first … last
	total   int64    // sum of sizes
	// The blocks of first … durable, with ascending positions and indexes; the
	// store has lowest … next-1, blocks that were cut off among them.
	segments     []segment
	lowest, next uint64
	cuts         uint64 // how often a tail was cut off
	err          error  // sticky
	closed       bool
	handed       uint64 // what the disk has or is being given: durable ≤ handed ≤ last
	waiters      []durableWaiter
	// Closed when last, handed and durable change, and all when the log ends.
	grown, begun, synced notice
	syncing              time.Time // when the StoreLogs under way began; zero: none is
}

// OpenLog opens the log in a store. It reads all of it, and so finds a hole, an
// entry that is damaged or an epoch that goes back before anything relies on
// it; errors wrap ErrCorrupt. The store remains the caller's to close, after
// Close.
func OpenLog(store raft.LogStore, opts LogOptions) (*Log, error) {
	opts.setDefaults()
	l := &Log{store: store, opts: opts, wake: make(chan struct{}, 1), done: make(chan struct{}), storeLock: make(chan struct{}, 1),
		base: opts.Base, first: opts.Base.Position + 1, durable: opts.Base, last: opts.Base, handed: opts.Base.Position,
		lowest: 1, next: 1}
	if err := l.load(); err != nil {
		return nil, err
	}
	go l.writeLoop()
	return l, nil
}

// Prepared is a group in its stored form, but for its position.
type Prepared struct{ stored stored }

// Prepare encodes a group for ProposePrepared. It takes no lock of the log.
// ErrInvalidCommand for what cannot be stored.
func Prepare(epoch replication.Epoch, at time.Time, g replication.Group) (Prepared, error) {
	s, err := encode(epoch, at, g)
	return Prepared{s}, err
}

// Propose gives a group the next position and hands it to the disk. The entry
// it returns is not durable yet. Errors say that nothing was appended:
// ErrInvalidCommand, ErrOverloaded, ErrFailed, ErrClosed. The epoch must not be
// below that of the last entry.
func (l *Log) Propose(epoch replication.Epoch, at time.Time, g replication.Group) (*Entry, error) {
	p, err := Prepare(epoch, at, g)
	if err != nil {
		return nil, err
	}
	return l.ProposePrepared(p)
}

// ProposePrepared is Propose for a group that was encoded before, once.
func (l *Log) ProposePrepared(p Prepared) (*Entry, error) {
	s := p.stored
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.room(1, s.entry.size); err != nil {
		return nil, err
	}
	if s.entry.Epoch.Compare(l.last.Epoch) < 0 {
		return nil, fmt.Errorf("%w: epoch %s is below the log's %s", replication.ErrNotLeader, s.entry.Epoch, l.last.Epoch)
	}
	s = s.seal(l.last.Position + 1)
	l.accept(s)
	l.wakeWriter()
	if l.idle { // its sync is the next thing that happens: the stream need not wait for it to begin
		l.idle = false
		l.handed = l.last.Position
		l.begun.tell()
	}
	return s.entry, nil
}

// Append proposes a group and waits until it is durable. When ctx ends first
// the error wraps ErrUnknownOutcome: the entry is in the log and stays there.
func (l *Log) Append(ctx context.Context, epoch replication.Epoch, at time.Time, g replication.Group) (uint64, error) {
	e, err := l.Propose(epoch, at, g)
	if err != nil {
		return 0, err
	}
	if err := l.WaitDurable(ctx, e.Position); err != nil {
		return e.Position, fmt.Errorf("%w: %w", replication.ErrUnknownOutcome, err)
	}
	return e.Position, nil
}

// extend accepts entries that another node made. They must follow the last one
// without a gap, in epochs that do not go back.
func (l *Log) extend(entries []stored) error {
	size := 0
	for i := range entries {
		size += entries[i].entry.size
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.room(len(entries), size); err != nil {
		return err
	}
	at := l.last
	for _, s := range entries {
		if s.entry.Position != at.Position+1 || s.entry.Epoch.Compare(at.Epoch) < 0 {
			return fmt.Errorf("%w: entry %s after %s", ErrCorrupt, s.entry.Mark(), at)
		}
		at = s.entry.Mark()
	}
	for _, s := range entries {
		l.accept(s)
	}
	l.wakeWriter()
	return nil
}

// room says whether entries can be accepted. l.mu is held. What is larger than
// all the room goes when nothing else is pending.
func (l *Log) room(entries, size int) error {
	switch {
	case l.err != nil:
		return l.err
	case l.closed:
		return replication.ErrClosed
	case len(l.pending) > 0 && (len(l.pending)+entries > l.opts.MaxPendingEntries || l.bytes+size > l.opts.MaxPendingBytes):
		return fmt.Errorf("%w: %d entries wait for the disk", replication.ErrOverloaded, len(l.pending))
	}
	return nil
}

// accept puts an entry at the end. l.mu is held.
func (l *Log) accept(s stored) {
	l.pending = append(l.pending, s)
	l.bytes += s.entry.size
	l.cache = append(l.cache, s.entry)
	l.cached += s.entry.size
	l.sizes = append(l.sizes, uint32(s.entry.size))
	l.total += int64(s.entry.size)
	l.last = s.entry.Mark()
}

// wakeWriter tells of entries that were accepted. l.mu is held.
func (l *Log) wakeWriter() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
	l.grown.tell()
}

// tellAll wakes the writer and everybody who waits. l.mu is held.
func (l *Log) tellAll() {
	l.wakeWriter()
	l.begun.tell()
	l.synced.tell()
}

// writeLoop makes pending entries durable, many at once.
func (l *Log) writeLoop() {
	defer close(l.done)
	for range l.wake {
		for n := l.sync(); n > 0; n = l.sync() {
			l.gather(n)
		}
		l.mu.Lock()
		l.idle = len(l.pending) == 0
		ended := l.err != nil || l.closed && l.idle
		l.mu.Unlock()
		if ended {
			return
		}
	}
}

func (l *Log) lockStore()   { l.storeLock <- struct{}{} }
func (l *Log) unlockStore() { <-l.storeLock }

// enoughEntries share a sync's cost so far that to wait for more of them costs more
// than it saves.
const enoughEntries = 32

// gather gives those whom a sync of n entries woke the chance to join the next one:
// as long as entries keep coming it lets others run, without ever waiting for time to
// pass. It ends when there are enough: while some are written, those before them
// are applied and answered, and come back. It yields no more often than it woke
// somebody: a processor that it keeps busy does not look for what the network brings.
func (l *Log) gather(n int) {
	const maxYields = 16
	enough := max(min(n/2, enoughEntries), 1)
	most := 0
	for yields := 0; yields < min(n, maxYields); yields++ {
		l.mu.Lock()
		pending := len(l.pending)
		l.mu.Unlock()
		if pending >= enough {
			return
		}
		if pending > most {
			most, yields = pending, 0
		}
		runtime.Gosched()
	}
}

// sync stores what is pending now, as much as one call takes, and returns how many
// entries that were.
func (l *Log) sync() int {
	l.lockStore()
	defer l.unlockStore()
	l.mu.Lock()
	batch, size := l.pending, 0
	for i := range batch {
		if size += batch[i].entry.size; i > 0 && (i >= l.opts.SyncEntries || size > l.opts.SyncBytes) {
			batch = batch[:i]
			break
		}
	}
	if len(batch) == 0 || l.err != nil {
		l.mu.Unlock()
		return 0
	}
	// The stream reads what one sync takes at once, not entry by entry.
	l.handed = max(l.handed, batch[len(batch)-1].entry.Position)
	l.begun.tell()
	next := l.next
	l.mu.Unlock()
	logs, segments := pack(next, batch, l.opts.blockEntries)
	if err := l.storeLogs(logs); err != nil {
		return 0
	}
	l.took(batch, segments)
	return len(batch)
}

// storeLogs stores blocks; an error ends the log. The store is locked.
func (l *Log) storeLogs(logs []*raft.Log) error {
	l.setSyncing(time.Now())
	err := l.store.StoreLogs(logs)
	l.setSyncing(time.Time{})
	if err != nil {
		l.fail(err)
		return l.Err()
	}
	return nil
}

func (l *Log) setSyncing(t time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.syncing = t
}

// took takes a batch that is durable out of what is pending.
func (l *Log) took(batch []stored, segments []segment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.segments = append(l.segments, segments...)
	l.next += uint64(len(segments))
	l.durable = batch[len(batch)-1].entry.Mark()
	for i := range batch {
		l.bytes -= batch[i].entry.size
		batch[i] = stored{}
	}
	if l.pending = l.pending[len(batch):]; len(l.pending) == 0 {
		l.pending = nil
	}
	l.trimCache()
	l.synced.tell()
	l.release() // last: whom it wakes has a peer waiting, and runs next
}

// trimCache drops the oldest durable entries beyond the cache's bounds. l.mu is
// held.
func (l *Log) trimCache() {
	n := 0
	for n < len(l.cache) && l.cache[n].Position <= l.durable.Position &&
		(len(l.cache)-n > l.opts.CacheEntries || l.cached > l.opts.CacheBytes) {
		l.cached -= l.cache[n].size
		l.cache[n] = nil
		n++
	}
	l.cache = l.cache[n:]
}

// fail ends the log.
func (l *Log) fail(err error) {
	l.mu.Lock()
	first := l.err == nil
	if first {
		l.err = fmt.Errorf("%w: %w", ErrFailed, err)
	}
	err = l.err
	l.release()
	l.tellAll()
	l.mu.Unlock()
	if first && l.opts.OnFailure != nil {
		l.opts.OnFailure(err)
	}
}

// Close makes what is pending durable and stops the log. Idempotent. It returns
// the error that had ended the log, if any.
func (l *Log) Close() error {
	l.mu.Lock()
	l.closed = true
	l.release()
	l.tellAll()
	l.mu.Unlock()
	<-l.done
	return l.Err()
}
