package standby

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/report"
	"github.com/nornicdb/replication/transport"
	"github.com/nornicdb/replication/walstream"
)

const (
	// maxHops bounds how often a write is sent on.
	maxHops = 3
	// retryWait is the first pause before a write is tried again, when no change
	// of role ends it sooner.
	retryWait    = 10 * time.Millisecond
	retryWaitMax = 250 * time.Millisecond
	// answerTime is what a forwarded write's answer gets at most to come back.
	answerTime = 200 * time.Millisecond
)

// Apply implements replication.Replicator.
func (n *Node) Apply(cmd *replication.Command, timeout time.Duration) error {
	if timeout <= 0 {
		return fmt.Errorf("%w: %s", replication.ErrInvalidTimeout, timeout)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	_, err := n.ApplyBatch(ctx, []*replication.Command{cmd})
	return err
}

// ApplyBatch implements replication.BatchApplier.
func (n *Node) ApplyBatch(ctx context.Context, cmds []*replication.Command) (uint64, error) {
	start := time.Now()
	position, err := n.write(ctx, cmds, 0)
	report.Apply(start, err)
	return position, err
}

// write checks a write and brings it to the primary. It is tried again as long as
// no try can have taken effect, or the request ID makes a repetition safe.
func (n *Node) write(ctx context.Context, cmds []*replication.Command, hops int) (uint64, error) {
	if err := n.running(); err != nil {
		return 0, err
	}
	if err := n.checkWrite(cmds); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("%w: %w", replication.ErrTimeout, context.Cause(ctx))
	}
	repeatable := cmds[0].RequestID != ""
	pause := retryWait
	var unknown error // of an earlier try
	for {
		changed := n.change()
		position, err := n.tryWrite(ctx, cmds, hops)
		if errors.Is(err, replication.ErrUnknownOutcome) && (unknown == nil || tells(err) || !tells(unknown)) {
			unknown = err
		}
		_, verdict := replication.Verdict(err)
		switch {
		case err == nil || verdict || errors.Is(err, replication.ErrRequestIDReused):
			return position, err
		case !transient(err) || unknown != nil && !repeatable || ctx.Err() != nil:
			switch {
			case unknown == nil:
			case errors.Is(err, replication.ErrUnknownOutcome):
				err = unknown
			default:
				err = fmt.Errorf("%w: %w", unknown, err)
			}
			return position, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		case <-n.ctx.Done():
		}
		timer.Stop()
		pause = min(2*pause, retryWaitMax)
		if n.ctx.Err() != nil {
			return 0, errors.Join(unknown, replication.ErrClosed)
		}
		if ctx.Err() != nil && unknown == nil {
			return 0, fmt.Errorf("%w: %w", replication.ErrTimeout, err)
		}
		if ctx.Err() != nil {
			return 0, unknown
		}
	}
}

// tells: an error of unknown outcome says where the write stands.
func tells(err error) bool { return errors.Is(err, replication.ErrUnconfirmed) }

// transient: another try, elsewhere or later, can succeed.
func transient(err error) bool {
	for _, t := range []error{replication.ErrNotLeader, replication.ErrNoLeader, replication.ErrNotReady, replication.ErrClosed,
		replication.ErrUnknownOutcome, replication.ErrWrongPeer} {
		if errors.Is(err, t) {
			return true
		}
	}
	return replication.NotSent(err)
}

// checkWrite refuses what must not be appended.
func (n *Node) checkWrite(cmds []*replication.Command) error {
	if err := replication.ValidateBatch(cmds); err != nil {
		return err
	}
	size := 0
	for _, c := range cmds {
		size += len(c.Data) + 256
		if c.Type == replication.CmdCypher {
			if _, ok := n.storage.(replication.EffectRecorder); !ok || len(cmds) > 1 {
				return fmt.Errorf("%w: the storage cannot record what a Cypher command does", replication.ErrOpaqueWrite)
			}
		}
	}
	if limit := n.maxCommandBytes(); size > limit {
		return fmt.Errorf("%w: %d bytes, at most %d", replication.ErrCommandTooLarge, size, limit)
	}
	if (len(cmds) > 1 || cmds[0].Type == replication.CmdBatchWrite) && !n.applier.Atomic() {
		return fmt.Errorf("%w: atomic batches need a storage with transactions", replication.ErrUnsupported)
	}
	return nil
}

// maxCommandBytes is what both this node's and its peer's frames take.
func (n *Node) maxCommandBytes() int {
	n.mu.Lock()
	conn := n.conns[connData]
	n.mu.Unlock()
	limit := transport.MaxCommandBytes(n.cfg.MaxFrameSize)
	if c, ok := conn.(interface{ MaxCommandBytes() int }); ok {
		limit = min(limit, c.MaxCommandBytes())
	}
	return limit
}

func (n *Node) tryWrite(ctx context.Context, cmds []*replication.Command, hops int) (uint64, error) {
	m := n.view()
	switch {
	case m.role == RolePrimary:
		return n.writeHere(ctx, cmds)
	case n.leaderOf(&m) == m.peer.NodeID && m.peer.NodeID != "":
		return n.forward(ctx, cmds, hops)
	}
	return 0, n.notLeader()
}

func (n *Node) writeHere(ctx context.Context, cmds []*replication.Command) (uint64, error) {
	if cmds[0].Type != replication.CmdCypher {
		return n.propose(ctx, replication.NewGroup(cmds...))
	}
	recorder := n.storage.(replication.EffectRecorder)
	for { // until no write comes between recording and applying
		effects, at, err := recorder.RecordEffects(cmds[0])
		if err != nil {
			return 0, err
		}
		if err := replication.ValidateBatch(effects); err != nil && len(effects) > 0 {
			return 0, fmt.Errorf("recorded effects: %w", err)
		}
		position, err := n.propose(ctx, replication.Group{Commands: effects, RequestID: cmds[0].RequestID, Conditional: true, ValidAt: at,
			Hash: replication.CommandHash(cmds)})
		if !errors.Is(err, replication.ErrStaleEffects) {
			return position, err
		}
	}
}

// propose appends a write on this node, the primary, and waits until it is as
// safe as the mode promises, and applied.
func (n *Node) propose(ctx context.Context, g replication.Group) (uint64, error) {
	entry, result, err := n.append(ctx, g)
	if err != nil {
		return 0, err
	}
	select {
	case r := <-result:
		if r.Err == nil || !errors.Is(r.Err, replication.ErrUnknownOutcome) {
			if err := n.mayAcknowledge(ctx, entry); err != nil {
				return entry.Position, err
			}
		}
		return r.Position, r.Err
	case <-ctx.Done():
		n.feed.Forget(entry.Position)
		return entry.Position, &replication.UnconfirmedError{Position: entry.Position, Reason: n.unconfirmedReason()}
	case <-n.ctx.Done():
		return entry.Position, fmt.Errorf("%w: %w", replication.ErrUnknownOutcome, replication.ErrClosed)
	}
}

// append gives a write its position, if this node may accept one now.
func (n *Node) append(ctx context.Context, g replication.Group) (*walstream.Entry, <-chan replication.Result, error) {
	if err := n.role.RLock(ctx); err != nil {
		return nil, nil, err
	}
	defer n.role.RUnlock()
	m := &n.machine
	// In this order: both grow meanwhile, and the first never passes the second.
	committed := n.feed.Committed()
	last := n.log.Last().Position
	switch {
	case m.role != RolePrimary:
		return nil, nil, n.notLeader()
	case m.consistency && !m.accepts(n.now()):
		return nil, nil, replication.ErrNoLease
	case last > committed && last-committed >= uint64(n.cfg.HA.MaxUnconfirmed):
		return nil, nil, fmt.Errorf("%w: %d writes wait for a confirmation", replication.ErrOverloaded, n.cfg.HA.MaxUnconfirmed)
	}
	p, err := walstream.Prepare(m.stored.Epoch, n.rt.Now(), g)
	if err != nil {
		return nil, nil, err
	}
	return n.feed.Propose(func() (*walstream.Entry, error) { return n.log.ProposePrepared(p) })
}

// mayAcknowledge checks the lease again: an answer that comes after it ended could
// come after another primary has taken over.
func (n *Node) mayAcknowledge(ctx context.Context, e *walstream.Entry) error {
	if n.cfg.HA.PartitionPolicy != policyConsistency {
		return nil
	}
	if err := n.role.RLock(ctx); err != nil {
		return &replication.UnconfirmedError{Position: e.Position, Reason: err.Error()}
	}
	defer n.role.RUnlock()
	if n.machine.role != RolePrimary || !n.machine.leased(n.now()) {
		return &replication.UnconfirmedError{Position: e.Position, Reason: "the lease ended"}
	}
	return nil
}

func (n *Node) unconfirmedReason() string {
	m := n.view()
	switch {
	case m.role != RolePrimary:
		return "this node is no longer primary"
	case !m.leased(n.now()):
		return "the lease ended"
	case m.mode == replication.SyncAsync || m.alone:
		return "the disk has not confirmed it in time"
	}
	return fmt.Sprintf("the standby has received %d and has %d durably", m.ack.Received, m.ack.Persisted)
}

// forward sends a write to the peer, which is primary.
func (n *Node) forward(ctx context.Context, cmds []*replication.Command, hops int) (uint64, error) {
	if hops >= maxHops {
		return 0, fmt.Errorf("%w: the write was sent on %d times", replication.ErrNoLeader, hops)
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(time.Minute)
	}
	report.Forwarded()
	// The primary's own word about a write that is not confirmed in time has to be
	// back before the caller's time is over.
	left := time.Until(deadline)
	left -= min(left/10, answerTime)
	req := &replication.ApplyRequest{Commands: cmds, TimeoutMS: max(left.Milliseconds(), 1), Hops: hops + 1}
	var resp replication.ApplyResponse
	err := n.call(ctx, connData, replication.MsgApply, req, &resp)
	var unconfirmed *replication.UnconfirmedError
	if errors.As(err, &unconfirmed) {
		return unconfirmed.Position, err
	}
	if err == nil || replication.NotSent(err) || answered(err) {
		return resp.Index, err
	}
	return 0, fmt.Errorf("%w: sent to the primary: %w", replication.ErrUnknownOutcome, err)
}

// answered: the error is one that the peer sent, so it says itself what became of
// the write. Only ErrTimeout is ambiguous: it also stands for no answer.
func answered(err error) bool {
	var remote *replication.RemoteError
	if errors.As(err, &remote) {
		return false
	}
	code := replication.ErrorCode(err)
	return code != "internal" && code != "timeout" && code != "closed"
}

// handleApply serves code 19, a forwarded write.
func (n *Node) handleApply(ctx context.Context, req *replication.Request) (any, error) {
	if err := n.trusted(req); err != nil {
		return nil, err
	}
	var r replication.ApplyRequest
	if err := json.Unmarshal(req.Payload, &r); err != nil {
		return nil, fmt.Errorf("%w: %v", replication.ErrInvalidCommand, err)
	}
	if r.TimeoutMS <= 0 || r.TimeoutMS > time.Hour.Milliseconds() || r.Hops < 1 {
		return nil, fmt.Errorf("%w: %d ms, %d hops", replication.ErrInvalidTimeout, r.TimeoutMS, r.Hops)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.TimeoutMS)*time.Millisecond)
	defer cancel()
	position, err := n.write(ctx, r.Commands, r.Hops)
	if err != nil {
		return nil, err
	}
	return &replication.ApplyResponse{Index: position}, nil
}
