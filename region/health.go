package region

import (
	"fmt"
	"time"

	"github.com/nornicdb/replication"
)

// silentAfter is how long a region may be silent before it is said so.
const silentAfter = 10 * time.Second

// refusedAfter is how long it may be where an address answered last with a failure:
// the other addresses have had a turn.
const refusedAfter = 3 * time.Second

// Health implements replication.Replicator: that of the node in its region, with
// what federate adds.
func (n *Node) Health() *replication.HealthStatus { return n.inner.Health() }

// federate adds the other regions to the health of the inner node. That one is
// away is a reason, not an illness: this region goes on.
func (n *Node) federate(h *replication.HealthStatus) {
	v, _ := n.machine.now()
	f := &replication.FederationHealth{Region: n.settings.Self, Epoch: newHeader(n.settings).Epoch} // what is going to be founded
	if v.settings != nil {
		f.Epoch = v.head.Epoch
	}
	for _, k := range n.links.snapshot() {
		r := replication.RegionHealth{Region: k.region, Address: k.addrs[k.next%len(k.addrs)], State: "unknown"}
		if v.settings != nil {
			r.LagEntries = v.head.Last - min(v.head.Cursors[k.region], v.head.Last)
			r.LagSeconds = n.lags.seconds(k.region, &v.head, n.rt.Now())
		}
		if h.IsLeader { // only the leader asks
			r.Healthy = k.answers(n.rt.Now())
			r.State = "connected"
			if !r.Healthy {
				r.State = "silent"
				h.Reasons = append(h.Reasons, fmt.Sprintf("region %s does not answer: %v; metadata of unsettled writes grows", k.region, k.err))
			} else if r.LagEntries > 0 && k.isStuck(n.rt.Now()) {
				h.Reasons = append(h.Reasons, fmt.Sprintf("what is written here does not get to region %s: %v", k.region, k.stuckBy))
			}
		}
		f.Regions = append(f.Regions, r)
	}
	h.Federation = f
	n.warn(h, &v)
}

// warn adds what limits the region.
func (n *Node) warn(h *replication.HealthStatus, v *view) {
	if err := n.alarmedBy(); err != nil {
		h.State, h.Healthy, h.Ready = "region_stopped", false, false
		h.Reasons = append(h.Reasons, err.Error())
	}
	if v.settings != nil && n.alarmedBy() == nil {
		if err := n.settings.differs(v.settings); err != nil {
			h.Reasons = append(h.Reasons, err.Error())
		}
	}
	if v.settings == nil {
		h.Ready = false
		h.Reasons = append(h.Reasons, "the region's settings are not founded yet")
	}
	if off, of := n.links.skew(n.clockBound(), n.rt.Now()); mostly(off, of) {
		h.Reasons = append(h.Reasons, fmt.Sprintf("the clock is off from that of %d of %d regions by more than %s", off, of, n.clockBound()))
	}
	if v.status.Conflicting > 0 {
		h.Reasons = append(h.Reasons, fmt.Sprintf("%d nodes and edges have conflicts that wait to be resolved", v.status.Conflicting))
	}
}

// answers: the region has been heard of late.
func (k *link) answers(now time.Time) bool {
	silent := now.Sub(k.at)
	return !k.at.IsZero() && silent < silentAfter && (k.err == nil || silent < refusedAfter)
}
