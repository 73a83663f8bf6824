package region_test

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/raftnode"
	"github.com/nornicdb/replication/region"
	"github.com/stretchr/testify/require"
)

// patience is for what takes long on a machine with other things to do.
const patience = time.Minute

func freeAddrs(tb testing.TB, n int) (addrs []string) {
	tb.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(tb, err)
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs
}

// openRegions makes regions of some nodes each in this process: real TCP, real
// files, default configuration but for change. Without others a region is Raft
// mode alone.
func openRegions(tb testing.TB, sizes map[string]int, change func(*replication.Config)) map[string][]replication.Replicator {
	tb.Helper()
	addrs := make(map[string][]string)
	for name, n := range sizes {
		addrs[name] = freeAddrs(tb, n)
	}
	nodes := make(map[string][]replication.Replicator)
	for name, list := range addrs {
		for i, addr := range list {
			cfg := replication.DefaultConfig()
			cfg.Mode, cfg.NodeID, cfg.BindAddr, cfg.DataDir = replication.ModeRaft, fmt.Sprint(name, i), addr, tb.TempDir()
			cfg.Raft.ClusterID, cfg.Raft.Bootstrap = name, i == 0
			for j, peer := range list {
				if j != i {
					cfg.Raft.Peers = append(cfg.Raft.Peers, replication.RaftPeer{ID: fmt.Sprint(name, j), Addr: peer})
				}
			}
			for other, list := range addrs {
				for _, addr := range list {
					if other != name {
						cfg.Mode, cfg.Region.RegionID = replication.ModeMultiRegion, name
						cfg.Region.RemoteRegions = append(cfg.Region.RemoteRegions, replication.RemoteRegion{Region: other, Addr: addr})
					}
				}
			}
			if change != nil {
				change(cfg)
			}
			store, err := boltgraph.Open(filepath.Join(cfg.DataDir, "graph.db"))
			require.NoError(tb, err)
			r, err := replication.New(cfg, store, replication.Modes{replication.ModeRaft: raftnode.New, replication.ModeMultiRegion: region.New},
				replication.WithLogger(slog.New(slog.NewTextHandler(io.Discard, nil))))
			require.NoError(tb, err)
			tb.Cleanup(func() {
				require.NoError(tb, r.Shutdown())
				require.NoError(tb, store.Close())
			})
			nodes[name] = append(nodes[name], r)
		}
	}
	return nodes
}

// startRegion starts the nodes of a region and puts the leader first.
func startRegion(tb testing.TB, list []replication.Replicator) {
	tb.Helper()
	errs := make(chan error, len(list))
	for _, r := range list {
		go func() { errs <- r.Start(tb.Context()) }()
	}
	for range list {
		require.NoError(tb, <-errs)
	}
	require.Eventually(tb, func() bool {
		i := slices.IndexFunc(list, func(r replication.Replicator) bool { return r.IsLeader() && r.Health().Ready })
		if i > 0 {
			list[0], list[i] = list[i], list[0]
		}
		return i >= 0
	}, patience, time.Millisecond)
}

// benchCommand is a PutNode of about 256 bytes.
func benchCommand(i int64) *replication.Command {
	const pad = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
	return &replication.Command{Type: replication.CmdPutNode, Timestamp: time.Now(),
		Data: fmt.Appendf(nil, `{"id":"n%06d","labels":["Bench"],"properties":{"v":"%s","i":%d}}`, i%100000, pad, i)}
}

// rate runs writers for a while and returns the writes per second.
func rate(tb testing.TB, r replication.Replicator, writers int, d time.Duration, next *atomic.Int64) float64 {
	tb.Helper()
	var done atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for range writers {
		wg.Go(func() {
			for time.Since(start) < d {
				if err := r.Apply(benchCommand(next.Add(1)), patience); err != nil {
					tb.Errorf("apply: %v", err)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(done.Load()) / time.Since(start).Seconds()
}

// drained waits until the other region's quorum has everything.
func drained(tb testing.TB, from, to replication.Replicator) {
	tb.Helper()
	own := from.(*region.Node).Status()
	at := slices.Index(own.Settings.Regions, own.Self)
	require.Eventually(tb, func() bool {
		return to.(*region.Node).Status().Applied[at] >= from.(*region.Node).Status().Applied[at]
	}, patience, time.Millisecond)
}

// cpuTime is the processor time that this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func median(list []float64) float64 {
	list = slices.Clone(list)
	slices.Sort(list)
	return list[len(list)/2]
}

const (
	benchRounds = 9
	benchSlice  = 500 * time.Millisecond
)

// BenchmarkLocalApply: a region of three nodes that streams to one remote region
// against Raft mode alone, in turns; what the remote region still has to get is
// waited for between them. The remote region has one node, so that the processors
// of this machine, which it would not be on, do not decide.
func BenchmarkLocalApply(b *testing.B) {
	const bar = 0.8
	regions, raft := openRegions(b, map[string]int{"eu": 3, "us": 1}, nil), openRegions(b, map[string]int{"raft": 3}, nil)
	for _, list := range [][]replication.Replicator{regions["eu"], regions["us"], raft["raft"]} {
		startRegion(b, list)
	}
	eu, us, alone := regions["eu"][0], regions["us"][0], raft["raft"][0]
	for _, writers := range []int{64, 256} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			var next atomic.Int64
			for b.Loop() {
				var here, there, ratios []float64
				var cpu [2]time.Duration
				var writes [2]float64
				for range benchRounds {
					begin := cpuTime()
					here = append(here, rate(b, eu, writers, benchSlice, &next))
					drained(b, eu, us)
					middle := cpuTime()
					there = append(there, rate(b, alone, writers, benchSlice, &next))
					cpu[0] += middle - begin
					cpu[1] += cpuTime() - middle
					writes[0] += here[len(here)-1] * benchSlice.Seconds()
					writes[1] += there[len(there)-1] * benchSlice.Seconds()
					ratios = append(ratios, here[len(here)-1]/there[len(there)-1])
				}
				b.ReportMetric(median(here), "region/s")
				b.ReportMetric(median(there), "raft/s")
				b.ReportMetric(median(ratios), "x_raft")
				b.ReportMetric(cpu[0].Seconds()*1e6/writes[0], "us_region") // both regions'
				b.ReportMetric(cpu[1].Seconds()*1e6/writes[1], "us_raft")
				b.Logf("processor: %.0f us a write in regions, %.0f us in Raft mode", cpu[0].Seconds()*1e6/writes[0], cpu[1].Seconds()*1e6/writes[1])
				if r := median(ratios); r < bar {
					b.Errorf("%.0f/s, %.2f times Raft mode alone, want %.1f: %.2f", median(here), r, bar, ratios)
				}
			}
			b.ReportMetric(0, "ns/op") // means nothing here
		})
	}
}

// BenchmarkStream: what waits in a region's outbox, over loopback to a region of
// three nodes, until the quorum there has it and the leader has applied it. The
// sender has one node.
func BenchmarkStream(b *testing.B) {
	const (
		bar     = 20_000 // a second
		entries = 40_000
		writers = 256
		nodes   = 1000
	)
	regions := openRegions(b, map[string]int{"eu": 1, "us": 3}, func(cfg *replication.Config) { cfg.Region.BatchSize = 256 })
	startRegion(b, regions["eu"])
	eu := regions["eu"][0]
	var next atomic.Int64
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for i := next.Add(1); i <= entries; i = next.Add(1) {
				if err := eu.Apply(benchCommand(i%nodes), patience); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	startRegion(b, regions["us"])
	us := regions["us"][0].(*region.Node)
	reached := func(pos uint64) {
		require.Eventually(b, func() bool { return us.Status().Applied[0] >= pos }, patience, time.Millisecond)
	}
	reached(1) // the sender has found it
	begin := us.Status().Applied[0]
	b.ResetTimer()
	start, cpu, log := time.Now(), cpuTime(), us.Health().CommitIndex
	reached(entries)
	took := time.Since(start)
	perSecond := float64(entries-begin) / took.Seconds()
	proposals := us.Health().CommitIndex - log
	b.ReportMetric(perSecond, "entries/s")
	b.ReportMetric(float64(entries-begin)/float64(proposals), "entries/proposal")
	b.ReportMetric((cpuTime()-cpu).Seconds()*1e6/float64(entries-begin), "us_entry")
	b.Logf("%d entries before the measurement, %.0f/s, %d log entries, %v of processor", begin, perSecond, proposals, cpuTime()-cpu)
	if perSecond < bar {
		b.Errorf("%.0f entries a second, want %d", perSecond, bar)
	}
}
