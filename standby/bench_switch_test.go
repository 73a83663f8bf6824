package standby_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// maxSwitchPause is how long writes may stand still in a planned switch.
const maxSwitchPause = 200 * time.Millisecond

// BenchmarkPlannedSwitch switches to and fro under load: the median of the longest
// times in which no write was acknowledged. Heartbeats are 50 ms apart.
func BenchmarkPlannedSwitch(b *testing.B) {
	for _, mode := range syncModes {
		b.Run(string(mode), func(b *testing.B) {
			p := startBenchPair(b, mode)
			ctx, cancel := context.WithCancel(b.Context())
			var acked, longest, writes atomic.Int64
			acked.Store(time.Now().UnixNano())
			var wg sync.WaitGroup
			for w := range 16 {
				wg.Go(func() {
					for i := int64(w); ctx.Err() == nil; i += 16 {
						cmd := putBytes(i)
						cmd.RequestID = fmt.Sprint("switch-", w, "-", time.Now().UnixNano())
						if _, err := p.nodes[w%2].(replication.BatchApplier).ApplyBatch(ctx, []*replication.Command{cmd}); err != nil {
							if ctx.Err() == nil {
								b.Error(err)
							}
							return
						}
						writes.Add(1)
						now := time.Now().UnixNano()
						gap := now - acked.Swap(now)
						for old := longest.Load(); gap > old && !longest.CompareAndSwap(old, gap); old = longest.Load() {
						}
					}
				})
			}
			watch := func() { // the load for a while
				until := writes.Load() + watchedWrites
				require.Eventually(b, func() bool { return writes.Load() >= until }, time.Minute, time.Millisecond)
			}
			var pauses, quiet []time.Duration
			primary := 0
			for b.Loop() {
				for range 5 {
					p.admitted(b, primary)
					longest.Store(0)
					watch()
					quiet = append(quiet, time.Duration(longest.Swap(0)))
					require.NoError(b, p.nodes[1-primary].(replication.Promoter).Promote(ctx, false))
					watch()
					pauses = append(pauses, time.Duration(longest.Load()))
					primary = 1 - primary
				}
			}
			cancel()
			wg.Wait()
			b.ReportMetric(0, "ns/op") // means nothing here
			b.ReportMetric(float64(median(pauses).Milliseconds()), "ms-pause")
			b.Logf("load %s: writes paused for %v, at most %v; without a switch for %v", loadOfMachine(), median(pauses), slices.Max(pauses), median(quiet))
			if pause := median(pauses); pause > maxSwitchPause {
				b.Errorf("writes paused for %v, wanted less than %v", pause, maxSwitchPause)
			}
		})
	}
}

// watchedWrites is for how many writes the load is watched before and after a
// switch: more than are under way at once, so that the pause is among the gaps.
const watchedWrites = 1000
