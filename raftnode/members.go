package raftnode

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
)

// promotableLag is how many entries a non-voter may lack to be made a voter.
const promotableLag = 64

// leading is nil on a leader that can act; ErrNotLeader elsewhere.
func (n *Node) leading() error {
	if err := n.running(); err != nil {
		return err
	}
	if !n.IsLeader() {
		return n.notLeader()
	}
	return nil
}

// oneChange runs a change of the membership on the leader while no other is
// made, so that what was checked still holds when it is proposed. A member that
// is removed would come back with the vote that it was to get.
func (n *Node) oneChange(ctx context.Context, f func(context.Context) error) error {
	select {
	case n.changing <- struct{}{}:
		defer func() { <-n.changing }()
	case <-ctx.Done():
		return fmt.Errorf("%w: another change of the membership is under way: %w", replication.ErrTimeout, context.Cause(ctx))
	}
	if err := n.leading(); err != nil {
		return err
	}
	return f(ctx)
}

// propose makes a change of the Raft configuration. Its error tells a change
// that was not proposed from one of which the outcome is unknown.
func (n *Node) propose(ctx context.Context, change func(enqueue time.Duration) raft.IndexFuture) error {
	enqueue := time.Duration(0)
	if deadline, ok := ctx.Deadline(); ok {
		enqueue = max(time.Until(deadline)*3/4, time.Millisecond)
	}
	err := n.await(ctx, change(enqueue))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return n.notLeader()
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: the change was not proposed: an earlier one is not committed yet", replication.ErrTimeout)
	default:
		return fmt.Errorf("%w: change of the membership: %w", replication.ErrUnknownOutcome, err)
	}
}

// wish replicates what a member is to be, if that is news.
func (n *Node) wish(ctx context.Context, w replication.MemberWish) error {
	voter, known := n.applier.MemberWish(w.NodeID)
	if w.Forget && !known || !w.Forget && known && (w.IfNone || voter == w.Voter) {
		return nil
	}
	cmd, err := replication.NewMemberWishCommand(w)
	if err != nil {
		return err
	}
	_, err = n.fillLeader(n.submit.propose(ctx, replication.NewGroup(cmd)))
	return err
}

// addMember adds a node, changes its address, or changes what it is to be. On
// the leader.
func (n *Node) addMember(ctx context.Context, id, addr string, voter bool) error {
	for _, s := range n.servers() {
		if string(s.Address) == addr && string(s.ID) != id {
			return fmt.Errorf("%w: %s is at %s", replication.ErrMemberExists, s.ID, addr)
		}
	}
	s, known := n.server(raft.ServerID(id))
	moves := !known || string(s.Address) != addr
	if known && s.Suffrage == raft.Voter {
		if !voter {
			return fmt.Errorf("%w: %s is a voter; remove it first", replication.ErrMemberExists, id)
		}
		if !moves {
			return nil
		}
		if err := n.quorumWithMoved(ctx, s.ID, addr); err != nil {
			return err
		}
		return n.propose(ctx, func(d time.Duration) raft.IndexFuture { return n.raft.AddVoter(s.ID, raft.ServerAddress(addr), 0, d) })
	}
	if err := n.wish(ctx, replication.MemberWish{NodeID: id, Voter: voter}); err != nil {
		return err
	}
	if !moves {
		return nil
	}
	return n.addNonvoter(ctx, id, addr)
}

func (n *Node) addNonvoter(ctx context.Context, id, addr string) error {
	return n.propose(ctx, func(d time.Duration) raft.IndexFuture {
		return n.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(addr), 0, d)
	})
}

// quorumWithMoved says whether the voters have a quorum that answers now when
// one of them is looked for at another address.
func (n *Node) quorumWithMoved(ctx context.Context, id raft.ServerID, addr string) error {
	others, self := n.otherVoters()
	voters := len(others) + boolToInt(self)
	need := voters/2 + 1 - boolToInt(self)
	if id != n.id() && n.answersAt(ctx, string(id), addr) {
		need--
	}
	others = slices.DeleteFunc(others, func(o raft.ServerID) bool { return o == id })
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Raft.ElectionTimeout)
	defer cancel()
	if err := n.freshRound(ctx, others, n.readyTerm.Load(), need); err != nil {
		if errors.Is(err, replication.ErrNotLeader) {
			return err
		}
		return fmt.Errorf("%w: nobody answers as %s at %s, and too few of the other voters do: %w", replication.ErrQuorumAtRisk, id, addr, err)
	}
	return nil
}

// answersAt: the node of this ID serves its cluster port at the address.
func (n *Node) answersAt(ctx context.Context, id, addr string) bool {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Raft.ElectionTimeout)
	defer cancel()
	var h replication.HealthStatus
	err := n.callPeer(ctx, addr, replication.MsgStatus, &replication.StatusRequest{}, &h)
	return err == nil && h.NodeID == id
}

// removeMember removes a node. On the leader. Without force it refuses to remove
// a voter without which those that answer are no quorum of the rest; the last
// voter stays in any case. A leader that is to go hands leadership on first: its
// successor removes it, without an election's pause.
func (n *Node) removeMember(ctx context.Context, id string, force bool) error {
	s, known := n.server(raft.ServerID(id))
	if !known {
		return replication.ErrNotFound // see noMember
	}
	if s.Suffrage == raft.Voter {
		others, self := n.otherVoters()
		if len(others)+boolToInt(self) == 1 {
			return fmt.Errorf("%w: %s is the last voter", replication.ErrQuorumAtRisk, id)
		}
		if !force {
			if err := n.quorumWithout(ctx, s.ID); err != nil {
				return err
			}
		}
	}
	if s.ID == n.id() && s.Suffrage == raft.Voter {
		if err := n.await(ctx, n.raft.LeadershipTransfer()); err == nil {
			return n.notLeader() // the caller goes on with the next leader
		}
	}
	if err := n.wish(ctx, replication.MemberWish{NodeID: id, Forget: true}); err != nil {
		return err
	}
	return n.propose(ctx, func(d time.Duration) raft.IndexFuture { return n.raft.RemoveServer(s.ID, 0, d) })
}

// quorumWithout says whether the voters but one have a quorum that answers now:
// what was heard a moment ago may have died since.
func (n *Node) quorumWithout(ctx context.Context, id raft.ServerID) error {
	others, self := n.otherVoters()
	self = self && id != n.id()
	others = slices.DeleteFunc(others, func(o raft.ServerID) bool { return o == id })
	voters := len(others) + boolToInt(self)
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

// transfer hands leadership on and waits until another node leads. On the
// leader.
func (n *Node) transfer(ctx context.Context, id string) error {
	others, _ := n.otherVoters()
	if len(others) == 0 {
		return fmt.Errorf("%w: there is no other voter", replication.ErrQuorumAtRisk)
	}
	future := raft.Future(nil)
	if id != "" {
		s, known := n.server(raft.ServerID(id))
		switch {
		case !known:
			return replication.ErrNotFound // see noMember
		case s.ID == n.id():
			return nil
		case s.Suffrage != raft.Voter:
			return fmt.Errorf("%w: %s is not a voter", replication.ErrQuorumAtRisk, id)
		case !n.answers(s.ID):
			return fmt.Errorf("%w: %s does not answer", replication.ErrQuorumAtRisk, id)
		}
		future = n.raft.LeadershipTransferToServer(s.ID, s.Address)
	} else {
		future = n.raft.LeadershipTransfer()
	}
	err := n.await(ctx, future)
	switch {
	case errors.Is(err, raft.ErrNotLeader):
		return n.notLeader()
	case errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: another transfer of leadership is under way", replication.ErrOverloaded)
	case err != nil: // the other may have been told to stand for election
		return fmt.Errorf("%w: transfer of leadership: %w", replication.ErrUnknownOutcome, err)
	}
	return n.awaitSuccessor(ctx, id)
}

// awaitSuccessor waits until another node is known to lead.
func (n *Node) awaitSuccessor(ctx context.Context, wanted string) error {
	for {
		changed := n.leaderChanged()
		if _, id := n.raft.LeaderWithID(); id != "" && id != n.id() {
			if wanted != "" && string(id) != wanted {
				return fmt.Errorf("%w: %s was to lead, but %s was elected", replication.ErrNotReady, wanted, id)
			}
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: leadership was given up, and nobody leads yet: %w", replication.ErrUnknownOutcome, context.Cause(ctx))
		case <-n.ctx.Done():
			return fmt.Errorf("%w: leadership was given up: %w", replication.ErrUnknownOutcome, replication.ErrClosed)
		}
	}
}

// promoteCaughtUp makes voters of the non-voters that are to be voters and have
// nearly the whole log. It runs on the leader, again and again; while another
// change is made it leaves that for later.
func (n *Node) promoteCaughtUp() {
	select {
	case n.changing <- struct{}{}:
		defer func() { <-n.changing }()
	default:
		return // another time
	}
	if n.leading() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.Raft.ElectionTimeout)
	defer cancel()
	_ = n.promote(ctx) // what failed was logged, and is tried again
}

// promotable: the member is a non-voter that is to be a voter and has caught up.
func (n *Node) promotable(s raft.Server) bool {
	if voter, _ := n.applier.MemberWish(string(s.ID)); s.Suffrage == raft.Voter || !voter || !n.answers(s.ID) {
		return false
	}
	f := n.rtrans.follower(s.ID)
	return f.lastLog > 0 && f.lastLog+promotableLag >= n.raft.LastIndex()
}

func (n *Node) promote(ctx context.Context) error {
	for _, s := range n.servers() {
		if !n.promotable(s) {
			continue
		}
		n.rt.Logger.Info("a non-voter has caught up and becomes a voter", "node", s.ID)
		if err := n.propose(ctx, func(d time.Duration) raft.IndexFuture { return n.raft.AddVoter(s.ID, s.Address, 0, d) }); err != nil {
			n.rt.Logger.Warn("promoting a non-voter failed; it will be tried again", "node", s.ID, "error", err)
			return err
		}
	}
	return nil
}
