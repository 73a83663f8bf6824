package standby

import (
	"slices"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/walstream"
	"github.com/stretchr/testify/require"
)

// A standby whose primary is silent waits for the answer to its Fence as long as
// an answer can take, since what the other has more is worth it; and no longer
// than until it is known that none comes.
func TestPromotionWaitsForTheAnswerToItsFence(t *testing.T) {
	const hour = time.Hour
	epoch := replication.Epoch{Number: 1, Owner: "a"}
	log := logView{last: walstream.Mark{Position: 5, Epoch: epoch}, durable: 5, applied: 5}
	standby := machine{rules: rules{self: "b", mode: replication.SyncAsync, auto: true, failover: 10 * time.Second, answer: 3 * time.Second},
		stored: Stored{History: "h", Epoch: epoch, Epochs: []EpochStart{{epoch, 1}}, Admitted: true, Base: walstream.Mark{Position: 0}},
		role:   RoleStandby, follows: true, heard: hour, answered: hour, peerKnown: true}
	at := func(d time.Duration, ev event) event {
		ev.now, ev.log = instant{boot: hour + d, wall: d}, log
		return ev
	}
	has := func(list []action, k actionKind) bool {
		return slices.ContainsFunc(list, func(a action) bool { return a.kind == k })
	}
	m, did := standby.step(at(10*time.Second, event{kind: evTick}))
	require.Equal(t, RoleFencing, m.role)
	require.True(t, has(did, doFence))
	m, did = m.step(at(12*time.Second, event{kind: evTick}))
	require.Equal(t, RoleFencing, m.role, "an answer can still come")
	require.True(t, has(did, doFence), "it is sent again")

	more := Peer{NodeID: "a", History: "h", Epoch: m.stored.Epoch, Epochs: standby.stored.Epochs, Role: RoleFenced,
		Last: walstream.Mark{Position: 9, Epoch: epoch}, Durable: 9}
	answered, did := m.step(at(12500*time.Millisecond, event{kind: evFenceAck, epoch: m.stored.Epoch, peer: more, fenced: true}))
	require.Equal(t, RolePromoting, answered.role)
	require.True(t, has(did, doFetch), "what the other has more is fetched")

	lost, _ := m.step(at(12500*time.Millisecond, event{kind: evFenceLost, epoch: m.stored.Epoch}))
	require.Equal(t, RolePrimary, lost.role, "nobody is there to answer")
	late, _ := m.step(at(12500*time.Millisecond, event{kind: evFenceLost, epoch: epoch}))
	require.Equal(t, RoleFencing, late.role, "that was another promotion")
	silent, _ := m.step(at(13*time.Second, event{kind: evTick}))
	require.Equal(t, RolePrimary, silent.role)

	m.unfenced = false
	lost, _ = m.step(at(12500*time.Millisecond, event{kind: evFenceLost, epoch: m.stored.Epoch}))
	require.Equal(t, RoleFencing, lost.role, "it may not go on without the other's answer")
}
