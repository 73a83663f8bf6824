package standby_test

import (
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// Who writes through the standby gets the primary's own errors: where a write
// stands that was not confirmed, and that there is no lease.
func TestForwardedErrorsAreThePrimarys(t *testing.T) {
	for _, id := range []string{"", "once"} {
		inBubble(t, func(c *replication.Config) { c.HA.SyncMode = replication.SyncFull }, func(t *testing.T, p *pair) {
			p.start(p.a, p.b)
			p.admitted(p.a)
			p.write(p.b, "n1")
			applied := p.a.repl.Health().AppliedIndex
			gate := make(chan struct{})
			p.b.disk.set(nil, gate)
			cmd := putNode(t, "n2", 1)
			cmd.RequestID = id
			err := p.b.repl.Apply(cmd, 3*time.Second)
			var unconfirmed *replication.UnconfirmedError
			require.ErrorAs(t, err, &unconfirmed)
			require.ErrorIs(t, err, replication.ErrUnknownOutcome)
			require.Greater(t, unconfirmed.Position, applied)
			require.Contains(t, err.Error(), "the standby has received")
			p.b.disk.set(nil, nil)
			close(gate)
			p.until("it took effect", func() bool { return p.has(p.b, "n2") })
			p.same()
		})
	}
}

func TestForwardedWriteWithoutALease(t *testing.T) {
	inBubble(t, func(c *replication.Config) { c.HA.PartitionPolicy, c.HA.AutoFailover = "consistency", false }, func(t *testing.T, p *pair) {
		p.start(p.a, p.b)
		p.admitted(p.a)
		p.write(p.b, "n1")
		p.net.unreachable(p.b.addr) // it gets no heartbeat, and what it asks arrives
		p.until("the lease ends", func() bool { return !p.a.repl.IsLeader() })
		err := p.b.repl.Apply(putNode(t, "n2", 1), time.Second)
		require.ErrorIs(t, err, replication.ErrNoLease)
		require.NotErrorIs(t, err, replication.ErrUnknownOutcome)
		require.False(t, p.has(p.a, "n2"))
	})
}

// unreachable ends the connections that were made to an address, and lets nobody
// make another; those that it makes itself work.
func (m *memoryNet) unreachable(addr string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.listeners, addr)
	for c, ends := range m.conns {
		if ends[1] == addr {
			_ = c.Close()
			delete(m.conns, c)
		}
	}
}
