package region_test

import (
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// TestAClockThatIsCenturiesAhead: what a region writes meanwhile is merged, and the
// stream goes on; the other region's clock does not follow.
func TestAClockThatIsCenturiesAhead(t *testing.T) {
	virtually(t, func(t *testing.T) {
		for _, bound := range []time.Duration{0, 500 * time.Millisecond} {
			f := newFederation(t, 84, two, func(_ string, cfg *replication.Config) { cfg.Region.MaxClockOffset = bound })
			f.apply("eu", put(t, "x", nil))
			f.converged(time.Minute)
			for _, m := range f.nodes["eu"] {
				m.SetClockOffset(290 * 365 * 24 * time.Hour)
			}
			f.apply("eu", put(t, "y", nil))
			f.apply("us", put(t, "z", nil))
			f.converged(time.Minute)
			for _, m := range f.nodes["eu"] {
				m.SetClockOffset(-20 * 365 * 24 * time.Hour)
			}
			f.apply("eu", put(t, "x", map[string]any{"k": 1}))
			f.apply("us", put(t, "z", map[string]any{"k": 1}))
			f.converged(time.Minute)
			require.EqualValues(t, 1, property(t, f.leader("us"), "x", "k"))
		}
	})
}
