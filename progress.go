package replication

import (
	"container/heap"
	"context"
	"fmt"
	"sync"
)

// progress is a position that only grows, and those who wait for it.
type progress struct {
	// mu guards the fields below.
	mu      sync.Mutex
	pos     uint64
	stopped error // nil while the position can still grow
	waiters waiterHeap
}

type waiter struct {
	pos   uint64
	done  chan error // one answer
	index int        // in the heap; -1 when it has left it
}

func newProgress() *progress { return &progress{} }

func (p *progress) position() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pos
}

// advance raises the position and answers whom it satisfies.
func (p *progress) advance(pos uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set(max(p.pos, pos))
}

// reset sets the position, which may go back, and lets it grow again.
func (p *progress) reset(pos uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = nil
	p.set(pos)
}

func (p *progress) set(pos uint64) {
	p.pos = pos
	for len(p.waiters) > 0 && p.waiters[0].pos <= pos {
		heap.Pop(&p.waiters).(*waiter).done <- nil
	}
}

// stop answers all waiters, present and future, whose position is not reached.
func (p *progress) stop(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped == nil {
		p.stopped = err
	}
	for len(p.waiters) > 0 {
		heap.Pop(&p.waiters).(*waiter).done <- p.stopped
	}
}

func (p *progress) wait(ctx context.Context, pos uint64) error {
	p.mu.Lock()
	if p.pos >= pos {
		p.mu.Unlock()
		return nil
	}
	if p.stopped != nil {
		defer p.mu.Unlock()
		return p.stopped
	}
	w := &waiter{pos: pos, done: make(chan error, 1)}
	heap.Push(&p.waiters, w)
	p.mu.Unlock()

	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if w.index < 0 {
		return <-w.done
	}
	heap.Remove(&p.waiters, w.index)
	return fmt.Errorf("%w waiting for position %d, at %d: %w", ErrTimeout, pos, p.pos, context.Cause(ctx))
}

// waiterHeap orders waiters by position, lowest first.
type waiterHeap []*waiter

func (h waiterHeap) Len() int           { return len(h) }
func (h waiterHeap) Less(i, j int) bool { return h[i].pos < h[j].pos }
func (h waiterHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *waiterHeap) Push(x any) {
	w := x.(*waiter)
	w.index = len(*h)
	*h = append(*h, w)
}

func (h *waiterHeap) Pop() any {
	old := *h
	w := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	w.index = -1
	return w
}
