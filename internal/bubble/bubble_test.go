package bubble_test

import (
	"sync"
	"testing"
	"time"

	"github.com/nornicdb/replication/internal/bubble"
	"github.com/stretchr/testify/require"
)

// TestExpiredTimersAtOnce dies of a SIGSEGV under the race detector where a
// bubble runs on two threads.
func TestExpiredTimersAtOnce(t *testing.T) {
	for range 20 {
		bubble.Test(t, func(t *testing.T) {
			start := time.Now()
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() {
					timers := make([]*time.Timer, 500)
					for i := range timers {
						timers[i] = time.NewTimer(time.Millisecond)
					}
					time.Sleep(2 * time.Millisecond)
					for _, timer := range timers {
						<-timer.C
					}
				})
			}
			all.Wait()
			require.Equal(t, 2*time.Millisecond, time.Since(start))
		})
	}
}
