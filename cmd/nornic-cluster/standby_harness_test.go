package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// wire forwards connections to an address until it is cut: then nothing gets
// through, in either direction, and nobody is told, as in a partition. Connections
// of before do not survive the healing.
type wire struct {
	listener net.Listener
	to       string
	wg       sync.WaitGroup

	// mu guards the fields below.
	mu     sync.Mutex
	healed chan struct{} // closed while the wire is whole
	conns  map[net.Conn]bool
	closed bool
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	w := &wire{listener: l, to: to, healed: make(chan struct{}), conns: make(map[net.Conn]bool)}
	close(w.healed)
	w.wg.Go(w.accept)
	t.Cleanup(w.close)
	return w
}

func (w *wire) accept() {
	for {
		from, err := w.listener.Accept()
		if err != nil {
			return
		}
		w.wg.Go(func() {
			if !w.hold(from) {
				return
			}
			defer w.release(from)
			w.whole()
			to, err := net.Dial("tcp", w.to)
			if err != nil || !w.hold(to) {
				return
			}
			defer w.release(to)
			var both sync.WaitGroup
			both.Go(func() { w.pump(to, from) })
			w.pump(from, to)
			both.Wait()
		})
	}
}

// pump copies until an end is closed or the wire is cut.
func (w *wire) pump(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		waited := w.whole()
		if err == nil && !waited {
			_, err = to.Write(buf[:n])
		}
		if err != nil || waited {
			_ = from.Close()
			_ = to.Close()
			return
		}
	}
}

// whole waits until the wire is whole, and says whether it had to.
func (w *wire) whole() (waited bool) {
	w.mu.Lock()
	healed := w.healed
	w.mu.Unlock()
	select {
	case <-healed:
		return false
	default:
		<-healed
		return true
	}
}

func (w *wire) hold(c net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		_ = c.Close()
		return false
	}
	w.conns[c] = true
	return true
}

func (w *wire) release(c net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.conns, c)
	_ = c.Close()
}

func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.healed = make(chan struct{})
}

func (w *wire) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.healed:
	default:
		close(w.healed)
	}
}

func (w *wire) close() {
	w.heal()
	w.mu.Lock()
	w.closed = true
	for c := range w.conns {
		_ = c.Close()
	}
	w.mu.Unlock()
	_ = w.listener.Close()
	w.wg.Wait()
}

const (
	testHeartbeat = 100 * time.Millisecond
	testFailover  = 1500 * time.Millisecond
)

// twoProcesses are a hot-standby pair; the first founds. Each reaches the other
// by a wire of its own: wires[0] leads to the first.
type twoProcesses struct {
	t     *testing.T
	list  []*process
	dirs  [2]string
	wires [2]*wire
}

func startPair(t *testing.T, mode replication.SyncMode, policy string, more ...string) *twoProcesses {
	t.Helper()
	p := &twoProcesses{t: t}
	cluster := freeAddrs(t, demoNodes)
	web := freeAddrs(t, demoNodes)
	dir := t.TempDir()
	for i := range p.wires {
		p.wires[i] = newWire(t, cluster[i])
	}
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	for i := range 2 {
		p.dirs[i] = filepath.Join(dir, fmt.Sprintf("n%d", i))
		log, err := os.Create(filepath.Join(dir, fmt.Sprintf("log%d", i)))
		require.NoError(t, err)
		const prefix = "NORNICDB_CLUSTER_"
		one := &process{t: t, log: log, url: "http://" + web[i], args: []string{"serve", "--http", web[i], "--data", p.dirs[i]},
			env: []string{prefix + "MODE=ha_standby", prefix + "NODE_ID=" + fmt.Sprint("n", i), prefix + "BIND_ADDR=" + cluster[i],
				prefix + "HA_PEER_ADDR=" + p.wires[1-i].listener.Addr().String(), prefix + "HA_ROLE=" + []string{"primary", "standby"}[i],
				prefix + "SECRET=0123456789abcdef", prefix + "HA_SYNC_MODE=" + string(mode), prefix + "HA_PARTITION_POLICY=" + policy,
				prefix + fmt.Sprintf("HA_HEARTBEAT_MS=%d", testHeartbeat.Milliseconds()), prefix + "HA_FAILOVER_TIMEOUT=" + testFailover.String(),
				prefix + "HA_RECONNECT_INTERVAL=200ms", prefix + "HA_MAX_RECONNECT_BACKOFF=1s"}}
		one.env = append(one.env, more...)
		one.start()
		p.list = append(p.list, one)
		t.Cleanup(func() {
			if t.Failed() { // where it stands
				_ = one.cmd.Process.Signal(syscall.SIGCONT)
				_ = one.cmd.Process.Signal(syscall.SIGQUIT)
				_ = one.cmd.Wait()
				text, _ := os.ReadFile(log.Name())
				t.Logf("%s:\n%s", one.url, text[:min(40000, len(text))])
				return
			}
			one.kill9()
			_ = log.Close()
		})
	}
	p.whole()
	return p
}

// pairHealth is what a test reads of GET /health.
type pairHealth struct {
	Role     string   `json:"role"`
	IsLeader bool     `json:"is_leader"`
	State    string   `json:"state"`
	Reasons  []string `json:"reasons"`
	Term     uint64   `json:"term"`
	Peers    []struct {
		State string `json:"state"`
	} `json:"peers"`
	// In multi-region mode.
	Region      string       `json:"region"`
	WriteRegion string       `json:"write_region"`
	RegionEpoch uint64       `json:"region_epoch"`
	Regions     []regionView `json:"regions"`
}

// health is a node's, healthy or not; the zero one where it does not answer.
func health(p *process) pairHealth {
	ctx, cancel := context.WithTimeout(context.Background(), patience/2) // the machine may stand still
	defer cancel()
	var h struct{ Replication pairHealth }
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+"/health", nil)
	if err != nil {
		return h.Replication
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return h.Replication
	}
	defer resp.Body.Close()
	_ = json.NewDecoder(resp.Body).Decode(&h) // half an answer is none
	return h.Replication
}

// until waits for what holds, and says how long that took.
func until(t *testing.T, what string, holds func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	require.Eventually(t, holds, patience, 5*time.Millisecond, what)
	return time.Since(start)
}

// whole waits until one node is primary and the other admitted, which it knows.
func (p *twoProcesses) whole() (primary, standby *process) {
	p.t.Helper()
	until(p.t, "one primary with an admitted standby", func() bool {
		for i, one := range p.list {
			h, other := health(one), health(p.list[1-i])
			if h.IsLeader && len(h.Peers) == 1 && h.Peers[0].State == "admitted" && other.Role == "standby" && other.Term == h.Term {
				primary, standby = one, p.list[1-i]
				return true
			}
		}
		return false
	})
	return primary, standby
}

func (p *twoProcesses) cut()  { p.wires[0].cut(); p.wires[1].cut() }
func (p *twoProcesses) heal() { p.wires[0].heal(); p.wires[1].heal() }

func (p *twoProcesses) dir(one *process) string {
	if one == p.list[0] {
		return p.dirs[0]
	}
	return p.dirs[1]
}

func (p *process) signal(s syscall.Signal) { require.NoError(p.t, p.cmd.Process.Signal(s)) }

// postOrder posts to an admin endpoint.
func postOrder(p *process, path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		return fmt.Errorf("%s: %s", resp.Status, text)
	}
	return nil
}

// pairLoad is some writers. Each makes nodes and counts in a register of its own, one
// write after the other, each tried until it is acknowledged.
type pairLoad struct {
	t      *testing.T
	c      *client
	stop   func()
	acked  atomic.Int64
	writes [][]string // writer → acknowledged node IDs, to be read after stop

	cancel  context.CancelFunc
	givenUp atomic.Bool // writes without an answer are no failure

	// mu guards the fields below.
	mu      sync.Mutex
	last    time.Time // of an acknowledgement
	longest time.Duration
}

func startLoad(t *testing.T, name string, writers int, addrs ...string) *pairLoad {
	t.Helper()
	l := &pairLoad{t: t, writes: make([][]string, writers), last: time.Now()}
	var err error
	l.c, err = newClient(addrs)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	l.cancel = cancel
	done := make(chan struct{})
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				id := fmt.Sprintf("%s-%d-%d", name, w, i)
				if err := l.c.post(ctx, "/graph/batch", "request-"+id, loadBody(id)); err != nil {
					if !l.givenUp.Load() {
						t.Errorf("%s: %v", id, err)
					}
					return
				}
				l.ack(w, id)
			}
		})
	}
	l.stop = sync.OnceFunc(func() { close(done); wg.Wait(); cancel(); l.c.http.CloseIdleConnections() })
	t.Cleanup(func() { cancel(); l.stop() })
	return l
}

// giveUp ends writers whose writes nobody will answer, and returns what was
// acknowledged.
func (l *pairLoad) giveUp() (acked []string) {
	l.givenUp.Store(true)
	l.cancel()
	l.stop()
	for _, ids := range l.writes {
		acked = append(acked, ids...)
	}
	return acked
}

// loadBody is a write: a node, and the writer's register.
func loadBody(id string) []byte {
	register, number := id[:strings.LastIndexByte(id, '-')], id[strings.LastIndexByte(id, '-')+1:]
	return fmt.Appendf(nil, `{"type":"node","id":%q}`+"\n"+`{"type":"node","id":%q,"properties":{"v":%s}}`+"\n", id, register, number)
}

func (l *pairLoad) ack(w int, id string) {
	l.writes[w] = append(l.writes[w], id)
	l.acked.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.longest = max(l.longest, now.Sub(l.last))
	l.last = now
}

// pause is the longest time without any acknowledgement since the last call.
func (l *pairLoad) pause() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.longest
	l.longest = 0
	return p
}

// more waits for that many further acknowledgements.
func (l *pairLoad) more(count int64) {
	l.t.Helper()
	target := l.acked.Load() + count
	until(l.t, "writes go on", func() bool { return l.acked.Load() >= target || l.t.Failed() })
}

// graph is what a node exports: node ID → its line.
func graph(t *testing.T, p *process) map[string]string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url+"/graph/export", nil)
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	nodes := make(map[string]string)
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		var rec struct{ ID string }
		require.NoError(t, json.Unmarshal(lines.Bytes(), &rec))
		nodes[rec.ID] = lines.Text()
	}
	require.NoError(t, lines.Err())
	return nodes
}

// tails is the text of every file with diverged entries, and how many entries
// they hold.
func (p *twoProcesses) tails(of ...*process) (text string, entries int) {
	p.t.Helper()
	for _, one := range of {
		files, err := filepath.Glob(filepath.Join(p.dir(one), "diverged", "*.jsonl"))
		require.NoError(p.t, err)
		for _, f := range files {
			data, err := os.ReadFile(f)
			require.NoError(p.t, err)
			text += string(data)
			entries += bytes.Count(data, []byte("\n"))
		}
	}
	return text, entries
}

// check stops the load and asks what became of it. Nothing may be lost where
// lossless; otherwise what is lost is in a file of diverged entries.
func (p *twoProcesses) check(l *pairLoad, lossless bool) {
	p.t.Helper()
	l.stop()
	primary, _ := p.whole()
	require.NoError(p.t, verify(p.t.Context(), urls(p.list), patience, true))
	nodes := graph(p.t, primary)
	tails, _ := p.tails(p.list...)
	lost := 0
	for _, ids := range l.writes {
		for i, id := range ids {
			if nodes[id] == "" {
				lost++
				require.Contains(p.t, tails, `"request-`+id+`"`, "%s was acknowledged, is not there, and in no file of diverged entries", id)
			}
			if register := id[:strings.LastIndexByte(id, '-')]; lossless && i == len(ids)-1 {
				require.Contains(p.t, nodes[register], fmt.Sprintf(`"v":%d}`, i), "%s: an earlier write was applied again", register)
			}
		}
	}
	p.t.Logf("%d writes acknowledged, %d of them in files of diverged entries, %d retries", l.acked.Load(), lost, l.c.retries.Load())
	if lossless {
		require.Zero(p.t, lost)
		p.repeat(l)
	}
}

// repeat sends writes that were acknowledged long ago once more: nothing changes.
func (p *twoProcesses) repeat(l *pairLoad) {
	p.t.Helper()
	c, err := newClient(urls(p.list))
	require.NoError(p.t, err)
	defer c.http.CloseIdleConnections()
	var before, after statsView
	require.NoError(p.t, get(p.t.Context(), p.list[0].url+"/graph/stats?consistency=QUORUM", &before))
	for _, ids := range l.writes {
		for i := 0; i < len(ids); i += max(len(ids)/5, 1) {
			require.NoError(p.t, c.post(p.t.Context(), "/graph/batch", "request-"+ids[i], loadBody(ids[i])))
		}
	}
	require.NoError(p.t, get(p.t.Context(), p.list[0].url+"/graph/stats?consistency=QUORUM", &after))
	require.Equal(p.t, before.Digest, after.Digest, "a repeated request was applied twice")
}

// exitCode waits for a process that ends by itself.
func (p *process) exitCode() int {
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	require.NoError(p.t, err)
	return 0
}
