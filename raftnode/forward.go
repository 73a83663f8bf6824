package raftnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	metrics "github.com/hashicorp/go-metrics/compat"
	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/report"
)

const (
	// maxHops bounds how often a write is sent on: leadership can move while
	// it travels, but a write does not travel in circles.
	maxHops = 3
	// retryWait is the first pause before a write is tried again, when no
	// change of leader ends it sooner.
	retryWait    = 10 * time.Millisecond
	retryWaitMax = 250 * time.Millisecond
	// maxForwardTime bounds how long a leader works on a forwarded write.
	maxForwardTime = time.Hour
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
	if err := n.running(); err != nil {
		return 0, err
	}
	start := time.Now()
	position, err := n.write(ctx, cmds, 0)
	report.Apply(start, err)
	return position, err
}

// write checks a write and brings it to the leader.
func (n *Node) write(ctx context.Context, cmds []*replication.Command, hops int) (uint64, error) {
	if err := n.checkWrite(cmds); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("%w: %w", replication.ErrTimeout, context.Cause(ctx))
	}
	var position uint64
	repeatable := cmds[0].RequestID != ""
	uncertain := false // an earlier try may have taken effect
	err := n.untilLeader(ctx, func(ctx context.Context, addr string) (err error) {
		if addr == "" {
			position, err = n.proposeHere(ctx, cmds)
		} else {
			position, err = n.forward(ctx, addr, cmds, hops)
		}
		uncertain = uncertain || errors.Is(err, replication.ErrUnknownOutcome)
		return err
	}, func(err error) bool {
		return repeatable || !errors.Is(err, replication.ErrUnknownOutcome)
	})
	if err != nil && uncertain && !decided(err) && !errors.Is(err, replication.ErrUnknownOutcome) {
		err = fmt.Errorf("%w: %w", replication.ErrUnknownOutcome, err)
	}
	return position, err
}

// decided: the error is the state machine's answer to this very request.
func decided(err error) bool {
	_, verdict := replication.Verdict(err)
	return verdict || errors.Is(err, replication.ErrRequestIDReused)
}

// checkWrite refuses what must not be proposed.
func (n *Node) checkWrite(cmds []*replication.Command) error {
	check := n.opts.owner.Check
	if check == nil {
		check = replication.ValidateBatch
	}
	if err := check(cmds); err != nil {
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

// untilLeader runs try against the leader, "" being this node, until it
// succeeds, is answered for good, or ctx ends. Errors that say "not here, not
// now" and for which again is true are followed by another try, when another
// leader is known or a pause is over.
func (n *Node) untilLeader(ctx context.Context, try func(ctx context.Context, addr string) error, again func(error) bool) error {
	wait := retryWait
	var last error
	for {
		changed := n.leaderChanged()
		addr, known := n.leaderRoute()
		if known {
			err := try(ctx, addr)
			if err == nil || !transient(err) || !again(err) {
				return err
			}
			last = err
			if !n.cfg.Raft.ForwardWrites && errors.Is(err, replication.ErrNotLeader) {
				return err
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		case <-n.ctx.Done():
		}
		timer.Stop()
		wait = min(2*wait, retryWaitMax)
		if n.ctx.Err() != nil {
			return replication.ErrClosed
		}
		if ctx.Err() != nil {
			return n.outOfTime(ctx, last)
		}
	}
}

// outOfTime is the error of a request whose time ran out between tries.
func (n *Node) outOfTime(ctx context.Context, last error) error {
	if last == nil {
		return fmt.Errorf("%w: %w: %w", replication.ErrNoLeader, replication.ErrTimeout, context.Cause(ctx))
	}
	if errors.Is(last, replication.ErrTimeout) || errors.Is(last, replication.ErrUnknownOutcome) {
		return last
	}
	return fmt.Errorf("%w: %w", replication.ErrTimeout, last)
}

// timeLeft is ctx's remaining time, as hashicorp/raft's enqueue timeout.
func timeLeft(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return max(time.Until(deadline), time.Millisecond)
	}
	return 0
}

// transient: another try, elsewhere or later, can succeed.
func transient(err error) bool {
	if errors.Is(err, replication.ErrCommandTooLarge) {
		return false
	}
	for _, t := range []error{replication.ErrNotLeader, replication.ErrNoLeader, replication.ErrNotReady, replication.ErrClosed,
		replication.ErrUnknownOutcome, replication.ErrWrongPeer, replication.ErrStorageFailed} {
		if errors.Is(err, t) {
			return true
		}
	}
	return replication.NotSent(err)
}

// leaderRoute says where the leader is: "" for this node.
func (n *Node) leaderRoute() (addr string, known bool) {
	if n.raft.State() == raft.Leader && !n.rtrans.hung.Load() {
		return "", true
	}
	address, id := n.raft.LeaderWithID()
	if id == "" || id == n.id() {
		return "", false
	}
	return string(address), true
}

// proposeHere proposes on this node, which leads.
func (n *Node) proposeHere(ctx context.Context, cmds []*replication.Command) (uint64, error) {
	if err := n.applier.Failure(); err != nil {
		return 0, err
	}
	if n.applier.Identity() == (replication.Identity{}) { // before its founding a history has no writes
		return 0, fmt.Errorf("%w: the history is not founded yet", replication.ErrNotReady)
	}
	if cmds[0].Type == replication.CmdCypher {
		return n.proposeEffects(ctx, cmds[0])
	}
	return n.proposeGroup(ctx, replication.NewGroup(cmds...))
}

// proposeGroup proposes what a client sent, in the owner's form.
func (n *Node) proposeGroup(ctx context.Context, g replication.Group) (uint64, error) {
	if wrap := n.opts.owner.Wrap; wrap != nil {
		if g.Hash == ([16]byte{}) {
			g.Hash = replication.CommandHash(g.Commands)
		}
		var err error
		if g, err = wrap(g); err != nil {
			return 0, err
		}
	}
	position, err := n.fillLeader(n.submit.propose(ctx, g))
	if err == nil && n.opts.owner.Committed != nil {
		err = n.opts.owner.Committed(ctx, position)
	}
	return position, err
}

// Propose puts a group of the owner's into the log as it is and returns when it
// is applied here, with the state machine's answer: ErrNotLeader on a node that
// does not lead. It is neither checked nor wrapped nor forwarded.
func (n *Node) Propose(ctx context.Context, g replication.Group) (uint64, error) {
	if err := n.running(); err != nil {
		return 0, err
	}
	if !n.IsLeader() {
		return 0, n.notLeader()
	}
	return n.fillLeader(n.submit.propose(ctx, g))
}

// Transport is the cluster transport; nil before Start has opened it. It is the
// node's own, or Runtime.Transport.
func (n *Node) Transport() replication.Transport { return n.transport }

// fillLeader names the leader in an ErrNotLeader.
func (n *Node) fillLeader(position uint64, err error) (uint64, error) {
	if errors.Is(err, replication.ErrNotLeader) {
		return position, n.notLeader()
	}
	return position, err
}

func (n *Node) notLeader() error {
	addr, id := n.raft.LeaderWithID()
	return &replication.NotLeaderError{LeaderID: string(id), LeaderAddr: string(addr)}
}

// proposeEffects records what an opaque command does to the present state and
// proposes that, valid only for that state; if a write came between, it records
// again.
//
// What it would do now is not asked for a request that was answered before, and
// a refusal counts only when nothing that was proposed before is still to come.
func (n *Node) proposeEffects(ctx context.Context, cmd *replication.Command) (uint64, error) {
	recorder := n.storage.(replication.EffectRecorder)
	hash := replication.CommandHash([]*replication.Command{cmd})
	current := false
	for {
		if first, known := n.applier.Outcome(cmd.RequestID, hash); known {
			return first.Position, first.Err
		}
		effects, at, err := recorder.RecordEffects(cmd)
		if err != nil && !current {
			if err := n.await(ctx, n.raft.Barrier(timeLeft(ctx))); err != nil {
				return n.fillLeader(0, fmt.Errorf("%w: %w", replication.ErrNotLeader, err))
			}
			current = true
			continue
		}
		if err != nil {
			return 0, err
		}
		if err := replication.ValidateBatch(effects); err != nil && len(effects) > 0 {
			return 0, fmt.Errorf("recorded effects: %w", err)
		}
		group := replication.Group{Commands: effects, RequestID: cmd.RequestID, Conditional: true, ValidAt: at, Hash: hash}
		position, err := n.proposeGroup(ctx, group)
		if !errors.Is(err, replication.ErrStaleEffects) {
			return position, err
		}
	}
}

// forward sends a write to the leader at addr. If this node cannot tell whether
// the leader got it, the outcome is unknown.
func (n *Node) forward(ctx context.Context, addr string, cmds []*replication.Command, hops int) (uint64, error) {
	if !n.cfg.Raft.ForwardWrites || n.transport == nil {
		return 0, n.notLeader()
	}
	if hops >= maxHops {
		return 0, fmt.Errorf("%w: the write was sent on %d times", replication.ErrNoLeader, hops)
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(time.Minute)
	}
	metrics.IncrCounter([]string{"replication", "forwarded_total"}, 1)
	timeout := min(max(time.Until(deadline), time.Millisecond), maxForwardTime)
	req := &replication.ApplyRequest{Commands: cmds, TimeoutMS: timeout.Milliseconds(), Hops: hops + 1}
	var resp replication.ApplyResponse
	if cmds[0].RequestID != "" {
		var stop func()
		ctx, stop = n.whileLeads(ctx, addr)
		defer stop()
	}
	err := n.callPeer(ctx, addr, replication.MsgApply, req, &resp)
	if err == nil || replication.NotSent(err) || answered(err) {
		return resp.Index, err
	}
	return 0, fmt.Errorf("%w: sent to the leader at %s: %w", replication.ErrUnknownOutcome, addr, err)
}

// whileLeads returns a context that also ends when another node has led than
// the one at addr for an election timeout: the old leader, cut off or with a
// hung disk, may never answer, and a write that can be repeated is better off
// with the new one.
func (n *Node) whileLeads(ctx context.Context, addr string) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	watching := n.spawn(func() {
		for {
			changed := n.leaderChanged()
			timer := time.NewTimer(n.cfg.Raft.ElectionTimeout)
			now, known := n.leaderRoute()
			select {
			case <-changed:
			case <-timer.C:
				if known && now != addr {
					cancel(fmt.Errorf("%w: %s no longer leads", replication.ErrNotLeader, addr))
				}
			case <-ctx.Done():
			}
			timer.Stop()
			if ctx.Err() != nil {
				return
			}
		}
	})
	if !watching {
		cancel(replication.ErrClosed)
	}
	return ctx, func() { cancel(nil) }
}

// answered: the error is one that the peer sent, so it says itself what became
// of the write. Only ErrTimeout is ambiguous: it also stands for no answer.
func answered(err error) bool {
	var remote *replication.RemoteError
	if errors.As(err, &remote) {
		return false
	}
	code := replication.ErrorCode(err)
	return code != "internal" && code != "timeout" && code != "closed"
}

// handleApply serves code 19, a forwarded write. That this node closes is said
// as "not ready": "closed" would also be what the sender's own end says, of
// which nothing follows for the write.
func (n *Node) handleApply(ctx context.Context, req *replication.Request) (any, error) {
	result, err := n.applyForwarded(ctx, req)
	if errors.Is(err, replication.ErrClosed) && !errors.Is(err, replication.ErrUnknownOutcome) {
		return nil, fmt.Errorf("%w: %v", replication.ErrNotReady, err)
	}
	return result, err
}

func (n *Node) applyForwarded(ctx context.Context, req *replication.Request) (any, error) {
	if err := n.running(); err != nil {
		return nil, err
	}
	var r replication.ApplyRequest
	if err := json.Unmarshal(req.Payload, &r); err != nil {
		return nil, fmt.Errorf("%w: %v", replication.ErrInvalidCommand, err)
	}
	if r.TimeoutMS <= 0 || r.TimeoutMS > maxForwardTime.Milliseconds() || r.Hops < 1 {
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

// handleReadIndex serves code 23.
func (n *Node) handleReadIndex(ctx context.Context, req *replication.Request) (any, error) {
	if err := n.running(); err != nil {
		return nil, err
	}
	var r replication.ReadIndexRequest
	if err := json.Unmarshal(req.Payload, &r); err != nil {
		return nil, fmt.Errorf("%w: %v", replication.ErrInvalidCommand, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 4*n.cfg.Raft.ElectionTimeout)
	defer cancel()
	index, err := n.leaderIndex(ctx, r.Level)
	if err != nil {
		return nil, err
	}
	return &replication.ReadIndexResponse{Index: index}, nil
}
