package standby_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// wipe takes a node's disk away.
func (p *pair) wipe(n *node) {
	p.t.Helper()
	require.Nil(p.t, n.repl)
	require.NoError(p.t, os.RemoveAll(n.cfg.DataDir))
	require.NoError(p.t, os.RemoveAll(filepath.Join(n.dir, "graph.db")))
}

// ran makes a pair of which a was primary, and stops it.
func (p *pair) ran(stop ...*node) {
	p.t.Helper()
	p.start(p.a, p.b)
	p.admitted(p.a)
	p.write(p.a, "old")
	p.same()
	for _, n := range stop {
		p.stop(n)
	}
}

// waits checks that neither node becomes primary, and that each says why.
func (p *pair) waits(reason string, nodes ...*node) {
	p.t.Helper()
	for range 30 {
		<-time.After(failover / 3)
		for _, n := range nodes {
			require.False(p.t, n.repl.IsLeader(), describe(n))
		}
	}
	for _, n := range nodes {
		require.Contains(p.t, fmt.Sprint(n.repl.Health().Reasons), reason)
		require.False(p.t, n.repl.Health().Healthy)
		require.ErrorIs(p.t, n.repl.Apply(putNode(p.t, "x", 1), time.Second), replication.ErrNotLeader)
	}
}

// Pairs start in either order, and a while apart, with what hot standby, "Starting",
// says of each.
func TestPairsStartInEitherOrder(t *testing.T) {
	consistency := func(c *replication.Config) { c.HA.PartitionPolicy = "consistency" }
	for name, c := range map[string]struct {
		config func(*replication.Config)
		before func(p *pair)
		after  func(t *testing.T, p *pair)
	}{
		"new": {nil, nil, func(t *testing.T, p *pair) { p.admitted(p.a); p.write(p.b, "n"); p.same() }},
		"both primary": {func(c *replication.Config) { c.HA.Role = "primary" }, nil, func(t *testing.T, p *pair) {
			p.waits("both nodes have HA_ROLE=primary", p.a, p.b)
			require.NoError(t, p.b.repl.(replication.Soloer).Solo(t.Context()))
			p.admitted(p.b)
			p.same()
		}},
		"both standby": {func(c *replication.Config) { c.HA.Role = "standby" }, nil, func(t *testing.T, p *pair) {
			p.waits("no history yet", p.a, p.b)
			require.NoError(t, p.a.repl.(replication.Soloer).Solo(t.Context()))
			p.admitted(p.a)
			p.same()
		}},
		"the same ID":        {func(c *replication.Config) { c.NodeID = "same" }, func(p *pair) { p.a.id, p.b.id = "same", "same" }, func(t *testing.T, p *pair) { p.waits("node ID", p.a, p.b) }},
		"different settings": {nil, func(p *pair) { p.b.cfg.HA.FailoverTimeout *= 2 }, func(t *testing.T, p *pair) { p.waits("settings", p.a, p.b) }},
		"different settings, with a history": {nil, func(p *pair) { p.ran(p.a, p.b); p.b.cfg.HA.SyncMode = replication.SyncAsync },
			func(t *testing.T, p *pair) {
				<-time.After(5 * failover)
				require.Contains(t, describe(p.a), "settings")
				require.Contains(t, describe(p.b), "settings")
				require.False(t, p.a.repl.IsLeader() && p.b.repl.IsLeader())
			}},
		"the owner is wiped": {nil, func(p *pair) { p.ran(p.a, p.b); p.wipe(p.a) }, func(t *testing.T, p *pair) {
			p.admitted(p.b)
			p.same()
			require.True(t, p.has(p.a, "old"))
		}},
		"the owner is wiped, consistency": {consistency, func(p *pair) { p.ran(p.a, p.b); p.wipe(p.a) }, func(t *testing.T, p *pair) {
			p.admitted(p.b)
			p.same()
			require.True(t, p.has(p.a, "old"))
		}},
		"the standby is wiped": {nil, func(p *pair) { p.ran(p.a, p.b); p.wipe(p.b); p.b.cfg.HA.Role = "primary" }, func(t *testing.T, p *pair) {
			p.admitted(p.a)
			p.same()
			require.True(t, p.has(p.b, "old"))
		}},
		"both stopped": {nil, func(p *pair) { p.ran(p.a, p.b) }, func(t *testing.T, p *pair) {
			p.until("one primary", func() bool { return p.a.repl.IsLeader() || p.b.repl.IsLeader() })
			winner := p.a
			if p.b.repl.IsLeader() {
				winner = p.b // it was admitted, and alone for longer than the timeout
			}
			p.admitted(winner)
			require.Greater(t, winner.repl.Health().Term, uint64(1), "each incarnation of a primary has its own epoch")
			p.same()
		}},
		"both stopped, consistency": {consistency, func(p *pair) { p.ran(p.a, p.b) }, func(t *testing.T, p *pair) { p.admitted(p.a); p.same() }},
		"different histories": {nil, func(p *pair) {
			for _, n := range []*node{p.a, p.b} {
				p.start(n)
				require.NoError(p.t, n.repl.(replication.Soloer).Solo(p.t.Context()))
				p.write(n, "of "+n.id)
				p.stop(n)
			}
		}, func(t *testing.T, p *pair) {
			<-time.After(5 * failover)
			for _, n := range []*node{p.a, p.b} {
				require.Contains(t, describe(n), "foreign history")
				require.True(t, p.has(n, "of "+n.id), "nothing is overwritten")
				require.False(t, p.has(n, "of "+p.other(n).id))
			}
		}},
	} {
		for order := range 2 {
			for _, apart := range []time.Duration{0, heartbeat / 2, 5 * failover} {
				t.Run(fmt.Sprintf("%s/%d/%s", name, order, apart), func(t *testing.T) {
					inBubble(t, c.config, func(t *testing.T, p *pair) {
						if c.before != nil {
							c.before(p)
						}
						nodes := []*node{p.a, p.b}
						p.start(nodes[order])
						<-time.After(apart)
						p.start(nodes[1-order])
						c.after(t, p)
					})
				})
			}
		}
	}
}
