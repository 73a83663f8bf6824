package raftnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/forward"
	"github.com/nornicdb/replication/internal/report"
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
	return n.retry().Write(ctx, cmds, func(ctx context.Context) (uint64, error) {
		switch addr, known := n.leaderRoute(); {
		case !known:
			return 0, replication.ErrNoLeader
		case addr == "":
			return n.proposeHere(ctx, cmds)
		default:
			return n.forward(ctx, addr, cmds, hops)
		}
	})
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
	return forward.Limits{Storage: n.storage, Atomic: n.applier.Atomic(), MaxBytes: n.maxCommandBytes()}.Check(cmds)
}

// retry tries again what the leader, whoever that is then, may take.
func (n *Node) retry() forward.Retry {
	return forward.Retry{Changed: n.leaderChanged, Life: n.ctx, Final: func(err error) bool {
		return !n.cfg.Raft.ForwardWrites && errors.Is(err, replication.ErrNotLeader)
	}}
}

// timeLeft is ctx's remaining time, as hashicorp/raft's enqueue timeout.
func timeLeft(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return max(time.Until(deadline), time.Millisecond)
	}
	return 0
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
	sent := g.Commands
	if wrap := n.opts.owner.Wrap; wrap != nil {
		if g.RequestID != "" && g.Hash == ([16]byte{}) {
			g.Hash = replication.CommandHash(g.Commands)
		}
		var err error
		if g, err = wrap(g); err != nil {
			return 0, err
		}
	}
	position, err := n.fillLeader(n.submit.propose(ctx, g))
	if err == nil && n.opts.owner.Committed != nil {
		err = n.opts.owner.Committed(ctx, sent)
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

// proposeEffects proposes what an opaque command does. One at a time: of several
// recorded at one state only the first would be valid, and one of them could be
// too late again and again.
func (n *Node) proposeEffects(ctx context.Context, cmd *replication.Command) (uint64, error) {
	select {
	case n.recording <- struct{}{}:
		defer func() { <-n.recording }()
	case <-ctx.Done():
		return 0, fmt.Errorf("%w: not proposed: %w", replication.ErrTimeout, context.Cause(ctx))
	case <-n.ctx.Done():
		return 0, replication.ErrClosed
	}
	return forward.Opaque{Recorder: n.storage.(replication.EffectRecorder), Outcome: n.applier.Outcome, Propose: n.proposeGroup,
		Settle: func(ctx context.Context) error {
			if err := n.await(ctx, n.raft.Barrier(timeLeft(ctx))); err != nil {
				_, err = n.fillLeader(0, fmt.Errorf("%w: %w", replication.ErrNotLeader, err))
				return err
			}
			return nil
		}}.Write(ctx, cmd)
}

// forward sends a write to the leader at addr.
func (n *Node) forward(ctx context.Context, addr string, cmds []*replication.Command, hops int) (uint64, error) {
	if !n.cfg.Raft.ForwardWrites || n.transport == nil {
		return 0, n.notLeader()
	}
	if cmds[0].RequestID != "" {
		var stop func()
		ctx, stop = n.whileLeads(ctx, addr)
		defer stop()
	}
	return forward.Send(ctx, "the leader at "+addr, cmds, hops, func(ctx context.Context, req, resp any) error {
		return n.callPeer(ctx, addr, replication.MsgApply, req, resp)
	})
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

// handleApply serves code 19, a forwarded write.
func (n *Node) handleApply(ctx context.Context, req *replication.Request) (any, error) {
	return forward.Serve(ctx, req.Payload, func(ctx context.Context, cmds []*replication.Command, hops int) (uint64, error) {
		if err := n.running(); err != nil {
			return 0, err
		}
		return n.write(ctx, cmds, hops)
	})
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
