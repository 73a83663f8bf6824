package region_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var two = []string{"eu", "us"}

// TestTwoRegionsConverge: writes in both, of the same things too, and a leader
// that crashes in either.
func TestTwoRegionsConverge(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 1, two, nil)
		f.apply("eu", put(t, "x", map[string]any{"k": 0}))
		f.converged(time.Minute)
		require.EqualValues(t, 0, property(t, f.nodes["us"][1], "x", "k"))
		for i := range 20 {
			f.apply(two[i%2], set(t, "x", "k", fmt.Sprint("v", i)))
			f.apply(two[i%2], put(t, fmt.Sprint("n", i), nil))
			if i == 7 {
				f.Crash(f.leader("eu"))
			}
			if i == 13 {
				f.Crash(f.leader("us"))
			}
		}
		for _, m := range f.Members {
			require.NoError(t, f.Start(t.Context(), m))
		}
		f.converged(time.Minute)
		require.Equal(t, 21, f.Members[0].Store().Stats().Nodes)
		require.Equal(t, "v19", property(t, f.Members[0], "x", "k"), "written after everything else had been seen or at the latest time")
	})
}
