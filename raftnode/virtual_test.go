package raftnode_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/raftnode"
	"github.com/nornicdb/replication/transport"
	"github.com/stretchr/testify/require"
)

// memoryNet is a network in memory: listeners by address, pipes for
// connections, and addresses that are cut off. It works in virtual time.
type memoryNet struct {
	mu        sync.Mutex
	listeners map[string]*memoryListener
	conns     map[net.Conn]string // to the address at the other end
	cut       map[string]bool
	wrap      func(net.Conn) net.Conn // the dialler's end; nil: as it is
}

type memoryListener struct {
	addr  string
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

type memoryAddr string

func (memoryAddr) Network() string  { return "memory" }
func (a memoryAddr) String() string { return string(a) }

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *memoryListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *memoryListener) Addr() net.Addr { return memoryAddr(l.addr) }

func (m *memoryNet) listen(_ context.Context, addr string) (net.Listener, error) {
	l := &memoryListener{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.listeners[addr] = l
	return l, nil
}

// dialer is the network as one address sees it.
func (m *memoryNet) dialer(from string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, to string) (net.Conn, error) {
		m.mu.Lock()
		l, refused := m.listeners[to], m.cut[from] || m.cut[to]
		here, there := net.Pipe()
		m.conns[here], m.conns[there] = to, from
		m.mu.Unlock()
		if l == nil || refused {
			return nil, fmt.Errorf("%s does not answer", to)
		}
		select {
		case l.conns <- there:
			if m.wrap != nil {
				return m.wrap(here), nil
			}
			return here, nil
		case <-l.done:
			return nil, fmt.Errorf("%s refuses", to)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// isolate cuts an address off, and its connections.
func (m *memoryNet) isolate(addr string, cut bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cut[addr] = cut
	for c, to := range m.conns {
		if to == addr && cut {
			_ = c.Close()
		}
	}
}

type virtualNode struct {
	addr  string
	repl  replication.Replicator
	store *boltgraph.Store
	tr    *transport.Transport
	inmem *raft.InmemTransport
}

// virtualCluster starts three nodes in a bubble. With inmem, Raft runs over
// hashicorp's in-memory transport and only forwarding over ours.
func virtualCluster(t *testing.T, network *memoryNet, inmem bool) []*virtualNode {
	nodes := make([]*virtualNode, 3)
	var wg sync.WaitGroup
	for i := range nodes {
		addr := fmt.Sprintf("10.0.0.%d:7688", i+1)
		nodes[i] = &virtualNode{addr: addr}
		_, nodes[i].inmem = raft.NewInmemTransport(raft.ServerAddress(addr))
	}
	for i, n := range nodes {
		cfg := replication.DefaultConfig()
		cfg.Mode, cfg.NodeID, cfg.BindAddr, cfg.DataDir = replication.ModeRaft, fmt.Sprint("n", i+1), n.addr, t.TempDir()
		cfg.Raft.Bootstrap = i == 0
		var opts []raftnode.Option
		if inmem {
			opts = append(opts, raftnode.WithRaftTransport(n.inmem))
		}
		for j, peer := range nodes {
			if j != i {
				cfg.Raft.Peers = append(cfg.Raft.Peers, replication.RaftPeer{ID: fmt.Sprint("n", j+1), Addr: peer.addr})
				n.inmem.Connect(raft.ServerAddress(peer.addr), peer.inmem)
			}
		}
		var err error
		n.store, err = boltgraph.Open(filepath.Join(cfg.DataDir, "graph.db"), boltgraph.WithNoSync())
		require.NoError(t, err)
		n.tr, err = transport.New(transport.Options{NodeID: cfg.NodeID, ClusterID: cfg.Raft.ClusterID, Secret: []byte("0123456789abcdef"),
			Logger: quietLogger(), Listen: network.listen, Dial: network.dialer(n.addr)})
		require.NoError(t, err)
		wg.Go(func() { _ = n.tr.Listen(context.Background(), n.addr, nil) })
		n.repl, err = replication.New(cfg, n.store, replication.Modes{replication.ModeRaft: raftnode.Mode(opts...)},
			replication.WithLogger(quietLogger()), replication.WithTransport(n.tr))
		require.NoError(t, err)
	}
	errs := make(chan error, len(nodes))
	for _, n := range nodes {
		go func() { errs <- n.repl.Start(context.Background()) }()
	}
	for range nodes {
		require.NoError(t, <-errs)
	}
	t.Cleanup(func() {
		for _, n := range nodes {
			require.NoError(t, n.repl.Shutdown())
			require.NoError(t, n.tr.Close())
			require.NoError(t, n.store.Close())
		}
		wg.Wait()
		// hashicorp/raft leaves an RPC of a leadership transfer to its timeout.
		<-time.After(time.Minute) // virtual
	})
	return nodes
}

func virtualLeader(t *testing.T, nodes []*virtualNode, but *virtualNode) *virtualNode {
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		for _, n := range nodes {
			if n != but && n.repl.IsLeader() {
				return n
			}
		}
		<-time.After(10 * time.Millisecond) // virtual
	}
	require.Fail(t, "no leader within a virtual minute")
	return nil
}

func TestFailoverInVirtualTime(t *testing.T) {
	for name, inmem := range map[string]bool{"own transport": false, "hashicorp's in-memory transport": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				network := &memoryNet{listeners: make(map[string]*memoryListener), conns: make(map[net.Conn]string), cut: make(map[string]bool)}
				nodes := virtualCluster(t, network, inmem)
				old := virtualLeader(t, nodes, nil)
				for i, n := range nodes {
					require.NoError(t, n.repl.Apply(putNode(t, fmt.Sprint("a", i), i), time.Minute))
				}
				network.isolate(old.addr, true)
				old.inmem.DisconnectAll()
				for _, n := range nodes {
					n.inmem.Disconnect(raft.ServerAddress(old.addr))
				}
				start := time.Now()
				next := virtualLeader(t, nodes, old)
				require.Less(t, time.Since(start), 5*time.Second)
				require.NoError(t, next.repl.Apply(putNode(t, "b", 1), time.Minute))

				// The old leader is alone: it neither takes a write nor answers a
				// linearizable read, and says that it is not healthy.
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				_, err := old.repl.(replication.ConsistentReader).ReadBarrier(ctx, replication.ConsistencyQuorum)
				require.Error(t, err)
				require.Error(t, old.repl.Apply(putNode(t, "lost", 1), 10*time.Second))
				require.False(t, old.repl.Health().Healthy)

				network.isolate(old.addr, false)
				for _, n := range nodes {
					for _, m := range nodes {
						n.inmem.Connect(raft.ServerAddress(m.addr), m.inmem)
					}
				}
				position, err := old.repl.(replication.BatchApplier).ApplyBatch(t.Context(), []*replication.Command{putNode(t, "c", 1)})
				require.NoError(t, err)
				for _, n := range nodes {
					require.NoError(t, n.repl.(replication.ConsistentReader).WaitApplied(t.Context(), position))
					_, err := n.store.Node("b")
					require.NoError(t, err)
				}
				_, err = old.store.Node("lost")
				require.ErrorIs(t, err, replication.ErrNotFound)
			})
		})
	}
}
