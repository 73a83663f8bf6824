package walstream

import (
	"context"
	"fmt"
	"slices"

	"github.com/nornicdb/replication"
)

// durableWaiter waits for the disk. It is woken once: with a channel that is
// closed at every change, each Append would wake all others.
type durableWaiter struct {
	position uint64
	done     chan struct{} // closed when the wait is over
}

// notice is a channel that is closed at the next change of something; nil while
// nobody waits for it.
type notice struct{ c chan struct{} }

func (n *notice) wait() <-chan struct{} {
	if n.c == nil {
		n.c = make(chan struct{})
	}
	return n.c
}

func (n *notice) tell() {
	if n.c != nil {
		close(n.c)
		n.c = nil
	}
}

// release wakes those whose wait for the disk is over. l.mu is held.
func (l *Log) release() {
	over := l.err != nil || l.closed && len(l.pending) == 0
	l.waiters = slices.DeleteFunc(l.waiters, func(w durableWaiter) bool {
		if !over && w.position > l.durable.Position {
			return false
		}
		close(w.done)
		return true
	})
}

// WaitDurable waits until the position is durable. ErrTimeout when ctx ends
// first, ErrFailed or ErrClosed when it will not be.
func (l *Log) WaitDurable(ctx context.Context, position uint64) error {
	l.mu.Lock()
	if err, over := l.reached(position); over {
		l.mu.Unlock()
		return err
	}
	w := durableWaiter{position, make(chan struct{})}
	l.waiters = append(l.waiters, w)
	l.mu.Unlock()
	select {
	case <-w.done:
		l.mu.Lock()
		defer l.mu.Unlock()
		err, _ := l.reached(position)
		return err
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiters = slices.DeleteFunc(l.waiters, func(o durableWaiter) bool { return o.done == w.done })
	if err, over := l.reached(position); over {
		return err
	}
	return fmt.Errorf("%w: waiting for the disk: %w", replication.ErrTimeout, context.Cause(ctx))
}

// reached says whether a wait for the disk is over, and how. l.mu is held.
func (l *Log) reached(position uint64) (err error, over bool) {
	switch {
	case l.durable.Position >= position:
		return nil, true
	case l.err != nil:
		return l.err, true
	case l.closed && len(l.pending) == 0:
		return replication.ErrClosed, true
	}
	return nil, false
}

// Wait waits until the log has an entry after the position, durable or not.
func (l *Log) Wait(ctx context.Context, after uint64) error {
	for {
		l.mu.Lock()
		last, err, closed, changed := l.last.Position, l.err, l.closed, l.grown.wait()
		l.mu.Unlock()
		switch {
		case last > after:
			return nil
		case err != nil:
			return err
		case closed:
			return replication.ErrClosed
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", replication.ErrTimeout, context.Cause(ctx))
		}
	}
}
