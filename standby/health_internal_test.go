package standby

import (
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// A peer that refuses this node has been heard, and is not one that answers.
func TestAPeerThatRefusesIsNotHealthy(t *testing.T) {
	n := &Node{cfg: replication.DefaultConfig(), opts: options{bootClock: func() time.Duration { return 101 * time.Second }}}
	n.rt.Now = time.Now
	m := starter(func(m *machine) { m.stored = with(ep(1, "b"), nil); m.peer = *peerB(m.stored, RoleStandby) })
	peer := func() replication.PeerHealth {
		h := new(replication.HealthStatus)
		n.fillPeer(h, &m)
		return h.Peers[0]
	}
	require.True(t, peer().Healthy)
	m, _ = m.step(event{kind: evRefused, now: at(101 * time.Second), log: leaderLog, reason: "no"})
	require.False(t, peer().Healthy)
	require.Equal(t, "refused", peer().State)
}
