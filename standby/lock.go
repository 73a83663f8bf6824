package standby

import (
	"context"
	"fmt"

	"github.com/nornicdb/replication"
)

// sharedSlots is how many may share a roleLock.
const sharedSlots = 16

// roleLock is held alone, or shared by several. It is made of channels, as whoever
// holds it can wait for a disk: who waits for it gives up with its context, and
// the tests run in virtual time, which goes on while goroutines wait for channels,
// and not while they wait for a mutex.
type roleLock struct {
	turn  chan struct{}   // taken while somebody enters, so that nobody starves
	slots chan struct{}   // one for each who shares; all for who is alone
	ended <-chan struct{} // closed when nobody gets it any more
}

func newRoleLock(ended <-chan struct{}) roleLock {
	return roleLock{turn: make(chan struct{}, 1), slots: make(chan struct{}, sharedSlots), ended: ended}
}

// Lock fails with ErrTimeout when ctx ends first, with ErrClosed when the node does.
func (l roleLock) Lock(ctx context.Context) error { return l.take(ctx, sharedSlots) }

func (l roleLock) Unlock() {
	for range sharedSlots {
		<-l.slots
	}
}

// RLock fails as Lock does.
func (l roleLock) RLock(ctx context.Context) error { return l.take(ctx, 1) }

func (l roleLock) RUnlock() { <-l.slots }

func (l roleLock) take(ctx context.Context, slots int) error {
	if err := l.enter(ctx, l.turn); err != nil {
		return err
	}
	defer func() { <-l.turn }()
	for i := range slots {
		if err := l.enter(ctx, l.slots); err != nil {
			for range i {
				<-l.slots
			}
			return err
		}
	}
	return nil
}

func (l roleLock) enter(ctx context.Context, c chan<- struct{}) error {
	select {
	case c <- struct{}{}:
		return nil
	default:
	}
	select {
	case c <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: the node is busy with its disk: %w", replication.ErrTimeout, context.Cause(ctx))
	case <-l.ended:
		return replication.ErrClosed
	}
}
