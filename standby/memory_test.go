package standby_test

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/internal/testchild"
	"github.com/nornicdb/replication/standby"
	"github.com/stretchr/testify/require"
)

var stall = flag.Duration("standby.stall", 5*time.Second, "how long the standby stands still in TestMemoryWithAStalledStandby")

// asNode makes the test binary be one node in the directory named by it, told
// what to do on standard input.
const asNode = "STANDBY_TEST_NODE"

// beNode obeys, one answer a line: start, admitted, gc, load SECONDS BYTES.
func beNode(dir string) error {
	cfg := replication.DefaultConfig()
	cfg.Mode, cfg.NodeID, cfg.BindAddr = replication.ModeHAStandby, os.Getenv("NODE_ROLE"), os.Getenv("NODE_ADDR")
	cfg.DataDir, cfg.Secret = filepath.Join(dir, "data"), "0123456789abcdef"
	cfg.HA.Role, cfg.HA.PeerAddr, cfg.HA.SyncMode = os.Getenv("NODE_ROLE"), os.Getenv("NODE_PEER"), replication.SyncAsync
	cfg.HA.Heartbeat, cfg.HA.FailoverTimeout = 100*time.Millisecond, 5*time.Second
	store, err := boltgraph.Open(filepath.Join(dir, "graph.db"), boltgraph.WithNoSync())
	if err != nil {
		return err
	}
	repl, err := replication.New(cfg, store, replication.Modes{replication.ModeHAStandby: standby.New}, replication.WithLogger(quietLogger()))
	lines := bufio.NewScanner(os.Stdin)
	for err == nil && lines.Scan() {
		answer := "ok"
		words := strings.Fields(lines.Text())
		switch words[0] {
		case "start":
			err = repl.Start(context.Background())
		case "admitted":
			if h := repl.Health(); !h.IsLeader || len(h.Peers) == 0 || h.Peers[0].State != "admitted" {
				answer = "not yet"
			}
		case "gc":
			runtime.GC()
			debug.FreeOSMemory()
		case "load":
			var writes int64
			writes, err = writeFor(repl, words[1], words[2])
			answer = fmt.Sprint(writes)
		}
		fmt.Println(answer)
	}
	return err
}

// writeFor writes for some time, 64 writers at once, and says how much.
func writeFor(repl replication.Replicator, duration, size string) (int64, error) {
	d, err := time.ParseDuration(duration)
	if err != nil {
		return 0, err
	}
	bytes, err := strconv.Atoi(size)
	if err != nil {
		return 0, err
	}
	value := strings.Repeat("v", bytes)
	var next, failed atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for range 64 {
		wg.Go(func() {
			for time.Since(start) < d {
				cmd, err := replication.NewNodeCommand(replication.CmdPutNode,
					&replication.Node{ID: replication.NodeID(fmt.Sprint("n", next.Add(1)%1000)), Properties: map[string]any{"v": value}})
				if err == nil {
					err = repl.Apply(cmd, time.Minute)
				}
				if err != nil {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := failed.Load(); n > 0 {
		return 0, fmt.Errorf("%d of %d writes failed", n, next.Load())
	}
	return next.Load(), nil
}

// TestChildNode is the node that startChild runs; in a normal run it does
// nothing.
func TestChildNode(t *testing.T) {
	if dir := os.Getenv(asNode); dir != "" {
		require.NoError(t, beNode(dir))
	}
}

// startChild starts a node in a process of its own.
func startChild(t *testing.T, role, addr, peer string) *testchild.Process {
	t.Helper()
	c := testchild.Start(t, []string{"-test.run", "^TestChildNode$"},
		[]string{asNode + "=" + t.TempDir(), "NODE_ROLE=" + role, "NODE_ADDR=" + addr, "NODE_PEER=" + peer})
	c.Tell("start")
	return c
}

// TestMemoryWithAStalledStandby: a primary under full load whose standby stands
// still with its connections open holds little more than when it is idle.
func TestMemoryWithAStalledStandby(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("writes for a while; the race detector has memory of its own")
	}
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
	const limitMB = 64
	for _, size := range []string{"200", "4000"} {
		t.Run("bytes="+size, func(t *testing.T) {
			addrs := make([]string, 2)
			for i := range addrs {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				require.NoError(t, err)
				addrs[i] = l.Addr().String()
				require.NoError(t, l.Close())
			}
			primary, other := startChild(t, "primary", addrs[0], addrs[1]), startChild(t, "standby", addrs[1], addrs[0])
			require.Eventually(t, func() bool { return primary.Tell("admitted") == "ok" }, time.Minute, 10*time.Millisecond)
			primary.Tell("load 2s " + size) // what the graph store keeps is not the stream's
			primary.Tell("gc")
			idle := primary.AnonKB()
			peak := idle
			require.NoError(t, other.Signal(syscall.SIGSTOP))
			done := make(chan string, 1)
			go func() { done <- primary.Tell("load " + stall.String() + " " + size) }()
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for writes := ""; writes == ""; {
				select {
				case writes = <-done:
					t.Logf("%s: %s writes; idle %d MiB, at most %d MiB above it", *stall, writes, idle>>10, (peak-idle)>>10)
				case <-tick.C:
					peak = max(peak, primary.AnonKB())
				}
			}
			require.LessOrEqual(t, (peak-idle)>>10, int64(limitMB))
		})
	}
}
