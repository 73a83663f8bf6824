package standby

import (
	"context"
	"fmt"
	"strings"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/forward"
	"github.com/nornicdb/replication/internal/report"
)

var _ replication.Membership = (*Node)(nil)

// ClusterStatus implements replication.Membership: the pair as the primary sees
// it, or as this node does where the primary does not answer.
func (n *Node) ClusterStatus(ctx context.Context) (*replication.ClusterStatus, error) {
	if err := n.running(); err != nil {
		return nil, err
	}
	h, addr := n.Health(), n.cfg.Advertise()
	if h.LeaderID != "" && h.LeaderID != h.NodeID {
		ctx, cancel := context.WithTimeout(ctx, n.callTimeout())
		defer cancel()
		var other replication.HealthStatus
		if err := n.call(ctx, connBeat, replication.MsgStatus, &replication.StatusRequest{}, &other); err == nil && other.LeaderID == other.NodeID {
			h, addr = &other, n.cfg.HA.PeerAddr
		}
	}
	self := replication.PeerHealth{ID: h.NodeID, Address: addr, Voter: true, Healthy: h.Healthy, Lag: int64(h.LagEntries), State: h.Role}
	return &replication.ClusterStatus{ClusterID: h.ClusterID, Mode: h.Mode, LeaderID: h.LeaderID, LeaderAddr: h.LeaderAddr,
		Members: append([]replication.PeerHealth{self}, h.Peers...), CommitIndex: h.CommitIndex, Term: h.Term, Source: h.NodeID}, nil
}

var errPair = fmt.Errorf("%w: a pair has two nodes, which their configuration names", replication.ErrUnsupported)

// AddMember implements replication.Membership: ErrUnsupported.
func (n *Node) AddMember(context.Context, string, string, bool) error { return errPair }

// RemoveMember implements replication.Membership: ErrUnsupported.
func (n *Node) RemoveMember(context.Context, string, bool) error { return errPair }

// TransferLeadership implements replication.Membership: a planned switch to the
// standby.
func (n *Node) TransferLeadership(ctx context.Context, id string) error {
	if err := n.running(); err != nil {
		return err
	}
	m := n.view()
	switch {
	case m.role == RolePrimary && id == n.nodeID:
		return nil
	case m.role != RolePrimary && (id == n.nodeID || id == ""):
		return n.Promote(ctx, false)
	case m.role != RolePrimary:
		return n.notLeader()
	case id != "" && id != m.peer.NodeID:
		return fmt.Errorf("%w: %q is not the peer", replication.ErrNotFound, id)
	}
	var resp replication.PromoteResponse
	err := n.call(ctx, connData, replication.MsgPromote, &replication.PromoteRequest{Reason: "leadership transfer"}, &resp)
	if err != nil {
		return forward.Sent("the standby", err)
	}
	if !resp.Ready {
		return fmt.Errorf("%w: the standby: %s", replication.ErrNotReady, strings.TrimPrefix(resp.Error, replication.ErrNotReady.Error()+": "))
	}
	return nil
}

// report sets the gauges, and says when the peer is lost and when it is back. The
// tick loop alone calls it.
func (n *Node) report() {
	h := n.Health()
	n.gauges.Report(h)
	report.Epoch(h.Term)
	report.WALBytes(n.log.Bytes())
	for _, p := range h.Peers {
		if p.ID == "" || p.Healthy == n.peerUp {
			continue
		}
		n.peerUp = p.Healthy
		e := replication.Event{Type: replication.EventPeerDown, Peer: p.ID}
		if p.Healthy {
			e.Type = replication.EventPeerUp
		}
		n.publish(e)
	}
}
