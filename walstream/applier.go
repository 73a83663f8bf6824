package walstream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nornicdb/replication"
)

// Ack is how far a node is.
type Ack struct {
	Received  uint64 // has arrived: ≥ Persisted
	Persisted uint64 // is durable: ≥ Applied
	Applied   uint64 // is in the Storage
}

// ApplierOptions of an Applier. Zero fields get the defaults named beside them.
type ApplierOptions struct {
	// AnswerReceived: answer as soon as a batch has arrived, not when it is
	// durable (semi_sync).
	AnswerReceived bool
	// GapWait is how long a batch waits for those before it, which can overtake
	// each other on one connection; 1 s.
	GapWait time.Duration
	// MaxWaiting bounds the batches that wait so; 64.
	MaxWaiting int
}

// Applier is the receiving side of a stream: it checks batches and writes them
// to its log. Safe for concurrent use.
type Applier struct {
	log  *Log
	opts ApplierOptions

	// mu serializes batches and guards the fields below.
	mu      sync.Mutex
	history string
	epoch   replication.Epoch
	follows bool
	waiting int
}

// NewApplier makes an Applier that follows nobody yet.
func NewApplier(log *Log, opts ApplierOptions) *Applier {
	if opts.GapWait <= 0 {
		opts.GapWait = time.Second
	}
	defaultTo(&opts.MaxWaiting, 64)
	return &Applier{log: log, opts: opts}
}

// Follow makes the applier take batches of one epoch of a history from now on;
// when it returns, no batch of another one is being taken any more. A zero epoch
// is that of a plain peer.
func (a *Applier) Follow(history string, epoch replication.Epoch) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.history, a.epoch, a.follows = history, epoch, true
}

// Stop makes the applier take nothing; when it returns, nothing is being taken.
func (a *Applier) Stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.follows = false
}

// Receive takes a batch and says, when it has arrived or is durable, as the
// options have it, how far this node is. What it has already is passed over;
// after a gap that does not close, the answer is below the batch, and the sender
// goes back to it. Errors say that the batch changed nothing (ErrStaleEpoch,
// ErrForeignHistory, ErrDiverged, ErrCorrupt, ErrOverloaded), or that it has
// arrived and is not durable (ErrFailed, ErrTimeout, ErrClosed).
func (a *Applier) Receive(ctx context.Context, b Received) (Ack, error) {
	v, err := a.take(b)
	if err == nil && v == verdictGap && a.awaitTurn(ctx, b.Entries[0].Position-1) {
		v, err = a.take(b)
	}
	if errors.Is(err, replication.ErrOverloaded) && a.log.Sync(ctx) == nil { // the sender waits for the disk
		v, err = a.take(b)
	}
	if err != nil {
		return a.Ack(), err
	}
	if v != verdictGap && len(b.Entries) > 0 && !a.opts.AnswerReceived {
		err = a.log.WaitDurable(ctx, b.Entries[len(b.Entries)-1].Position)
	}
	return a.Ack(), err
}

// Ack is how far this node is. Applied is left to the caller.
func (a *Applier) Ack() Ack {
	persisted := a.log.Durable().Position
	return Ack{Received: max(a.log.Last().Position, persisted), Persisted: persisted}
}

// take judges a batch and hands what is new to the log.
func (a *Applier) take(b Received) (verdict, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.follows {
		return 0, fmt.Errorf("%w: no primary is followed", ErrStaleEpoch)
	}
	f := following{history: a.history, epoch: a.epoch, last: a.log.Last()}
	v, known, err := f.judge(b, a.log.EpochAt)
	if err != nil || v != verdictTake {
		return v, err
	}
	return v, a.hand(b.Entries[known:])
}

// awaitTurn waits until the log has reached a position, as long as GapWait; false:
// it has not.
func (a *Applier) awaitTurn(ctx context.Context, position uint64) bool {
	a.mu.Lock()
	full := a.waiting >= a.opts.MaxWaiting
	if !full {
		a.waiting++
	}
	a.mu.Unlock()
	if full {
		return false
	}
	defer func() {
		a.mu.Lock()
		a.waiting--
		a.mu.Unlock()
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, a.opts.GapWait, errGap)
	defer cancel()
	return a.log.Wait(ctx, position-1) == nil
}

var errGap = errors.New("entries before these are missing")

// Extend takes entries that were fetched from another node's log to continue this
// one after a mark, and waits for nothing. They may begin with entries that this
// log has, which then must be the same. Only who knows that nobody is followed
// calls it.
func (a *Applier) Extend(history string, epoch replication.Epoch, after Mark, entries []*WireEntry) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := following{history: history, epoch: epoch, last: a.log.Last()}
	if a.follows || f.last != after {
		return fmt.Errorf("%w: the log ends at %s, not %s", ErrStaleEpoch, f.last, after)
	}
	prev := after.Epoch
	if len(entries) > 0 && entries[0].Position > 0 && entries[0].Position <= after.Position {
		var err error
		if prev, err = a.log.EpochAt(entries[0].Position - 1); err != nil && !errors.Is(err, ErrCompacted) {
			return err
		}
	}
	v, known, err := f.judge(Received{Epoch: epoch, Prev: &prev, Entries: entries}, a.log.EpochAt)
	if err != nil || v != verdictTake {
		return err
	}
	return a.hand(entries[known:])
}

// hand hands checked entries to the log. a.mu is held.
func (a *Applier) hand(entries []*WireEntry) error {
	list := make([]stored, 0, len(entries))
	for _, w := range entries {
		s, err := fromWire(w)
		if err != nil {
			return err
		}
		list = append(list, s)
	}
	return a.log.extend(list)
}
