package standby_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/internal/bubble"
	"github.com/nornicdb/replication/standby"
	"github.com/nornicdb/replication/transport"
	"github.com/stretchr/testify/require"
)

// node is one of a pair, which can be stopped and started.
type node struct {
	id, addr string
	dir      string
	cfg      *replication.Config
	store    *boltgraph.Store
	tr       *transport.Transport
	served   chan struct{}
	repl     replication.Replicator
	disk     *disk
	power    *powerStore // not nil: the log is in there
	restore  func()      // not nil: called before a snapshot is restored
}

// slowGraph is a graph whose Restore is held up.
type slowGraph struct {
	*boltgraph.Store
	before func()
}

func (g slowGraph) Restore(r io.Reader) error {
	g.before()
	return g.Store.Restore(r)
}

// disk is a log store that can fail and hang.
type disk struct {
	*raftboltdb.BoltStore
	mu   sync.Mutex
	fail error
	hang chan struct{}
}

func (d *disk) StoreLogs(logs []*raft.Log) error {
	d.mu.Lock()
	fail, hang := d.fail, d.hang
	d.mu.Unlock()
	if hang != nil {
		<-hang
	}
	if fail != nil {
		return fail
	}
	return d.BoltStore.StoreLogs(logs)
}

func (d *disk) set(fail error, hang chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail, d.hang = fail, hang
}

type pair struct {
	t    *testing.T
	net  *memoryNet
	a, b *node
}

func quietLogger() replication.Logger {
	if os.Getenv("STANDBY_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

const (
	heartbeat = time.Second
	failover  = 10 * time.Second
	patience  = 5 * time.Minute // virtual
)

// inBubble runs a test in virtual time with a pair that is not started yet.
func inBubble(t *testing.T, change func(*replication.Config), test func(t *testing.T, p *pair)) {
	bubble.Test(t, func(t *testing.T) {
		p := &pair{t: t, net: newNet()}
		p.a = p.newNode("a", "10.0.0.1:7688", "10.0.0.2:7688", "primary", change)
		p.b = p.newNode("b", "10.0.0.2:7688", "10.0.0.1:7688", "standby", change)
		defer func() {
			p.stop(p.a)
			p.stop(p.b)
		}()
		test(t, p)
	})
}

func (p *pair) newNode(id, addr, peer, role string, change func(*replication.Config)) *node {
	n := &node{id: id, addr: addr, dir: p.t.TempDir()}
	n.cfg = replication.DefaultConfig()
	n.cfg.Mode, n.cfg.NodeID, n.cfg.BindAddr, n.cfg.DataDir = replication.ModeHAStandby, id, addr, filepath.Join(n.dir, "replication")
	n.cfg.Secret = "0123456789abcdef"
	n.cfg.HA.Role, n.cfg.HA.PeerAddr = role, peer
	n.cfg.HA.Heartbeat, n.cfg.HA.FailoverTimeout = heartbeat, failover
	if change != nil {
		change(n.cfg)
	}
	return n
}

func (p *pair) other(n *node) *node {
	if n == p.a {
		return p.b
	}
	return p.a
}

func (p *pair) start(nodes ...*node) {
	p.t.Helper()
	for _, n := range nodes {
		require.NoError(p.t, p.tryStart(n))
	}
}

func (p *pair) tryStart(n *node) (err error) {
	n.store, err = boltgraph.Open(filepath.Join(n.dir, "graph.db"), boltgraph.WithNoSync())
	require.NoError(p.t, err)
	n.tr, err = transport.New(transport.Options{NodeID: n.id, ClusterID: n.cfg.Raft.ClusterID, Secret: []byte(n.cfg.Secret),
		Logger: quietLogger(), Listen: p.net.listen, Dial: p.net.dialer(n.addr)})
	require.NoError(p.t, err)
	_, err = n.tr.Bind(context.Background(), n.addr)
	require.NoError(p.t, err)
	n.served = make(chan struct{})
	go func() { defer close(n.served); _ = n.tr.Listen(context.Background(), n.addr, nil) }()
	began := time.Now()
	// What is synced is another test's matter.
	store := standby.WithLogStore("bolt", func(dir string) (raft.LogStore, error) {
		if n.power != nil {
			return n.power, nil
		}
		s, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(dir, "wal.db"), NoSync: true})
		if err != nil {
			return nil, err
		}
		n.disk = &disk{BoltStore: s}
		return n.disk, nil
	})
	mode := standby.Mode(store, standby.WithBootClock(func() time.Duration { return time.Since(began) + time.Hour }))
	var storage replication.Storage = n.store
	if n.restore != nil {
		storage = slowGraph{n.store, n.restore}
	}
	n.repl, err = replication.New(n.cfg, storage, replication.Modes{replication.ModeHAStandby: mode},
		replication.WithLogger(quietLogger()), replication.WithTransport(n.tr))
	require.NoError(p.t, err)
	return n.repl.Start(context.Background())
}

func (p *pair) stop(n *node) {
	p.t.Helper()
	if n.repl == nil {
		return
	}
	require.NoError(p.t, n.repl.Shutdown())
	require.NoError(p.t, n.tr.Close())
	<-n.served
	require.NoError(p.t, n.store.Close())
	n.repl = nil
}

// until waits in virtual time.
func (p *pair) until(what string, ok func() bool) time.Duration {
	p.t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > patience {
			require.Fail(p.t, "not reached: "+what, "%s\n%s", describe(p.a), describe(p.b))
		}
		<-time.After(10 * time.Millisecond)
	}
	return time.Since(start)
}

func describe(n *node) string {
	if n.repl == nil {
		return n.id + " is down"
	}
	h := n.repl.Health()
	return fmt.Sprintf("%s: %s epoch %d, applied %d, %s %v", n.id, h.Role, h.Term, h.AppliedIndex, h.State, h.Reasons)
}

// admitted waits until n is primary with an admitted standby.
func (p *pair) admitted(n *node) {
	p.t.Helper()
	p.until("standby admitted", func() bool {
		h := n.repl.Health()
		return h.Role == "primary" && h.IsLeader && len(h.Peers) == 1 && h.Peers[0].State == "admitted"
	})
	// The standby learns of it by the next heartbeat.
	<-time.After(2 * heartbeat)
}

func putNode(t *testing.T, id string, value any) *replication.Command {
	t.Helper()
	cmd, err := replication.NewNodeCommand(replication.CmdPutNode,
		&replication.Node{ID: replication.NodeID(id), Labels: []string{"T"}, Properties: map[string]any{"v": value}})
	require.NoError(t, err)
	return cmd
}

func (p *pair) write(n *node, ids ...string) {
	p.t.Helper()
	for _, id := range ids {
		require.NoError(p.t, n.repl.Apply(putNode(p.t, id, id), time.Minute), id)
	}
}

func (p *pair) has(n *node, id string) bool {
	_, err := n.store.Node(replication.NodeID(id))
	return err == nil
}

func (p *pair) same() {
	p.t.Helper()
	p.until("same content", func() bool {
		x, err := p.a.store.Stats()
		require.NoError(p.t, err)
		y, err := p.b.store.Stats()
		require.NoError(p.t, err)
		return x == y
	})
}
