package raftnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/forward"
)

const (
	// defaultOrderTimeout bounds an operator's order without a deadline.
	defaultOrderTimeout = 30 * time.Second
	maxOrderTimeout     = time.Hour
)

// AddMember implements replication.Membership, on any node: an order that
// arrives elsewhere is sent on to the leader.
func (n *Node) AddMember(ctx context.Context, id, addr string, voter bool) error {
	if _, port, err := net.SplitHostPort(addr); id == "" || err != nil || port == "" {
		return fmt.Errorf("%w: a member needs an ID and an address host:port, not %q at %q", replication.ErrInvalidConfig, id, addr)
	}
	return n.order(ctx, replication.MsgJoin,
		func(ctx context.Context) error { return n.addMember(ctx, id, addr, voter) },
		func(ms int64) any {
			return &replication.JoinRequest{NodeID: id, Address: addr, Voter: voter, Operator: true, TimeoutMS: ms}
		})
}

// RemoveMember implements replication.Membership, on any node.
func (n *Node) RemoveMember(ctx context.Context, id string, force bool) error {
	return noMember(id, n.order(ctx, replication.MsgLeave,
		func(ctx context.Context) error { return n.removeMember(ctx, id, force) },
		func(ms int64) any {
			return &replication.LeaveRequest{NodeID: id, Force: force, Operator: true, TimeoutMS: ms}
		}))
}

// TransferLeadership implements replication.Membership, on any node.
func (n *Node) TransferLeadership(ctx context.Context, id string) error {
	return noMember(id, n.order(ctx, replication.MsgTransfer,
		func(ctx context.Context) error { return n.transfer(ctx, id) },
		func(ms int64) any { return &replication.TransferRequest{NodeID: id, TimeoutMS: ms} }))
}

// noMember says what was not found: a verdict comes from the leader without its text.
func noMember(id string, err error) error {
	if errors.Is(err, replication.ErrNotFound) {
		return fmt.Errorf("%w: no member %s", replication.ErrNotFound, id)
	}
	return err
}

// order carries out an operator's order on the leader, whoever that is. It is
// tried again while it certainly was not carried out; where that is not known
// the error is ErrUnknownOutcome. Orders say what is to be, so an operator can
// repeat them.
func (n *Node) order(ctx context.Context, code replication.MessageType, here func(context.Context) error, request func(timeoutMS int64) any) error {
	if err := n.running(); err != nil {
		return err
	}
	ctx, cancel := withOrderTimeout(ctx, 0)
	defer cancel()
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", replication.ErrTimeout, context.Cause(ctx))
	}
	return n.retry().Until(ctx, func(ctx context.Context) error {
		addr, known := n.leaderRoute()
		switch {
		case !known:
			return replication.ErrNoLeader
		case addr == "":
			return n.oneChange(ctx, here)
		}
		deadline, _ := ctx.Deadline()
		// The leader gives up a little earlier, so that its answer arrives.
		left := max((time.Until(deadline) * 9 / 10).Milliseconds(), 1)
		return forward.Sent("the leader at "+addr, n.callPeer(ctx, addr, code, request(left), nil))
	}, func(err error) bool {
		return !errors.Is(err, replication.ErrUnknownOutcome) && !errors.Is(err, replication.ErrQuorumAtRisk)
	})
}

// withOrderTimeout bounds an order by what its sender asked for, in milliseconds.
func withOrderTimeout(ctx context.Context, ms int64) (context.Context, context.CancelFunc) {
	timeout := defaultOrderTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = time.Until(deadline)
	}
	if ms > 0 {
		timeout = min(time.Duration(ms)*time.Millisecond, maxOrderTimeout)
	}
	return context.WithTimeout(ctx, timeout)
}

// fromMember refuses an operator's order that does not come from a member: by
// its ID, and by a proof where this cluster has a way to give one. Which node an
// operator's client talks to, and whether it may, is that node's to decide.
func (n *Node) fromMember(p replication.Peer) error {
	_, known := n.server(raft.ServerID(p.NodeID))
	provable := n.cfg.Secret != "" || n.cfg.SecretFile != "" || n.cfg.TLS.Enabled && n.cfg.TLS.VerifyClient
	if !p.Hello || !known || provable && !p.Proven {
		return fmt.Errorf("%w: an operator's order from %s, who is no proven member", replication.ErrUnauthenticated, p.NodeID)
	}
	return nil
}

// received runs an order that a member sent on. It is not sent on again.
func (n *Node) received(ctx context.Context, p replication.Peer, timeoutMS int64, do func(context.Context) error) error {
	if err := n.running(); err != nil {
		return err
	}
	if err := n.fromMember(p); err != nil {
		return err
	}
	ctx, cancel := withOrderTimeout(ctx, timeoutMS)
	defer cancel()
	return n.oneChange(ctx, do)
}

// handleJoin serves code 13: an empty node asks to be taken in, or a member
// passes on an operator's order.
func (n *Node) handleJoin(ctx context.Context, req *replication.Request) (any, error) {
	var r replication.JoinRequest
	if err := json.Unmarshal(req.Payload, &r); err != nil {
		return nil, fmt.Errorf("%w: %v", replication.ErrInvalidCommand, err)
	}
	if r.NodeID == "" || r.Address == "" {
		return nil, fmt.Errorf("%w: a member needs an ID and an address", replication.ErrInvalidConfig)
	}
	accepted := &replication.JoinResponse{Accepted: true, LeaderID: n.nodeID, LeaderAddr: n.cfg.Advertise(), History: n.history()}
	if r.Operator {
		return accepted, n.received(ctx, req.Peer, r.TimeoutMS, func(ctx context.Context) error {
			return n.addMember(ctx, r.NodeID, r.Address, r.Voter)
		})
	}
	if err := n.leading(); err != nil {
		return nil, err
	}
	if r.NodeID != req.Peer.NodeID {
		return nil, fmt.Errorf("%w: %s asks for %s", replication.ErrWrongPeer, req.Peer.NodeID, r.NodeID)
	}
	if r.NodeID == n.nodeID {
		return nil, fmt.Errorf("%w: %s leads the cluster", replication.ErrMemberExists, r.NodeID)
	}
	ctx, cancel := context.WithTimeout(ctx, max(5*n.cfg.Raft.ElectionTimeout, 3*time.Second))
	defer cancel()
	return accepted, n.oneChange(ctx, func(ctx context.Context) error { return n.takeIn(ctx, &r) })
}

// takeIn makes an empty node a member. A voter of its ID has lost its disk, and
// with it what it voted for: it is removed, which a quorum without it has to
// commit, and added again as a non-voter. An ID whose node answers is another's,
// or the request is late: refused. That it is to become a voter is noted only
// where no operator said otherwise.
func (n *Node) takeIn(ctx context.Context, r *replication.JoinRequest) error {
	s, known := n.server(raft.ServerID(r.NodeID))
	moved := known && string(s.Address) != r.Address
	// One that asks with an empty disk answers nothing until it is taken in; if
	// it did a moment ago, it asks again.
	if known && n.answers(s.ID) && (moved || s.Suffrage == raft.Voter) {
		return fmt.Errorf("%w: %s answers at %s", replication.ErrMemberExists, s.ID, s.Address)
	}
	for _, other := range n.servers() {
		if string(other.Address) == r.Address && other.ID != raft.ServerID(r.NodeID) {
			return fmt.Errorf("%w: %s is at %s", replication.ErrMemberExists, other.ID, r.Address)
		}
	}
	if known && s.Suffrage == raft.Voter {
		n.rt.Logger.Warn("a voter comes with an empty disk; it is removed and added as a non-voter", "node", r.NodeID)
		if err := n.propose(ctx, func(d time.Duration) raft.IndexFuture { return n.raft.RemoveServer(s.ID, 0, d) }); err != nil {
			return fmt.Errorf("removing the voter %s: %w", r.NodeID, err)
		}
		known = false
	}
	if err := n.wish(ctx, replication.MemberWish{NodeID: r.NodeID, Voter: r.Voter, IfNone: true}); err != nil {
		return err
	}
	if known && !moved {
		return nil
	}
	return n.addNonvoter(ctx, r.NodeID, r.Address)
}

// handleLeave serves code 15: a node leaves its cluster, or a member passes on
// an operator's order.
func (n *Node) handleLeave(ctx context.Context, req *replication.Request) (any, error) {
	var r replication.LeaveRequest
	if err := json.Unmarshal(req.Payload, &r); err != nil {
		return nil, fmt.Errorf("%w: %v", replication.ErrInvalidCommand, err)
	}
	if !r.Operator && (r.NodeID != req.Peer.NodeID || r.Force) {
		return nil, fmt.Errorf("%w: %s asks for %s to leave", replication.ErrUnauthenticated, req.Peer.NodeID, r.NodeID)
	}
	err := n.received(ctx, req.Peer, r.TimeoutMS, func(ctx context.Context) error { return n.removeMember(ctx, r.NodeID, r.Force) })
	return &replication.LeaveResponse{Removed: true}, err
}

// handleTransfer serves code 29.
func (n *Node) handleTransfer(ctx context.Context, req *replication.Request) (any, error) {
	var r replication.TransferRequest
	if err := json.Unmarshal(req.Payload, &r); err != nil {
		return nil, fmt.Errorf("%w: %v", replication.ErrInvalidCommand, err)
	}
	err := n.received(ctx, req.Peer, r.TimeoutMS, func(ctx context.Context) error { return n.transfer(ctx, r.NodeID) })
	return &replication.TransferResponse{LeaderID: n.LeaderID()}, err
}
