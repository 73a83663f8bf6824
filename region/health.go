package region

import (
	"fmt"
	"time"

	"github.com/nornicdb/replication"
)

// silentAfter is how long a region may be silent before it is said so.
const silentAfter = 10 * time.Second

// Health implements replication.Replicator: that of the node in its region. The
// other regions are among the peers, under their names; their lag is what of
// this region's stream they have not acknowledged. That a region is away is a
// reason, not an illness: this one goes on.
func (n *Node) Health() *replication.HealthStatus {
	h := n.inner.Health()
	h.Mode = replication.ModeMultiRegion
	v, _ := n.machine.now()
	leads := h.IsLeader
	for _, k := range n.links.snapshot() {
		p := replication.PeerHealth{ID: k.region, Address: k.addrs[k.next%len(k.addrs)], Lag: -1, State: "region"}
		if v.settings != nil {
			p.Lag = int64(v.head.Last - min(v.head.Cursors[k.region], v.head.Last))
		}
		if leads { // only the leader asks
			p.Healthy = !k.at.IsZero() && n.rt.Now().Sub(k.at) < silentAfter
			p.State = "region"
			if !p.Healthy {
				p.State = "silent"
				h.Reasons = append(h.Reasons, fmt.Sprintf("region %s does not answer: %v; metadata of unsettled writes grows", k.region, k.err))
			}
		}
		h.Peers = append(h.Peers, p)
	}
	n.warn(h, &v)
	return h
}

// warn adds what limits the region.
func (n *Node) warn(h *replication.HealthStatus, v *view) {
	if err := n.alarmedBy(); err != nil {
		h.State, h.Healthy, h.Ready = "region_stopped", false, false
		h.Reasons = append(h.Reasons, err.Error())
	}
	if v.settings == nil {
		h.Ready = false
		h.Reasons = append(h.Reasons, "the region's settings are not founded yet")
	}
	if off, of := n.links.skew(n.cfg.Region.MaxClockOffset); off > 0 && (2*off > of || of == 1) {
		h.Reasons = append(h.Reasons, fmt.Sprintf("the clock is off from that of %d of %d regions by more than %s", off, of, n.cfg.Region.MaxClockOffset))
	}
	if v.status.Conflicting > 0 {
		h.Reasons = append(h.Reasons, fmt.Sprintf("%d nodes and edges have conflicts that wait to be resolved", v.status.Conflicting))
	}
}
