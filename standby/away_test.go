package standby_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// A standby that is cut off for longer than the log is kept, without being restarted
// or promoted meanwhile, is rebuilt when the network is back, in the same epoch too.
func TestStandbyBehindTheLogIsRebuilt(t *testing.T) {
	for _, mode := range syncModes[:2] {
		t.Run(string(mode), func(t *testing.T) {
			inBubble(t, func(c *replication.Config) {
				c.HA.SyncMode, c.HA.AutoFailover, c.HA.WALRetain = mode, false, 10
			}, func(t *testing.T, p *pair) {
				p.start(p.a, p.b)
				p.admitted(p.a)
				p.write(p.a, "before")
				for round := range 2 {
					p.net.isolate(p.b.addr, true)
					p.until("the primary goes on alone", func() bool { return p.a.repl.Apply(putNode(t, "alone", 1), time.Minute) == nil })
					for i := range 50 {
						p.write(p.a, fmt.Sprint(round, "-", i))
					}
					<-time.After(time.Minute) // the log is compacted
					p.net.isolate(p.b.addr, false)
					if round == 0 { // and away again before it is admitted
						<-time.After(100 * time.Millisecond)
						continue
					}
				}
				p.admitted(p.a)
				p.write(p.a, "after")
				p.same()
				require.True(t, p.has(p.b, "1-49"))
			})
		})
	}
}
