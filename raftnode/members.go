package raftnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
)

// promotableLag is how many entries a non-voter may lack to be made a voter.
const promotableLag = 64

// lead runs f on the leader's side of a membership change; ErrNotLeader
// elsewhere.
func (n *Node) leading() error {
	if err := n.running(); err != nil {
		return err
	}
	if !n.IsLeader() {
		return n.notLeader()
	}
	return nil
}

// AddMember implements replication.Membership. It must be called on the leader.
func (n *Node) AddMember(ctx context.Context, id, addr string, voter bool) error {
	if err := n.leading(); err != nil {
		return err
	}
	if id == "" || addr == "" {
		return fmt.Errorf("%w: a member needs an ID and an address", replication.ErrInvalidConfig)
	}
	s, known := n.server(raft.ServerID(id))
	if known && s.Suffrage == raft.Voter {
		if !voter {
			return fmt.Errorf("%w: %s is a voter; remove it first", replication.ErrMemberExists, id)
		}
		// The address of a voter changes without its vote.
		return n.await(ctx, n.raft.AddVoter(s.ID, raft.ServerAddress(addr), 0, timeLeft(ctx)))
	}
	n.want(raft.ServerID(id), voter)
	return n.await(ctx, n.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(addr), 0, timeLeft(ctx)))
}

// want notes whether a non-voter is to be made a voter when it has caught up.
func (n *Node) want(id raft.ServerID, voter bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if voter {
		n.wanted[id] = true
	} else {
		delete(n.wanted, id)
	}
}

// timeLeft is ctx's remaining time, as hashicorp/raft's enqueue timeout.
func timeLeft(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return max(time.Until(deadline), time.Millisecond)
	}
	return 0
}

// RemoveMember implements replication.Membership. It must be called on the
// leader. Without force it refuses to remove the last voter, and a voter
// without which those that answer are no quorum of the rest.
func (n *Node) RemoveMember(ctx context.Context, id string, force bool) error {
	if err := n.leading(); err != nil {
		return err
	}
	s, known := n.server(raft.ServerID(id))
	if !known {
		return fmt.Errorf("%w: no member %s", replication.ErrNotFound, id)
	}
	if s.Suffrage == raft.Voter && !force {
		if err := n.quorumWithout(ctx, s.ID); err != nil {
			return err
		}
	}
	done, err := n.beginChange(ctx)
	if err != nil {
		return err
	}
	defer done()
	n.want(s.ID, false)
	return n.await(ctx, n.raft.RemoveServer(s.ID, 0, timeLeft(ctx)))
}

// beginChange waits for its turn to change the membership: what one change has
// found before it is proposed must not be undone by another in between. A
// member that is removed would come back with the vote it was to get.
func (n *Node) beginChange(ctx context.Context) (done func(), err error) {
	select {
	case n.changing <- struct{}{}:
		return func() { <-n.changing }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: another change of the membership is under way: %w", replication.ErrTimeout, context.Cause(ctx))
	}
}

// quorumWithout says whether the voters but one have a quorum that answers now:
// what was heard a moment ago may have died since.
func (n *Node) quorumWithout(ctx context.Context, id raft.ServerID) error {
	others, self := n.otherVoters()
	self = self && id != n.id()
	others = slices.DeleteFunc(others, func(o raft.ServerID) bool { return o == id })
	voters := len(others) + boolToInt(self)
	if voters == 0 {
		return fmt.Errorf("%w: %s is the last voter", replication.ErrQuorumAtRisk, id)
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Raft.ElectionTimeout)
	defer cancel()
	if err := n.freshRound(ctx, others, n.readyTerm.Load(), voters/2+1-boolToInt(self)); err != nil {
		if errors.Is(err, replication.ErrNotLeader) {
			return err
		}
		return fmt.Errorf("%w: too few of the %d voters but %s answer: %w", replication.ErrQuorumAtRisk, voters, id, err)
	}
	return nil
}

// answers: the leader has heard from the member lately.
func (n *Node) answers(id raft.ServerID) bool {
	f := n.rtrans.follower(id)
	return !f.contact.IsZero() && time.Since(f.contact) < 2*n.cfg.Raft.ElectionTimeout
}

// TransferLeadership implements replication.Membership. It must be called on
// the leader.
func (n *Node) TransferLeadership(ctx context.Context, id string) error {
	if err := n.leading(); err != nil {
		return err
	}
	if id == "" {
		return n.await(ctx, n.raft.LeadershipTransfer())
	}
	s, known := n.server(raft.ServerID(id))
	switch {
	case !known:
		return fmt.Errorf("%w: no member %s", replication.ErrNotFound, id)
	case s.ID == n.id():
		return nil
	case s.Suffrage != raft.Voter:
		return fmt.Errorf("%w: %s is not a voter", replication.ErrQuorumAtRisk, id)
	}
	return n.await(ctx, n.raft.LeadershipTransferToServer(s.ID, s.Address))
}

// handleJoin serves code 13: an empty node asks to be taken in. A voter of its
// ID has lost its disk, and with it what it voted for: it is removed, which a
// quorum without it has to commit, and added again as a non-voter. An ID whose
// node answers is another's, or the request is late: refused.
func (n *Node) handleJoin(ctx context.Context, req *replication.Request) (any, error) {
	var r replication.JoinRequest
	if err := json.Unmarshal(req.Payload, &r); err != nil {
		return nil, fmt.Errorf("%w: %v", replication.ErrInvalidCommand, err)
	}
	if err := n.leading(); err != nil {
		return nil, err
	}
	if r.NodeID == "" || r.Address == "" || r.NodeID != req.Peer.NodeID {
		return nil, fmt.Errorf("%w: %s asks for %s", replication.ErrWrongPeer, req.Peer.NodeID, r.NodeID)
	}
	if r.NodeID == n.nodeID {
		return nil, fmt.Errorf("%w: %s leads the cluster", replication.ErrMemberExists, r.NodeID)
	}
	ctx, cancel := context.WithTimeout(ctx, max(5*n.cfg.Raft.ElectionTimeout, 3*time.Second))
	defer cancel()
	done, err := n.beginChange(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	s, known := n.server(raft.ServerID(r.NodeID))
	// One that asks with an empty disk answers nothing until it is taken in; if
	// it did a moment ago, it asks again.
	if known && n.answers(s.ID) && (string(s.Address) != r.Address || s.Suffrage == raft.Voter && r.LastIndex == 0) {
		return nil, fmt.Errorf("%w: %s answers at %s", replication.ErrMemberExists, s.ID, s.Address)
	}
	accepted := &replication.JoinResponse{Accepted: true, LeaderID: n.nodeID, LeaderAddr: n.cfg.Advertise()}
	if !known && r.LastIndex > 0 { // it waited for its vote when it was removed
		return nil, fmt.Errorf("%w: %s is no member any more", replication.ErrNotFound, r.NodeID)
	}
	if known && r.LastIndex > 0 && string(s.Address) == r.Address {
		if s.Suffrage != raft.Voter { // taken in by an earlier leader
			n.want(s.ID, r.Voter)
		}
		return accepted, nil
	}
	if known && s.Suffrage == raft.Voter {
		n.rt.Logger.Warn("a voter comes with an empty disk; it is removed and added as a non-voter", "node", r.NodeID)
		if err := n.await(ctx, n.raft.RemoveServer(s.ID, 0, timeLeft(ctx))); err != nil {
			return nil, fmt.Errorf("removing the voter %s: %w", r.NodeID, err)
		}
	}
	n.want(raft.ServerID(r.NodeID), r.Voter)
	if err := n.await(ctx, n.raft.AddNonvoter(raft.ServerID(r.NodeID), raft.ServerAddress(r.Address), 0, timeLeft(ctx))); err != nil {
		return nil, err
	}
	return accepted, nil
}

// handleLeave serves code 15: a node leaves its cluster.
func (n *Node) handleLeave(ctx context.Context, req *replication.Request) (any, error) {
	var r replication.LeaveRequest
	if err := json.Unmarshal(req.Payload, &r); err != nil {
		return nil, fmt.Errorf("%w: %v", replication.ErrInvalidCommand, err)
	}
	ctx, cancel := context.WithTimeout(ctx, max(5*n.cfg.Raft.ElectionTimeout, 3*time.Second))
	defer cancel()
	if err := n.RemoveMember(ctx, r.NodeID, r.Force); err != nil {
		return nil, err
	}
	return &replication.LeaveResponse{Removed: true}, nil
}

// promoteCaughtUp makes voters of the non-voters that are wanted as such and
// have nearly the whole log. It runs on the leader, again and again.
func (n *Node) promoteCaughtUp() {
	select {
	case n.changing <- struct{}{}:
		defer func() { <-n.changing }()
	default:
		return // another time
	}
	for _, s := range n.servers() {
		n.mu.Lock()
		wanted := n.wanted[s.ID]
		n.mu.Unlock()
		if !wanted {
			continue
		}
		if s.Suffrage == raft.Voter {
			n.want(s.ID, false)
			continue
		}
		if f := n.rtrans.follower(s.ID); !n.answers(s.ID) || f.lastLog == 0 || f.lastLog+promotableLag < n.raft.LastIndex() {
			continue
		}
		n.rt.Logger.Info("a non-voter has caught up and becomes a voter", "node", s.ID)
		ctx, cancel := context.WithTimeout(n.ctx, n.cfg.Raft.ElectionTimeout)
		if err := n.await(ctx, n.raft.AddVoter(s.ID, s.Address, 0, timeLeft(ctx))); err != nil {
			n.rt.Logger.Warn("promoting a non-voter failed; it will be tried again", "node", s.ID, "error", err)
		}
		cancel()
	}
}
