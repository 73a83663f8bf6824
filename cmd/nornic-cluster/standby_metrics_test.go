package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// scraped reads a process's metrics of this layer, by name and labels; nil where
// it does not answer.
func scraped(p *process) map[string]float64 {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/metrics", nil)
	if err != nil {
		return nil
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	values := make(map[string]float64)
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		name, value, ok := strings.Cut(lines.Text(), " ")
		name, ours := strings.CutPrefix(name, "nornicdb_replication_")
		if v, err := strconv.ParseFloat(value, 64); ok && ours && err == nil {
			values[name] = v
		}
	}
	return values
}

// shows waits until a process shows these metrics.
func shows(t *testing.T, p *process, want map[string]float64) {
	t.Helper()
	var got map[string]float64
	require.Eventually(t, func() bool {
		got = scraped(p)
		for name, v := range want {
			if is, known := got[name]; !known || is != v {
				return false
			}
		}
		return true
	}, patience, 20*time.Millisecond, "%s", lazy(func() string { return fmt.Sprintf("wanted %v of %v", want, got) }))
}

// lazy is text that is made when it is printed.
type lazy func() string

func (l lazy) String() string { return l() }

// TestHotStandbyMetrics reads every metric that a pair has, before and after what
// changes it.
func TestHotStandbyMetrics(t *testing.T) {
	skipProcesses(t)
	p := startPair(t, replication.SyncSemi, "availability")
	a, b := p.list[0], p.list[1]
	began := time.Now()
	l := startLoad(t, "w", 2, b.url) // through the standby: forwarded
	l.more(100)
	shows(t, a, map[string]float64{`mode{mode="ha_standby"}`: 1, "is_leader": 1, `role{role="primary"}`: 1, `role{role="standby"}`: 0, `role{role="fenced"}`: 0,
		"epoch": 1, "term": 1, "degraded": 0, `peer_healthy{peer="n1"}`: 1, "failovers_total": 0, "fenced_total": 0, "diverged_entries_total": 0,
		`snapshots_total{direction="sent"}`: 1, `snapshots_total{direction="received"}`: 0, "lag_seconds": 0})
	shows(t, b, map[string]float64{"is_leader": 0, `role{role="standby"}`: 1, `role{role="primary"}`: 0, "epoch": 1, `peer_healthy{peer="n0"}`: 1,
		`snapshots_total{direction="received"}`: 1})
	sender, through := scraped(a), scraped(b)
	for _, name := range []string{"commit_index", "applied_index", "wal_bytes", `wal_entries_sent_total{peer="n1"}`} {
		require.Positive(t, sender[name], name)
	}
	require.Contains(t, sender, `lag_entries{peer="n1"}`)
	require.Positive(t, through["forwarded_total"])
	require.Positive(t, through["apply_seconds_count"])
	require.Less(t, through["apply_seconds_sum"], 2*time.Since(began).Seconds(), "two writers, one write after the other each")
	require.Contains(t, through, `apply_errors_total{code="unconfirmed"}`)
	l.stop()

	// Both write, and one side's writes are put aside.
	p.cut()
	until(t, "both are primary", func() bool { return health(a).IsLeader && health(b).IsLeader })
	shows(t, b, map[string]float64{"is_leader": 1, "failovers_total": 1, "degraded": 1, `peer_healthy{peer="n0"}`: 0})
	shows(t, a, map[string]float64{"is_leader": 1, "failovers_total": 0, "degraded": 1, `peer_healthy{peer="n1"}`: 0})
	loads := []*pairLoad{startLoad(t, "a", 1, a.url), startLoad(t, "b", 1, b.url)}
	for _, l := range loads {
		l.more(20)
		l.stop()
	}
	p.heal()
	winner, loser := p.whole()
	_, entries := p.tails(loser)
	require.Positive(t, entries)
	shows(t, loser, map[string]float64{"fenced_total": 1, "diverged_entries_total": float64(entries), "is_leader": 0})
	shows(t, winner, map[string]float64{"fenced_total": 0, "diverged_entries_total": 0, "is_leader": 1, "degraded": 0})

	// A disk that is gone is rebuilt.
	loser.kill9()
	require.NoError(t, os.RemoveAll(p.dir(loser)))
	before := scraped(winner)[`snapshots_total{direction="sent"}`]
	loser.start()
	p.whole()
	shows(t, winner, map[string]float64{`snapshots_total{direction="sent"}`: before + 1, "degraded": 0})
	shows(t, loser, map[string]float64{`snapshots_total{direction="received"}`: 1})

	// An order that may lose writes says so.
	winner.kill9()
	_, said, status := runCommand(t, "promote", "--force", "--addr", loser.url)
	require.Zero(t, status, said)
	require.Contains(t, said, "not in its graph")
	require.True(t, health(loser).IsLeader)
}
