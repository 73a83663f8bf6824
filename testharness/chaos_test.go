package testharness_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nornicdb/replication/internal/bubble"
	th "github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

func TestPlanDependsOnItsSeedAlone(t *testing.T) {
	seen := make(map[th.FaultKind]int)
	for seed := range uint64(200) {
		plan := th.PlanChaos(seed, th.AllFaults, 3, 15*time.Second)
		require.Equal(t, plan, th.PlanChaos(seed, th.AllFaults, 3, 15*time.Second))
		require.NotEqual(t, plan, th.PlanChaos(seed+1, th.AllFaults, 3, 15*time.Second))
		wipes := 0
		for i, s := range plan {
			seen[s.Kind]++
			require.Less(t, s.At, 12*time.Second)
			require.Greater(t, s.For, time.Duration(0))
			require.Contains(t, []int{0, 1, 2}, s.Member)
			if i > 0 {
				require.GreaterOrEqual(t, s.At, plan[i-1].At)
			}
			if s.Kind == th.FaultWipe {
				wipes++
			}
		}
		require.LessOrEqual(t, wipes, 1, "two nodes without disk are more than three survive")
	}
	for _, kind := range th.AllFaults {
		require.Greater(t, seen[kind], 50, kind)
		require.NotEmpty(t, th.PlanChaos(1, []th.FaultKind{kind}, 3, time.Second), "alone it is never left out")
	}
}

// failedTB is a test that has failed, without failing the one it is part of.
type failedTB struct {
	testing.TB
	log strings.Builder
}

func (f *failedTB) Failed() bool { return true }
func (f *failedTB) Logf(format string, args ...any) {
	for _, a := range args {
		if s, ok := a.(string); ok {
			f.log.WriteString(s)
		}
	}
}

// TestFailedScheduleSaysWhatHappened: its error names the seed, and a file has
// the plan, what every node did, and the history.
func TestFailedScheduleSaysWhatHappened(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	wrong := errors.New("this is to be found")
	var failed *failedTB
	bubble.Test(t, func(t *testing.T) {
		failed = &failedTB{TB: t}
		x := th.Chaos{Cluster: th.RaftConfig(0), Seed: 4711, Faults: []th.FaultKind{th.FaultCrash}, Duration: 5 * time.Second,
			Check: func(*th.Cluster, []th.Operation) error { return wrong }}
		_, err := x.Run(failed)
		require.ErrorIs(t, err, wrong)
		require.ErrorContains(t, err, "seed 4711")
	})
	text, err := os.ReadFile(failed.log.String())
	require.NoError(t, err)
	for _, want := range []string{"plan      at ", "schedule  begins: at ", "n1        event ", "n2        event ", "n3        event ", "network   n1→", "this is to be found", "history   "} {
		require.Contains(t, string(text), want)
	}
}
