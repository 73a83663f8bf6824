package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
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

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

var killRounds = flag.Int("kill.rounds", 3, "how often a process is killed in TestAcknowledgedWritesSurviveKill9")

const patience = time.Minute

// asBinary makes the test binary run as nornic-cluster.
const asBinary = "NORNIC_TEST_AS_BINARY"

func TestMain(m *testing.M) {
	if os.Getenv(asBinary) != "" {
		os.Exit(run())
	}
	goleak.VerifyTestMain(m)
}

func binary(env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(append(os.Environ(), asBinary+"=1"), env...)
	return cmd
}

var takenPorts sync.Map

// freeAddrs are addresses for processes to listen at. Their ports are below those
// that the system gives to outgoing connections, one of which would otherwise
// take a port between now and the start, or a restart, of a process.
func freeAddrs(t *testing.T, count int) (addrs []string) {
	t.Helper()
	for tries := 0; len(addrs) < count; tries++ {
		require.Less(t, tries, 10_000, "no free ports")
		addr := fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(22_000))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		require.NoError(t, l.Close())
		if _, taken := takenPorts.LoadOrStore(addr, true); !taken {
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

// process is one serve process.
type process struct {
	t    *testing.T
	env  []string
	args []string
	url  string
	data string
	log  *os.File
	cmd  *exec.Cmd

	// Of an isolated process, see isolatedProcesses.
	namespace, hostLink, address string
	small                        bool // its data directory is a small disk
}

func (p *process) start() {
	p.t.Helper()
	p.cmd = binary(p.env, p.args...)
	if p.namespace != "" { // ip becomes the process, which keeps its ID
		p.cmd = exec.Command("ip", append([]string{"netns", "exec", p.namespace, os.Args[0]}, p.args...)...)
		p.cmd.Env = append(append(os.Environ(), asBinary+"=1"), p.env...)
	}
	p.cmd.Stderr = p.log
	require.NoError(p.t, p.cmd.Start())
}

func (p *process) kill9() {
	_ = p.cmd.Process.Kill() // it may have ended
	_ = p.cmd.Wait()         // it was killed: that is its error
}

// terminate stops the process as an operator does, and says how long it took.
func (p *process) terminate() time.Duration {
	p.t.Helper()
	start := time.Now()
	require.NoError(p.t, p.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(p.t, p.cmd.Wait())
	return time.Since(start)
}

// said: the process's log has the text.
func (p *process) said(text string) bool {
	p.t.Helper()
	log, err := os.ReadFile(p.log.Name())
	require.NoError(p.t, err)
	return strings.Contains(string(log), text)
}

// clusterPrefix stands before the name of every variable.
const clusterPrefix = "NORNICDB_CLUSTER_"

// threeProcesses starts n0, n1 and n2; change may change one before it starts.
func threeProcesses(t *testing.T, change ...func(i int, p *process)) []*process {
	t.Helper()
	cluster := freeAddrs(t, demoNodes)
	dir := t.TempDir()
	var list []*process
	for i := range cluster {
		var peers []string
		for j, addr := range cluster {
			if j != i {
				peers = append(peers, fmt.Sprintf("n%d:%s", j, addr))
			}
		}
		p := newProcess(t, dir, fmt.Sprint("n", i), cluster[i], peers)
		p.env = append(p.env, clusterPrefix+"RAFT_BOOTSTRAP="+fmt.Sprint(i == 0))
		for _, c := range change {
			c(i, p)
		}
		p.start()
		list = append(list, p)
	}
	whole(t, list)
	return list
}

// whole waits until all are voters that answer. Before that they are not as many
// as they look: one that comes to a cluster which is at work already is removed,
// and joins anew.
func whole(t *testing.T, list []*process) {
	t.Helper()
	until(t, "all are voters", func() bool {
		var v clusterView
		if get(context.Background(), list[0].url+"/admin/cluster/status", &v) != nil || v.Leader.ID == "" {
			return false
		}
		fit := 0
		for _, m := range v.Members {
			if m.Voter && m.Healthy {
				fit++
			}
		}
		return fit == len(list)
	})
}

// newProcess is a Raft node in a directory below dir, not started.
func newProcess(t *testing.T, dir, id, addr string, peers []string) *process {
	t.Helper()
	web := freeAddrs(t, 1)
	log, err := os.Create(filepath.Join(dir, id+".log"))
	require.NoError(t, err)
	p := &process{t: t, log: log, url: "http://" + web[0], data: filepath.Join(dir, id),
		args: []string{"serve", "--http", web[0], "--data", filepath.Join(dir, id)},
		env: []string{clusterPrefix + "MODE=raft", clusterPrefix + "NODE_ID=" + id, clusterPrefix + "BIND_ADDR=" + addr,
			clusterPrefix + "RAFT_PEERS=" + strings.Join(peers, ","),
			clusterPrefix + "SECRET=0123456789abcdef", clusterPrefix + "RAFT_ELECTION_TIMEOUT=300ms", clusterPrefix + "RAFT_HEARTBEAT_TIMEOUT=30ms",
			clusterPrefix + "RAFT_LEADER_LEASE_TIMEOUT=150ms"}}
	t.Cleanup(func() {
		if p.cmd != nil && p.cmd.ProcessState == nil {
			p.kill9()
		}
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("%s %s:\n%s", id, p.url, text[max(0, len(text)-4000):])
		}
		_ = log.Close()
	})
	return p
}

func urls(list []*process) (all []string) {
	for _, p := range list {
		all = append(all, p.url)
	}
	return all
}

// leader waits until a process says that it leads.
func leader(t *testing.T, list []*process) *process {
	t.Helper()
	var found *process
	require.Eventually(t, func() bool {
		for _, p := range list {
			var h struct {
				Replication struct {
					IsLeader bool `json:"is_leader"`
				} `json:"replication"`
			}
			if get(context.Background(), p.url+"/health", &h) == nil && h.Replication.IsLeader {
				found = p
				return true
			}
		}
		return false
	}, patience, 20*time.Millisecond)
	return found
}

// TestAcknowledgedWritesSurviveKill9 kills the leader at random moments under
// load; every acknowledged write is there at the end, and nothing else.
func TestAcknowledgedWritesSurviveKill9(t *testing.T) {
	if testing.Short() {
		t.Skip("three processes and several failovers take a while")
	}
	for _, store := range []string{"bolt", walName} {
		t.Run(store, func(t *testing.T) { acknowledgedWritesSurvive(t, "NORNICDB_CLUSTER_LOG_STORE="+store) })
	}
}

func acknowledgedWritesSurvive(t *testing.T, env string) {
	defer http.DefaultClient.CloseIdleConnections()
	list := threeProcesses(t, func(_ int, p *process) { p.env = append(p.env, env) })
	leader(t, list)
	c, err := newClient(urls(list))
	require.NoError(t, err)
	defer c.http.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var acked atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				id := fmt.Sprintf("w%d-%d", w, i)
				body := []byte(`{"type":"node","id":"` + id + `"}`)
				if err := c.post(ctx, "/graph/batch", "run-"+id, body); err != nil {
					t.Errorf("%s: %v", id, err)
					return
				}
				acked.Add(1)
			}
		})
	}
	for range *killRounds {
		target := acked.Load() + 50 + rand.Int64N(200)
		require.Eventually(t, func() bool { return acked.Load() >= target }, patience, time.Millisecond)
		victim := leader(t, list)
		victim.kill9()
		target = acked.Load() + 50
		require.Eventually(t, func() bool { return acked.Load() >= target }, patience, time.Millisecond, "the others go on")
		victim.start()
	}
	close(stop)
	wg.Wait()
	require.NoError(t, verify(ctx, urls(list), patience, true))
	var st statsView
	require.NoError(t, get(ctx, list[0].url+"/graph/stats", &st))
	require.Equal(t, acked.Load(), int64(st.Nodes))
	t.Logf("%d writes acknowledged over %d kills, %d retries", acked.Load(), *killRounds, c.retries.Load())
}

// TestImportOfTheShippedGraphThroughAnyNode also runs it twice: nothing is
// doubled, and what export writes is what import read.
func TestImportOfTheShippedGraphThroughAnyNode(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three processes")
	}
	defer http.DefaultClient.CloseIdleConnections()
	list := threeProcesses(t)
	leader(t, list)
	for _, p := range list[:2] {
		cmd := binary(nil, "import", "--addr", p.url, "testdata/small.jsonl")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Contains(t, string(out), "imported 12 nodes and 30 edges")
	}
	require.NoError(t, verify(t.Context(), urls(list), patience, true))
	out, err := binary(nil, "export", "--addr", list[2].url).Output()
	require.NoError(t, err)
	require.Equal(t, 42, bytes.Count(out, []byte("\n")))
	status, err := binary(nil, "status", "--addr", list[0].url).Output()
	require.NoError(t, err)
	require.Equal(t, 2, strings.Count(string(status), "follower"))
}

func TestBadEnvironmentEndsWithStatusTwoAndNamesEveryMistake(t *testing.T) {
	cmd := binary([]string{"NORNICDB_CLUSTER_MODE=raftt", "NORNICDB_CLUSTER_MAX_FRAME_SIZE=x"}, "serve")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	require.True(t, errors.As(err, &exit))
	require.Equal(t, 2, exit.ExitCode())
	require.Contains(t, string(out), "NORNICDB_CLUSTER_MODE")
	require.Contains(t, string(out), "NORNICDB_CLUSTER_MAX_FRAME_SIZE")
	err = binary(nil, "import").Run()
	require.True(t, errors.As(err, &exit))
	require.Equal(t, 2, exit.ExitCode())
}

func TestBatchesHoldOneKindAndLoseNothing(t *testing.T) {
	node, edge := `{"type":"node","id":"a"}`, `{"type":"relationship","label":"R","start":{"id":"a"},"end":{"id":"a"}}`
	for _, pattern := range []string{"", "n", "nn", "nnn", "nnee", "nnneee", "nen", "nneenn", "nnnne"} {
		for most := 1; most <= 4; most++ {
			text := strings.NewReplacer("n", node+"\n", "e", edge+"\n").Replace(pattern)
			s := &batchSource{lines: newAPOCReader(strings.NewReader(text)), most: most}
			got := ""
			for !s.done {
				for ends := false; !ends; {
					b, last, err := s.next()
					require.NoError(t, err)
					require.LessOrEqual(t, b.records, most)
					ends = last
					nodes := strings.Count(string(b.body), `"type":"node"`)
					require.True(t, nodes == 0 || nodes == b.records, "a batch of both kinds: %s", b.body)
					got += strings.Repeat("n", nodes) + strings.Repeat("e", b.records-nodes)
					if ends {
						got += "|"
					}
				}
			}
			require.Equal(t, pattern, strings.ReplaceAll(got, "|", ""))
			for _, mixed := range []string{"ne", "en"} {
				require.NotContains(t, got, mixed, "an edge goes out only after the nodes before it are in")
			}
		}
	}
}

func FuzzAPOC(f *testing.F) {
	f.Add([]byte(`{"type":"relationship","label":"R","start":{"id":"a"},"end":{"id":"b"},"properties":{"x":1.5}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := newAPOCReader(bytes.NewReader(data))
		for {
			rec, err := r.next()
			if err != nil {
				return
			}
			_, _ = rec.command()
		}
	})
}
