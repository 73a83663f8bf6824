package raftnode_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/raftnode"
	"github.com/stretchr/testify/require"
)

// memStore is a Storage in memory: nodes and metadata rows in maps.
type memStore struct {
	// mu guards the fields below.
	mu       sync.RWMutex
	nodes    map[replication.NodeID]*replication.Node
	rows     map[string][]byte
	position uint64
	undo     []func() // of the transaction under way
}

var _ replication.TxStorage = (*memStore)(nil)

func newMemStore() *memStore {
	return &memStore{nodes: make(map[replication.NodeID]*replication.Node), rows: make(map[string][]byte)}
}

// memTx is a transaction of a memStore; its mutex is held.
type memTx struct{ s *memStore }

func (m *memStore) Update(fn func(replication.Tx) error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	position := m.position
	m.undo = m.undo[:0]
	err := fn(memTx{m})
	if err != nil {
		for _, undo := range slices.Backward(m.undo) {
			undo()
		}
		m.position = position
	}
	return err
}

func (m *memStore) View(fn func(replication.Meta) error) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return fn(memTx{m})
}

func (m *memStore) GetWALPosition() (uint64, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.position, nil
}

func (m *memStore) tx(fn func(replication.Tx) error) error { return m.Update(fn) }

func (m *memStore) ApplyCommand(c *replication.Command) error {
	return m.tx(func(t replication.Tx) error { return t.ApplyCommand(c) })
}
func (m *memStore) SetWALPosition(p uint64) error {
	return m.tx(func(t replication.Tx) error { return t.SetWALPosition(p) })
}
func (m *memStore) CreateNode(n *replication.Node) error {
	return m.tx(func(t replication.Tx) error { return t.CreateNode(n) })
}
func (m *memStore) UpdateNode(n *replication.Node) error {
	return m.tx(func(t replication.Tx) error { return t.UpdateNode(n) })
}
func (m *memStore) DeleteNode(id replication.NodeID) error {
	return m.tx(func(t replication.Tx) error { return t.DeleteNode(id) })
}
func (m *memStore) CreateEdge(e *replication.Edge) error {
	return m.tx(func(t replication.Tx) error { return t.CreateEdge(e) })
}
func (m *memStore) DeleteEdge(from, to replication.NodeID, relType string) error {
	return m.tx(func(t replication.Tx) error { return t.DeleteEdge(from, to, relType) })
}
func (m *memStore) SetProperty(id replication.NodeID, key string, value any) error {
	return m.tx(func(t replication.Tx) error { return t.SetProperty(id, key, value) })
}

func (t memTx) ApplyCommand(c *replication.Command) error { return replication.Dispatch(t, c) }
func (t memTx) GetWALPosition() (uint64, error)           { return t.s.position, nil }
func (t memTx) SetWALPosition(p uint64) error             { t.s.position = p; return nil }

func (t memTx) put(n *replication.Node, id replication.NodeID, must bool) error {
	old, there := t.s.nodes[id]
	switch {
	case there && !must:
		return replication.ErrExists
	case !there && must:
		return replication.ErrNotFound
	}
	t.s.undo = append(t.s.undo, func() {
		if there {
			t.s.nodes[id] = old
		} else {
			delete(t.s.nodes, id)
		}
	})
	if n == nil {
		delete(t.s.nodes, id)
	} else {
		t.s.nodes[id] = n
	}
	return nil
}

func (t memTx) CreateNode(n *replication.Node) error   { return t.put(n, n.ID, false) }
func (t memTx) UpdateNode(n *replication.Node) error   { return t.put(n, n.ID, true) }
func (t memTx) DeleteNode(id replication.NodeID) error { return t.put(nil, id, true) }
func (t memTx) CreateEdge(*replication.Edge) error     { return replication.ErrInvalidCommand }
func (t memTx) DeleteEdge(_, _ replication.NodeID, _ string) error {
	return replication.ErrInvalidCommand
}
func (t memTx) SetProperty(replication.NodeID, string, any) error {
	return replication.ErrInvalidCommand
}

func (t memTx) GetMeta(k []byte) ([]byte, error) { return bytes.Clone(t.s.rows[string(k)]), nil }

func (t memTx) ScanMeta(prefix []byte, fn func(k, v []byte) error) error {
	var keys []string
	for k := range t.s.rows {
		if bytes.HasPrefix([]byte(k), prefix) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		if err := fn([]byte(k), t.s.rows[k]); err != nil {
			return err
		}
	}
	return nil
}

func (t memTx) SetMeta(k, v []byte) error {
	key, old := string(k), t.s.rows[string(k)]
	t.s.undo = append(t.s.undo, func() { t.s.rows[key] = old })
	if v == nil {
		delete(t.s.rows, key)
	} else {
		t.s.rows[key] = bytes.Clone(v)
	}
	return nil
}

// benchNodes starts three nodes in this process: real TCP, default
// configuration, and returns them with the leader first.
func benchNodes(tb testing.TB, open func(dir string) replication.Storage, mode replication.Constructor, change func(*replication.Config)) []replication.Replicator {
	tb.Helper()
	nodes := make([]replication.Replicator, 3)
	addrs := freeAddrs(tb, len(nodes))
	errs := make(chan error, len(nodes))
	for i := range nodes {
		cfg := replication.DefaultConfig()
		cfg.Mode, cfg.NodeID, cfg.BindAddr, cfg.DataDir = replication.ModeRaft, fmt.Sprint("n", i), addrs[i], tb.TempDir()
		cfg.Raft.Bootstrap = i == 0
		for j, addr := range addrs {
			if j != i {
				cfg.Raft.Peers = append(cfg.Raft.Peers, replication.RaftPeer{ID: fmt.Sprint("n", j), Addr: addr})
			}
		}
		if change != nil {
			change(cfg)
		}
		store := open(cfg.DataDir)
		var err error
		nodes[i], err = replication.New(cfg, store, replication.Modes{replication.ModeRaft: mode}, replication.WithLogger(quietLogger()))
		require.NoError(tb, err)
		repl := nodes[i]
		tb.Cleanup(func() {
			require.NoError(tb, repl.Shutdown())
			if c, ok := store.(io.Closer); ok {
				require.NoError(tb, c.Close())
			}
		})
		go func() { errs <- repl.Start(tb.Context()) }()
	}
	for range nodes {
		require.NoError(tb, <-errs)
	}
	var leader int
	require.Eventually(tb, func() bool {
		leader = slices.IndexFunc(nodes, func(r replication.Replicator) bool { return r.IsLeader() })
		return leader >= 0
	}, patience, time.Millisecond)
	nodes[0], nodes[leader] = nodes[leader], nodes[0]
	return nodes
}

func benchMemNodes(tb testing.TB) []replication.Replicator {
	return benchNodes(tb, func(string) replication.Storage { return newMemStore() }, raftnode.New, nil)
}

// emptyFSM does nothing.
type emptyFSM struct{}

func (emptyFSM) Apply(*raft.Log) any                 { return nil }
func (emptyFSM) Snapshot() (raft.FSMSnapshot, error) { return nil, raft.ErrNothingNewToSnapshot }
func (emptyFSM) Restore(r io.ReadCloser) error       { return r.Close() }

// trackingLayer is TCP as raft.NewTCPTransport has it, but for the end: it
// closes accepted connections too, for which that waits for ever.
type trackingLayer struct {
	net.Listener
	mu    sync.Mutex // guards conns
	conns []net.Conn
}

func (l *trackingLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", string(addr), timeout)
}

func (l *trackingLayer) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.conns = append(l.conns, c)
	}
	return c, err
}

func (l *trackingLayer) Close() error {
	err := l.Listener.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		_ = c.Close() // the other side may have been first
	}
	return err
}

// plainRaft is hashicorp/raft as it comes: three nodes, default configuration,
// TCP, raft-boltdb with default options, a state machine that does nothing. It
// returns the leader.
func plainRaft(tb testing.TB) *raft.Raft {
	tb.Helper()
	var nodes []*raft.Raft
	var servers []raft.Server
	var starts []func() (*raft.Raft, error)
	for i := range 3 {
		cfg := raft.DefaultConfig()
		cfg.LocalID = raft.ServerID(fmt.Sprint("n", i))
		cfg.Logger = nil
		cfg.LogOutput = io.Discard
		store, err := raftboltdb.NewBoltStore(filepath.Join(tb.TempDir(), "raft.db"))
		require.NoError(tb, err)
		tb.Cleanup(func() { require.NoError(tb, store.Close()) })
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(tb, err)
		trans := raft.NewNetworkTransport(&trackingLayer{Listener: l}, 3, 10*time.Second, io.Discard)
		tb.Cleanup(func() { require.NoError(tb, trans.Close()) })
		servers = append(servers, raft.Server{ID: cfg.LocalID, Address: trans.LocalAddr()})
		starts = append(starts, func() (*raft.Raft, error) {
			return raft.NewRaft(cfg, emptyFSM{}, store, store, raft.NewInmemSnapshotStore(), trans)
		})
	}
	for _, start := range starts {
		r, err := start()
		require.NoError(tb, err)
		tb.Cleanup(func() { require.NoError(tb, r.Shutdown().Error()) })
		nodes = append(nodes, r)
	}
	require.NoError(tb, nodes[0].BootstrapCluster(raft.Configuration{Servers: servers}).Error())
	var leader *raft.Raft
	require.Eventually(tb, func() bool {
		for _, r := range nodes {
			if r.State() == raft.Leader {
				leader = r
			}
		}
		return leader != nil
	}, patience, time.Millisecond)
	return leader
}

const commandBytes = 256

// putCommand is a PutNode whose Data has commandBytes; i varies the node.
func putCommand(i int64) *replication.Command {
	const head, tail = `{"id":"n%06d","labels":["Bench"],"properties":{"v":"`, `"}}`
	data := fmt.Appendf(make([]byte, 0, commandBytes), head, i%100000)
	for len(data) < commandBytes-len(tail) {
		data = append(data, byte('a'+(i+int64(len(data)))%26))
	}
	return &replication.Command{Type: replication.CmdPutNode, Data: append(data, tail...), Timestamp: time.Now()}
}

// rate runs op in some goroutines for a while and returns how often it
// succeeded in a second. An error fails the test.
func rate(tb testing.TB, workers int, d time.Duration, op func(i int64) error) float64 {
	tb.Helper()
	var done, next atomic.Int64
	var wg sync.WaitGroup
	start := time.Now()
	for range workers {
		wg.Go(func() {
			for time.Since(start) < d {
				if err := op(next.Add(1)); err != nil {
					tb.Errorf("operation: %v", err)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	return float64(done.Load()) / time.Since(start).Seconds()
}

func median[T float64 | time.Duration](list []T) T {
	list = slices.Clone(list)
	slices.Sort(list)
	return list[len(list)/2]
}

// cpuTime is the processor time that this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
