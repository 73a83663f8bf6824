package standby

import (
	"context"
	"fmt"

	metrics "github.com/hashicorp/go-metrics/compat"
	"github.com/nornicdb/replication"
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
	if err := n.call(ctx, connData, replication.MsgPromote, &replication.PromoteRequest{Reason: "leadership transfer"}, &resp); err != nil {
		return err
	}
	if !resp.Ready {
		return fmt.Errorf("%w: %s", replication.ErrNotReady, resp.Error)
	}
	return nil
}

// report sets the gauges.
func (n *Node) report() {
	m := n.view()
	gauge := func(name string, v float64) { metrics.SetGauge([]string{"replication", name}, float32(v)) }
	flag := map[bool]float64{true: 1}
	gauge("is_leader", flag[n.IsLeader()])
	gauge("epoch", float64(m.stored.Epoch.Number))
	gauge("degraded", flag[m.role == RolePrimary && !m.stored.PeerAdmitted])
	gauge("applied_index", float64(n.applier.Position()))
	gauge("commit_index", float64(n.feed.Committed()))
	if m.role == RolePrimary {
		metrics.SetGaugeWithLabels([]string{"replication", "lag_entries"}, float32(n.log.Last().Position-min(m.ack.Persisted, n.log.Last().Position)),
			[]metrics.Label{{Name: "peer", Value: m.peer.NodeID}})
	}
}
