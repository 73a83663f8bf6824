package standby_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/standby"
	"github.com/stretchr/testify/require"
)

// BenchmarkApply writes through a pair over loopback, both logs durable.
func BenchmarkApply(b *testing.B) {
	for _, mode := range syncModes {
		for _, callers := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/callers=%d", mode, callers), func(b *testing.B) {
				primary := benchPair(b, mode)
				var next atomic.Int64
				var wg sync.WaitGroup
				b.ResetTimer()
				for range callers {
					wg.Go(func() {
						for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
							cmd, err := replication.NewNodeCommand(replication.CmdPutNode, &replication.Node{ID: replication.NodeID(fmt.Sprint("n", i%1000)), Labels: []string{"T"}})
							if err == nil {
								err = primary.Apply(cmd, time.Minute)
							}
							if err != nil {
								b.Error(err)
								return
							}
						}
					})
				}
				wg.Wait()
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "writes/s")
			})
		}
	}
}

func benchPair(b *testing.B, mode replication.SyncMode) replication.Replicator {
	addrs := make([]string, 2)
	for i := range addrs {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(b, err)
		addrs[i] = l.Addr().String()
		require.NoError(b, l.Close())
	}
	nodes := make([]replication.Replicator, 2)
	for i := range nodes {
		dir := b.TempDir()
		cfg := replication.DefaultConfig()
		cfg.Mode, cfg.NodeID, cfg.BindAddr, cfg.DataDir = replication.ModeHAStandby, fmt.Sprint("n", i), addrs[i], filepath.Join(dir, "r")
		cfg.HA.Role, cfg.HA.PeerAddr, cfg.HA.SyncMode = []string{"primary", "standby"}[i], addrs[1-i], mode
		cfg.HA.Heartbeat = 100 * time.Millisecond
		store, err := boltgraph.Open(filepath.Join(dir, "graph.db"), boltgraph.WithNoSync())
		require.NoError(b, err)
		nodes[i], err = replication.New(cfg, store, replication.Modes{replication.ModeHAStandby: standby.New}, replication.WithLogger(quietLogger()))
		require.NoError(b, err)
		require.NoError(b, nodes[i].Start(context.Background()))
		b.Cleanup(func() {
			require.NoError(b, nodes[i].Shutdown())
			require.NoError(b, store.Close())
		})
	}
	require.Eventually(b, func() bool {
		h := nodes[0].Health()
		return h.IsLeader && len(h.Peers) > 0 && h.Peers[0].State == "admitted"
	}, 30*time.Second, 10*time.Millisecond)
	return nodes[0]
}
