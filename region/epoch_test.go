package region_test

import (
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// TestAnUncertainWriteStaysWithItsRegion: a write that the old write region may
// have is not made a second time by the new one, although it has a request ID.
func TestAnUncertainWriteStaysWithItsRegion(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 21, two, func(_ string, cfg *replication.Config) { cfg.Region.WriteRegion = "eu" })
		f.apply("us", put(t, "x", nil))
		f.converged(time.Minute)
		leader := f.leader("eu")
		for _, m := range f.nodes["eu"] { // what eu's leader proposes stays in the air
			if m != leader {
				m.Disk().Hang()
			}
		}
		cmd := set(t, "x", "k", "a")
		cmd.RequestID = "r"
		done := make(chan error, 1)
		go func() { done <- f.nodes["us"][0].Replicator().Apply(cmd, time.Minute) }()
		<-time.After(time.Second) // virtual
		require.NoError(t, node(f.nodes["us"][1]).PromoteRegion(bounded(t, time.Minute)))
		f.Net.Partition(f.ids("eu"), f.ids("us"))
		require.ErrorIs(t, <-done, replication.ErrUnknownOutcome)
		for _, m := range f.nodes["eu"] {
			m.Disk().Release()
		}
		f.Net.Heal()
		f.converged(time.Minute)
	})
}
