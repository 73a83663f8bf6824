package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	"github.com/stretchr/testify/require"
)

func runBench(t *testing.T, o benchOptions) []benchResult {
	t.Helper()
	o.size, o.keys, o.duration, o.consistency, o.asJSON = 256, 100, 300*time.Millisecond, "QUORUM", true
	require.NoError(t, o.check())
	var out bytes.Buffer
	require.NoError(t, bench(t.Context(), &o, &out))
	var results []benchResult
	require.NoError(t, json.Unmarshal(out.Bytes(), &results))
	for _, r := range results {
		require.Positive(t, r.Count, r.Operation)
		require.Less(t, r.Errors, max(1, r.Count/4), "%s: some, where a busy machine makes the leader lose its office", r.Operation)
		require.Positive(t, r.P50)
		require.LessOrEqual(t, r.P50, r.P99)
		require.LessOrEqual(t, r.P99, r.P999)
		require.LessOrEqual(t, r.P999, r.Max)
	}
	return results
}

func TestBenchOfAnEmbeddedCluster(t *testing.T) {
	for _, o := range []benchOptions{
		{embedded: 1, storage: "mem", log: walName, writers: 4},
		{embedded: 3, storage: "boltgraph", log: "bolt", writers: 4, readers: 4},
	} {
		results := runBench(t, o)
		require.Equal(t, "write", results[0].Operation)
		require.Equal(t, o.readers > 0, len(results) == 2)
	}
}

func TestBenchThroughHTTPLeavesItsNodes(t *testing.T) {
	cfg := walConfigs(t, "bolt")[0]
	cfg.Raft.Peers = nil
	n := openStarted(t, cfg)[0]
	defer func() { require.NoError(t, n.stop()) }()
	defer http.DefaultClient.CloseIdleConnections()
	results := runBench(t, benchOptions{addrs: []string{n.url}, storage: "mem", log: "bolt", writers: 8, readers: 2})
	require.Len(t, results, 2)
	st, err := n.store.Stats()
	require.NoError(t, err)
	require.GreaterOrEqual(t, st.Nodes, uint64(min(results[0].Count, 100)), "what was counted is there")
	node, err := n.store.Node("bench-1")
	require.NoError(t, err)
	require.Len(t, node.Properties["v"], 256-64)
}

func TestBenchSaysWhatIsWrong(t *testing.T) {
	for _, o := range []benchOptions{
		{}, {writers: 1}, {writers: 1, size: 1, keys: 1, duration: 1, storage: "x", log: "bolt"},
		{writers: 1, size: 1, keys: 1, duration: 1, storage: "mem", log: "x"}, {writers: -1, readers: 2},
		{writers: 1, size: 1, keys: 1, duration: 1, storage: "mem", log: "bolt", embedded: 99},
	} {
		require.ErrorIs(t, o.check(), errUsage)
	}
	k := &benchKind{name: "write", workers: 1, op: func() error { return replication.ErrNoLeader }}
	r := k.result(time.Second)
	require.Zero(t, r.P50)
	o := &benchOptions{writers: 1, size: 1, keys: 1, duration: 20 * time.Millisecond}
	_, err := measure(t.Context(), o, &brokenTarget{})
	require.ErrorIs(t, err, replication.ErrNoLeader, "a bench in which nothing succeeded has failed")
}

// TestBenchOfNobodyEnds: the time of one write is all that it waits for the first.
func TestBenchOfNobodyEnds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		start := time.Now()
		_, err := measure(t.Context(), &benchOptions{writers: 1, size: 1, keys: 1, duration: time.Second}, deafTarget{})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, writeTimeout, time.Since(start))
	})
}

// deafTarget answers nothing.
type deafTarget struct{}

func (deafTarget) write(ctx context.Context, _, _ string) error { <-ctx.Done(); return ctx.Err() }
func (deafTarget) read(ctx context.Context, _ string) error     { <-ctx.Done(); return ctx.Err() }
func (deafTarget) Close() error                                 { return nil }

// brokenTarget takes one write.
type brokenTarget struct{ writes int }

func (b *brokenTarget) write(context.Context, string, string) error {
	if b.writes++; b.writes == 1 {
		return nil
	}
	return replication.ErrNoLeader
}
func (b *brokenTarget) read(context.Context, string) error { return errors.New("no reads") }
func (b *brokenTarget) Close() error                       { return nil }

// BenchmarkWALAgainstBolt takes turns between two embedded clusters and reports
// the median ratio of their write rates.
func BenchmarkWALAgainstBolt(b *testing.B) {
	open := func(log string) benchTarget {
		target, err := openEmbedded(b.Context(), &benchOptions{embedded: 3, storage: "mem", log: log})
		require.NoError(b, err)
		b.Cleanup(func() { require.NoError(b, target.Close()) })
		return target
	}
	targets := []benchTarget{open(walName), open("bolt")}
	for _, writers := range []int{1, 16} {
		b.Run(fmt.Sprint("writers=", writers), func(b *testing.B) {
			o := &benchOptions{writers: writers, size: 256, keys: 10000, duration: 400 * time.Millisecond}
			for b.Loop() {
				var ratios []float64
				var rates [2][]float64
				for range 15 {
					for i, target := range targets {
						results, err := measure(b.Context(), o, target)
						require.NoError(b, err)
						rates[i] = append(rates[i], results[0].PerSecond)
					}
					ratios = append(ratios, rates[0][len(rates[0])-1]/rates[1][len(rates[1])-1])
				}
				for _, list := range [][]float64{ratios, rates[0], rates[1]} {
					slices.Sort(list)
				}
				b.ReportMetric(rates[0][7], "wal/s")
				b.ReportMetric(rates[1][7], "bolt/s")
				b.ReportMetric(ratios[7], "x_bolt")
			}
			b.ReportMetric(0, "ns/op") // means nothing here
		})
	}
}
