package testharness_test

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/internal/bubble"
	"github.com/nornicdb/replication/raftnode"
	th "github.com/nornicdb/replication/testharness"
	"github.com/nornicdb/replication/transport"
	"github.com/stretchr/testify/require"
)

// raftMember is a node of a Raft cluster whose network and disk are simulated.
type raftMember struct {
	id, addr string
	cfg      *replication.Config
	disk     *th.Disk
	graph    *boltgraph.Store
	volume   *th.FaultyStorage
	tr       *transport.Transport
	repl     replication.Replicator
	served   chan error
}

type raftCluster struct {
	t       *testing.T
	n       *th.Network
	members []*raftMember
}

// newRaftCluster starts three nodes in a bubble.
func newRaftCluster(t *testing.T, n *th.Network, seed uint64) *raftCluster {
	c := &raftCluster{t: t, n: n}
	for i := range 3 {
		id := fmt.Sprint("n", i+1)
		m := &raftMember{id: id, addr: id + ":7688", disk: th.NewDisk(seed + uint64(i)), graph: graph(t)}
		m.volume = m.disk.NewStorage(m.graph)
		m.cfg = replication.DefaultConfig()
		m.cfg.Mode, m.cfg.NodeID, m.cfg.BindAddr, m.cfg.DataDir = replication.ModeRaft, id, m.addr, t.TempDir()
		m.cfg.Raft.Bootstrap = i == 0
		for j := range 3 {
			if peer := fmt.Sprint("n", j+1); j != i {
				m.cfg.Raft.Peers = append(m.cfg.Raft.Peers, replication.RaftPeer{ID: peer, Addr: peer + ":7688"})
			}
		}
		c.members = append(c.members, m)
	}
	errs := make(chan error, 3)
	for _, m := range c.members {
		go func() { errs <- c.start(m) }()
	}
	for range c.members {
		require.NoError(t, <-errs)
	}
	t.Cleanup(func() {
		for _, m := range c.members {
			c.stop(m)
		}
		virtual(time.Minute) // hashicorp/raft leaves an RPC of a leadership transfer to its timeout
	})
	return c
}

// start starts a node as what its disk has made of it.
func (c *raftCluster) start(m *raftMember) (err error) {
	h := c.n.Host(m.id)
	m.tr, err = transport.New(transport.Options{NodeID: m.id, ClusterID: m.cfg.Raft.ClusterID, Secret: []byte(clusterSecret), Logger: quiet(),
		Listen: h.Listen, Dial: h.Dial})
	if err != nil {
		return err
	}
	tr, served := m.tr, make(chan error, 1)
	m.served = served
	go func() { served <- tr.Listen(context.Background(), m.addr, nil) }()
	mode := raftnode.Mode(raftnode.WithLogStore(m.cfg.LogStore, func(string) (raftnode.LogStore, error) { return m.disk.OpenLog(), nil }))
	m.repl, err = replication.New(m.cfg, m.volume.Open(), replication.Modes{replication.ModeRaft: mode},
		replication.WithLogger(quiet()), replication.WithTransport(m.tr))
	if err != nil {
		return err
	}
	return m.repl.Start(context.Background())
}

func (c *raftCluster) stop(m *raftMember) {
	require.NoError(c.t, m.repl.Shutdown())
	require.NoError(c.t, m.tr.Close())
	<-m.served
}

// crash cuts a node's power, and clears away what is left of its process.
func (c *raftCluster) crash(m *raftMember) {
	c.n.Isolate(m.id)
	c.n.Crash(m.id)
	require.NoError(c.t, m.disk.Crash())
	_ = m.repl.Shutdown() // of a dead node: its errors are expected
	_ = m.tr.Close()
	<-m.served
}

func (c *raftCluster) leader(but ...*raftMember) *raftMember {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); virtual(10 * time.Millisecond) {
		for _, m := range c.members {
			if m.repl.IsLeader() && (len(but) == 0 || m != but[0]) {
				return m
			}
		}
	}
	require.Fail(c.t, "no leader within a minute")
	return nil
}

func putNode(t *testing.T, id string) *replication.Command {
	data, err := json.Marshal(map[string]any{"id": id, "labels": []string{"L"}, "properties": map[string]any{}})
	require.NoError(t, err)
	return &replication.Command{Type: replication.CmdPutNode, Data: data, Timestamp: time.Now(), RequestID: id}
}

// requireEverywhere waits until every node has applied what is committed, and
// checks which graph nodes they have.
func (c *raftCluster) requireEverywhere(present, absent []string) {
	c.t.Helper()
	position, err := c.leader().repl.(replication.BatchApplier).ApplyBatch(c.t.Context(), []*replication.Command{putNode(c.t, "last")})
	require.NoError(c.t, err)
	for _, m := range c.members {
		require.NoError(c.t, m.repl.(replication.ConsistentReader).WaitApplied(c.t.Context(), position))
		for _, id := range present {
			_, err := m.graph.Node(replication.NodeID(id))
			require.NoError(c.t, err, "%s on %s", id, m.id)
		}
		for _, id := range absent {
			_, err := m.graph.Node(replication.NodeID(id))
			require.ErrorIs(c.t, err, replication.ErrNotFound, "%s on %s", id, m.id)
		}
	}
}

func TestRaftClusterThroughPartitionAndHeal(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		c := newRaftCluster(t, n, 1)
		n.SetDefaultFaults(th.Faults{Latency: time.Millisecond, Jitter: 4 * time.Millisecond, Loss: 0.005, Corrupt: 0.001})
		old := c.leader()
		require.NoError(t, old.repl.Apply(putNode(t, "a"), time.Minute))
		n.Isolate(old.id)
		cut := time.Now()
		require.Error(t, old.repl.Apply(putNode(t, "lost"), 10*time.Second))
		next := c.leader(old)
		t.Logf("another leader within %v", time.Since(cut))
		require.NoError(t, next.repl.Apply(putNode(t, "b"), time.Minute))
		require.False(t, old.repl.IsLeader())
		n.Heal()
		require.NoError(t, old.repl.Apply(putNode(t, "c"), time.Minute), "it follows, and forwards")
		c.requireEverywhere([]string{"a", "b", "c"}, []string{"lost"})
	})
}

func TestRaftClusterThroughAsymmetricPartitions(t *testing.T) {
	for name, cut := range map[string]func(n *th.Network, leader string, others []string){
		"leader is not heard":         func(n *th.Network, l string, o []string) { n.OneWay(l, o[0]); n.OneWay(l, o[1]) },
		"leader does not hear":        func(n *th.Network, l string, o []string) { n.OneWay(o[0], l); n.OneWay(o[1], l) },
		"followers do not meet":       func(n *th.Network, l string, o []string) { n.Bridge(l) },
		"leader meets one follower":   func(n *th.Network, l string, o []string) { n.Bridge(o[0]) },
		"one follower is not reached": func(n *th.Network, l string, o []string) { n.OneWay(l, o[0]) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *th.Network) {
				c := newRaftCluster(t, n, 1)
				leader := c.leader()
				var others []string
				for _, m := range c.members {
					if m != leader {
						others = append(others, m.id)
					}
				}
				cut(n, leader.id, others)
				virtual(10 * time.Second)
				require.NoError(t, c.leader().repl.Apply(putNode(t, "during"), time.Minute))
				n.Heal()
				require.NoError(t, leader.repl.Apply(putNode(t, "after"), time.Minute))
				c.requireEverywhere([]string{"during", "after"}, nil)
			})
		})
	}
}

func TestRaftClusterLosesNothingThroughCrashes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		n := th.NewNetwork(7)
		c := newRaftCluster(t, n, 7)
		n.SetDefaultFaults(th.Faults{Latency: time.Millisecond, Jitter: time.Millisecond})
		for _, m := range c.members {
			m.disk.SetFaults(th.DiskFaults{SyncLatency: time.Millisecond, SyncJitter: 5 * time.Millisecond})
		}
		var done []string
		for round := range 4 {
			victim := c.leader()
			if round%2 == 1 {
				victim = c.members[round%3]
			}
			crashed := make(chan struct{})
			victim.disk.CrashAt(2+5*round, func() { // in the middle of a write
				n.Isolate(victim.id)
				n.Crash(victim.id)
				close(crashed)
			})
			for i := 0; ; i++ {
				id := fmt.Sprintf("r%d-%d", round, i)
				if err := c.leader().repl.Apply(putNode(t, id), 5*time.Second); err == nil {
					done = append(done, id)
				}
				if closed(crashed) {
					break
				}
			}
			c.crash(victim)
			n.Heal()
			require.NoError(t, c.start(victim))
		}
		require.Greater(t, len(done), 10, "of any use")
		c.requireEverywhere(done, nil)
	})
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestRaftClusterWithAHungDisk(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		c := newRaftCluster(t, n, 1)
		old := c.leader()
		require.NoError(t, old.repl.Apply(putNode(t, "a"), time.Minute))
		old.disk.Hang()
		require.Error(t, old.repl.Apply(putNode(t, "hung"), time.Second))
		next := c.leader(old)
		require.NoError(t, next.repl.Apply(putNode(t, "b"), time.Minute))
		require.False(t, old.repl.IsLeader())
		require.False(t, old.repl.Health().Healthy, "it answers, and knows")
		old.disk.Release()
		require.NoError(t, old.repl.Apply(putNode(t, "c"), time.Minute))
		c.requireEverywhere([]string{"a", "b", "c"}, nil)
	})
}

func TestRaftClusterWithFailingAndFullDisks(t *testing.T) {
	for name, f := range map[string]th.DiskFaults{"fails": {Fail: 1}, "is full": {Full: true}} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *th.Network) {
				c := newRaftCluster(t, n, 1)
				old := c.leader()
				old.disk.SetFaults(f)
				require.NoError(t, old.repl.Apply(putNode(t, "a"), time.Minute), "another node takes it")
				next := c.leader(old)
				require.NoError(t, next.repl.Apply(putNode(t, "b"), time.Minute))
				c.crash(old)
				old.disk.SetFaults(th.DiskFaults{})
				n.Heal()
				require.NoError(t, c.start(old))
				c.requireEverywhere([]string{"a", "b"}, nil)
			})
		})
	}
}

// TestLyingDisksLoseWrites shows that the test above can fail: with disks that
// lie, a crash of all nodes loses what was acknowledged.
func TestLyingDisksLoseWrites(t *testing.T) {
	for _, lying := range []bool{false, true} {
		t.Run(fmt.Sprint(lying), func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *th.Network) {
				c := newRaftCluster(t, n, 1)
				require.NoError(t, c.leader().repl.Apply(putNode(t, "a"), time.Minute))
				virtual(time.Second) // everybody has it
				for _, m := range c.members {
					if lying {
						require.NoError(t, m.disk.Lie(0))
					}
				}
				require.NoError(t, c.leader().repl.Apply(putNode(t, "b"), time.Minute))
				for _, m := range c.members {
					c.crash(m)
				}
				n.Heal()
				errs := make(chan error, 3)
				for _, m := range c.members {
					go func() { errs <- c.start(m) }()
				}
				for range c.members {
					require.NoError(t, <-errs)
				}
				if lying {
					c.requireEverywhere([]string{"a"}, []string{"b"})
				} else {
					c.requireEverywhere([]string{"a", "b"}, nil)
				}
			})
		})
	}
}
