package raftnode_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/raftnode"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(asNode); dir != "" {
		os.Exit(beNode(dir))
	}
	goleak.VerifyTestMain(m)
}

const patience = time.Minute

// member is one node of a test cluster, which can be stopped and started.
type member struct {
	cfg   *replication.Config
	dir   string
	store *boltgraph.Store
	repl  replication.Replicator
}

type cluster struct {
	t       *testing.T
	members []*member
}

// freeAddrs reserves loopback ports. They are free when it returns; another
// process could take one before it is used, but not another call of it.
func freeAddrs(t testing.TB, n int) []string {
	t.Helper()
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs
}

func quietLogger() replication.Logger {
	if os.Getenv("NORNIC_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

func newCluster(t *testing.T, n int, change func(i int, cfg *replication.Config)) *cluster {
	t.Helper()
	c := &cluster{t: t}
	addrs := freeAddrs(t, n)
	for i := range n {
		cfg := replication.DefaultConfig()
		cfg.Mode = replication.ModeRaft
		cfg.NodeID = fmt.Sprintf("n%d", i+1)
		cfg.BindAddr = addrs[i]
		dir := t.TempDir()
		cfg.DataDir = filepath.Join(dir, "replication")
		cfg.Secret = "a secret of the tests"
		cfg.Raft.Bootstrap = i == 0
		cfg.Raft.ElectionTimeout = 800 * time.Millisecond // less, and a busy machine elects again and again
		cfg.Raft.HeartbeatTimeout = 80 * time.Millisecond
		cfg.Raft.LeaderLeaseTimeout = 400 * time.Millisecond
		for j := range n {
			if j != i {
				cfg.Raft.Peers = append(cfg.Raft.Peers, replication.RaftPeer{ID: fmt.Sprintf("n%d", j+1), Addr: addrs[j]})
			}
		}
		if change != nil {
			change(i, cfg)
		}
		c.members = append(c.members, &member{cfg: cfg, dir: dir})
	}
	t.Cleanup(func() {
		for _, m := range c.members {
			c.stop(m)
		}
	})
	return c
}

func (c *cluster) startAll() {
	c.t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, len(c.members))
	for i, m := range c.members {
		wg.Go(func() { errs[i] = c.tryStart(m) })
	}
	wg.Wait()
	for _, err := range errs {
		require.NoError(c.t, err)
	}
}

func (c *cluster) tryStart(m *member) error {
	store, err := boltgraph.Open(filepath.Join(m.dir, "graph.db"), boltgraph.WithNoSync())
	if err != nil {
		return err
	}
	m.store = store
	m.repl, err = replication.New(m.cfg, store, replication.Modes{replication.ModeRaft: raftnode.New}, replication.WithLogger(quietLogger()))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return m.repl.Start(ctx)
}

func (c *cluster) stop(m *member) {
	if m.repl != nil {
		require.NoError(c.t, m.repl.Shutdown())
		m.repl = nil
	}
	if m.store != nil {
		require.NoError(c.t, m.store.Close())
		m.store = nil
	}
}

func (c *cluster) leader() *member {
	c.t.Helper()
	var found *member
	require.Eventually(c.t, func() bool {
		for _, m := range c.members {
			if m.repl != nil && m.repl.IsLeader() {
				found = m
				return true
			}
		}
		return false
	}, patience, 5*time.Millisecond, "no leader")
	return found
}

func (c *cluster) others(m *member) (list []*member) {
	for _, o := range c.members {
		if o != m {
			list = append(list, o)
		}
	}
	return list
}

// putNode makes a write with a request ID: an election in the middle, which a
// busy machine can cause, is passed over by the retry.
func putNode(t *testing.T, id string, value any) *replication.Command {
	t.Helper()
	cmd, err := replication.NewNodeCommand(replication.CmdPutNode,
		&replication.Node{ID: replication.NodeID(id), Labels: []string{"T"}, Properties: map[string]any{"v": value}})
	require.NoError(t, err)
	cmd.RequestID = rand.Text()
	return cmd
}

// sameContent waits until all running members hold the same at one position.
func (c *cluster) sameContent() boltgraph.Stats {
	c.t.Helper()
	var last boltgraph.Stats
	defer func() {
		for _, m := range c.members {
			if c.t.Failed() && m.repl != nil {
				st, err := m.store.Stats()
				c.t.Logf("%s: %+v %v %+v", m.cfg.NodeID, st, err, m.repl.Health())
			}
		}
	}()
	require.Eventually(c.t, func() bool {
		var seen []boltgraph.Stats
		for _, m := range c.members {
			if m.store == nil {
				continue
			}
			s, err := m.store.Stats()
			require.NoError(c.t, err)
			seen = append(seen, s)
		}
		last = seen[0]
		for _, s := range seen {
			if s != last {
				return false
			}
		}
		return true
	}, patience, 10*time.Millisecond, "the members differ")
	return last
}

func startWith(ctx context.Context, m *member, store replication.Storage) error {
	repl, err := replication.New(m.cfg, store, replication.Modes{replication.ModeRaft: raftnode.New}, replication.WithLogger(quietLogger()))
	if err != nil {
		return err
	}
	defer func() { _ = repl.Shutdown() }()
	return repl.Start(ctx)
}
