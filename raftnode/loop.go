package raftnode

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
)

// loop watches the node: changes of leadership, a hanging disk, members to be
// promoted, and how far the leader is ahead.
func (n *Node) loop(observations <-chan raft.Observation) {
	tick := time.NewTicker(max(n.cfg.Raft.ElectionTimeout/4, 5*time.Millisecond))
	defer tick.Stop()
	hang := n.spawnHangWatch()
	defer hang()
	defer n.spawnSilenceWatch()()
	var polling sync.WaitGroup
	defer polling.Wait()
	busy := make(chan struct{}, 1) // at most one housekeeping run at a time
	for {
		select {
		case <-n.ctx.Done():
			return
		case leads := <-n.notify:
			n.leadershipChanged(leads)
		case o := <-observations:
			n.observed(o)
		case <-tick.C:
			select {
			case busy <- struct{}{}:
				polling.Go(func() { n.housekeeping(); <-busy })
			default:
			}
		}
	}
}

// spawnHangWatch watches the log store and the storage; the function it returns
// ends it.
func (n *Node) spawnHangWatch() (stop func()) {
	ctx, cancel := context.WithCancel(n.ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		every := max(n.cfg.Raft.ElectionTimeout/8, 5*time.Millisecond)
		tick := time.NewTicker(every)
		defer tick.Stop()
		leave := time.NewTicker(4 * n.cfg.Raft.ElectionTimeout) // longer than an attempt takes
		defer leave.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				n.machine.see(time.Now(), 2*every, n.applier.Steps())
				n.setHung(n.hung())
			case <-leave.C:
				// Not in housekeeping, whose takeOffice waits for the storage.
				if _, hangs := n.storageHangs(); hangs && n.raft.State() == raft.Leader && n.transport != nil {
					wg.Go(n.leaveHungStorage)
				}
			}
		}
	})
	return func() { cancel(); wg.Wait() }
}

// setHung withholds or lets go Raft traffic: a node in which something hangs must
// not keep the others from electing a leader that can work.
func (n *Node) setHung(what string) {
	hung := what != ""
	if n.rtrans.hung.Swap(hung) == hung {
		return
	}
	if hung {
		n.rt.Logger.Error("the " + what + " hangs; Raft traffic is withheld until it answers")
		n.publish(replication.Event{Type: replication.EventDegraded, Detail: what + " hangs"})
	} else {
		n.rt.Logger.Warn("what hung answers again")
		n.publish(replication.Event{Type: replication.EventRestored, Detail: "what hung answers"})
	}
	if n.layer != nil {
		if hung {
			n.layer.Suspend()
		} else {
			n.layer.Resume()
		}
	}
	n.signalChange()
}

func (n *Node) observed(o raft.Observation) {
	switch d := o.Data.(type) {
	case raft.LeaderObservation:
		n.signalChange()
		n.countFailover(string(d.LeaderID))
		n.spawn(n.askNewLeader)
		n.publish(replication.Event{Type: replication.EventLeaderChanged, Leader: string(d.LeaderID), Term: n.raft.CurrentTerm()})
	case raft.RaftState:
		n.publish(replication.Event{Type: replication.EventRoleChanged, Role: roleName(d), Term: n.raft.CurrentTerm()})
	case raft.PeerObservation:
		n.publish(replication.Event{Type: replication.EventMemberChanged, Peer: string(d.Peer.ID)})
	case raft.FailedHeartbeatObservation:
		n.publish(replication.Event{Type: replication.EventPeerDown, Peer: string(d.PeerID)})
	case raft.ResumedHeartbeatObservation:
		n.publish(replication.Event{Type: replication.EventPeerUp, Peer: string(d.PeerID)})
	}
}

func (n *Node) leadershipChanged(leads bool) {
	n.readyTerm.Store(0)
	if leads {
		n.spawn(n.takeOffice)
	}
	n.signalChange()
}

// takeOffice makes a new leader ready: an entry of its own term is committed,
// so that it knows what is, and everything before it is applied. Housekeeping
// calls it again while that has not succeeded.
func (n *Node) takeOffice() {
	n.office <- struct{}{}
	defer func() { <-n.office }()
	if n.running() != nil { // Shutdown does not wait for another one
		return
	}
	term := n.raft.CurrentTerm()
	if n.raft.State() != raft.Leader || n.readyTerm.Load() == term {
		return
	}
	if n.applier.Failure() != nil {
		n.giveUpLeadership()
		return
	}
	if err := n.await(n.ctx, n.raft.Barrier(0)); err != nil {
		n.rt.Logger.Warn("leadership ended before it began", "term", term, "error", err)
		return
	}
	if n.raft.State() != raft.Leader || n.raft.CurrentTerm() != term {
		return
	}
	if n.applier.Identity() == (replication.Identity{}) {
		if err := n.foundThroughLog(); err != nil {
			n.rt.Logger.Warn("founding the history failed; it will be tried again", "error", err)
			return
		}
	}
	n.readyTerm.Store(term)
	n.rt.Logger.Info("leading", "term", term)
	n.signalChange()
}

// foundThroughLog gives a cluster whose storage has no snapshots its history.
func (n *Node) foundThroughLog() error {
	cmd, err := replication.NewFoundingCommand(replication.NewHistory())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(n.ctx, 4*n.cfg.Raft.ElectionTimeout)
	defer cancel()
	_, err = n.submit.propose(ctx, replication.NewGroup(cmd))
	return err
}

func (n *Node) giveUpLeadership() {
	n.rt.Logger.Warn("the storage has failed: leadership is handed on")
	if err := n.await(n.ctx, n.raft.LeadershipTransfer()); err != nil {
		n.rt.Logger.Warn("leadership was not handed on", "error", err)
	}
}

// housekeeping is what a node does a few times in each election timeout.
func (n *Node) housekeeping() {
	n.reportGauges()
	if n.raft.State() == raft.Leader {
		if n.applier.Failure() != nil {
			n.giveUpLeadership()
			return
		}
		if n.readyTerm.Load() != n.raft.CurrentTerm() {
			n.takeOffice()
		}
		n.promoteCaughtUp()
		n.progress.leading(time.Now())
		return
	}
	addr, known := n.leaderRoute()
	if n.transport == nil || known && addr == "" {
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.Raft.ElectionTimeout)
	defer cancel()
	if !known {
		n.lookAround(ctx)
		return
	}
	n.setOutcast("")
	n.askLag(ctx, addr)
}

// askLag asks the leader how far it is.
func (n *Node) askLag(ctx context.Context, addr string) {
	var h replication.HealthStatus
	err := n.callPeer(ctx, addr, replication.MsgStatus, &replication.StatusRequest{}, &h)
	if err == nil && h.Role == roleName(raft.Leader) {
		n.progress.polled(n.applier.Position(), h.AppliedIndex, time.Now())
	}
}

// askNewLeader asks a leader at once, as this node is not ready before it answers.
func (n *Node) askNewLeader() {
	if addr, known := n.leaderRoute(); known && addr != "" && n.transport != nil {
		ctx, cancel := context.WithTimeout(n.ctx, n.cfg.Raft.ElectionTimeout)
		defer cancel()
		n.askLag(ctx, addr)
	}
}

// lagTracker compares this node's position with the leader's, as polled: the
// leader's clock is not looked at.
type lagTracker struct {
	// mu guards the fields below.
	mu     sync.Mutex
	leader uint64    // the leader's applied position when last asked
	behind time.Time // since when this node has lacked something; zero: it does not
	at     time.Time // of the last answer; zero: there was none
}

// polled notes the leader's position; own is this node's when the answer came.
func (l *lagTracker) polled(own, leader uint64, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if own >= l.leader { // what was lacking at the last poll has come
		l.behind = time.Time{}
	}
	if own < leader && l.behind.IsZero() {
		l.behind = now
	}
	l.leader, l.at = leader, now
}

func (l *lagTracker) leading(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.leader, l.behind, l.at = 0, time.Time{}, now
}

// known: the leader has answered within the time, or this node led. One that
// starts, or was cut off, hears from a leader before it knows how far that one is.
func (l *lagTracker) known(now time.Time, within time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.at.IsZero() && now.Sub(l.at) <= within
}

// lag in entries and seconds of a node at a position.
func (l *lagTracker) lag(position uint64, now time.Time) (entries uint64, seconds float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if position >= l.leader || l.behind.IsZero() {
		return 0, 0
	}
	return l.leader - position, now.Sub(l.behind).Seconds()
}
