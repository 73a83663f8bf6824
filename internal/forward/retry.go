package forward

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nornicdb/replication"
)

// The first pause before another try, when no change ends it sooner; each is
// twice the one before.
const (
	firstPause = 10 * time.Millisecond
	maxPause   = 250 * time.Millisecond
)

// Retry tries again what another node, or a later moment, may take.
type Retry struct {
	// Changed returns a channel that is closed when another node may take it.
	Changed func() <-chan struct{}
	// Life is the node's.
	Life context.Context
	// Final: no other try follows the error; nil: as Transient says.
	Final func(error) bool
}

// Until runs try until it succeeds, its error is final, or ctx ends. An error is
// followed by another try if it is transient and again is true for it.
func (r Retry) Until(ctx context.Context, try func(context.Context) error, again func(error) bool) error {
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		changed := r.Changed()
		err := try(ctx)
		if err == nil || !Transient(err) || !again(err) || r.Final != nil && r.Final(err) {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		case <-r.Life.Done():
		}
		timer.Stop()
		switch {
		case r.Life.Err() != nil:
			return replication.ErrClosed
		case ctx.Err() == nil:
		case errors.Is(err, replication.ErrTimeout), errors.Is(err, replication.ErrUnknownOutcome):
			return err
		default:
			return fmt.Errorf("%w: %w: %w", err, replication.ErrTimeout, context.Cause(ctx))
		}
	}
}

// Write is Until for a write, with its position. A write is tried again while no
// try can have taken effect, and, where its request ID makes that safe, also
// after one that can; a later failure does not say then that the write failed,
// unless it is the state machine's answer.
func (r Retry) Write(ctx context.Context, cmds []*replication.Command, try func(context.Context) (uint64, error)) (uint64, error) {
	var position uint64
	var unknown error // of an earlier try
	repeatable := cmds[0].RequestID != ""
	err := r.Until(ctx, func(ctx context.Context) (err error) {
		position, err = try(ctx)
		if errors.Is(err, replication.ErrUnknownOutcome) && (unknown == nil || tells(err) || !tells(unknown)) {
			unknown = err
		}
		return err
	}, func(err error) bool {
		return repeatable || !errors.Is(err, replication.ErrUnknownOutcome)
	})
	switch {
	case err == nil || unknown == nil || Decided(err):
	case errors.Is(err, replication.ErrUnknownOutcome):
		err = unknown
	default:
		err = fmt.Errorf("%w: %w", unknown, err)
	}
	return position, err
}

// tells: an error of unknown outcome says where the write stands.
func tells(err error) bool { return errors.Is(err, replication.ErrUnconfirmed) }
