package raftnode_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/raftnode"
	"github.com/nornicdb/replication/transport"
	"github.com/stretchr/testify/require"
)

// pulse writes through a node, one after the other, and keeps the longest pause
// between two acknowledgements.
type pulse struct {
	cancel context.CancelFunc
	done   chan struct{}
	last   atomic.Int64 // Unix nanoseconds of the last acknowledgement
	pause  atomic.Int64 // the longest so far
}

func startPulse(repl replication.Replicator) *pulse {
	ctx, cancel := context.WithCancel(context.Background())
	p := &pulse{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		for i := int64(0); ctx.Err() == nil; i++ {
			cmd := putCommand(i)
			cmd.RequestID = fmt.Sprint("pulse-", time.Now().UnixNano())
			if _, err := repl.(replication.BatchApplier).ApplyBatch(ctx, []*replication.Command{cmd}); err != nil {
				continue
			}
			now := time.Now().UnixNano()
			if last := p.last.Swap(now); last != 0 {
				p.pause.Store(max(p.pause.Load(), now-last))
			}
		}
	}()
	return p
}

func (p *pulse) stop() {
	p.cancel()
	<-p.done
}

// beats waits for some acknowledgements and forgets the pauses so far.
func (p *pulse) beats(tb testing.TB) {
	tb.Helper()
	since := time.Now().UnixNano()
	require.Eventually(tb, func() bool { return p.last.Load() > since }, patience, time.Millisecond)
	p.pause.Store(0)
}

// killable are three nodes whose transports can be cut off, the leader first.
func killable(tb testing.TB) (nodes []replication.Replicator, kill func(i int)) {
	tb.Helper()
	cut := make(map[string]func() error)
	open := func(cfg *replication.Config, storage replication.Storage, rt replication.Runtime) (replication.Replicator, error) {
		opts, err := transport.OptionsFromConfig(cfg, rt.Logger)
		if err != nil {
			return nil, err
		}
		t, err := transport.New(opts)
		if err != nil {
			return nil, err
		}
		if _, err := t.Bind(tb.Context(), cfg.BindAddr); err != nil {
			return nil, errors.Join(err, t.Close())
		}
		go func() { _ = t.Listen(context.Background(), cfg.BindAddr, nil) }() // ends with Close
		cut[cfg.NodeID] = t.Close
		tb.Cleanup(func() { _ = t.Close() }) // it may be closed
		rt.Transport = t
		return raftnode.New(cfg, storage, rt)
	}
	nodes = benchNodes(tb, func(string) replication.Storage { return newMemStore() }, open, nil)
	return nodes, func(i int) { require.NoError(tb, cut[nodes[i].NodeID()]()) }
}

const failRounds = 5

// BenchmarkFailover: from the last write that a leader acknowledged before it
// vanished to the first that its successor did, seen through a third node; the
// default configuration.
func BenchmarkFailover(b *testing.B) {
	limit := 2 * replication.DefaultConfig().Raft.ElectionTimeout
	for b.Loop() {
		var pauses []time.Duration
		for range failRounds {
			nodes, kill := killable(b)
			p := startPulse(nodes[1])
			p.beats(b)
			kill(0)
			require.Eventually(b, func() bool { return time.Duration(p.pause.Load()) > limit/10 }, patience, time.Millisecond)
			p.stop()
			pauses = append(pauses, time.Duration(p.pause.Load()))
		}
		b.ReportMetric(median(pauses).Seconds()*1000, "median_ms")
		if m := median(pauses); m >= limit {
			b.Errorf("median %s, want below %s: %v", m, limit, pauses)
		}
	}
}

// BenchmarkTransfer: the same for a leader that hands over.
func BenchmarkTransfer(b *testing.B) {
	const limit = 50 * time.Millisecond
	nodes := benchMemNodes(b)
	p := startPulse(nodes[2])
	defer p.stop()
	for b.Loop() {
		var pauses []time.Duration
		for range 4 * failRounds {
			p.beats(b)
			for _, n := range nodes {
				if n.IsLeader() {
					require.NoError(b, n.(replication.Membership).TransferLeadership(b.Context(), ""))
					break
				}
			}
			since := time.Now().UnixNano()
			require.Eventually(b, func() bool { return p.last.Load() > since }, patience, time.Millisecond)
			pauses = append(pauses, time.Duration(p.pause.Load()))
		}
		b.ReportMetric(median(pauses).Seconds()*1000, "median_ms")
		if m := median(pauses); m >= limit {
			b.Errorf("median %s, want below %s: %v", m, limit, pauses)
		}
	}
}

// BenchmarkRestart: opening the graph store and starting the node over it, with
// 64 MiB of graph against nothing; a node of one, so that no peer is in it.
// Both have a snapshot and end with the same entry: the log above the snapshot
// and its last entry are read at every start, whatever the storage holds.
func BenchmarkRestart(b *testing.B) {
	full, empty := restartable(b, 64), restartable(b, 0)
	for b.Loop() {
		var ratios, took []float64
		for range 2*failRounds + 1 {
			f, e := full(), empty()
			took = append(took, f.Seconds()*1000)
			ratios = append(ratios, f.Seconds()/e.Seconds())
		}
		b.ReportMetric(median(took), "full_ms")
		b.ReportMetric(median(ratios), "x_empty")
		if r := median(ratios); r >= 2 {
			b.Errorf("%.2f times an empty node's, want below 2", r)
		}
	}
}

// restartable founds a node and returns a function that restarts it and says
// how long that took.
func restartable(b *testing.B, mb int) func() time.Duration {
	b.Helper()
	dir := b.TempDir()
	cfg := replication.DefaultConfig()
	cfg.Mode, cfg.NodeID, cfg.BindAddr, cfg.Raft.Bootstrap = replication.ModeRaft, "n", freeAddrs(b, 1)[0], true
	cfg.DataDir = filepath.Join(dir, "replication")
	run := func(then func(replication.Replicator) error) time.Duration {
		start := time.Now()
		store, err := boltgraph.Open(filepath.Join(dir, "graph.db"))
		require.NoError(b, err)
		repl, err := replication.New(cfg, store, replication.Modes{replication.ModeRaft: raftnode.New}, replication.WithLogger(quietLogger()))
		require.NoError(b, err)
		require.NoError(b, repl.Start(b.Context()))
		took := time.Since(start)
		require.NoError(b, then(repl))
		require.NoError(b, repl.Shutdown())
		require.NoError(b, store.Close())
		return took
	}
	run(func(r replication.Replicator) error {
		require.NoError(b, r.WaitForLeader(patience))
		require.NoError(b, fill(r, fmt.Sprint(mb)))
		require.NoError(b, r.Apply(putCommand(0), patience))
		return r.(replication.Snapshotter).TakeSnapshot(b.Context())
	})
	return func() time.Duration { return run(func(replication.Replicator) error { return nil }) }
}
