package raftnode_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	th "github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// scenario runs a play on a Raft cluster in virtual time: its leader, and a
// follower.
func scenario(t *testing.T, change func(*th.ClusterConfig), play func(t *testing.T, c *th.Cluster, leader, follower *th.Member)) {
	t.Parallel()
	bubble.Test(t, func(t *testing.T) {
		cfg := th.RaftConfig(1)
		if change != nil {
			change(&cfg)
		}
		c := th.NewCluster(t, cfg)
		c.Net.SetDefaultFaults(th.Faults{Latency: time.Millisecond})
		c.StartAll(t.Context())
		leader := c.WaitLeader(time.Minute)
		play(t, c, leader, leader.Peers()[0])
	})
}

func apply(t *testing.T, m *th.Member, cmd *replication.Command) {
	t.Helper()
	require.NoError(t, m.Replicator().Apply(cmd, time.Minute))
}

// basic is what any node of a cluster does for its clients.
func basic(t *testing.T, c *th.Cluster, m *th.Member) {
	h := th.NewHistory("basic")
	client := h.Client(target(m))
	ctx := t.Context()
	require.Equal(t, th.OutcomeDone, client.Do(ctx, putNode(t, "r", 0)).Outcome)
	require.Equal(t, th.OutcomeDone, client.Set(ctx, "r", "v", "one").Outcome)
	got := client.Get(ctx, replication.ConsistencyQuorum, "r", "v")
	require.Equal(t, `"one"`, got.Value, "it reads its own write")

	create, err := replication.NewNodeCommand(replication.CmdCreateNode, &replication.Node{ID: "once"})
	require.NoError(t, err)
	apply(t, m, create)
	require.ErrorIs(t, m.Replicator().Apply(create, time.Minute), replication.ErrExists, "a verdict is an answer")
	require.ErrorIs(t, m.Replicator().Apply(&replication.Command{Type: 31}, time.Minute), replication.ErrInvalidCommand)
	require.ErrorIs(t, m.Replicator().Apply(create, 0), replication.ErrInvalidTimeout)
	edge, err := replication.NewEdgeCommand(replication.CmdCreateEdge, &replication.Edge{StartNode: "r", EndNode: "nowhere", Type: "T"})
	require.NoError(t, err)
	_, err = m.Replicator().(replication.BatchApplier).ApplyBatch(ctx, []*replication.Command{putNode(t, "half", 1), edge})
	require.ErrorIs(t, err, replication.ErrMissingEnd)
	_, err = m.Store().Node("half")
	require.ErrorIs(t, err, replication.ErrNotFound, "all or none")
	health := m.Health()
	require.True(t, health.Healthy && health.Ready, health.Reasons)
	require.NotEmpty(t, m.Replicator().LeaderID())
	require.NoError(t, th.CheckLinearizable(h.Operations(), t.TempDir()))
}

func TestScenario_Raft_Leader_Basic(t *testing.T) {
	scenario(t, nil, func(t *testing.T, c *th.Cluster, leader, _ *th.Member) {
		basic(t, c, leader)
		require.Equal(t, "leader", leader.Health().Role)
	})
}

func TestScenario_Raft_Follower_Basic(t *testing.T) {
	scenario(t, nil, func(t *testing.T, c *th.Cluster, leader, follower *th.Member) {
		basic(t, c, follower)
		require.Equal(t, "follower", follower.Health().Role)
		require.Equal(t, leader.ID, follower.Replicator().LeaderID())
	})
}

func TestScenario_Raft_Leader_Replication(t *testing.T) {
	scenario(t, nil, func(t *testing.T, c *th.Cluster, leader, follower *th.Member) {
		for i := range 50 {
			apply(t, leader, putNode(t, fmt.Sprint("n", i), i))
		}
		stats, _ := c.WaitSame(time.Minute)
		require.Equal(t, 50, stats.Nodes)
		for _, p := range leader.Health().Peers {
			require.True(t, p.Healthy, p.ID)
			require.LessOrEqual(t, p.Lag, int64(1), "the leader knows how far its followers are")
		}
	})
}

// TestScenario_Raft_Follower_Replication: one that was away catches up, by the
// log while the others still have it, by a snapshot afterwards.
func TestScenario_Raft_Follower_Replication(t *testing.T) {
	compact := func(cfg *th.ClusterConfig) { *cfg = lagBySnapshot(*cfg) }
	for name, change := range map[string]func(*th.ClusterConfig){"log": nil, "snapshot": compact} {
		t.Run(name, func(t *testing.T) {
			scenario(t, change, func(t *testing.T, c *th.Cluster, leader, follower *th.Member) {
				c.Crash(follower)
				for i := range 60 {
					apply(t, leader, putNode(t, fmt.Sprint("n", i), i))
				}
				<-time.After(5 * time.Second) // virtual: time for snapshots
				installed := func() int { return strings.Count(c.Transcript.String(), "event snapshot_installed") }
				before := installed()
				require.NoError(t, c.Start(t.Context(), follower))
				stats, _ := c.WaitSame(time.Minute)
				require.Equal(t, 60, stats.Nodes)
				require.Equal(t, change != nil, installed() > before)
			})
		})
	}
}

func TestScenario_Raft_Leader_Failure(t *testing.T) {
	scenario(t, nil, func(t *testing.T, c *th.Cluster, leader, follower *th.Member) {
		apply(t, leader, putNode(t, "before", 1))
		start := time.Now()
		c.Crash(leader)
		next := c.WaitLeader(time.Minute, leader)
		apply(t, next, putNode(t, "after", 1))
		require.Less(t, time.Since(start), 5*leader.Config.Raft.ElectionTimeout, "writes go on")
		require.NoError(t, c.Start(t.Context(), leader))
		c.WaitRole(time.Minute, leader, "follower")
		stats, _ := c.WaitSame(time.Minute)
		require.Equal(t, 2, stats.Nodes)
	})
}

// TestScenario_Raft_Leader_FailureAlone: without a quorum nothing is
// acknowledged, nothing is read that may be old, and health says so.
func TestScenario_Raft_Leader_FailureAlone(t *testing.T) {
	scenario(t, nil, func(t *testing.T, c *th.Cluster, leader, _ *th.Member) {
		for _, o := range leader.Peers() {
			c.Crash(o)
		}
		err := leader.Replicator().Apply(putNode(t, "x", 1), 10*time.Second)
		require.ErrorIs(t, err, replication.ErrUnknownOutcome, "it is in the log, and may yet be committed")
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err = leader.Reader().ReadBarrier(ctx, replication.ConsistencyQuorum)
		require.Error(t, err)
		_, err = leader.Reader().ReadBarrier(ctx, replication.ConsistencyOne)
		require.NoError(t, err, "what it has it shows to who asks for no more")
		require.False(t, leader.Health().Healthy)
		for _, o := range leader.Peers() {
			require.NoError(t, c.Start(t.Context(), o))
		}
		apply(t, leader, putNode(t, "y", 1))
		c.WaitSame(time.Minute)
	})
}

// TestScenario_Raft_Leader_FailureOfItsDisk: a leader that can store nothing
// leaves the others to elect one that can, and stands back for a while.
func TestScenario_Raft_Leader_FailureOfItsDisk(t *testing.T) {
	scenario(t, nil, func(t *testing.T, c *th.Cluster, leader, follower *th.Member) {
		apply(t, leader, putNode(t, "before", 1))
		leader.Disk().SetFaults(th.DiskFaults{Full: true})
		start := time.Now()
		apply(t, follower, putNode(t, "during", 1))
		require.Less(t, time.Since(start), 10*leader.Config.Raft.ElectionTimeout)
		next := c.WaitLeader(time.Minute, leader)
		term := next.Health().Term
		<-time.After(30 * time.Second) // virtual
		require.Equal(t, term, next.Health().Term, "nobody disturbs the new leader")
		leader.Disk().SetFaults(th.DiskFaults{})
		require.NoError(t, c.Stop(leader)) // its storage failed with the disk
		require.NoError(t, c.Start(t.Context(), leader))
		c.WaitSame(time.Minute)
	})
}

func TestScenario_Raft_Follower_Failure(t *testing.T) {
	scenario(t, nil, func(t *testing.T, c *th.Cluster, leader, follower *th.Member) {
		c.Crash(follower)
		apply(t, leader, putNode(t, "during", 1))
		require.True(t, leader.Replicator().IsLeader(), "a follower's end is no election")
		c.Eventually(time.Minute, "the leader's health names the peer", func() bool {
			for _, p := range leader.Health().Peers {
				if p.ID == follower.ID {
					return !p.Healthy
				}
			}
			return false
		})
		require.True(t, leader.Health().Healthy, "the cluster serves")
		require.NoError(t, c.Start(t.Context(), follower))
		apply(t, follower, putNode(t, "after", 1))
		stats, _ := c.WaitSame(time.Minute)
		require.Equal(t, 2, stats.Nodes)
	})
}

// TestScenario_Raft_Follower_FailureOfItsLeader: the leader takes a write that a
// follower sent it, and its answer is lost. The follower gives up on the leader
// when there is another, which it cannot ask: it does not know what became of
// the write.
func TestScenario_Raft_Follower_FailureOfItsLeader(t *testing.T) {
	scenario(t, nil, func(t *testing.T, c *th.Cluster, leader, follower *th.Member) {
		apply(t, follower, putNode(t, "before", 1))
		c.WaitSame(time.Minute)
		c.Net.OneWay(leader.ID, follower.ID)
		written := make(chan error, 1)
		go func() { written <- follower.Replicator().Apply(putNode(t, "taken", 1), 20*time.Second) }()
		other := follower.Peers()[0]
		if other == leader {
			other = follower.Peers()[1]
		}
		there := func() bool { _, err := other.Store().Node("taken"); return err == nil }
		c.Eventually(time.Minute, "the write takes effect", there)
		c.Net.Isolate(leader.ID)
		c.Eventually(time.Minute, "the follower knows another leader", func() bool { return follower.Replicator().LeaderID() == other.ID })
		c.Net.Drop(follower.ID, other.ID)
		c.Net.Isolate(follower.ID)
		require.ErrorIs(t, <-written, replication.ErrUnknownOutcome)
		require.True(t, there())
		c.Net.Heal()
		c.WaitSame(time.Minute)
	})
}

// patientConfig has timeouts that fit a latency of 2 s each way.
func patientConfig(cfg *th.ClusterConfig) {
	cfg.Configure = func(m *th.Member, c *replication.Config) {
		th.ConfigureRaft(m, c)
		c.Raft.ElectionTimeout, c.Raft.HeartbeatTimeout, c.Raft.LeaderLeaseTimeout = 30*time.Second, 3*time.Second, 30*time.Second
	}
}

// slow is a scenario at 2 s latency: no false election, and every write and read
// takes the round trips that it must.
func slow(t *testing.T, pick func(leader, follower *th.Member) *th.Member) {
	scenario(t, patientConfig, func(t *testing.T, c *th.Cluster, leader, follower *th.Member) {
		term := leader.Health().Term
		c.Net.SetDefaultFaults(th.Faults{Latency: 2 * time.Second, Jitter: 500 * time.Millisecond})
		m := pick(leader, follower)
		h := th.NewHistory("slow")
		require.Equal(t, th.OutcomeDone, h.Client(target(m)).Do(t.Context(), putNode(t, "r", 0)).Outcome)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				client := h.Client(target(m))
				for i := range 5 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					if op := client.Set(ctx, "r", "v", i); op.Outcome != th.OutcomeDone {
						t.Errorf("%s", op)
					}
					if op := client.Get(ctx, replication.ConsistencyQuorum, "r", "v"); op.Outcome != th.OutcomeDone {
						t.Errorf("%s", op)
					}
					cancel()
				}
			})
		}
		wg.Wait()
		<-time.After(10 * time.Minute) // virtual: ten minutes of heartbeats at that latency
		require.True(t, leader.Replicator().IsLeader())
		require.Equal(t, term, leader.Health().Term, "no election took place")
		require.NoError(t, th.CheckLinearizable(h.Operations(), t.TempDir()))
		c.Net.SetDefaultFaults(th.Faults{})
		c.WaitSame(time.Minute)
	})
}

func TestScenario_Raft_Leader_Latency(t *testing.T) {
	slow(t, func(leader, _ *th.Member) *th.Member { return leader })
}

func TestScenario_Raft_Follower_Latency(t *testing.T) {
	slow(t, func(_, follower *th.Member) *th.Member { return follower })
}

// TestScenario_StandaloneToRaft_Basic: what a node wrote alone is there when it
// founds a cluster, on every node, and request IDs are remembered over it.
func TestScenario_StandaloneToRaft_Basic(t *testing.T) {
	t.Parallel()
	bubble.Test(t, func(t *testing.T) {
		c := th.NewCluster(t, th.RaftConfig(1))
		alone, err := replication.New(replication.DefaultConfig(), c.Members[0].Store(), nil, replication.WithLogger(quietLogger()))
		require.NoError(t, err)
		require.NoError(t, alone.Start(t.Context()))
		for i := range 30 {
			require.NoError(t, alone.Apply(putNode(t, fmt.Sprint("alone-", i), i), time.Minute))
		}
		create, err := replication.NewNodeCommand(replication.CmdCreateNode, &replication.Node{ID: "once"})
		require.NoError(t, err)
		create.RequestID = "once"
		require.NoError(t, alone.Apply(create, time.Minute))
		require.NoError(t, alone.Shutdown())
		c.StartAll(t.Context())
		for _, m := range c.Members {
			err := m.Replicator().Apply(create, time.Minute)
			require.NoError(t, errors.Join(err), "the retry of a write from before")
		}
		apply(t, c.Members[2], putNode(t, "together", 1))
		stats, _ := c.WaitSame(time.Minute)
		require.Equal(t, 32, stats.Nodes)
		require.Greater(t, stats.Position, uint64(31))
	})
}
