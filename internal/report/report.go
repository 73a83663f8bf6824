// Package report sends the replication layer's metrics to the process's
// go-metrics sink, through the compat package that hashicorp/raft uses, so that
// one sink shows both (HTTP endpoints and metrics, "Metrics"). The names are
// those that a sink with the service name "nornicdb" shows.
package report

import (
	"math"
	"time"

	metrics "github.com/hashicorp/go-metrics/compat"
	"github.com/nornicdb/replication"
)

const prefix = "replication"

func key(name string) []string { return []string{prefix, name} }

func label(name, value string) []metrics.Label { return []metrics.Label{{Name: name, Value: value}} }

func flag(b bool) float32 {
	if b {
		return 1
	}
	return 0
}

// Roles that a node of any mode can have; exactly one is 1.
var roles = []string{"none", "standalone", "leader", "candidate", "follower", "nonvoter", "shutdown", "primary", "standby",
	"starting", "fencing", "promoting", "fenced", "rejoining", "rebuilding"}

// Gauges reports a node's health. The zero value is ready; it belongs to one
// node, and is not safe for concurrent use.
type Gauges struct{ peers map[string]bool }

// Report sets the gauges to what h says. A peer of which this node knows nothing, as
// a Raft follower of the other followers, has none: a zero would be an alarm. Those
// of a peer that was known, or is no longer there, become NaN: a sink forgets none.
func (g *Gauges) Report(h *replication.HealthStatus) {
	metrics.SetGaugeWithLabels(key("mode"), 1, label("mode", string(h.Mode)))
	metrics.SetGauge(key("is_leader"), flag(h.IsLeader))
	for _, r := range roles {
		metrics.SetGaugeWithLabels(key("role"), flag(r == h.Role), label("role", r))
	}
	metrics.SetGauge(key("term"), float32(h.Term))
	metrics.SetGauge(key("commit_index"), float32(h.CommitIndex))
	metrics.SetGauge(key("applied_index"), float32(h.AppliedIndex))
	metrics.SetGauge(key("lag_seconds"), float32(h.LagSeconds))
	degraded := !h.Healthy || h.State == "degraded"
	here := make(map[string]bool, len(h.Peers))
	for _, p := range h.Peers {
		if p.ID == "" || p.State == "unknown" && !p.Healthy { // nobody has answered there yet, or it is another's to ask
			continue
		}
		here[p.ID] = true
		metrics.SetGaugeWithLabels(key("lag_entries"), float32(p.Lag), label("peer", p.ID))
		metrics.SetGaugeWithLabels(key("peer_healthy"), flag(p.Healthy), label("peer", p.ID))
		degraded = degraded || h.IsLeader && p.Voter && !p.Healthy
	}
	metrics.SetGauge(key("degraded"), flag(degraded))
	for id := range g.peers {
		if !here[id] {
			metrics.SetGaugeWithLabels(key("lag_entries"), float32(math.NaN()), label("peer", id))
			metrics.SetGaugeWithLabels(key("peer_healthy"), float32(math.NaN()), label("peer", id))
		}
	}
	g.peers = here
	if h.Federation != nil {
		reportFederation(h.Federation)
	}
}

func reportFederation(f *replication.FederationHealth) {
	metrics.SetGauge(key("epoch"), float32(f.Epoch.Number))
	for _, r := range f.Regions {
		metrics.SetGaugeWithLabels(key("region_lag_entries"), float32(r.LagEntries), label("region", r.Region))
		metrics.SetGaugeWithLabels(key("region_lag_seconds"), float32(r.LagSeconds), label("region", r.Region))
	}
}

// WALBytes reports the size of the log store.
func WALBytes(n int64) { metrics.SetGauge(key("wal_bytes"), float32(n)) }

// Snapshot counts a snapshot that was "taken", "sent" or "received".
func Snapshot(direction string) {
	metrics.IncrCounterWithLabels(key("snapshots_total"), 1, label("direction", direction))
}

// Epoch reports the number of a fencing epoch.
func Epoch(number uint64) { metrics.SetGauge(key("epoch"), float32(number)) }

// Fenced counts that this node was fenced by a higher epoch.
func Fenced() { metrics.IncrCounter(key("fenced_total"), 1) }

// Diverged counts entries that were put aside.
func Diverged(entries int) { metrics.IncrCounter(key("diverged_entries_total"), float32(entries)) }

// EntriesSent counts log entries that a peer took.
func EntriesSent(peer string, entries int) {
	metrics.IncrCounterWithLabels(key("wal_entries_sent_total"), float32(entries), label("peer", peer))
}

// Forwarded counts a write that was sent on to the leader.
func Forwarded() { metrics.IncrCounter(key("forwarded_total"), 1) }

// Failover counts a change from one leader to another.
func Failover() { metrics.IncrCounter(key("failovers_total"), 1) }

var applySeconds = key("apply_seconds") // made once, as every write reports it

// Apply reports a write that was begun at start and ended with err.
func Apply(start time.Time, err error) {
	metrics.AddSample(applySeconds, float32(time.Since(start).Seconds()))
	if err != nil {
		metrics.IncrCounterWithLabels(key("apply_errors_total"), 1, label("code", replication.ErrorCode(err)))
	}
}

// Name is a metric of this layer that a sink can show before it is first reported:
// its key, with the values that its label is known to have.
type Name struct {
	Key    []string
	Label  string
	Values []string
}

// Counters that a node of any mode can report.
func Counters() []Name {
	return []Name{
		{Key: key("apply_errors_total"), Label: "code", Values: []string{"timeout", "unknown_outcome", "unconfirmed", "no_leader", "no_lease", "overloaded", "not_leader",
			"invalid_command", "exists", "not_found", "missing_end", "request_id_reused", "command_too_large", "storage_failed", "closed", "internal"}},
		{Key: key("forwarded_total")},
		{Key: key("snapshots_total"), Label: "direction", Values: []string{"taken", "sent", "received"}},
		{Key: key("fenced_total")},
		{Key: key("failovers_total")},
		{Key: key("diverged_entries_total")},
		{Key: key("conflicts_total"), Label: "strategy", Values: []string{"last_write_wins", "first_write_wins", "manual"}},
		{Key: key("conflicts_by_field_total"), Label: "field", Values: []string{"node", "labels", "property", "edge"}},
		{Key: key("conflicts_settled_by_write_total")},
		{Key: key("conflicts_settled_by_resolve_total")},
		{Key: key("region_entries_merged_total")},
		{Key: key("region_entries_duplicate_total")},
		{Key: key("region_gaps_total")},
		{Key: key("region_clock_ahead_total")},
		{Key: key("handshake_rejected_total"), Label: "reason", Values: []string{"tls", "expired_certificate", "malformed", "silent", "no_proof", "wrong_proof",
			"version", "cluster", "history", "stream", "region", "settings", "too_many", "io"}},
		{Key: key("frames_rejected_total"), Label: "reason", Values: []string{"malformed", "record"}},
		{Key: key("dial_refused_total"), Label: "reason", Values: []string{"unauthenticated", "wrong_peer", "unsupported", "overloaded", "foreign_history"}},
	}
}

// Summaries that a node of any mode can report.
func Summaries() []Name {
	return []Name{{Key: key("apply_seconds")}, {Key: key("region_merge_seconds")}}
}
