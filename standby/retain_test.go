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

// A snapshot that takes longer than the log is kept, under load, is enough: its
// primary keeps the log from where the snapshot stands until the standby has caught
// up. What was kept for that is let go again afterwards.
func TestSnapshotThatTakesLongerThanTheLogIsKept(t *testing.T) {
	for _, mode := range syncModes {
		t.Run(string(mode), func(t *testing.T) {
			inBubble(t, func(c *replication.Config) {
				c.HA.SyncMode, c.HA.WALRetain, c.HA.WALBatchSize = mode, 10, 20
			}, func(t *testing.T, p *pair) {
				p.start(p.a, p.b)
				p.admitted(p.a)
				p.write(p.a, "before")
				p.stop(p.b)
				if mode == replication.SyncFull {
					require.NoError(t, p.a.repl.(replication.Soloer).Solo(t.Context()))
				}
				restored := 0
				p.wipe(p.b)
				p.b.restore = func() {
					restored++
					<-time.After(25 * time.Second) // the log is compacted meanwhile
				}
				done := make(chan struct{})
				stopped := make(chan int, 1)
				writer := p.a.repl
				go func() {
					for i := 0; ; i++ {
						select {
						case <-done:
							stopped <- i
							return
						case <-time.After(100 * time.Millisecond):
						}
						if err := writer.Apply(putNode(t, fmt.Sprint("meanwhile", i), i), time.Minute); err != nil {
							t.Error(err)
							stopped <- i
							return
						}
					}
				}()
				p.start(p.b)
				p.until("the standby is being rebuilt", func() bool { return p.b.repl.Health().Role == "rebuilding" })
				p.admitted(p.a)
				close(done)
				written := <-stopped
				require.Equal(t, 1, restored)
				p.same()
				require.True(t, p.has(p.b, fmt.Sprint("meanwhile", written-1)))
				<-time.After(time.Minute)
				first, err := p.a.disk.FirstIndex()
				require.NoError(t, err)
				last, err := p.a.disk.LastIndex()
				require.NoError(t, err)
				require.LessOrEqual(t, last-first, uint64(10), "what was kept is let go")
			})
		})
	}
}
