package standby_test

import (
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// A third node of the cluster that takes a for its peer, by a mistake in its
// configuration, is not met: a's peer is who answers at the configured address.
func TestAThirdNodeIsNotMet(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, p *pair) {
		third := p.newNode("c", "10.0.0.3:7688", p.a.addr, "primary", nil)
		p.start(third)
		defer func() { p.stop(third) }()
		require.NoError(t, third.repl.(replication.Soloer).Solo(t.Context()))
		p.start(p.a, p.b)
		p.admitted(p.a)
		p.write(p.b, "n1")
		p.same()
		p.stop(p.a)
		p.stop(p.b)
		p.start(p.a)
		p.until("it goes on without its peer, which is silent", p.a.repl.IsLeader)
		p.start(p.b)
		p.admitted(p.a)
		require.False(t, p.has(third, "n1"))
		require.True(t, third.repl.IsLeader(), "it is a cluster of its own")
	})
}
