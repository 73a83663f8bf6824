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

// The connections break while a promoted standby fetches what it lacks of a primary
// that is alive and has stopped: it goes on fetching, and loses nothing.
func TestPlannedSwitchWhoseFetchIsCutOff(t *testing.T) {
	for cut := range 12 {
		bubble.Test(t, func(t *testing.T) {
			cfg := pairConfig(pairMode{replication.SyncAsync, "availability"})
			configure := cfg.Configure
			cfg.Configure = func(m *th.Member, cfg *replication.Config) {
				configure(m, cfg)
				cfg.HA.WALBatchSize = 4
			}
			c := th.NewCluster(t, cfg)
			c.StartAll(t.Context())
			require.NoError(t, waitAdmitted(c, time.Minute))
			primary, other := c.Members[0], c.Members[1]
			c.Net.SetDefaultFaults(th.Faults{Latency: 20 * time.Millisecond})
			ids := puts(t, primary, "a", 60) // faster than they arrive
			done := make(chan error)
			go func() { done <- other.Replicator().(replication.Promoter).Promote(t.Context(), false) }()
			<-time.After(time.Duration(60+20*cut) * time.Millisecond)
			c.Net.Drop("n1", "n2")
			require.NoError(t, <-done)
			require.NoError(t, waitAdmitted(c, time.Minute))
			require.Equal(t, other, primaryOf(c))
			holdSame(t, c, ids...)
			require.Empty(t, primary.Health().Reasons, "nothing had to be put aside")
		})
	}
}

// In a planned switch nobody waits for the next heartbeat: under sync, where writes
// wait for the old primary to follow, they stand still for a fraction of the time
// between two heartbeats.
func TestPlannedSwitchDoesNotWaitForHeartbeats(t *testing.T) {
	for _, mode := range syncModes {
		t.Run(string(mode), func(t *testing.T) {
			inBubble(t, func(c *replication.Config) { c.HA.SyncMode = mode }, func(t *testing.T, p *pair) {
				p.start(p.a, p.b)
				p.admitted(p.a)
				primary, other := p.a, p.b
				for i := range 10 {
					<-time.After(time.Duration(100*i) * time.Millisecond) // at any time between heartbeats
					start := time.Now()
					require.NoError(t, other.repl.(replication.Promoter).Promote(t.Context(), false))
					p.write(primary, fmt.Sprint("n", i)) // through the one that becomes standby
					require.Less(t, time.Since(start), heartbeat/4)
					primary, other = other, primary
					p.admitted(primary)
				}
			})
		})
	}
}
