package report

import (
	"math"
	"testing"
	"time"

	metrics "github.com/hashicorp/go-metrics/compat"
	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// TestGaugesSayWhatHealthSays: exactly one role, and nothing of a peer that is no
// longer there.
func TestGaugesSayWhatHealthSays(t *testing.T) {
	sink := metrics.NewInmemSink(time.Hour, 2*time.Hour)
	cfg := metrics.DefaultConfig("nornicdb")
	cfg.EnableHostname, cfg.EnableRuntimeMetrics = false, false
	_, err := metrics.NewGlobal(cfg, sink)
	require.NoError(t, err)
	gauge := func(name string) float32 {
		v, known := sink.Data()[0].Gauges["nornicdb.replication."+name]
		require.True(t, known, name)
		return v.Value
	}
	var g Gauges
	h := &replication.HealthStatus{Mode: replication.ModeRaft, Role: "leader", IsLeader: true, Healthy: true, Term: 3, CommitIndex: 9, AppliedIndex: 8,
		Peers: []replication.PeerHealth{{ID: "n2", Voter: true, Healthy: true, Lag: 1}, {ID: "n3", Healthy: false, Lag: 7}}}
	g.Report(h)
	for name, want := range map[string]float32{"mode;mode=raft": 1, "role;role=leader": 1, "role;role=follower": 0, "is_leader": 1, "term": 3,
		"commit_index": 9, "applied_index": 8, "lag_entries;peer=n2": 1, "peer_healthy;peer=n3": 0, "degraded": 0} {
		require.InDelta(t, want, gauge(name), 0, name)
	}
	h.Role, h.Peers = "leader", []replication.PeerHealth{{ID: "n2", Voter: true}}
	g.Report(h)
	require.InDelta(t, 1, gauge("degraded"), 0, "a voter does not answer")
	h.Role, h.IsLeader, h.Peers = "follower", false, []replication.PeerHealth{{ID: "n1", Voter: true, Healthy: true, Lag: -1, State: "leader"},
		{ID: "n2", Voter: true, Lag: -1, State: "unknown"}, {ID: "n4", Voter: true, Lag: -1, State: "unknown"}}
	g.Report(h)
	require.InDelta(t, 1, gauge("peer_healthy;peer=n1"), 0)
	require.True(t, math.IsNaN(float64(gauge("peer_healthy;peer=n2"))), "a follower does not know any more")
	require.NotContains(t, sink.Data()[0].Gauges, "nornicdb.replication.peer_healthy;peer=n4", "what it never knew is no alarm")
	h.Federation = &replication.FederationHealth{Epoch: replication.Epoch{Number: 2, Owner: "us"}, Regions: []replication.RegionHealth{{Region: "us", LagEntries: 4, LagSeconds: 1.5}}}
	g.Report(h)
	for name, want := range map[string]float32{"epoch": 2, "region_lag_entries;region=us": 4, "region_lag_seconds;region=us": 1.5} {
		require.InDelta(t, want, gauge(name), 0, name)
	}
	require.True(t, math.IsNaN(float64(gauge("lag_entries;peer=n3"))))
	require.True(t, math.IsNaN(float64(gauge("peer_healthy;peer=n3"))))
}
