package region

import (
	"context"
	"sync"
	"time"

	"github.com/nornicdb/replication/region/conflict"
)

// inbox is where the batches of one region's stream wait at this region's
// leader for those before them, and for the proposal that is under way. The next
// proposal takes all that fit behind each other: the more the log takes its time
// the more entries one has.
type inbox struct {
	turn chan struct{} // holds a token while nobody proposes

	// mu guards the field below.
	mu      sync.Mutex
	waiting map[*arrival]struct{} // as many as requests are served at once
}

// arrival is a batch: contiguous entries, at least one.
type arrival struct {
	entries []*conflict.Entry
	bytes   int // about
}

func (a *arrival) first() uint64 { return a.entries[0].Dot.Pos }
func (a *arrival) last() uint64  { return a.entries[len(a.entries)-1].Dot.Pos }

// runBytes and runEntries bound a proposal; one batch is always taken.
const (
	runBytes   = 1 << 20
	runEntries = 4096
)

func newInbox() *inbox {
	b := &inbox{turn: make(chan struct{}, 1), waiting: make(map[*arrival]struct{})}
	b.turn <- struct{}{}
	return b
}

func (b *inbox) put(a *arrival) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.waiting[a] = struct{}{}
}

func (b *inbox) remove(a *arrival) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.waiting, a)
}

// run is what can be proposed where the stream is applied up to have; empty:
// what comes next is not here.
func (b *inbox) run(have uint64) (entries []*conflict.Entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	size := 0
	for {
		var next *arrival
		for a := range b.waiting {
			if a.first() <= have+1 && a.last() > have && (next == nil || a.last() > next.last()) {
				next = a
			}
		}
		if next == nil || len(entries) > 0 && (size+next.bytes > runBytes || len(entries)+len(next.entries) > runEntries) {
			return entries
		}
		entries = append(entries, next.entries[have+1-next.first():]...)
		size += next.bytes
		have = next.last()
	}
}

// gapWait is how long a batch waits while its stream does not get any further.
const gapWait = time.Second

// bring has a batch merged, and returns how far the stream is applied then. It
// waits for the batches before it, which it may have overtaken.
func (n *Node) bring(ctx context.Context, origin string, a *arrival) (uint64, error) {
	b := n.inboxes[origin]
	b.put(a)
	defer b.remove(a)
	timer := time.NewTimer(gapWait)
	defer timer.Stop()
	at := uint64(0)
	for {
		v, changed := n.machine.now()
		if v.applied(origin) > at {
			timer.Reset(gapWait)
		}
		if at = v.applied(origin); at >= a.last() {
			return at, nil
		}
		select {
		case <-b.turn:
			more, err := n.mergeRun(ctx, origin, b)
			b.turn <- struct{}{}
			if err != nil {
				return at, err
			}
			if v, changed = n.machine.now(); more || v.applied(origin) > at {
				continue
			}
			select { // a proposal that did not help has changed the state, too
			case <-changed:
				continue
			case <-timer.C:
			case <-ctx.Done():
			}
		case <-changed:
			continue
		case <-timer.C:
		case <-ctx.Done():
		}
		v, _ = n.machine.now()
		return v.applied(origin), nil
	}
}

// mergeRun proposes what is in turn; false: nothing is, or it did not help.
func (n *Node) mergeRun(ctx context.Context, origin string, b *inbox) (bool, error) {
	before, _ := n.machine.now()
	entries := b.run(before.applied(origin))
	if len(entries) == 0 {
		return false, nil
	}
	err := n.merge(ctx, entries)
	after, _ := n.machine.now()
	return after.applied(origin) > before.applied(origin), err
}
