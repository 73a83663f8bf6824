package region

import (
	"math/rand/v2"
	"testing"

	"github.com/nornicdb/replication/region/conflict"
	"github.com/stretchr/testify/require"
)

func arrivalOf(first, last uint64) *arrival {
	a := &arrival{bytes: 100}
	for pos := first; pos <= last; pos++ {
		a.entries = append(a.entries, &conflict.Entry{Dot: conflict.Dot{Pos: pos}})
	}
	return a
}

// TestInboxRun: whatever has arrived, twice, overlapping, out of order, a run
// begins after what is applied, has no gap, and goes as far as it can.
func TestInboxRun(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		b := newInbox()
		here := make(map[uint64]bool)
		for range rng.IntN(8) {
			first := 1 + rng.Uint64N(30)
			last := first + rng.Uint64N(6)
			b.put(arrivalOf(first, last))
			for pos := first; pos <= last; pos++ {
				here[pos] = true
			}
		}
		have := rng.Uint64N(30)
		want := have
		for _, e := range b.run(have) {
			want++
			require.Equal(t, want, e.Dot.Pos)
		}
		require.False(t, here[want+1], "%d is there", want+1)
	}
}

// TestInboxRunIsBounded, but for a batch that is larger than the bound itself.
func TestInboxRunIsBounded(t *testing.T) {
	b := newInbox()
	for i := range uint64(100) {
		b.put(arrivalOf(100*i+1, 100*i+100))
	}
	require.Len(t, b.run(0), 4000)
	large := arrivalOf(1, runEntries+1)
	large.bytes = 2 * runBytes
	b = newInbox()
	b.put(large)
	b.put(arrivalOf(runEntries+2, runEntries+3))
	require.Len(t, b.run(0), runEntries+1)
}
