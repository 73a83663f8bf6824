package region_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// distant puts the regions eu and us a way apart, one way.
func (f *federation) distant(way time.Duration) {
	for _, a := range f.nodes["eu"] {
		for _, b := range f.nodes["us"] {
			f.Net.SetFaults(a.ID, b.ID, testharness.Faults{Latency: way})
			f.Net.SetFaults(b.ID, a.ID, testharness.Faults{Latency: way})
		}
	}
}

// TestStreamOverALongWay: over a link of 150 ms there and back entries arrive as
// fast as the window of batches in flight allows, not a batch a round trip, and
// several of them are one proposal; a remote quorum that is slow holds the
// stream up, and does not make it begin again.
func TestStreamOverALongWay(t *testing.T) {
	if testing.Short() {
		t.Skip("thousands of entries, each a write of its own")
	}
	const (
		entries   = 6400
		batch     = 100
		roundTrip = 150 * time.Millisecond
	)
	for name, c := range map[string]struct {
		disk  time.Duration
		limit time.Duration
	}{
		// 64 batches: 9.6 s at one a round trip. What is left is the window of
		// the simulated TCP connection, 64 KiB.
		"fast quorum": {0, 2 * time.Second},
		// A proposal takes 2 syncs one after the other, 80 ms: 5.1 s if it were
		// one of a batch each.
		"slow quorum": {40 * time.Millisecond, 3 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			virtually(t, func(t *testing.T) {
				f := newFederation(t, 26, two, func(_ string, cfg *replication.Config) { cfg.Region.BatchSize = batch })
				f.apply("eu", put(t, "x", nil))
				f.converged(time.Minute)
				f.Net.Partition(f.ids("eu"), f.ids("us"))
				eu := f.leader("eu")
				var wg sync.WaitGroup
				for w := range 64 {
					wg.Go(func() {
						for i := range entries / 64 {
							if err := eu.Replicator().Apply(set(t, "x", "k", fmt.Sprint(w, "-", i)), time.Minute); err != nil {
								t.Error(err)
							}
						}
					})
				}
				wg.Wait()
				f.distant(roundTrip / 2)
				for _, m := range f.nodes["us"] {
					m.Disk().SetFaults(testharness.DiskFaults{SyncLatency: c.disk})
				}
				us := f.leader("us")
				before, proposals := node(us).Status().Applied[0], us.Health().CommitIndex
				f.Net.Heal()
				f.Eventually(time.Minute, "the stream goes on", func() bool { return node(us).Status().Applied[0] > before })
				begin := time.Now()
				f.Eventually(time.Minute, "us has everything", func() bool { return node(us).Status().Applied[0] >= before+entries })
				took := time.Since(begin)
				proposals = us.Health().CommitIndex - proposals
				t.Logf("%d entries in %v and %d entries of the log: %.0f/s", entries, took, proposals, entries/took.Seconds())
				require.LessOrEqual(t, took, c.limit)
				require.LessOrEqual(t, proposals, uint64(3*entries/batch), "several entries go into one proposal")
				require.NotContains(t, f.Transcript.String(), "entries before these are missing")
			})
		})
	}
}

// TestARegionWithSmallerFrames: a write that fits the frames of its region and not
// those of another one gets there all the same, and does not hold up what is
// behind it.
func TestARegionWithSmallerFrames(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 82, two, func(name string, cfg *replication.Config) {
			if name == "us" {
				cfg.MaxFrameSize = 1 << 20
			}
		})
		long := strings.Repeat("x", 3<<20)
		for i := range 3 { // together larger than a frame of us, each by itself not
			f.apply("eu", put(t, fmt.Sprint("n", i), map[string]any{"long": long[:400<<10]}))
		}
		f.converged(time.Minute)
		f.apply("eu", put(t, "large", map[string]any{"long": long}))
		f.apply("eu", put(t, "after", nil))
		f.converged(time.Minute)
	})
}
