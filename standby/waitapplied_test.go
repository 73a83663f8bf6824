package standby_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// TestNobodyReadsHisWriteFromADivergedStorage: a node that lost against the other
// stands at a position that the other has given to another write. Until it is
// rebuilt, who waits for that write waits; before it has met the other, too, as it
// may have been down.
func TestNobodyReadsHisWriteFromADivergedStorage(t *testing.T) {
	inBubble(t, func(c *replication.Config) { c.HA.SyncMode = replication.SyncAsync }, func(t *testing.T, p *pair) {
		release := make(chan struct{})
		restoring := make(chan struct{}, 100)
		p.a.restore = func() { restoring <- struct{}{}; <-release }
		p.start(p.a, p.b)
		p.admitted(p.a)
		p.write(p.a, "before")
		p.same()
		p.net.isolate(p.b.addr, true)
		for i := range 20 {
			p.write(p.a, fmt.Sprint("alone", i))
		}
		p.until("the standby has promoted itself", p.b.repl.IsLeader)
		p.stop(p.a)
		position, err := p.b.repl.(replication.BatchApplier).ApplyBatch(context.Background(), []*replication.Command{putNode(t, "other", 1)})
		require.NoError(t, err)

		p.start(p.a) // nobody answers it yet
		wait := func(d time.Duration) error {
			ctx, cancel := context.WithTimeout(context.Background(), d)
			defer cancel()
			err := p.a.repl.(replication.ConsistentReader).WaitApplied(ctx, position)
			if err == nil {
				require.True(t, p.has(p.a, "other"), "it has not what was waited for")
			}
			return err
		}
		refused := func() {
			err := wait(3 * time.Second)
			require.ErrorIs(t, err, replication.ErrTimeout)
			require.ErrorIs(t, err, replication.ErrNotReady, "it says what it waited for")
		}
		require.Equal(t, "starting", p.a.repl.Health().Role)
		refused()
		waiter := make(chan error, 1)
		go func() { waiter <- wait(patience) }()
		p.net.isolate(p.b.addr, false)
		<-restoring
		require.Equal(t, "rebuilding", p.a.repl.Health().Role)
		refused()
		close(release)
		require.NoError(t, <-waiter)
		require.NoError(t, wait(time.Minute))
		p.same()
	})
}
