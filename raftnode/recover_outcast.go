package raftnode

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/nornicdb/replication"
)

// checkSuperseded refuses to start a node whose cluster was recovered without it
// (Recover): its log goes on in no cluster, and together with others of its kind
// it could bring the old one to life beside the new. Peers that do not answer are
// not waited for; the Raft streams keep the histories apart in any case.
func (n *Node) checkSuperseded(ctx context.Context) error {
	own := n.history()
	if own == "" || n.transport == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, max(n.cfg.Raft.ElectionTimeout/2, 100*time.Millisecond))
	defer cancel()
	for _, v := range n.askPeers(ctx) {
		if v.err == nil && replication.Supersedes(v.history, own) {
			return fmt.Errorf("%w: the cluster was recovered without this node: %s has history %s, this node %s; "+
				"empty the data directory to have the node join anew", replication.ErrForeignHistory, v.id, v.history, own)
		}
	}
	return nil
}

// withoutSuperseded leaves out peers whose cluster was recovered without them.
func withoutSuperseded(views []peerView) []peerView {
	return slices.DeleteFunc(slices.Clone(views), func(old peerView) bool {
		return slices.ContainsFunc(views, func(v peerView) bool { return replication.Supersedes(v.history, old.history) })
	})
}

// undecided stands for the history of a node that does not know yet which log it
// takes part in: its Raft streams are closed to all that have one.
var undecided = "(not decided yet)"

// history is that of this node's log, or that of the log which it is about to get:
// an empty node must not vote for, or take entries from, another one's members.
func (n *Node) history() string {
	if own := n.applier.Identity().History; own != "" {
		return own
	}
	if h := n.joining.Load(); h != nil {
		return *h
	}
	return ""
}

// lookAround is what a node without a leader does: it asks whether there is a
// cluster that does not count on it.
func (n *Node) lookAround(ctx context.Context) {
	addrs := make(map[string]bool)
	for _, p := range n.cfg.Raft.Peers {
		addrs[p.Addr] = true
	}
	for _, s := range n.servers() {
		if s.ID != n.id() {
			addrs[string(s.Address)] = true
		}
	}
	for addr := range addrs {
		var h replication.HealthStatus
		if err := n.callPeer(ctx, addr, replication.MsgStatus, &replication.StatusRequest{}, &h); err != nil || !h.IsLeader || h.NodeID == n.nodeID {
			continue
		}
		n.setOutcast(n.judgeLeader(&h))
		return
	}
}

// judgeLeader says why a leader does not count on this node; "" where it does.
func (n *Node) judgeLeader(h *replication.HealthStatus) string {
	own := n.history()
	for _, p := range h.Peers {
		if p.ID == n.nodeID && (own == "" || h.History == own) {
			return ""
		}
	}
	if own != "" && h.History != own {
		return fmt.Sprintf("%s leads a cluster of history %s, this node's log is of %s: empty the data directory to have the node join anew", h.NodeID, h.History, own)
	}
	return fmt.Sprintf("the cluster that %s leads has no member %s: add the node again, or empty its data directory to have it join anew", h.NodeID, n.nodeID)
}

func (n *Node) setOutcast(reason string) {
	before := n.outcast.Swap(&reason)
	if reason != "" && (before == nil || *before != reason) {
		n.rt.Logger.Error("this node is no member of the cluster", "reason", reason)
	}
}

// removed says why this node is no member any more; "" where it may be one.
func (n *Node) removed() string {
	if reason := n.outcast.Load(); reason != nil {
		return *reason
	}
	return ""
}
