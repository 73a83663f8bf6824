package raftnode_test

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/internal/testchild"
	"github.com/nornicdb/replication/raftnode"
	"github.com/stretchr/testify/require"
)

var graphMB = flag.Int("snapshot.mb", 64, "MiB of graph in TestSnapshotMemory; above 64 the limit is 128 MiB, else 64")

// asNode makes the test binary be one node in the directory named by it, told
// what to do on standard input.
const asNode = "RAFTNODE_TEST_NODE"

// beNode obeys, one answer a line: gc, start, fill MB, snapshot, position.
func beNode(dir string) int {
	cfg := replication.DefaultConfig()
	cfg.Mode, cfg.NodeID, cfg.BindAddr = replication.ModeRaft, os.Getenv("NODE_ID"), os.Getenv("NODE_ADDR")
	cfg.DataDir, cfg.Raft.TrailingLogs, cfg.Raft.SnapshotThreshold = filepath.Join(dir, "data"), 10, 1<<40
	if peer := os.Getenv("NODE_PEER"); peer != "" {
		cfg.Raft.Peers = []replication.RaftPeer{{Addr: peer}}
	} else {
		cfg.Raft.Bootstrap = true
	}
	store, err := boltgraph.Open(filepath.Join(dir, "graph.db"))
	var repl replication.Replicator
	if err == nil {
		repl, err = replication.New(cfg, store, replication.Modes{replication.ModeRaft: raftnode.New}, replication.WithLogger(quietLogger()))
	}
	lines := bufio.NewScanner(os.Stdin)
	for err == nil && lines.Scan() {
		answer := "ok"
		switch word, arg, _ := strings.Cut(lines.Text(), " "); word {
		case "gc":
			runtime.GC()
			debug.FreeOSMemory()
		case "start":
			if err = repl.Start(context.Background()); err == nil {
				err = repl.WaitForLeader(time.Minute)
			}
		case "fill":
			err = fill(repl, arg)
		case "snapshot":
			err = repl.(replication.Snapshotter).TakeSnapshot(context.Background())
		case "position":
			answer = fmt.Sprint(repl.Health().AppliedIndex)
		}
		fmt.Println(answer)
	}
	if err == nil {
		return 0
	}
	fmt.Println("failed:", err)
	return 1
}

// fill writes MiB of nodes.
func fill(repl replication.Replicator, mb string) error {
	n, err := strconv.Atoi(mb)
	value := strings.Repeat("v", 1000)
	for i := 0; err == nil && i < n; i++ {
		var cmds []*replication.Command
		for j := range 1024 {
			cmd, err := replication.NewNodeCommand(replication.CmdPutNode,
				&replication.Node{ID: replication.NodeID(fmt.Sprintf("%06d-%04d", i, j)), Properties: map[string]any{"v": value}})
			if err != nil {
				return err
			}
			cmds = append(cmds, cmd)
		}
		_, err = repl.(replication.BatchApplier).ApplyBatch(context.Background(), cmds)
	}
	return err
}

// childNode is a node in a process of its own.
type childNode struct {
	*testchild.Process
	peakKB atomic.Int64
}

func startChild(t *testing.T, id, addr, peer string) *childNode {
	t.Helper()
	return &childNode{Process: testchild.Start(t, nil, []string{asNode + "=" + t.TempDir(), "NODE_ID=" + id, "NODE_ADDR=" + addr, "NODE_PEER=" + peer})}
}

// look notes what the process takes now.
func (c *childNode) look() {
	c.peakKB.Store(max(c.peakKB.Load(), c.AnonKB()))
}

// idle is what the process takes when nothing goes on; the peak begins there.
func (c *childNode) idle() int64 {
	c.Tell("gc")
	kb := c.AnonKB()
	c.peakKB.Store(kb)
	return kb
}

// TestSnapshotMemory: a node that takes, sends or installs a snapshot streams
// it.
func TestSnapshotMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("writes a large graph")
	}
	if runtime.GOOS != "linux" {
		t.Skip("reads /proc")
	}
	limitMB := int64(64)
	if *graphMB > 64 {
		limitMB = 128
	}
	if raceEnabled {
		t.Skip("the race detector has memory of its own")
	}
	addrs := freeAddrs(t, 2)
	sender := startChild(t, "n1", addrs[0], "")
	sender.Tell("start")
	sender.Tell(fmt.Sprint("fill ", *graphMB))
	senderIdle := sender.idle()
	watch := func(order string, c *childNode) {
		done := make(chan struct{})
		go func() { defer close(done); c.Tell(order) }()
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				sender.look()
				c.look()
			}
		}
	}
	watch("snapshot", sender)
	taken := sender.peakKB.Load() - senderIdle
	senderIdle = sender.idle()
	receiver := startChild(t, "n2", addrs[1], addrs[0])
	receiverIdle := receiver.idle()
	watch("start", receiver)
	want := sender.Tell("position")
	require.Eventually(t, func() bool {
		sender.look()
		receiver.look()
		return receiver.Tell("position") == want
	}, 5*time.Minute, 2*time.Millisecond)
	sent, installed := sender.peakKB.Load()-senderIdle, receiver.peakKB.Load()-receiverIdle
	t.Logf("%d MiB of graph: above idle, taking %d KiB, sending %d KiB, installing %d KiB", *graphMB, taken, sent, installed)
	for what, kb := range map[string]int64{"taking": taken, "sending": sent, "installing": installed} {
		require.LessOrEqual(t, kb, limitMB<<10, what)
	}
}
