package walstream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nornicdb/replication"
)

// How many entries a Feed hands to the Storage at once.
const (
	feedEntries = 512
	feedBytes   = 8 << 20
)

// Feed applies a log to a Storage, in order, as far as it is allowed: up to the
// commit position, and never what the disk does not have. It is the only one
// that applies to its StorageApplier. Safe for concurrent use.
type Feed struct {
	log     *Log
	applier *replication.StorageApplier
	wake    chan struct{}

	// applying has its one token taken while entries are being applied. It is a
	// channel as the Storage can wait for a disk: virtual time goes on while
	// goroutines wait for a channel, and not while they wait for a mutex.
	applying chan struct{}

	// mu guards the fields below.
	mu      sync.Mutex
	commit  uint64
	paused  bool
	last    uint64    // position of the last entry that the Storage's call under way is about; 0: none is
	steps   uint64    // of the applier when it was looked at
	moved   time.Time // when that changed, or the call began
	waiters map[uint64]chan replication.Result
	err     error // sticky
}

// NewFeed makes a Feed that applies nothing before Commit; Run runs it.
func NewFeed(log *Log, applier *replication.StorageApplier) *Feed {
	return &Feed{log: log, applier: applier, wake: make(chan struct{}, 1), applying: make(chan struct{}, 1),
		waiters: make(map[uint64]chan replication.Result)}
}

// Commit allows entries up to a position to be applied. It only goes up.
func (f *Feed) Commit(position uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if position > f.commit {
		f.commit = position
		f.signal()
	}
}

// Committed is the position up to which entries may be applied.
func (f *Feed) Committed() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return max(f.commit, f.applier.Position())
}

func (f *Feed) lockApplying()   { f.applying <- struct{}{} }
func (f *Feed) unlockApplying() { <-f.applying }

func (f *Feed) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Propose runs propose, which appends an entry, and returns a channel on which
// the entry's result will come, when it has been applied.
func (f *Feed) Propose(propose func() (*Entry, error)) (*Entry, <-chan replication.Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return nil, nil, f.err
	}
	e, err := propose()
	if err != nil {
		return nil, nil, err
	}
	result := make(chan replication.Result, 1)
	f.waiters[e.Position] = result
	return e, result, nil
}

// Forget lets go of the result of an entry that nobody waits for any more.
func (f *Feed) Forget(position uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.waiters, position)
}

// Waiting is how many entries somebody waits for.
func (f *Feed) Waiting() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.waiters)
}

// Pause makes the feed apply nothing; when it returns, nothing is being applied.
// Who waits for a result gets err, and commit begins anew at what is applied.
func (f *Feed) Pause(err error) {
	f.mu.Lock()
	f.paused = true
	f.failWaiters(err)
	f.mu.Unlock()
	f.lockApplying() // waits for the entries being applied
	defer f.unlockApplying()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.commit = 0
}

// Still runs f while nothing is being applied.
func (f *Feed) Still(do func() error) error {
	f.lockApplying()
	defer f.unlockApplying()
	return do()
}

// Resume ends Pause.
func (f *Feed) Resume() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.paused = false
	f.signal()
}

// failWaiters answers everybody who waits for a result. f.mu is held.
func (f *Feed) failWaiters(err error) {
	for p, w := range f.waiters {
		w <- replication.Result{Position: p, Err: err}
		delete(f.waiters, p)
	}
}

// Run applies until ctx ends, or the Storage or the log fails, which it returns.
func (f *Feed) Run(ctx context.Context) error {
	for {
		changed := f.log.DurableChanged()
		more, err := f.step()
		if err != nil {
			return f.fail(err)
		}
		if more {
			continue
		}
		if !f.awaitsDisk() {
			changed = nil
		}
		select {
		case <-f.wake:
		case <-changed:
		case <-ctx.Done():
			f.mu.Lock()
			defer f.mu.Unlock()
			f.failWaiters(fmt.Errorf("%w: %w", replication.ErrUnknownOutcome, replication.ErrClosed))
			return context.Cause(ctx)
		}
	}
}

// awaitsDisk: there is something that may be applied, and a step that just ended did
// not, as the disk did not have it. Whether the disk has it by now is not asked: it
// may have got it after the step had looked.
func (f *Feed) awaitsDisk() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.paused && f.commit > f.applier.Position()
}

// step applies what it can at once; more: there may be more.
func (f *Feed) step() (more bool, err error) {
	f.lockApplying()
	defer f.unlockApplying()
	f.mu.Lock()
	limit, paused := min(f.commit, f.log.Durable().Position), f.paused
	f.mu.Unlock()
	position := f.applier.Position()
	if paused || position >= limit {
		return false, nil
	}
	entries, err := f.log.Read(position, int(min(feedEntries, limit-position)), feedBytes)
	if err != nil {
		return false, err
	}
	batch, groups := make([]replication.Entry, len(entries)), make([]replication.Group, len(entries))
	for i, e := range entries {
		groups[i] = e.Group
		batch[i] = replication.Entry{Position: e.Position, Groups: groups[i : i+1 : i+1]}
	}
	f.setCall(position + uint64(len(entries)))
	results, err := f.applier.Apply(batch)
	f.setCall(0)
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range results {
		p := batch[i].Position
		if w := f.waiters[p]; w != nil {
			w <- results[i][0]
			delete(f.waiters, p)
		}
	}
	return err == nil, err
}

// setCall notes that a call of the Storage begins, or with 0 that it has ended.
func (f *Feed) setCall(last uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last, f.steps, f.moved = last, f.applier.Steps(), time.Now()
}

// Hung is for how long the Storage's call under way has got no further, as far as
// this is asked again and again, and the position of the call's last entry; 0 where
// none is. A Storage that takes a few entries at a time gets further within a call.
func (f *Feed) Hung() (stuck time.Duration, last uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.last == 0 {
		return 0, 0
	}
	if steps := f.applier.Steps(); steps != f.steps {
		f.steps, f.moved = steps, time.Now()
	}
	return time.Since(f.moved), f.last
}

// fail ends the feed: what the Storage holds is not known any more.
func (f *Feed) fail(err error) error {
	if !errors.Is(err, replication.ErrStorageFailed) {
		err = f.applier.Fail(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	f.failWaiters(fmt.Errorf("%w: %w", replication.ErrUnknownOutcome, err))
	return err
}
