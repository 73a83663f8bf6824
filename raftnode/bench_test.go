package raftnode_test

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/raftnode"
	"github.com/stretchr/testify/require"
)

// BenchmarkApply writes 256-byte commands to three nodes in one process: bolt
// logs, loopback TCP, boltgraph with its syncs as Storage.
func BenchmarkApply(b *testing.B) {
	for _, writers := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			repl := benchCluster(b)
			value := string(make([]byte, 150)) // with its envelope about 256 bytes
			var next atomic.Int64
			latencies := make([][]time.Duration, writers)
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for w := range writers {
				wg.Go(func() {
					for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
						cmd, err := replication.NewNodeCommand(replication.CmdPutNode,
							&replication.Node{ID: replication.NodeID(fmt.Sprintf("n%06d", i%10000)), Properties: map[string]any{"v": value[:100]}})
						if err != nil {
							b.Error(err)
							return
						}
						start := time.Now()
						if err := repl.Apply(cmd, patience); err != nil {
							b.Error(err)
							return
						}
						latencies[w] = append(latencies[w], time.Since(start))
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			all := slices.Concat(latencies...)
			slices.Sort(all)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
			b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-us")
		})
	}
}

func benchCluster(b *testing.B) replication.Replicator {
	b.Helper()
	nodes := make([]replication.Replicator, 3)
	addrs := freeAddrs(b, 3)
	errs := make(chan error, 3)
	for i := range nodes {
		cfg := replication.DefaultConfig()
		cfg.Mode, cfg.NodeID, cfg.BindAddr, cfg.DataDir = replication.ModeRaft, fmt.Sprint("n", i), addrs[i], b.TempDir()
		cfg.Raft.Bootstrap = i == 0
		for j, addr := range addrs {
			if j != i {
				cfg.Raft.Peers = append(cfg.Raft.Peers, replication.RaftPeer{ID: fmt.Sprint("n", j), Addr: addr})
			}
		}
		store, err := boltgraph.Open(cfg.DataDir + "/graph.db")
		require.NoError(b, err)
		nodes[i], err = replication.New(cfg, store, replication.Modes{replication.ModeRaft: raftnode.New}, replication.WithLogger(quietLogger()))
		require.NoError(b, err)
		b.Cleanup(func() { require.NoError(b, nodes[i].Shutdown()); require.NoError(b, store.Close()) })
		go func() { errs <- nodes[i].Start(b.Context()) }()
	}
	for range nodes {
		require.NoError(b, <-errs)
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		for _, n := range nodes {
			if n.IsLeader() {
				return n
			}
		}
		<-time.After(time.Millisecond)
	}
	b.Fatal("no leader")
	return nil
}
