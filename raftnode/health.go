package raftnode

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
)

// readyLag and healthyLag bound, in entries, how far a node may lag to count as
// caught up, and as healthy.
const (
	readyLag   = 1000
	healthyLag = 100000
)

func roleName(s raft.RaftState) string { return strings.ToLower(s.String()) }

// Health implements replication.Replicator.
func (n *Node) Health() *replication.HealthStatus {
	h := &replication.HealthStatus{Mode: n.cfg.Mode, NodeID: n.NodeID(), ClusterID: n.cfg.Raft.ClusterID, Role: "none"}
	n.mu.Lock()
	state, waiting := n.state, n.waiting
	n.mu.Unlock()
	switch state {
	case stateClosed:
		h.State = "closed"
		return h
	case stateNew, stateStarting:
		h.State = "starting"
		h.Founder = n.cfg.Raft.Bootstrap
		if waiting != "" {
			h.Reasons = []string{waiting}
		}
		return h
	}
	n.fillPosition(h)
	h.Peers = n.peerHealth(h.Role == "leader")
	n.judge(h)
	if n.opts.owner.Health != nil {
		n.opts.owner.Health(h)
	}
	return h
}

func (n *Node) fillPosition(h *replication.HealthStatus) {
	h.Role = roleName(n.raft.State())
	if s, known := n.server(n.id()); h.Role == "follower" && (!known || s.Suffrage != raft.Voter) {
		h.Role = "nonvoter"
	}
	h.IsLeader = n.IsLeader()
	addr, id := n.raft.LeaderWithID()
	h.LeaderID, h.LeaderAddr = string(id), string(addr)
	h.Term = n.raft.CurrentTerm()
	h.AppliedIndex = n.applier.Position()
	h.CommitIndex = max(n.raft.CommitIndex(), h.AppliedIndex)
	h.LagEntries, h.LagSeconds = n.progress.lag(h.AppliedIndex, time.Now())
	if h.Role != "leader" {
		h.LastContact = n.raft.LastContact()
	}
	h.History = n.history()
	last := n.raft.LastIndex()
	h.Founded = last > 0
	// Term 1 is that of the founding: a later one is that of a candidate, who may
	// have won before it appended anything.
	h.Virgin = h.Founded && h.Term <= 1 && last <= max(n.applier.Identity().Base, 1)
}

// judge says whether the node serves its role.
func (n *Node) judge(h *replication.HealthStatus) {
	h.State = "healthy"
	bad := func(state, format string, args ...any) {
		if h.State == "healthy" {
			h.State = state
		}
		h.Reasons = append(h.Reasons, fmt.Sprintf(format, args...))
	}
	if err := n.applier.Failure(); err != nil {
		bad("storage_failed", "%v", err)
	}
	if err := n.logs.broken(); err != nil {
		bad("log_failed", "the log lost its tail to a failed write; restart the node: %v", err)
	}
	if n.logs.stuckFor() > n.cfg.Raft.ElectionTimeout {
		bad("disk_hung", "a call of the log store has not returned for %s", n.logs.stuckFor().Round(time.Millisecond))
	}
	if stuck, hangs := n.storageHangs(); hangs {
		bad("storage_hung", "a call of the storage has not returned for %s", stuck.Round(time.Millisecond))
	}
	switch {
	case h.LeaderID == "" && n.removed() != "":
		bad("removed", "%s", n.removed())
	case h.LeaderID == "":
		bad("no_leader", "no leader is known")
	case h.Role == "leader" && !h.IsLeader:
		bad("taking_office", "the new leader has not committed an entry of its term yet")
	case h.Role != "leader" && time.Since(h.LastContact) > 2*n.cfg.Raft.ElectionTimeout:
		bad("cut_off", "nothing was heard from the leader since %s", h.LastContact.Format(time.RFC3339Nano))
	}
	if err := n.vouched(); err != nil {
		bad("foreign_storage", "%v", err)
	}
	if h.LagEntries > healthyLag {
		bad("lagging", "%d entries behind the leader", h.LagEntries)
	}
	h.Healthy = h.State == "healthy"
	h.Ready = h.Healthy && h.LagEntries <= readyLag
	if h.Ready && h.Role != "leader" && n.transport != nil && !n.progress.known(time.Now(), 2*n.cfg.Raft.ElectionTimeout) {
		h.Ready = false
		h.Reasons = append(h.Reasons, "the leader has not said yet how far it is")
	}
	if _, ok := n.storage.(replication.StorageSnapshotter); !ok {
		h.Reasons = append(h.Reasons, "the storage has no snapshots: the log is never compacted")
	}
}

// peerHealth is the other members as this node sees them. Only the leader knows
// how far they lag.
func (n *Node) peerHealth(leads bool) []replication.PeerHealth {
	var peers []replication.PeerHealth
	last := n.raft.LastIndex()
	_, leader := n.raft.LeaderWithID()
	for _, s := range n.servers() {
		if s.ID == n.id() {
			continue
		}
		p := replication.PeerHealth{ID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter, Lag: -1, State: "unknown"}
		switch {
		case leads:
			p.Healthy = n.answers(s.ID)
			p.State = "unreachable"
			if f := n.rtrans.follower(s.ID); p.Healthy {
				p.State = "follower"
				p.Lag = int64(last) - int64(min(f.lastLog, last))
			}
		case s.ID == leader:
			p.State = "leader"
			p.Healthy = time.Since(n.raft.LastContact()) < 2*n.cfg.Raft.ElectionTimeout
		}
		if !p.Voter && p.State == "follower" {
			p.State = "nonvoter"
		}
		peers = append(peers, p)
	}
	return peers
}

// ClusterStatus implements replication.Membership: the leader's view, or this
// node's where there is none that answers.
func (n *Node) ClusterStatus(ctx context.Context) (*replication.ClusterStatus, error) {
	if err := n.running(); err != nil && !errors.Is(err, replication.ErrNotReady) {
		return nil, err
	}
	own := n.Health()
	if own.LeaderAddr != "" && own.LeaderID != own.NodeID {
		ctx, cancel := context.WithTimeout(ctx, 2*n.cfg.Raft.ElectionTimeout)
		defer cancel()
		var h replication.HealthStatus
		if err := n.callPeer(ctx, own.LeaderAddr, replication.MsgStatus, &replication.StatusRequest{}, &h); err == nil && h.LeaderID == h.NodeID {
			return clusterStatus(&h, own.LeaderAddr), nil
		}
	}
	return clusterStatus(own, n.cfg.Advertise()), nil
}

// clusterStatus makes a node's health, in which it is not among its peers, the
// view of the whole.
func clusterStatus(h *replication.HealthStatus, addr string) *replication.ClusterStatus {
	self := replication.PeerHealth{ID: h.NodeID, Address: addr, Voter: h.Role != "nonvoter", Healthy: h.Healthy, Lag: int64(h.LagEntries), State: h.Role}
	return &replication.ClusterStatus{ClusterID: h.ClusterID, Mode: h.Mode, LeaderID: h.LeaderID, LeaderAddr: h.LeaderAddr,
		Members: append([]replication.PeerHealth{self}, h.Peers...), CommitIndex: h.CommitIndex, Term: h.Term, Source: h.NodeID, Federation: h.Federation}
}

// handleStatus serves code 17. A node that has a log and does not run says
// nothing: from what it could say now an empty node would take it for empty.
func (n *Node) handleStatus(context.Context, *replication.Request) (any, error) {
	n.mu.Lock()
	silent := n.state == stateClosed || n.state != stateRunning && n.hasLog
	n.mu.Unlock()
	if silent {
		return nil, fmt.Errorf("%w: it starts or stops", replication.ErrNotReady)
	}
	return n.Health(), nil
}
