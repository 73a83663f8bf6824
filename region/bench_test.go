package region_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
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
// mode alone. flush brings what their storages have deferred into their files.
func openRegions(tb testing.TB, sizes map[string]int, change func(*replication.Config)) (nodes map[string][]replication.Replicator, flush func()) {
	tb.Helper()
	var stores []*boltgraph.Store
	addrs := make(map[string][]string)
	for name, n := range sizes {
		addrs[name] = freeAddrs(tb, n)
	}
	nodes = make(map[string][]replication.Replicator)
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
			stores = append(stores, store)
		}
	}
	return nodes, func() {
		for _, s := range stores {
			require.NoError(tb, s.Flush())
		}
	}
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

// rate runs writers for a while and returns the writes, and those per second.
func rate(tb testing.TB, r replication.Replicator, writers int, d time.Duration, next *atomic.Int64) (writes int64, perSecond float64) {
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
	return done.Load(), float64(done.Load()) / time.Since(start).Seconds()
}

// ahead is what a region's nodes have applied of the first one's stream less than
// that one, at most; 0: they are in step.
func ahead(from replication.Replicator, others ...replication.Replicator) (entries uint64) {
	own := from.(*region.Node).Status()
	at := slices.Index(own.Settings.Regions, own.Self)
	for _, o := range others {
		entries = max(entries, own.Applied[at]-min(own.Applied[at], o.(*region.Node).Status().Applied[at]))
	}
	return entries
}

// settled waits until all nodes have everything, and nothing is left that waits
// to be settled.
func settled(tb testing.TB, from replication.Replicator, all []replication.Replicator) {
	tb.Helper()
	require.Eventually(tb, func() bool {
		return ahead(from, all...) == 0 && !slices.ContainsFunc(all, func(r replication.Replicator) bool {
			s := r.(*region.Node).Status()
			return s.NeedsMark || s.Rows > 0 || s.Uncollected > 0
		})
	}, patience, 20*time.Millisecond) // looking costs, and is counted
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

// A turn takes longer than the time between two marks and between two flushes, so
// that what settling and flushing take from the writers is in their rate.
const (
	benchRounds = 5
	benchSlice  = 3 * time.Second
)

// side is what a benchmark measures of one of two that take turns.
type side struct {
	rates  []float64
	cpu    time.Duration
	writes int64
}

// turn runs writers against r, and then whatever else has to be done for what they
// wrote: that is in the processor time, and does not disturb the other side.
func (s *side) turn(tb testing.TB, r replication.Replicator, writers int, next *atomic.Int64, rest func()) {
	begin := cpuTime()
	writes, perSecond := rate(tb, r, writers, benchSlice, next)
	rest()
	s.cpu += cpuTime() - begin
	s.writes += writes
	s.rates = append(s.rates, perSecond)
}

// ratio compares the turns one by one: the machine's speed changes meanwhile.
func (s *side) ratio(to *side) float64 {
	ratios := make([]float64, len(s.rates))
	for i := range ratios {
		ratios[i] = s.rates[i] / to.rates[i]
	}
	return median(ratios)
}

func (s *side) perWriteUS() float64 { return s.cpu.Seconds() * 1e6 / float64(s.writes) }

// BenchmarkLocalApply: a region of three nodes that streams to one remote region
// against Raft mode alone, in turns. The remote region has one node, so that the
// processors of this machine, which it would not be on, do not decide; its work,
// and that of the stream, is in the region's processor time all the same. How much
// they decide nevertheless, a third side tells.
func BenchmarkLocalApply(b *testing.B) {
	regions, flushRegions := openRegions(b, map[string]int{"eu": 3, "us": 1}, nil)
	raft, flushRaft := openRegions(b, map[string]int{"raft": 3}, nil)
	source, flushSource := openRegions(b, map[string]int{"source": 3}, nil)
	target, flushTarget := openRegions(b, map[string]int{"target": 1}, nil)
	for _, list := range [][]replication.Replicator{regions["eu"], regions["us"], raft["raft"], source["source"], target["target"]} {
		startRegion(b, list)
	}
	copies := newCopier(b, source["source"][0], target["target"][0])
	ballast := make([]byte, 64<<20) // a database has more in memory than its replication
	b.Cleanup(func() { runtime.KeepAlive(ballast) })
	eu, us := regions["eu"][0], regions["us"][0]
	for _, writers := range []int{64, 256} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			var next atomic.Int64
			for b.Loop() {
				var here, there, copied side
				var behind []float64
				for range benchRounds {
					here.turn(b, eu, writers, &next, func() {
						behind = append(behind, float64(ahead(eu, us)))
						settled(b, eu, append(regions["us"], regions["eu"]...))
						flushRegions()
					})
					there.turn(b, raft["raft"][0], writers, &next, flushRaft)
					copied.turn(b, copies, writers, &next, func() {
						copies.wait(b)
						flushSource()
						flushTarget()
					})
				}
				compareLocal(b, &here, &there, &copied)
				b.ReportMetric(median(behind), "behind") // entries that the remote region lacks after a turn
			}
			b.ReportMetric(0, "ns/op") // means nothing here
		})
	}
}

// compareLocal reports the sides of BenchmarkLocalApply, and fails where the region
// is below what it must reach.
func compareLocal(b *testing.B, here, there, copied *side) {
	const bar = 0.8
	ratio := here.ratio(there)
	b.ReportMetric(median(here.rates), "region/s")
	b.ReportMetric(median(there.rates), "raft/s")
	b.ReportMetric(ratio, "x_raft")
	b.ReportMetric(copied.ratio(there), "x_copy") // of Raft mode that is copied elsewhere to Raft mode alone
	b.ReportMetric(here.perWriteUS(), "us_region")
	b.ReportMetric(there.perWriteUS(), "us_raft")
	b.ReportMetric(copied.perWriteUS(), "us_copy")
	b.Logf("processor: %.0f us a write in regions, %.0f us in Raft mode, %.0f us in Raft mode with a bare copy on another node, which reaches %.2f times Raft mode alone",
		here.perWriteUS(), there.perWriteUS(), copied.perWriteUS(), copied.ratio(there))
	if ratio < bar {
		b.Errorf("%.0f/s, %.2f times Raft mode alone, want %.1f", median(here.rates), ratio, bar)
	}
}

// copier is Raft mode beside one node of another cluster, which gets a copy of each
// write, 256 in an entry: within this process, without network, encoding, outbox and
// conflicts. No remote region on the same processors takes less of them.
type copier struct {
	replication.Replicator
	writes  chan *replication.Command
	lacking atomic.Int64 // writes that the copy has not yet
}

func newCopier(tb testing.TB, source, target replication.Replicator) *copier {
	c := &copier{Replicator: source, writes: make(chan *replication.Command, 1<<17)}
	var wg sync.WaitGroup
	wg.Go(func() {
		for first := range c.writes {
			batch := append(make([]*replication.Command, 0, 256), first)
			for len(batch) < cap(batch) && len(c.writes) > 0 {
				batch = append(batch, <-c.writes)
			}
			if _, err := target.(replication.BatchApplier).ApplyBatch(context.Background(), batch); err != nil {
				tb.Errorf("copying: %v", err)
			}
			c.lacking.Add(-int64(len(batch)))
		}
	})
	tb.Cleanup(func() { close(c.writes); wg.Wait() })
	return c
}

func (c *copier) Apply(cmd *replication.Command, timeout time.Duration) error {
	err := c.Replicator.Apply(cmd, timeout)
	if err == nil {
		c.lacking.Add(1)
		c.writes <- cmd
	}
	return err
}

// wait waits until the copy has everything.
func (c *copier) wait(tb testing.TB) {
	tb.Helper()
	require.Eventually(tb, func() bool { return c.lacking.Load() == 0 }, patience, time.Millisecond)
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
	regions, _ := openRegions(b, map[string]int{"eu": 1, "us": 3}, func(cfg *replication.Config) { cfg.Region.BatchSize = 256 })
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
