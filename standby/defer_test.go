package standby_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	th "github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// onDeferring runs a test on a pair whose storages lose at a crash what they have
// not flushed.
func onDeferring(t *testing.T, test func(t *testing.T, c *th.Cluster, a, b *th.Member)) {
	t.Helper()
	bubble.Test(t, func(t *testing.T) {
		cfg := pairConfig(pairMode{replication.SyncSemi, "availability"})
		cfg.Deferring = true
		c := th.NewCluster(t, cfg)
		test(t, c, c.Members[0], c.Members[1])
	})
}

// A founder that crashes at once knows its history, in its storage too.
func TestDeferringStorageIsFlushedWhenItIsFounded(t *testing.T) {
	onDeferring(t, func(t *testing.T, c *th.Cluster, a, b *th.Member) {
		require.NoError(t, c.Start(t.Context(), a))
		require.NoError(t, a.Replicator().(replication.Soloer).Solo(t.Context()))
		c.Crash(a)
		require.NoError(t, c.Start(t.Context(), a))
		require.NoError(t, c.Start(t.Context(), b))
		require.NoError(t, waitAdmitted(c, time.Minute))
		holdSame(t, c, puts(t, a, "n", 3)...)
	})
}

// snapshots counts those that a primary sends.
func snapshots(t *testing.T, m *th.Member) func() int {
	t.Helper()
	events, cancel := m.Replicator().(replication.Subscriber).Subscribe(1000)
	t.Cleanup(cancel)
	count := 0
	return func() int {
		for len(events) > 0 {
			if e := <-events; e.Type == replication.EventSnapshotTaken {
				count++
			}
		}
		return count
	}
}

// A node that crashes after its log was compacted, or after it was rebuilt, goes on
// where it stood: what its log no longer has, its storage has.
func TestDeferringStorageIsFlushedBeforeItsLogGoes(t *testing.T) {
	onDeferring(t, func(t *testing.T, c *th.Cluster, a, b *th.Member) {
		c.StartAll(t.Context())
		require.NoError(t, waitAdmitted(c, time.Minute))
		sent := snapshots(t, a)
		for round := range 5 {
			ids := puts(t, a, fmt.Sprint("r", round, "-"), 30+round)
			<-time.After(15 * time.Second) // the log is compacted
			c.Crash(b)
			require.NoError(t, c.Start(t.Context(), b))
			require.NoError(t, waitAdmitted(c, time.Minute))
			holdSame(t, c, ids...)
			require.Zero(t, sent(), "it had to be rebuilt")
		}
		for round := range 3 {
			c.Crash(b)
			c.Wipe(b)
			require.NoError(t, c.Start(t.Context(), b))
			require.True(t, c.Eventually(time.Minute, "it is rebuilt", func() bool { return b.Health().Role == "standby" }))
			c.Crash(b)
			require.NoError(t, c.Start(t.Context(), b))
			require.NoError(t, waitAdmitted(c, time.Minute))
			holdSame(t, c)
			require.Equal(t, round+1, sent(), "it was rebuilt once each time")
		}
	})
}
