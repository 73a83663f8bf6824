package testharness_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nornicdb/replication/internal/bubble"
	th "github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// TestClusterThroughEverythingThatCanHappenToANode: each fault of the builder
// does to a Raft cluster what it says, and the cluster comes back from it.
func TestClusterThroughEverythingThatCanHappenToANode(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := th.NewCluster(t, th.RaftConfig(1))
		c.StartAll(t.Context())
		written := 0
		write := func(m *th.Member) {
			t.Helper()
			require.NoError(t, m.Replicator().Apply(putNode(t, fmt.Sprint("w", written)), time.Minute))
			written++
		}
		all := func() {
			t.Helper()
			stats, _ := c.WaitSame(time.Minute)
			require.Equal(t, written, stats.Nodes)
		}
		first := c.WaitLeader(time.Minute)
		write(first)
		all()

		require.NoError(t, c.Stop(first))
		require.False(t, first.Running())
		second := c.WaitLeader(time.Minute, first)
		write(second)
		require.NoError(t, c.Start(t.Context(), first))
		all()

		c.Crash(second)
		third := c.WaitLeader(time.Minute, second)
		write(third)
		require.NoError(t, c.Start(t.Context(), second))
		all()

		c.CrashAt(third, 2)
		c.Eventually(time.Minute, "it crashes while it writes", func() bool {
			if r := third.Replicator(); r != nil {
				_ = r.Apply(putNode(t, "w0"), time.Second)
			}
			return !third.Running()
		})
		c.Wipe(third)
		require.Zero(t, third.Store().Stats().Nodes)
		require.NoError(t, c.Start(t.Context(), third))
		write(third)
		all()
		c.WaitVoters(time.Minute)

		leader := c.WaitLeader(time.Minute)
		c.Pause(leader)
		write(c.WaitLeader(time.Minute, leader))
		require.True(t, leader.Running())
		c.Resume(leader)
		all()
		c.WaitRole(time.Minute, leader, "follower")

		c.Net.Isolate(leader.ID)
		next := c.WaitLeader(time.Minute, leader)
		write(next)
		position := next.Store().Stats().Position
		require.Less(t, leader.Store().Stats().Position, position, "it is cut off")
		c.Net.Heal()
		c.WaitPosition(time.Minute, position)
		require.GreaterOrEqual(t, leader.Store().Stats().Position, position)

		leader.SetClockOffset(time.Hour)
		for _, want := range []string{"stops", "crashes", "is to crash at its write", "its disk is wiped", "is paused", "goes on", "clock offset 1h", "event leader_changed", "incarnation 2 starts"} {
			require.Contains(t, c.Transcript.String(), want)
		}
		require.Greater(t, strings.Count(c.Transcript.String(), "\n"), 50)
	})
}
