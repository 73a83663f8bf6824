package standby

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/forward"
	"github.com/nornicdb/replication/internal/report"
	"github.com/nornicdb/replication/transport"
	"github.com/nornicdb/replication/walstream"
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
	return forward.Retry{Changed: n.change, Life: n.ctx}.Write(ctx, cmds, func(ctx context.Context) (uint64, error) {
		return n.tryWrite(ctx, cmds, hops)
	})
}

// checkWrite refuses what must not be appended.
func (n *Node) checkWrite(cmds []*replication.Command) error {
	if err := replication.ValidateBatch(cmds); err != nil {
		return err
	}
	return forward.Limits{Storage: n.storage, Atomic: n.applier.Atomic(), MaxBytes: n.maxCommandBytes()}.Check(cmds)
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
	return forward.Opaque{Recorder: n.storage.(replication.EffectRecorder), Outcome: n.applier.Outcome, Propose: n.propose,
		Settle: func(ctx context.Context) error { return n.applier.WaitApplied(ctx, n.log.Last().Position) },
	}.Write(ctx, cmds[0])
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
	return forward.Send(ctx, "the primary", cmds, hops, func(ctx context.Context, req, resp any) error {
		return n.call(ctx, connData, replication.MsgApply, req, resp)
	})
}

// handleApply serves code 19, a forwarded write.
func (n *Node) handleApply(ctx context.Context, req *replication.Request) (any, error) {
	if err := n.trusted(req); err != nil {
		return nil, err
	}
	return forward.Serve(ctx, req.Payload, n.write)
}
