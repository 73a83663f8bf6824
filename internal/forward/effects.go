package forward

import (
	"context"
	"errors"
	"fmt"

	"github.com/nornicdb/replication"
)

// Opaque brings an opaque command into the log as what it does.
type Opaque struct {
	Recorder replication.EffectRecorder
	// Outcome of a request that was applied before.
	Outcome func(requestID string, hash [16]byte) (replication.Result, bool)
	// Settle returns when everything that was proposed before is applied.
	Settle  func(context.Context) error
	Propose func(context.Context, replication.Group) (uint64, error)
}

// Write records what the command does to the present state and proposes that,
// valid only for that state; if a write came between, it records again.
//
// What it would do now is not asked for a request that was answered before, and
// a refusal counts only when nothing that was proposed before is still to come.
func (o Opaque) Write(ctx context.Context, cmd *replication.Command) (uint64, error) {
	hash := replication.CommandHash([]*replication.Command{cmd})
	settled := false
	for {
		if first, known := o.Outcome(cmd.RequestID, hash); known {
			return first.Position, first.Err
		}
		effects, at, err := o.Recorder.RecordEffects(cmd)
		if err != nil && !settled {
			if err := o.Settle(ctx); err != nil {
				return 0, err
			}
			settled = true
			continue
		}
		if err != nil {
			return 0, err
		}
		if err := replication.ValidateBatch(effects); err != nil && len(effects) > 0 {
			return 0, fmt.Errorf("recorded effects: %w", err)
		}
		position, err := o.Propose(ctx, replication.Group{Commands: effects, RequestID: cmd.RequestID, Conditional: true, ValidAt: at, Hash: hash})
		if !errors.Is(err, replication.ErrStaleEffects) {
			return position, err
		}
	}
}
