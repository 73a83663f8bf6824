package region

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/forward"
	"github.com/nornicdb/replication/internal/report"
)

// maxEpoch is the last region epoch.
const maxEpoch = 1<<62 - 1

// setEpoch raises the region epoch: to this region's own next one, or to the
// one that another region has announced. It only grows. Active-active has none.
func (t *txn) setEpoch(c *logCommand) error {
	if t.settings.WriteRegion == "" {
		return &answer{"region_active_active", errActiveActive}
	}
	next := replication.Epoch{Number: t.head.Epoch.Number + 1, Owner: t.settings.Self}
	if c.kind == kindEpoch {
		if err := decodeBody(c.body, &next); err != nil {
			return err
		}
		if t.settings.index(next.Owner) < 0 || next.Number > maxEpoch {
			return errBadCommand
		}
	} else if t.head.Epoch.Owner == t.settings.Self {
		return nil
	} else if next.Number > maxEpoch { // nobody would follow it
		return &answer{"region_epoch_end", fmt.Errorf("%w: a region has announced the last region epoch there is, %s", replication.ErrUnsupported, t.head.Epoch)}
	}
	if next.Compare(t.head.Epoch) > 0 {
		t.head.Epoch = next
	}
	return nil
}

var _ replication.RegionPromoter = (*Node)(nil)

// PromoteRegion implements replication.RegionPromoter. Until the old write
// region hears of it both accept, and their writes merge as concurrent ones.
func (n *Node) PromoteRegion(ctx context.Context) error {
	if n.settings.WriteRegion == "" {
		return errActiveActive
	}
	_, err := n.inner.ApplyBatch(ctx, []*replication.Command{{Type: cmdPromote}})
	return err
}

// followEpoch takes over a region epoch that another region told of. Only the
// leader can; on other nodes it does nothing, as the leader hears of it too.
func (n *Node) followEpoch(ctx context.Context, e replication.Epoch) error {
	v, _ := n.machine.now()
	if v.settings == nil || v.settings.WriteRegion == "" || e.Compare(v.head.Epoch) <= 0 || !n.inner.IsLeader() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	return n.propose(ctx, &logCommand{kind: kindEpoch, body: jsonBody(&e)})
}

// applyAtOwner brings a write to the region that accepts writes. One that
// certainly was not sent, or can be repeated, is tried again until ctx ends. One
// that may have reached a region is repeated only there: another region would
// take it for a new write until the first one's stream tells it otherwise.
func (n *Node) applyAtOwner(ctx context.Context, cmds []*replication.Command) (uint64, error) {
	start := time.Now()
	owner, maybeAt, moved := "", "", false
	retry := forward.Retry{Changed: func() <-chan struct{} { return nil }, Life: n.ctx, Final: func(error) bool { return moved }}
	position, err := retry.Write(ctx, cmds, func(ctx context.Context) (position uint64, err error) {
		owner = n.writeRegion()
		if moved = maybeAt != "" && owner != maybeAt; moved {
			return 0, fmt.Errorf("%w: sent to region %s, the write region is %s now", replication.ErrUnknownOutcome, maybeAt, owner)
		}
		if owner == n.settings.Self {
			position, err = n.inner.ApplyBatch(ctx, cmds)
		} else {
			position, err = n.sendTo(ctx, owner, cmds)
		}
		if errors.Is(err, replication.ErrUnknownOutcome) {
			maybeAt = owner
		}
		return position, err
	})
	if owner != n.settings.Self || moved { // or the inner node has reported it
		report.Apply(start, err)
	}
	return position, err
}

// sendTo sends a write to the region that accepts writes.
func (n *Node) sendTo(ctx context.Context, owner string, cmds []*replication.Command) (uint64, error) {
	silent := false // it answered nothing
	position, err := forward.Send(ctx, "region "+owner, cmds, 0, func(ctx context.Context, req, resp any) error {
		err := n.call(ctx, owner, replication.MsgApply, req, resp)
		silent = err != nil && !forward.Answered(err)
		return err
	})
	switch {
	case replication.NotSent(err):
		err = fmt.Errorf("%w: region %s, which accepts the writes, cannot be reached: %w%s", replication.ErrNotReady, owner, err, ifLost(owner))
	case silent, errors.Is(err, replication.ErrNoLeader): // or it has lost its quorum
		err = fmt.Errorf("%w%s", err, ifLost(owner))
	}
	return position, err
}

// ifLost is what an operator can do about a write region that does not answer.
func ifLost(owner string) string {
	return fmt.Sprintf("; if region %s is lost, another one can be made to accept the writes: nornic-cluster region promote, or POST /admin/region/promote, on a node of that one", owner)
}

// handleApply serves code 19 of another region: a write that this region, as
// the write region, is to take.
func (n *Node) handleApply(ctx context.Context, req *replication.Request) (any, error) {
	return forward.Serve(ctx, req.Payload, func(ctx context.Context, cmds []*replication.Command, _ int) (uint64, error) {
		if err := checkWrites(cmds); err != nil {
			return 0, err
		}
		if err := n.astray(); err != nil {
			return 0, err
		}
		if owner := n.writeRegion(); owner != n.settings.Self {
			return 0, fmt.Errorf("%w: the write region is %q", replication.ErrNotLeader, owner)
		}
		return n.inner.ApplyBatch(ctx, cmds)
	})
}
