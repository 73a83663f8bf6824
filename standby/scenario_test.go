package standby_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	"github.com/nornicdb/replication/raftnode"
	"github.com/nornicdb/replication/standby"
	th "github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// inPair runs a test in every mode, on a pair of which n1 is primary.
func inPair(t *testing.T, test func(t *testing.T, mode pairMode, c *th.Cluster, primary, other *th.Member)) {
	t.Helper()
	for _, mode := range pairModes {
		t.Run(mode.String(), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				c := th.NewCluster(t, pairConfig(mode))
				c.StartAll(t.Context())
				require.NoError(t, waitAdmitted(c, time.Minute))
				require.Equal(t, c.Members[0], primaryOf(c))
				test(t, mode, c, c.Members[0], c.Members[1])
			})
		})
	}
}

func put(t *testing.T, m *th.Member, id string) error {
	t.Helper()
	return m.Replicator().Apply(putNode(t, id, id), 5*time.Second)
}

func puts(t *testing.T, m *th.Member, name string, count int) (ids []string) {
	t.Helper()
	for i := range count {
		id := fmt.Sprint(name, i)
		require.NoError(t, put(t, m, id))
		ids = append(ids, id)
	}
	return ids
}

// holdSame waits until both nodes hold the same, and asks for nodes in it.
func holdSame(t *testing.T, c *th.Cluster, ids ...string) {
	t.Helper()
	_, ok := c.WaitSame(time.Minute)
	require.True(t, ok)
	for _, id := range ids {
		_, err := c.Members[0].Store().Node(replication.NodeID(id))
		require.NoError(t, err, id)
	}
}

// clientsOn lets three clients work on a node, and checks what they saw.
func clientsOn(t *testing.T, c *th.Cluster, m *th.Member) {
	t.Helper()
	require.NoError(t, put(t, m, "register"))
	h := th.NewHistory("scenario-" + m.ID)
	done := make(chan struct{})
	for i := range 3 {
		client := h.Client(th.Target{Replicator: m.Replicator(), Property: m.Store().Property})
		go func() {
			defer func() { done <- struct{}{} }()
			for round := range 10 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				client.Set(ctx, "register", "k", fmt.Sprintf("%d-%d", i, round))
				client.Get(ctx, replication.ConsistencyQuorum, "register", "k")
				client.Create(ctx)
				cancel()
			}
		}()
	}
	for range 3 {
		<-done
	}
	holdSame(t, c)
	ops := h.Operations()
	for _, op := range ops {
		require.Equal(t, th.OutcomeDone, op.Outcome, op.String())
	}
	require.Len(t, ops, 90)
	require.NoError(t, th.CheckLinearizable(ops, "testdata/pictures"))
	require.NoError(t, th.CheckOrder(ops))
	for _, m := range c.Members {
		require.NoError(t, th.CheckOutcomes(ops, th.Has(m.Store())))
	}
}

func TestScenario_HAStandby_Primary_Basic(t *testing.T) {
	inPair(t, func(t *testing.T, _ pairMode, c *th.Cluster, primary, _ *th.Member) {
		require.Equal(t, "n1", primary.Replicator().LeaderID())
		clientsOn(t, c, primary)
	})
}

func TestScenario_HAStandby_Standby_Basic(t *testing.T) {
	inPair(t, func(t *testing.T, _ pairMode, c *th.Cluster, primary, other *th.Member) {
		require.False(t, other.Replicator().IsLeader())
		require.Equal(t, "n1", other.Replicator().LeaderID())
		require.Equal(t, primary.Addr, other.Replicator().LeaderAddr())
		clientsOn(t, c, other)
	})
}

func TestScenario_HAStandby_Primary_Replication(t *testing.T) {
	inPair(t, func(t *testing.T, _ pairMode, c *th.Cluster, primary, other *th.Member) {
		holdSame(t, c, puts(t, primary, "a", 200)...)
		require.Zero(t, other.Health().LagEntries)
	})
}

// The standby is away, and then without its disk.
func TestScenario_HAStandby_Standby_Replication(t *testing.T) {
	inPair(t, func(t *testing.T, mode pairMode, c *th.Cluster, primary, other *th.Member) {
		for round, wiped := range []bool{false, true} {
			c.Crash(other)
			if wiped {
				c.Wipe(other)
			}
			var ids []string
			if mode.policy == "availability" && !mode.lossless() {
				<-time.After(2 * chaosFailover)
				ids = puts(t, primary, fmt.Sprint("alone", round, "-"), 50)
			}
			require.NoError(t, c.Start(t.Context(), other))
			holdSame(t, c)
			require.NoError(t, waitAdmitted(c, time.Minute))
			require.Equal(t, primary, primaryOf(c))
			holdSame(t, c, append(ids, puts(t, primary, fmt.Sprint("after", round, "-"), 10)...)...)
		}
	})
}

// The primary's power fails; the standby goes on, and the old one comes back.
func TestScenario_HAStandby_Primary_Failure(t *testing.T) {
	inPair(t, func(t *testing.T, mode pairMode, c *th.Cluster, primary, other *th.Member) {
		ids := puts(t, primary, "before", 50)
		holdSame(t, c, ids...)
		c.Crash(primary)
		start := time.Now()
		require.Equal(t, other, c.WaitLeader(time.Minute))
		took := time.Since(start)
		require.Less(t, took, 2*chaosFailover)
		t.Logf("failover after %v", took)
		if mode.lossless() {
			require.ErrorIs(t, put(t, other, "alone"), standby.ErrUnconfirmed)
		} else {
			ids = append(ids, puts(t, other, "alone", 20)...)
		}
		require.NoError(t, c.Start(t.Context(), primary))
		require.NoError(t, waitAdmitted(c, time.Minute))
		require.Equal(t, other, primaryOf(c))
		holdSame(t, c, append(ids, puts(t, primary, "after", 10)...)...)
	})
}

func TestScenario_HAStandby_Standby_Failure(t *testing.T) {
	inPair(t, func(t *testing.T, mode pairMode, c *th.Cluster, primary, other *th.Member) {
		c.Crash(other)
		<-time.After(2 * chaosFailover)
		err := put(t, primary, "alone")
		switch {
		case mode.policy == "consistency":
			require.ErrorIs(t, err, standby.ErrNoLease)
			require.NotErrorIs(t, err, replication.ErrUnknownOutcome)
			require.False(t, primary.Replicator().IsLeader())
		case mode.lossless():
			require.ErrorIs(t, err, standby.ErrUnconfirmed)
		default:
			require.NoError(t, err)
		}
		require.NoError(t, c.Start(t.Context(), other))
		require.NoError(t, waitAdmitted(c, time.Minute))
		require.Equal(t, primary, primaryOf(c))
		holdSame(t, c, puts(t, primary, "after", 10)...)
	})
}

// took is how long a write takes at the most of ten.
func took(t *testing.T, m *th.Member) (longest time.Duration) {
	t.Helper()
	for i := range 10 {
		start := time.Now()
		require.NoError(t, put(t, m, fmt.Sprint("timed", i)))
		longest = max(longest, time.Since(start))
	}
	return longest
}

// A long line holds up what waits for the standby, and nothing else.
func TestScenario_HAStandby_Primary_Latency(t *testing.T) {
	inPair(t, func(t *testing.T, mode pairMode, c *th.Cluster, primary, _ *th.Member) {
		const latency = 40 * time.Millisecond
		c.Net.SetDefaultFaults(th.Faults{Latency: latency})
		longest := took(t, primary)
		if mode.sync == replication.SyncAsync {
			require.Less(t, longest, latency)
		} else {
			require.GreaterOrEqual(t, longest, 2*latency)
			require.Less(t, longest, 6*latency)
		}
		require.Equal(t, primary, primaryOf(c), "no failover")
		holdSame(t, c)
	})
}

// A slow disk of the standby holds up sync only.
func TestScenario_HAStandby_Standby_Latency(t *testing.T) {
	inPair(t, func(t *testing.T, mode pairMode, c *th.Cluster, primary, other *th.Member) {
		const latency = 100 * time.Millisecond
		other.Disk().SetFaults(th.DiskFaults{SyncLatency: latency})
		longest := took(t, primary)
		if mode.lossless() {
			require.GreaterOrEqual(t, longest, latency)
		} else {
			require.Less(t, longest, latency)
		}
		require.Equal(t, primary, primaryOf(c), "no failover")
		holdSame(t, c)
	})
}

// One node's data goes from standalone to a pair to a Raft cluster.
func TestScenario_HAStandby_FromStandaloneToRaft(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		cfg := pairConfig(pairModes[0])
		cfg.Nodes = 3
		pair, modes, logs := cfg.Configure, cfg.Modes, make(map[string]*raft.InmemStore)
		cfg.Configure = func(_ *th.Member, cfg *replication.Config) { cfg.Mode = replication.ModeStandalone }
		cfg.Modes = func(m *th.Member) replication.Modes {
			all := modes(m)
			all[replication.ModeRaft] = raftnode.Mode(raftnode.WithLogStore(m.Config.LogStore,
				func(string) (raftnode.LogStore, error) { return logs[m.ID], nil }))
			return all
		}
		c := th.NewCluster(t, cfg)
		first := c.Members[0]
		require.NoError(t, c.Start(t.Context(), first))
		ids := puts(t, first, "standalone", 20)
		require.NoError(t, c.Stop(first))

		for _, m := range c.Members[:2] {
			m.Config.DataDir = t.TempDir()
			pair(m, m.Config)
			require.NoError(t, c.Start(t.Context(), m))
		}
		require.NoError(t, waitAdmitted(c, time.Minute))
		ids = append(ids, puts(t, c.Members[1], "pair", 20)...)
		require.NoError(t, c.Stop(c.Members[1]))
		require.NoError(t, c.Stop(first))
		c.Wipe(c.Members[1])

		for _, m := range c.Members {
			m.Config.DataDir, logs[m.ID] = t.TempDir(), raft.NewInmemStore()
			th.ConfigureRaft(m, m.Config)
		}
		c.StartAll(t.Context())
		require.True(t, c.WaitVoters(time.Minute))
		holdSame(t, c, append(ids, puts(t, c.Members[2], "raft", 20)...)...)
	})
}
