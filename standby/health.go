package standby

import (
	"fmt"
	"time"

	"github.com/nornicdb/replication"
)

// readyLag and healthyLag bound, in entries, how far a standby may lag to count as
// caught up, and as healthy.
const (
	readyLag   = 1000
	healthyLag = 100000
)

// Health implements replication.Replicator.
func (n *Node) Health() *replication.HealthStatus {
	h := &replication.HealthStatus{Mode: replication.ModeHAStandby, NodeID: n.NodeID(), ClusterID: n.cfg.Raft.ClusterID, Role: "none"}
	n.mu.Lock()
	state, m, tails, tailed, behind := n.state, n.seen, n.tails, n.tailed, n.behind
	n.mu.Unlock()
	switch {
	case state == stateClosed:
		h.State = "closed"
		return h
	case state != stateRunning || m.role == "":
		h.State = "starting"
		return h
	}
	h.Role, h.Term = string(m.role), m.stored.Epoch.Number
	h.IsLeader, h.LeaderID, h.LeaderAddr = n.IsLeader(), n.LeaderID(), n.LeaderAddr()
	h.AppliedIndex = n.applier.Position()
	h.CommitIndex = max(n.feed.Committed(), h.AppliedIndex)
	h.History, h.Founded = m.stored.History, m.stored.History != ""
	h.Virgin = h.Founded && n.log.Last().Position <= m.stored.Base.Position
	n.fillPeer(h, &m)
	if h.LagEntries > 0 {
		h.LagSeconds = behind.lag(h.AppliedIndex, n.now().boot).Seconds()
	}
	n.judge(h, &m)
	if len(tails) > 0 {
		h.Reasons = append(h.Reasons, fmt.Sprintf("%d diverged entries were put aside: %v", tailed, tails))
	}
	return h
}

// ago is how long ago something was on the boot clock.
func (n *Node) ago(t time.Duration) time.Duration { return n.now().boot - t }

// fillPeer says what this node knows of the other.
func (n *Node) fillPeer(h *replication.HealthStatus, m *machine) {
	last := m.heard
	p := replication.PeerHealth{ID: m.peer.NodeID, Address: n.cfg.HA.PeerAddr, Lag: -1, State: "unknown"}
	if m.role == RolePrimary {
		p.Voter = m.stored.PeerAdmitted
		if m.hasLease {
			p.State = "catching up"
			if m.stored.PeerAdmitted {
				p.State = "admitted"
			}
			if m.peer.Role != RoleStandby { // it answers, and does not follow
				p.State = string(m.peer.Role)
			}
			p.Lag = int64(n.log.Last().Position - min(m.ack.Persisted, n.log.Last().Position))
		}
	} else if m.peerKnown {
		p.State = string(m.peer.Role)
		h.LastContact = n.rt.Now().Add(-n.ago(last))
	}
	p.Healthy = m.peer.NodeID != "" && n.ago(last) < n.cfg.HA.FailoverTimeout
	switch {
	case m.refused != "": // who refuses this node, or is none to pair with, is there; it answers nothing
		p.Healthy, p.State = false, "refused"
	case !p.Healthy:
		p.State = "unreachable"
	}
	if m.role == RoleStandby {
		if behind := m.peer.Last.Position; behind > h.AppliedIndex {
			h.LagEntries = behind - h.AppliedIndex
		}
	}
	h.Peers = []replication.PeerHealth{p}
}

// judge says whether the node serves its role.
func (n *Node) judge(h *replication.HealthStatus, m *machine) {
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
	if err := n.log.Err(); err != nil {
		bad("storage_failed", "%v", err)
	}
	if n.diskHung() {
		bad("disk_hung", "a write to the log has not returned for %s", n.log.HungFor().Round(time.Millisecond))
	}
	if lasted, _, hung := n.storageHung(); hung {
		bad("storage_hung", "a call of the storage has not returned for %s", lasted.Round(time.Millisecond))
	}
	switch m.role {
	case RolePrimary:
		if !m.leased(n.now()) {
			bad("no_lease", "the standby does not answer, and the policy is consistency: no write is accepted")
		}
	case RoleStandby:
		if n.ago(m.heard) > n.cfg.HA.FailoverTimeout {
			bad("cut_off", "nothing was heard from the primary for %s", n.ago(m.heard).Round(time.Millisecond))
		}
	default:
		bad(string(m.role), "this node is %s", m.role)
	}
	if m.waiting != "" {
		bad("waiting", "%s", m.waiting)
	}
	if h.LagEntries > healthyLag {
		bad("lagging", "%d entries behind the primary", h.LagEntries)
	}
	h.Healthy = h.State == "healthy"
	h.Ready = h.Healthy && h.LagEntries <= readyLag
	less := func(reason string) {
		if h.Healthy {
			h.State = "degraded"
		}
		h.Reasons = append(h.Reasons, reason)
	}
	if m.role == RolePrimary && !m.stored.PeerAdmitted {
		less("no standby is admitted: a failover would need an operator")
	}
	if m.waitsForStandby(n.now().boot) {
		less(fmt.Sprintf("the standby does not follow: in mode %s no write is acknowledged until it does", m.mode))
	}
	if n.plain.Load() && m.stored.Epoch.IsZero() {
		h.Reasons = append(h.Reasons, "unfenced: the primary speaks without epochs, so nothing keeps two primaries apart")
	}
	if m.stored.Solo {
		h.Reasons = append(h.Reasons, "solo: an operator said that the peer is down")
	}
}
