package standby_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// What happens to a pair is told to subscribers: who is primary, what a node's
// role is, whether the peer is there, what was fenced, put aside, rebuilt.
func TestEventsOfAPair(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, p *pair) {
		p.start(p.a, p.b)
		subscribed := make(map[string]<-chan replication.Event)
		for _, n := range []*node{p.a, p.b} {
			events, cancel := n.repl.(replication.Subscriber).Subscribe(1000)
			defer cancel()
			subscribed[n.id] = events
		}
		p.admitted(p.a)
		p.write(p.a, "n1")
		p.net.isolate(p.a.addr, true)
		p.until("failover", p.b.repl.IsLeader)
		p.until("degraded", func() bool { return p.a.repl.Apply(putNode(t, "lost", 1), time.Second) == nil })
		p.write(p.b, "kept", "kept2")
		p.net.isolate(p.a.addr, false)
		p.until("one primary", func() bool { return p.a.repl.IsLeader() != p.b.repl.IsLeader() })
		winner := p.a
		if p.b.repl.IsLeader() {
			winner = p.b
		}
		loser := p.other(winner)
		p.admitted(winner)
		p.same()
		told := make(map[string]map[replication.EventType][]replication.Event)
		for id, events := range subscribed {
			told[id] = make(map[replication.EventType][]replication.Event)
			for len(events) > 0 {
				e := <-events
				told[id][e.Type] = append(told[id][e.Type], e)
			}
		}
		for _, want := range []struct {
			node  *node
			event replication.EventType
			holds func(replication.Event) bool
		}{
			{p.a, replication.EventLeaderChanged, func(e replication.Event) bool { return e.Leader == "a" && e.Term > 0 }},
			{loser, replication.EventLeaderChanged, func(e replication.Event) bool { return e.Leader == winner.id }},
			{p.a, replication.EventRoleChanged, func(e replication.Event) bool { return e.Role == "primary" }},
			{p.a, replication.EventPeerDown, func(e replication.Event) bool { return e.Peer == "b" }},
			{p.b, replication.EventPeerDown, func(e replication.Event) bool { return e.Peer == "a" }},
			{p.a, replication.EventPeerUp, func(e replication.Event) bool { return e.Peer == "b" }},
			{p.a, replication.EventDegraded, func(replication.Event) bool { return true }},
			{winner, replication.EventRestored, func(replication.Event) bool { return true }},
			{loser, replication.EventFenced, func(e replication.Event) bool { return e.Detail != "" }},
			{loser, replication.EventDiverged, func(e replication.Event) bool { return e.Detail != "" }},
			{loser, replication.EventSnapshotInstalled, func(e replication.Event) bool { return e.Position > 0 }},
			{winner, replication.EventSnapshotTaken, func(e replication.Event) bool { return e.Peer == loser.id && e.Position > 0 }},
		} {
			found := false
			for _, e := range told[want.node.id][want.event] {
				found = found || want.holds(e) && !e.Time.IsZero()
			}
			require.True(t, found, "%s of %s: %v", want.event, want.node.id, fmt.Sprint(told[want.node.id]))
		}
		require.Len(t, told[loser.id][replication.EventFenced], 1)
		h := p.a.repl.Health()
		require.NotEmpty(t, h.History)
		require.Equal(t, h.History, p.b.repl.Health().History)
	})
}

// A standby whose storage does not keep up says for how long it has been behind,
// however often it hears from its primary.
func TestLagInSecondsIsTheAgeOfWhatIsMissing(t *testing.T) {
	inBubble(t, func(c *replication.Config) { c.HA.SyncMode = replication.SyncAsync }, func(t *testing.T, p *pair) {
		p.start(p.a, p.b)
		p.admitted(p.a)
		require.Zero(t, p.b.repl.Health().LagSeconds)
		gate := make(chan struct{})
		p.b.disk.set(nil, gate)
		p.write(p.a, "n1", "n2")
		<-time.After(2*heartbeat + failover/2)
		h := p.b.repl.Health()
		require.Equal(t, "standby", h.Role)
		require.Positive(t, h.LagEntries)
		require.GreaterOrEqual(t, h.LagSeconds, (failover / 2).Seconds())
		require.Less(t, p.a.repl.Health().LagSeconds, 1.0)
		require.Positive(t, p.a.repl.Health().Peers[0].Lag)
		require.WithinDuration(t, time.Now(), h.LastContact, 2*heartbeat, "it hears from its primary")
		require.True(t, p.a.repl.Health().LastContact.IsZero())
		p.b.disk.set(nil, nil)
		close(gate)
		p.same()
		p.until("caught up", func() bool { h := p.b.repl.Health(); return h.LagEntries == 0 && h.LagSeconds == 0 })
	})
}
