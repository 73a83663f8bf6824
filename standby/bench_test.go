package standby_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/testchild"
	"github.com/nornicdb/replication/standby"
	"github.com/nornicdb/replication/testharness"
	"github.com/nornicdb/replication/transport"
	"github.com/stretchr/testify/require"
)

// The benchmarks of this package compare things that take turns on one machine
// in one run, and fail where a ratio is below what the package must reach.
const (
	benchRounds = 9
	benchSlice  = 500 * time.Millisecond
)

// atLeast is what Apply must reach of a loop of StoreLogs with the same
// grouping.
var atLeast = map[replication.SyncMode]map[int]float64{
	replication.SyncAsync: {64: 0.7, 256: 0.7},
	replication.SyncSemi:  {64: 0.5, 256: 0.3},
	replication.SyncFull:  {64: 0.5, 256: 0.3},
}

// BenchmarkApply writes commands of 256 bytes through a pair over loopback, both
// logs durable on this machine's disk, the graph in memory; and in turns stores
// as many entries in as large groups in a log store of the same kind. The standby
// is a process of its own, as it always is where it is used: two nodes in one
// process take each other's place in Go's scheduler, which gives the place of a
// goroutine that syncs a file to others late or not at all. Both still share this
// machine's processors and disk, so two sides tell what that costs: x_alone is the
// ratio while the standby stands still, and together-us what StoreLogs takes when
// two stores of this disk do it at once.
func BenchmarkApply(b *testing.B) {
	for _, mode := range syncModes {
		for _, writers := range []int{1, 16, 64, 256} {
			b.Run(fmt.Sprintf("%s/writers=%d", mode, writers), func(b *testing.B) {
				p := startProcesses(b, mode)
				plain := openCounted(b, b.TempDir())
				for b.Loop() {
					compareApply(b, p, plain, mode, writers)
				}
				b.ReportMetric(0, "ns/op") // means nothing here
			})
		}
	}
}

func compareApply(b *testing.B, p *benchPair, plain *countedStore, mode replication.SyncMode, writers int) {
	var ours, theirs, groups, cpu []float64
	var latencies, single []time.Duration
	for range benchRounds {
		calls, bytes := p.logs[0].calls.Load(), p.logs[0].bytes.Load()
		before := p.cpuTime(b)
		rate, took := load(b, writers, benchSlice, p.apply)
		cpu = append(cpu, float64((p.cpuTime(b)-before).Microseconds())/float64(len(took)))
		ours, latencies = append(ours, rate), append(latencies, took...)
		calls, bytes = p.logs[0].calls.Load()-calls, p.logs[0].bytes.Load()-bytes
		writes := int64(len(took)) // each is an entry, however the log packs them
		group := max((writes+calls/2)/max(calls, 1), 1)
		groups = append(groups, float64(writes)/float64(max(calls, 1)))
		rate, took = load(b, 1, benchSlice, func(int64) error { return plain.storeMore(int(group), int(bytes/writes)) })
		theirs, single = append(theirs, rate*float64(group)), append(single, took...)
	}
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = ours[i] / theirs[i]
	}
	ratio := median(ratios)
	slices.Sort(latencies)
	quantile := func(q float64) float64 { return float64(latencies[int(q*float64(len(latencies)-1))].Microseconds()) }
	figures := []figure{{"writes/s", median(ours)}, {"StoreLogs/s", median(theirs)}, {"x_StoreLogs", ratio}, {"entries/sync", median(groups)},
		{"cpu-us/write", median(cpu)}, {"p50-us", quantile(0.5)}, {"p99-us", quantile(0.99)}}
	if mode == replication.SyncAsync {
		figures = append(figures, figure{"x_alone", applyAlone(b, p, writers) / median(theirs)})
	}
	if writers == 1 {
		figures = append(figures, figure{"together-us", float64(storeTogether(b, plain).Microseconds())})
	}
	said := "load " + loadOfMachine()
	for _, f := range figures {
		b.ReportMetric(f.value, f.unit)
		said += fmt.Sprintf(", %.2f %s", f.value, f.unit)
	}
	b.Log(said + ", primary's log: " + p.logs[0].String() + ", standby's: " + p.child.Tell("log")) // a benchmark that fails reports no metrics
	if bar := atLeast[mode][writers]; ratio < bar {
		b.Errorf("%.2f of StoreLogs, wanted at least %.2f", ratio, bar)
	}
	if writers == 1 {
		limit := 2*median(single) + p.roundTrip(b)
		b.ReportMetric(float64(median(latencies))/float64(limit), "x_limit")
		if took := median(latencies); took > limit {
			b.Errorf("a write takes %v, wanted no more than %v, two StoreLogs and a round trip", took, limit)
		}
	}
}

type figure struct {
	unit  string
	value float64
}

// applyAlone is how many writes a second the primary takes while the standby's
// process stands still.
func applyAlone(b *testing.B, p *benchPair, writers int) float64 {
	require.NoError(b, p.child.Signal(syscall.SIGSTOP))
	defer func() { require.NoError(b, p.child.Signal(syscall.SIGCONT)) }()
	var rates []float64
	for range 3 {
		rate, _ := load(b, writers, benchSlice, p.apply)
		rates = append(rates, rate)
	}
	return median(rates)
}

// storeTogether is how long storing an entry takes while another store of this
// disk stores one too: the time until both have.
func storeTogether(b *testing.B, plain *countedStore) time.Duration {
	other := openCounted(b, b.TempDir())
	_, took := load(b, 1, benchSlice, func(int64) error {
		second := make(chan error, 1)
		go func() { second <- other.storeMore(1, commandBytes) }()
		return errors.Join(plain.storeMore(1, commandBytes), <-second)
	})
	return median(took)
}

// cpuTime is the processor time that this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// load runs op in some goroutines for a while: how often it succeeded in a
// second, and how long each took.
func load(tb testing.TB, workers int, d time.Duration, op func(i int64) error) (float64, []time.Duration) {
	tb.Helper()
	var next atomic.Int64
	var wg sync.WaitGroup
	took := make([][]time.Duration, workers)
	start := time.Now()
	for w := range workers {
		wg.Go(func() {
			for time.Since(start) < d {
				began := time.Now()
				if err := op(next.Add(1)); err != nil {
					tb.Errorf("operation: %v", err)
					return
				}
				took[w] = append(took[w], time.Since(began))
			}
		})
	}
	wg.Wait()
	all := slices.Concat(took...)
	require.NotEmpty(tb, all)
	return float64(len(all)) / time.Since(start).Seconds(), all
}

func median[T float64 | time.Duration](list []T) T {
	list = slices.Clone(list)
	slices.Sort(list)
	return list[len(list)/2]
}

// countedStore counts what is stored in it.
type countedStore struct {
	raft.LogStore
	calls, bytes atomic.Int64
	busy         atomic.Int64 // nanoseconds in StoreLogs
	next         uint64
}

func openCounted(tb testing.TB, dir string) *countedStore {
	store, err := standby.OpenBolt(dir) // the built-in one, on both sides
	require.NoError(tb, err)
	tb.Cleanup(func() { require.NoError(tb, store.(io.Closer).Close()) })
	return &countedStore{LogStore: store}
}

func (c *countedStore) StoreLogs(logs []*raft.Log) error {
	c.calls.Add(1)
	for _, l := range logs {
		c.bytes.Add(int64(len(l.Data)))
	}
	defer func(start time.Time) { c.busy.Add(int64(time.Since(start))) }(time.Now())
	return c.LogStore.StoreLogs(logs)
}

// String is how often and how long it stored.
func (c *countedStore) String() string {
	calls := float64(c.calls.Load())
	return fmt.Sprintf("%.0f syncs of %.0f bytes, %.2f ms each", calls, float64(c.bytes.Load())/calls, float64(c.busy.Load())/calls/1e6)
}

// storeMore stores as many entries of a size behind those that are there.
func (c *countedStore) storeMore(count, size int) error {
	logs := make([]*raft.Log, count)
	for i := range logs {
		c.next++
		logs[i] = &raft.Log{Index: c.next, Term: 1, Type: raft.LogCommand, Data: make([]byte, size)}
	}
	return c.LogStore.StoreLogs(logs)
}

const commandBytes = 256

// letters are what the values of putBytes are cut from.
var letters = strings.Repeat("abcdefghijklmnopqrstuvwxyz", 1+commandBytes/26+1)

// putBytes is a PutNode whose Data has commandBytes; i varies the node.
func putBytes(i int64) *replication.Command {
	const head, tail = `{"id":"n%06d","labels":["Bench"],"properties":{"v":"`, `"}}`
	data := fmt.Appendf(make([]byte, 0, commandBytes), head, i%10000)
	data = append(data, letters[i%26:][:commandBytes-len(tail)-len(data)]...)
	return &replication.Command{Type: replication.CmdPutNode, Data: append(data, tail...), Timestamp: time.Now()}
}

// benchPair is two nodes, over loopback, with the default configuration but for
// the sync mode; the first is primary. The second may be in another process.
type benchPair struct {
	nodes [2]replication.Replicator
	addrs [2]string
	logs  [2]*countedStore
	child *testchild.Process // nil: the standby is here
}

func newBenchPair(b testing.TB) *benchPair {
	p := new(benchPair)
	for i := range p.addrs {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(b, err)
		p.addrs[i] = l.Addr().String()
		require.NoError(b, l.Close())
	}
	return p
}

// start starts a node of the pair in this process.
func (p *benchPair) start(b testing.TB, i int, mode replication.SyncMode) {
	ballast := make([]byte, 64<<20) // a database has more in memory than its replication
	b.Cleanup(func() { runtime.KeepAlive(ballast) })
	cfg := replication.DefaultConfig()
	cfg.Mode, cfg.NodeID, cfg.BindAddr, cfg.DataDir = replication.ModeHAStandby, fmt.Sprint("n", i), p.addrs[i], b.TempDir()
	cfg.Secret = "0123456789abcdef"
	cfg.HA.Role, cfg.HA.PeerAddr, cfg.HA.SyncMode = []string{"primary", "standby"}[i], p.addrs[1-i], mode
	cfg.HA.Heartbeat = 50 * time.Millisecond
	store := openCounted(b, b.TempDir())
	p.logs[i] = store
	open := standby.Mode(standby.WithLogStore("bolt", func(string) (raft.LogStore, error) { return store, nil }))
	var err error
	p.nodes[i], err = replication.New(cfg, testharness.NewMemStore(), replication.Modes{replication.ModeHAStandby: open}, replication.WithLogger(quietLogger()))
	require.NoError(b, err)
	require.NoError(b, p.nodes[i].Start(context.Background()))
	b.Cleanup(func() { require.NoError(b, p.nodes[i].Shutdown()) })
}

// startBenchPair starts both nodes in this process.
func startBenchPair(b testing.TB, mode replication.SyncMode) *benchPair {
	p := newBenchPair(b)
	p.start(b, 0, mode)
	p.start(b, 1, mode)
	p.admitted(b, 0)
	return p
}

// asStandby makes the test binary be the standby of a pair with the mode and the
// addresses that it names.
const asStandby = "STANDBY_BENCH"

// startProcesses starts the standby in a process of its own.
func startProcesses(b *testing.B, mode replication.SyncMode) *benchPair {
	p := newBenchPair(b)
	p.start(b, 0, mode)
	p.child = testchild.Start(b, []string{"-test.run", "^TestChildStandby$"}, []string{strings.Join([]string{asStandby + "=" + string(mode), p.addrs[0], p.addrs[1]}, ",")})
	p.child.Tell("start")
	require.Eventually(b, func() bool {
		h := p.nodes[0].Health()
		return h.IsLeader && len(h.Peers) > 0 && h.Peers[0].State == "admitted"
	}, 30*time.Second, 10*time.Millisecond)
	return p
}

// TestChildStandby is the standby that startProcesses runs; in a normal run it does
// nothing. It obeys, one answer a line: start, log, cpu.
func TestChildStandby(t *testing.T) {
	words := strings.Split(os.Getenv(asStandby), ",")
	if len(words) != 3 {
		return
	}
	p := &benchPair{addrs: [2]string{words[1], words[2]}}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		answer := "ok"
		switch lines.Text() {
		case "start":
			p.start(t, 1, replication.SyncMode(words[0]))
		case "log":
			answer = p.logs[1].String()
		case "cpu":
			answer = cpuTime().String()
		}
		fmt.Println(answer)
	}
}

// cpuTime is the processor time that both nodes have used.
func (p *benchPair) cpuTime(b testing.TB) time.Duration {
	d, err := time.ParseDuration(p.child.Tell("cpu"))
	require.NoError(b, err)
	return d + cpuTime()
}

// admitted waits until a node is primary with an admitted standby, which knows it.
func (p *benchPair) admitted(b testing.TB, primary int) {
	require.Eventually(b, func() bool {
		h, o := p.nodes[primary].Health(), p.nodes[1-primary].Health()
		return h.IsLeader && len(h.Peers) > 0 && h.Peers[0].State == "admitted" && o.Role == "standby" && o.Term == h.Term
	}, 30*time.Second, 10*time.Millisecond)
}

func (p *benchPair) apply(i int64) error { return p.nodes[0].Apply(putBytes(i), time.Minute) }

// roundTrip is the median time of a small request to the standby.
func (p *benchPair) roundTrip(b testing.TB) time.Duration {
	tr, err := transport.New(transport.Options{NodeID: "bench", ClusterID: replication.DefaultConfig().Raft.ClusterID,
		Secret: []byte("0123456789abcdef"), Logger: quietLogger()})
	require.NoError(b, err)
	defer tr.Close()
	conn, err := tr.Connect(b.Context(), p.addrs[1])
	require.NoError(b, err)
	defer conn.Close()
	_, took := load(b, 1, benchSlice, func(int64) error {
		return conn.(replication.Caller).Call(b.Context(), replication.MsgStatus, &replication.StatusRequest{}, new(replication.HealthStatus))
	})
	return median(took)
}

// loadOfMachine is what else goes on here, for who reads the figures.
func loadOfMachine() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return fmt.Sprintf("%s on %d cores", strings.Join(strings.Fields(string(data))[:3], " "), runtime.NumCPU())
}
