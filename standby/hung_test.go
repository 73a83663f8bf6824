package standby_test

import (
	"context"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	th "github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// gatedPair is a pair of which each one's storage can be made to hang.
func gatedPair(t *testing.T, mode pairMode, change ...func(*replication.Config)) (c *th.Cluster, gates map[*th.Member]*th.Gate) {
	gates = make(map[*th.Member]*th.Gate)
	cfg := pairConfig(mode)
	configure := cfg.Configure
	cfg.Configure = func(m *th.Member, rc *replication.Config) {
		configure(m, rc)
		for _, f := range change {
			f(rc)
		}
	}
	cfg.Wrap = func(m *th.Member, s replication.TxStorage) replication.Storage { return gates[m].Guard(s) }
	c = th.NewCluster(t, cfg)
	for _, m := range c.Members {
		gates[m] = new(th.Gate)
		t.Cleanup(gates[m].Lift)
	}
	c.StartAll(t.Context())
	require.NoError(t, waitAdmitted(c, time.Minute))
	return c, gates
}

// TestHungStorageDoesNotKeepItsPart: a primary whose storage hangs on what the
// standby has applied is replaced, is no leader for anybody meanwhile, and comes
// back.
func TestHungStorageDoesNotKeepItsPart(t *testing.T) {
	for _, mode := range pairModes {
		t.Run(mode.String(), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				c, gates := gatedPair(t, mode)
				old, other := c.Members[0], c.Members[1]
				require.NoError(t, old.Replicator().Apply(putNode(t, "before", 1), time.Minute))
				gates[old].Shut()
				failover := old.Config.HA.FailoverTimeout
				require.ErrorIs(t, old.Replicator().Apply(putNode(t, "hung", 1), failover/2), replication.ErrUnknownOutcome)
				start := time.Now()
				c.Eventually(5*failover, "the other is primary", func() bool { return other.Health().IsLeader })
				t.Logf("after %v, at a failover timeout of %v", time.Since(start), failover)
				c.Eventually(failover, "the old one is not", func() bool { return !old.Health().IsLeader && old.Health().Role != "primary" })
				require.Contains(t, old.Health().Reasons[0], "a call of the storage has not returned")
				_, err := old.Replicator().(replication.ConsistentReader).ReadBarrier(timeout(t, failover), replication.ConsistencyQuorum)
				require.Error(t, err)

				gates[old].Lift()
				require.NoError(t, waitAdmitted(c, time.Minute))
				require.NoError(t, other.Replicator().Apply(putNode(t, "after", 1), time.Minute))
				stats, _ := c.WaitSame(time.Minute)
				require.Equal(t, 3, stats.Nodes)
				require.Same(t, other, primaryOf(c))
			})
		})
	}
}

// TestSlowCommandKeepsItsPrimary: what takes as long on both is no reason for a
// failover.
func TestSlowCommandKeepsItsPrimary(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, gates := gatedPair(t, pairMode{replication.SyncSemi, "availability"})
		old := c.Members[0]
		for _, g := range gates {
			g.Shut()
		}
		require.ErrorIs(t, old.Replicator().Apply(putNode(t, "slow", 1), 10*old.Config.HA.FailoverTimeout), replication.ErrUnknownOutcome)
		for _, m := range c.Members {
			require.Equal(t, "storage_hung", m.Health().State)
		}
		require.True(t, old.Health().IsLeader)
		epoch := old.Health().Term
		for _, g := range gates {
			g.Lift()
		}
		require.NoError(t, old.Replicator().Apply(putNode(t, "after", 1), time.Minute))
		require.Equal(t, epoch, old.Health().Term)
		c.WaitSame(time.Minute)
	})
}

// TestHungPrimaryIsNotSilentForNobody: where no standby takes over by itself, a
// primary whose storage hangs goes on speaking: the operator can hand its part on
// without force, and nothing comes and goes meanwhile.
func TestHungPrimaryIsNotSilentForNobody(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, gates := gatedPair(t, pairMode{replication.SyncSemi, "availability"}, func(cfg *replication.Config) { cfg.HA.AutoFailover = false })
		old, other := c.Members[0], c.Members[1]
		require.NoError(t, old.Replicator().Apply(putNode(t, "before", 1), time.Minute))
		term, failover := old.Health().Term, old.Config.HA.FailoverTimeout
		gates[old].Shut()
		require.ErrorIs(t, old.Replicator().Apply(putNode(t, "hung", 1), 10*failover), replication.ErrUnknownOutcome)
		require.Equal(t, term, old.Health().Term)
		require.Equal(t, "storage_hung", old.Health().State)
		require.NoError(t, other.Replicator().(replication.Promoter).Promote(timeout(t, 5*failover), false))
		require.NoError(t, other.Replicator().Apply(putNode(t, "after", 1), time.Minute))
		gates[old].Lift()
		require.NoError(t, waitAdmitted(c, time.Minute))
		stats, _ := c.WaitSame(time.Minute)
		require.Equal(t, 3, stats.Nodes)
	})
}

// TestWhatIsBeingAppliedIsNotCut: a primary that learns of a higher epoch by asking
// steps down and joins. What its Storage was being given at that moment is no prefix
// of the other's log: the node is rebuilt.
func TestWhatIsBeingAppliedIsNotCut(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, gates := gatedPair(t, pairMode{replication.SyncSemi, "availability"})
		a, b := c.Members[0], c.Members[1]
		require.NoError(t, a.Replicator().Apply(putNode(t, "before", 1), time.Minute))
		c.WaitSame(time.Minute)
		require.NoError(t, c.Stop(a))
		c.Net.Isolate(a.ID)
		primary := func(m *th.Member) {
			c.Eventually(time.Minute, m.ID+" is primary", func() bool { return m.Health().IsLeader })
		}
		primary(b)
		for range 2 { // so that its epoch is the higher one
			require.NoError(t, c.Stop(b))
			require.NoError(t, c.Start(t.Context(), b))
			primary(b)
		}
		require.NoError(t, c.Start(t.Context(), a))
		primary(a)
		require.NoError(t, b.Replicator().Apply(putNode(t, "theirs", 1), time.Minute))
		gates[a].Shut()
		require.ErrorIs(t, a.Replicator().Apply(putNode(t, "mine", 1), time.Second), replication.ErrUnknownOutcome)
		c.Net.Reconnect(a.ID)
		c.Eventually(time.Minute, "it steps down", func() bool { return a.Health().Role != "primary" })
		require.Equal(t, "fenced", a.Health().Role, "what it becomes is not seen before it is that")
		gates[a].Lift()
		require.NoError(t, waitAdmitted(c, time.Minute))
		stats, same := c.WaitSame(time.Minute)
		require.True(t, same)
		require.Equal(t, 2, stats.Nodes)
	})
}

// TestANodeWhoseStorageHangsCanBeStopped, whatever it waits for: it says what it left
// as it is, and whoever waits for a position is told.
func TestANodeWhoseStorageHangsCanBeStopped(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, gates := gatedPair(t, pairMode{replication.SyncSemi, "availability"})
		old, other := c.Members[0], c.Members[1]
		gates[old].Shut()
		require.ErrorIs(t, old.Replicator().Apply(putNode(t, "hung", 1), time.Second), replication.ErrUnknownOutcome)
		c.Eventually(5*old.Config.HA.FailoverTimeout, "the other is primary", func() bool { return other.Health().IsLeader })
		waits := make(chan error, 1)
		reader := old.Replicator().(replication.ConsistentReader)
		go func() { waits <- reader.WaitApplied(context.Background(), 1<<40) }()
		start := time.Now()
		require.ErrorIs(t, old.Replicator().Shutdown(), replication.ErrTimeout)
		require.Less(t, time.Since(start), time.Minute)
		require.ErrorIs(t, <-waits, replication.ErrClosed)
		gates[old].Lift()
		require.ErrorIs(t, c.Stop(old), replication.ErrTimeout, "the same again")
		<-time.After(time.Second) // virtual: what it left open is closed
		require.NoError(t, c.Start(t.Context(), old))
		require.NoError(t, waitAdmitted(c, time.Minute))
		require.Same(t, other, primaryOf(c))
	})
}
