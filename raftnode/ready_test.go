package raftnode_test

import (
	"fmt"
	"testing"
	"time"

	th "github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// TestReadyOnlyWhenTheLagIsKnown: a node that comes back after many writes hears of
// the leader before it has asked how far that one is. It has not caught up then.
func TestReadyOnlyWhenTheLagIsKnown(t *testing.T) {
	scenario(t, nil, func(t *testing.T, c *th.Cluster, leader, away *th.Member) {
		c.Crash(away)
		for i := range 1500 { // an entry each
			apply(t, leader, putNode(t, fmt.Sprint(i), 1))
		}
		before := leader.Health().AppliedIndex
		c.Net.SetDefaultFaults(th.Faults{Latency: 20 * time.Millisecond, Bandwidth: 256 << 10})
		require.NoError(t, c.Start(t.Context(), away))
		asked := false
		for away.Health().AppliedIndex < before {
			h := away.Health()
			asked = asked || h.LagEntries > 0
			if lag := before - h.AppliedIndex; lag > 1000 {
				require.False(t, h.Ready, "%d entries behind, %+v", lag, h)
			}
			<-time.After(time.Millisecond) // virtual
		}
		require.True(t, asked, "it lagged")
		c.Eventually(time.Minute, "it is ready", func() bool { return away.Health().Ready })
	})
}
