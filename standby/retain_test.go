package standby_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// A standby that was away for longer than the log is kept is rebuilt by a snapshot
// while the primary goes on writing; one that was away for less is not.
func TestStandbyThatWasAwayForLongerThanTheLogIsKept(t *testing.T) {
	for _, writes := range []int{20, 300} {
		t.Run(fmt.Sprint("writes=", writes), func(t *testing.T) {
			inBubble(t, func(c *replication.Config) { c.HA.WALRetain = 50 }, func(t *testing.T, p *pair) {
				p.start(p.a, p.b)
				p.admitted(p.a)
				p.write(p.a, "n1")
				p.stop(p.b)
				for i := range writes {
					p.write(p.a, fmt.Sprint("away", i))
				}
				<-time.After(time.Minute) // the log is compacted
				events, cancel := p.a.repl.(replication.Subscriber).Subscribe(1000)
				defer cancel()
				done := make(chan error, 1)
				go func() {
					for i := range 100 {
						if err := p.a.repl.Apply(putNode(t, fmt.Sprint("meanwhile", i), i), time.Minute); err != nil {
							done <- err
							return
						}
						<-time.After(20 * time.Millisecond)
					}
					done <- nil
				}()
				p.start(p.b)
				p.admitted(p.a)
				require.NoError(t, <-done)
				p.same()
				require.True(t, p.has(p.b, fmt.Sprint("away", writes-1)) && p.has(p.b, "meanwhile99"))
				snapshots := 0
				for len(events) > 0 {
					if e := <-events; e.Type == replication.EventSnapshotTaken {
						snapshots++
					}
				}
				require.Equal(t, writes > 50, snapshots > 0)
			})
		})
	}
}
