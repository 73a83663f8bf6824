package region

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nornicdb/replication"
)

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
		if t.settings.index(next.Owner) < 0 || next.Number >= 1<<62 {
			return errBadCommand
		}
	} else if t.head.Epoch.Owner == t.settings.Self {
		return nil
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

// applyAt sends a write to the region that accepts writes. One that certainly
// was not sent, or can be repeated, is tried again until ctx ends. One that may
// have reached a region is repeated only there: another region would take it for
// a new write until the first one's stream tells it otherwise.
func (n *Node) applyAt(ctx context.Context, region string, cmds []*replication.Command) (uint64, error) {
	repeatable := cmds[0].RequestID != ""
	uncertain := false
	for {
		position, err := n.applyOnce(ctx, region, cmds)
		if err == nil {
			return position, nil
		}
		unknown := errors.Is(err, replication.ErrUnknownOutcome)
		_, verdict := replication.Verdict(err)
		if verdict || errors.Is(err, replication.ErrRequestIDReused) {
			return 0, err
		}
		uncertain = uncertain || unknown
		again := replication.NotSent(err) || unknown && repeatable || errors.Is(err, replication.ErrNotLeader) ||
			errors.Is(err, replication.ErrNoLeader) || errors.Is(err, replication.ErrNotReady)
		if !again || !wait(ctx, n.ctx) {
			if uncertain && !unknown {
				err = fmt.Errorf("%w: %w", replication.ErrUnknownOutcome, err)
			}
			return 0, err
		}
		next := n.writeRegion()
		switch {
		case next == region:
		case uncertain:
			return 0, fmt.Errorf("%w: sent to region %s, the write region is %s now: %w", replication.ErrUnknownOutcome, region, next, err)
		case next == n.settings.Self:
			return n.inner.ApplyBatch(ctx, cmds)
		}
		region = next
	}
}

// applyOnce sends a write once. If this node cannot tell whether the other
// region got it, the outcome is unknown.
func (n *Node) applyOnce(ctx context.Context, region string, cmds []*replication.Command) (uint64, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(time.Minute)
	}
	timeout := min(max(time.Until(deadline), time.Millisecond), maxForwardTime)
	req := &replication.ApplyRequest{Commands: cmds, TimeoutMS: timeout.Milliseconds(), Hops: 1}
	var resp replication.ApplyResponse
	err := n.call(ctx, region, replication.MsgApply, req, &resp)
	if err == nil || replication.NotSent(err) {
		return resp.Index, err
	}
	switch replication.ErrorCode(err) {
	case "internal", "timeout", "closed": // also what this side says where no answer came
		return 0, fmt.Errorf("%w: sent to region %s: %w", replication.ErrUnknownOutcome, region, err)
	}
	var remote *replication.RemoteError
	if errors.As(err, &remote) {
		return 0, fmt.Errorf("%w: sent to region %s: %w", replication.ErrUnknownOutcome, region, err)
	}
	return 0, err
}

// maxForwardTime bounds how long the write region works on a write.
const maxForwardTime = time.Hour

// wait pauses before another try; false: there is none.
func wait(ctx, life context.Context) bool {
	timer := time.NewTimer(100 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
	case <-life.Done():
	}
	return false
}

// handleApply serves code 19 of another region: a write that this region, as
// the write region, is to take.
func (n *Node) handleApply(ctx context.Context, req *replication.Request) (any, error) {
	var r replication.ApplyRequest
	if err := json.Unmarshal(req.Payload, &r); err != nil {
		return nil, fmt.Errorf("%w: %v", replication.ErrInvalidCommand, err)
	}
	if r.TimeoutMS <= 0 || r.TimeoutMS > maxForwardTime.Milliseconds() {
		return nil, fmt.Errorf("%w: %d ms", replication.ErrInvalidTimeout, r.TimeoutMS)
	}
	if err := checkWrites(r.Commands); err != nil {
		return nil, err
	}
	if owner := n.writeRegion(); owner != n.settings.Self {
		return nil, fmt.Errorf("%w: the write region is %q", replication.ErrNotLeader, owner)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.TimeoutMS)*time.Millisecond)
	defer cancel()
	position, err := n.inner.ApplyBatch(ctx, r.Commands)
	if errors.Is(err, replication.ErrClosed) && !errors.Is(err, replication.ErrUnknownOutcome) {
		err = fmt.Errorf("%w: %v", replication.ErrNotReady, err)
	}
	if err != nil {
		return nil, err
	}
	return &replication.ApplyResponse{Index: position}, nil
}
