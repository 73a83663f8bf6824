package region

import (
	"fmt"
	"math"
	"time"

	metrics "github.com/hashicorp/go-metrics/compat"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region/conflict"
)

func gauge(value float32, name string, labels ...metrics.Label) {
	metrics.SetGaugeWithLabels([]string{"replication", name}, value, labels)
}

// measure reports the region's state, on every node; the lag of other regions is
// reported with the health. What only the leader hears is NaN elsewhere.
func (n *Node) measure(v *view) {
	if v.settings == nil {
		return
	}
	leads := n.inner.IsLeader()
	for _, k := range n.links.snapshot() {
		label := metrics.Label{Name: "region", Value: k.region}
		offset, silent := math.NaN(), math.NaN()
		if leads && !k.at.IsZero() {
			offset, silent = k.certainOffset().Seconds(), n.rt.Now().Sub(k.at).Seconds()
		}
		gauge(float32(offset), "region_clock_offset_seconds", label)
		gauge(float32(silent), "region_silent_seconds", label)
	}
	var cutLag uint64
	for i := range v.settings.Conflict.Regions {
		cutLag += v.status.Applied[i] - v.status.Cut[i]
	}
	gauge(float32(cutLag), "region_cut_lag_entries")
	gauge(float32(v.head.Last+1-v.head.First), "region_outbox_entries")
	gauge(float32(v.head.Bytes), "region_outbox_bytes")
	gauge(float32(v.status.Rows), "region_unsettled_rows")
	gauge(float32(v.status.Bytes), "region_unsettled_bytes")
	gauge(float32(v.status.Conflicting), "conflicts_open")
}

// countSent counts the entries of a batch that another region has answered.
func countSent(region string, entries int, err error) {
	if err == nil {
		metrics.IncrCounterWithLabels([]string{"replication", "wal_entries_sent_total"}, float32(entries), []metrics.Label{{Name: "peer", Value: region}})
	}
}

// measureMerge reports how long the merge of another region's entries took, that
// was begun at start.
func measureMerge(start time.Time) {
	metrics.AddSample([]string{"replication", "region_merge_seconds"}, float32(time.Since(start).Seconds()))
}

// observed tells of what a committed transaction did.
func (n *Node) observed(before, after *view, did conflict.Counts) {
	count(did, after.settings.Conflict.Strategy)
	if was, is := before.head.err(), after.head.err(); is != nil && was == nil {
		n.rt.Logger.Error("this region takes no writes any more", "error", is)
	} else if is == nil && was != nil {
		n.rt.Logger.Warn("no other region says any more that this one has lost writes: it takes writes again")
	}
	for field, count := range did.Conflicts {
		n.inner.Publish(replication.Event{Type: replication.EventConflict, Detail: fmt.Sprintf("%d about field %s", count, field)})
	}
	if before.settings != nil && before.head.Epoch != after.head.Epoch {
		n.inner.Publish(replication.Event{Type: replication.EventRegionEpoch, Leader: after.head.Epoch.Owner, Detail: after.head.Epoch.String()})
	}
}

// count reports what a committed transaction did. A conflict is counted by the
// federation's strategy and, for itself, by the field.
func count(c conflict.Counts, strategy conflict.Strategy) {
	for field, n := range c.Conflicts {
		metrics.IncrCounterWithLabels([]string{"replication", "conflicts_total"}, float32(n), []metrics.Label{{Name: "strategy", Value: string(strategy)}})
		metrics.IncrCounterWithLabels([]string{"replication", "conflicts_by_field_total"}, float32(n), []metrics.Label{{Name: "field", Value: string(field)}})
	}
	for name, n := range map[string]uint64{"conflicts_settled_by_write_total": c.SettledByWrite, "conflicts_settled_by_resolve_total": c.SettledByResolve,
		"region_entries_merged_total": c.Merged, "region_entries_duplicate_total": c.Duplicate, "region_gaps_total": c.Gaps,
		"region_clock_ahead_total": c.ClockAhead} {
		if n > 0 {
			metrics.IncrCounter([]string{"replication", name}, float32(n))
		}
	}
}
