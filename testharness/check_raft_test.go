package testharness

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/raftnode"
	"github.com/nornicdb/replication/transport"
	"github.com/stretchr/testify/require"
)

// pipeNet is as much of a network as these tests need: pipes, and addresses
// that are cut off.
type pipeNet struct {
	mu        sync.Mutex
	listeners map[string]*pipeListener
	conns     map[net.Conn][2]string
	cut       map[string]bool
}

type pipeListener struct {
	addr  string
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

type pipeAddr string

func (pipeAddr) Network() string  { return "pipe" }
func (a pipeAddr) String() string { return string(a) }

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return pipeAddr(l.addr) }

func (p *pipeNet) listen(_ context.Context, addr string) (net.Listener, error) {
	l := &pipeListener{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listeners[addr] = l
	return l, nil
}

func (p *pipeNet) dialer(from string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, to string) (net.Conn, error) {
		p.mu.Lock()
		l, refused := p.listeners[to], p.cut[from] || p.cut[to]
		p.mu.Unlock()
		if l == nil || refused {
			return nil, fmt.Errorf("%s does not answer", to)
		}
		here, there := net.Pipe()
		select {
		case l.conns <- there:
		case <-l.done:
			return nil, fmt.Errorf("%s refuses", to)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.conns[here], p.conns[there] = [2]string{from, to}, [2]string{from, to}
		if p.cut[from] || p.cut[to] {
			_ = here.Close()
		}
		return here, nil
	}
}

func (p *pipeNet) isolate(addr string, cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut[addr] = cut
	for c, ends := range p.conns {
		if cut && (ends[0] == addr || ends[1] == addr) {
			_ = c.Close()
			delete(p.conns, c)
		}
	}
}

type trioMember struct {
	addr  string
	repl  replication.Replicator
	store *MemStore
}

// raftTrio starts three Raft nodes over MemStores.
func raftTrio(t *testing.T, network *pipeNet) []*trioMember {
	t.Helper()
	members := make([]*trioMember, 3)
	for i := range members {
		members[i] = &trioMember{addr: fmt.Sprintf("10.0.0.%d:7688", i+1), store: NewMemStore()}
	}
	var wg sync.WaitGroup
	var closers []func() error
	for i, m := range members {
		cfg := replication.DefaultConfig()
		cfg.Mode, cfg.NodeID, cfg.BindAddr, cfg.DataDir = replication.ModeRaft, fmt.Sprint("n", i+1), m.addr, t.TempDir()
		cfg.Raft.Bootstrap = i == 0
		for j, peer := range members {
			if j != i {
				cfg.Raft.Peers = append(cfg.Raft.Peers, replication.RaftPeer{ID: fmt.Sprint("n", j+1), Addr: peer.addr})
			}
		}
		tr, err := transport.New(transport.Options{NodeID: cfg.NodeID, ClusterID: cfg.Raft.ClusterID, Secret: []byte("0123456789abcdef"),
			Logger: scenarioLogger(), Listen: network.listen, Dial: network.dialer(m.addr)})
		require.NoError(t, err)
		wg.Go(func() { _ = tr.Listen(context.Background(), m.addr, nil) })
		m.repl, err = replication.New(cfg, m.store, replication.Modes{replication.ModeRaft: raftnode.New},
			replication.WithLogger(scenarioLogger()), replication.WithTransport(tr))
		require.NoError(t, err)
		closers = append(closers, m.repl.Shutdown, tr.Close)
	}
	errs := make(chan error, len(members))
	for _, m := range members {
		go func() { errs <- m.repl.Start(context.Background()) }()
	}
	for range members {
		require.NoError(t, <-errs)
	}
	t.Cleanup(func() {
		for _, close := range closers {
			require.NoError(t, close())
		}
		wg.Wait()
		time.Sleep(time.Minute) // virtual: hashicorp/raft leaves an RPC of a leadership transfer to its timeout
	})
	return members
}

func leaderOf(members []*trioMember) *trioMember {
	for _, m := range members {
		if m.repl.IsLeader() {
			return m
		}
	}
	return nil
}

// raftClients lets clients work for a time, each beginning with another node.
func raftClients(h *History, targets []Target, clients int, until time.Time) *sync.WaitGroup {
	var wg sync.WaitGroup
	for c := range clients {
		own := append(append([]Target{}, targets[c%len(targets):]...), targets[:c%len(targets)]...)
		client := h.Client(own...)
		wg.Go(func() {
			for i := 0; time.Now().Before(until); i++ {
				ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				id := registerID(i % 2)
				client.Set(ctx, id, "k", fmt.Sprintf("%d/%d", c, i))
				client.Get(ctx, replication.ConsistencyQuorum, id, "k")
				client.Create(ctx)
				cancel()
				time.Sleep(50 * time.Millisecond) // virtual
			}
		})
	}
	return &wg
}

// TestChecksHoldOnARaftCluster: three nodes whose leader is cut off again and
// again, in virtual time. Everything that is checked must hold.
func TestChecksHoldOnARaftCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := &pipeNet{listeners: map[string]*pipeListener{}, conns: map[net.Conn][2]string{}, cut: map[string]bool{}}
		members := raftTrio(t, network)
		var apps Applications
		var seen Observations
		var targets []Target
		for _, m := range members {
			apps.Watch(m.repl.NodeID(), m.store)
			t.Cleanup(seen.Watch(m.repl, 20*time.Millisecond))
			targets = append(targets, Target{m.repl, m.store.Property})
		}
		h := NewHistory("raft")
		for i := range 2 {
			cmd, err := replication.NewNodeCommand(replication.CmdCreateNode, &replication.Node{ID: registerID(i)})
			require.NoError(t, err)
			require.NoError(t, members[i].repl.Apply(cmd, time.Minute))
		}
		clients := raftClients(h, targets, 3, time.Now().Add(12*time.Second))
		for range 2 {
			time.Sleep(2 * time.Second)
			if cut := leaderOf(members); cut != nil {
				network.isolate(cut.addr, true)
				time.Sleep(3 * time.Second)
				network.isolate(cut.addr, false)
			}
		}
		clients.Wait()
		_, err := CheckProgress(10*time.Second, func(ctx context.Context) error { return allAgree(ctx, h, members, &seen) })
		require.NoError(t, err)
		for _, m := range members {
			ops := h.Operations()
			require.NoError(t, CheckOutcomes(ops, Has(m.store)), m.repl.NodeID())
		}
		checkHistory(t, h, members[0].store)
		require.NoError(t, apps.Check())
		require.NoError(t, seen.Err())
		require.Greater(t, seen.Terms(), 1, "the leader was cut off and replaced")
		t.Log(len(h.Operations()), "operations", countOutcomes(h.Operations()), seen.Terms(), "terms")
	})
}

// allAgree makes a write through each node, waits for it everywhere and notes
// what the nodes hold.
func allAgree(ctx context.Context, h *History, members []*trioMember, seen *Observations) error {
	var last uint64
	for _, m := range members {
		op := h.Client(Target{m.repl, m.store.Property}).Create(ctx)
		if op.Outcome != OutcomeDone {
			return fmt.Errorf("through %s: %w", op.Node, op.Err)
		}
		last = max(last, op.Position)
	}
	for _, m := range members {
		if err := m.repl.(replication.ConsistentReader).WaitApplied(ctx, last); err != nil {
			return err
		}
		st := m.store.Stats()
		seen.State(m.repl.NodeID(), st.Position, st.Digest)
	}
	return nil
}

// hastyReader is a node whose reads at QUORUM wait for nobody.
type hastyReader struct{ replication.Replicator }

func (h hastyReader) ReadBarrier(context.Context, replication.Consistency) (uint64, error) {
	return 0, nil
}
func (h hastyReader) WaitApplied(context.Context, uint64) error { return nil }

// TestAStaleReadOfACutOffLeaderIsFound: the same cluster, a node that does not
// ask the others before it answers.
func TestAStaleReadOfACutOffLeaderIsFound(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pictures")
	synctest.Test(t, func(t *testing.T) {
		network := &pipeNet{listeners: map[string]*pipeListener{}, conns: map[net.Conn][2]string{}, cut: map[string]bool{}}
		members := raftTrio(t, network)
		var old *trioMember
		_, err := CheckProgress(time.Minute, func(context.Context) error {
			if old = leaderOf(members); old == nil {
				return replication.ErrNoLeader
			}
			return nil
		})
		require.NoError(t, err)
		cmd, err := replication.NewNodeCommand(replication.CmdCreateNode, &replication.Node{ID: registerID(0)})
		require.NoError(t, err)
		require.NoError(t, old.repl.Apply(cmd, time.Minute))
		h := NewHistory("stale")
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		require.Equal(t, OutcomeDone, h.Client(Target{old.repl, old.store.Property}).Set(ctx, registerID(0), "k", "old").Outcome)
		network.isolate(old.addr, true)
		var others []Target
		for _, m := range members {
			if m != old {
				others = append(others, Target{m.repl, m.store.Property})
			}
		}
		require.Equal(t, OutcomeDone, h.Client(others...).Set(ctx, registerID(0), "k", "new").Outcome)
		honest := h.Client(Target{old.repl, old.store.Property})
		short, cancelShort := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancelShort()
		require.Equal(t, OutcomeFailed, honest.Get(short, replication.ConsistencyQuorum, registerID(0), "k").Outcome)
		require.NoError(t, CheckLinearizable(h.Operations(), dir))
		honest.Use(Target{hastyReader{old.repl}, old.store.Property})
		require.Equal(t, `"old"`, honest.Get(ctx, replication.ConsistencyQuorum, registerID(0), "k").Value)
		require.ErrorIs(t, CheckLinearizable(h.Operations(), dir), ErrNotLinearizable)
		network.isolate(old.addr, false)
	})
}
