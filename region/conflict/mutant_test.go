package conflict

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// caught switches a fault on and expects that random histories show it, and
// the directed one if there is one.
func caught(t *testing.T, set func(m *mutantSet), seeds uint64, name string) {
	t.Helper()
	defer func() { mutants = mutantSet{} }()
	if name != "" {
		set(&mutants)
		require.Contains(t, directed, name)
		err := runDirected(name)
		require.Error(t, err, "the directed history does not show this fault")
		t.Logf("directed: %v", err)
		if seeds == 0 {
			return // random histories take too long to find it
		}
	}
	for seed := range seeds {
		mutants = mutantSet{}
		set(&mutants)
		h := makeHistory(seed, historyLength(seed))
		if err := h.run(); err != nil {
			mutants.collectNothing = false
			small := h.shrink()
			t.Logf("seed %d, %d steps, shrunk to %d: %v", seed, len(h.steps), len(small.steps), small.run())
			return
		}
	}
	t.Fatalf("%d histories do not show this fault", seeds)
}

func TestMutant_TieBreak(t *testing.T) {
	caught(t, func(m *mutantSet) { m.tieBreak = true }, 2000, "tie")
}

func TestMutant_PendingForgotten(t *testing.T) {
	caught(t, func(m *mutantSet) { m.pendingForgotten = true }, 2000, "overtaken")
}

func TestMutant_CutFromAcknowledgements(t *testing.T) {
	caught(t, func(m *mutantSet) { m.cutFromAcks = true }, 5000, "acknowledgement overtakes")
}

func TestMutant_FreshFromTombstone(t *testing.T) {
	caught(t, func(m *mutantSet) { m.freshFromTombstone = true }, 2000, "creation after the tombstone")
}

func TestMutant_DropWithoutEdges(t *testing.T) {
	caught(t, func(m *mutantSet) { m.dropWithoutEdges = true }, 0, "edge behind a deletion")
}

func TestMutant_BirthNotCarried(t *testing.T) {
	caught(t, func(m *mutantSet) { m.birthNotCarried = true }, 20000, "use before the second creation")
}

func TestMutant_NoDedupe(t *testing.T) {
	caught(t, func(m *mutantSet) { m.noDedupe = true }, 2000, "")
}

func TestMutant_ClockStandsStill(t *testing.T) {
	caught(t, func(m *mutantSet) { m.clockStandsStill = true }, 2000, "")
}

func TestMutant_ValueNotKept(t *testing.T) {
	caught(t, func(m *mutantSet) { m.valueNotKept = true }, 5000, "")
}

func TestMutant_QueueForgotten(t *testing.T) {
	caught(t, func(m *mutantSet) { m.queueForgotten = true }, 5000, "")
}

func TestMutant_StateKeepsRemoved(t *testing.T) {
	caught(t, func(m *mutantSet) { m.stateKeepsRemoved = true }, 5000, "")
}

func TestMutant_StateLosesSettled(t *testing.T) {
	caught(t, func(m *mutantSet) { m.stateLosesSettled = true }, 5000, "")
}
