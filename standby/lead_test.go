package standby

import (
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/walstream"
	"github.com/stretchr/testify/require"
)

// leader is node a, primary of epoch 3, whose log ends at 9; b follows and is not
// admitted.
func leader(mode replication.SyncMode) machine {
	return starter(func(m *machine) {
		m.mode, m.role, m.contact, m.barrier = mode, RolePrimary, 100*time.Second, 8
		m.stored = with(ep(3, "a"), func(s *Stored) { s.Epochs = append(s.Epochs, EpochStart{ep(3, "a"), 9}) })
	})
}

var leaderLog = logView{last: walstream.Mark{Position: 9, Epoch: ep(3, "a")}, durable: 9, applied: 7}

func follows(m machine, persisted uint64) event {
	p := *peerB(m.stored, RoleStandby)
	return event{kind: evHeartbeatAck, epoch: m.stored.Epoch, follows: true, peer: p, now: at(101 * time.Second), sent: at(101 * time.Second),
		log: leaderLog, ack: walstream.Ack{Received: persisted, Persisted: persisted}}
}

// What a standby had before it lost its disk counts for nothing when it comes back:
// it would be admitted without it.
func TestARebuiltStandbyIsAdmittedForWhatItHasNow(t *testing.T) {
	m := leader(replication.SyncFull)
	m, _ = m.step(event{kind: evStreamAck, epoch: ep(3, "a"), now: at(100 * time.Second), log: leaderLog, ack: walstream.Ack{Received: 9, Persisted: 9}})
	before := m.stored.Epoch
	m, actions := m.step(event{kind: evSnapshotAsked, now: at(101 * time.Second), log: leaderLog})
	require.True(t, actions[len(actions)-1].granted)
	for _, late := range []event{{kind: evStreamAck, epoch: before, ack: walstream.Ack{Received: 9, Persisted: 9}}, follows(m, 7)} {
		late.now, late.log = at(102*time.Second), leaderLog
		m, _ = m.step(late)
		require.False(t, m.stored.PeerAdmitted, "it has 7 of 9")
	}
	m, _ = m.step(follows(m, 9))
	require.True(t, m.stored.PeerAdmitted)

	silent := leader(replication.SyncFull) // whose standby followed, and has acknowledged what was not heard yet
	silent, _ = silent.step(follows(silent, 0))
	heardLate, _ := silent.step(event{kind: evSnapshotAsked, now: at(101 * time.Second), log: leaderLog})
	heardLate, _ = heardLate.step(event{kind: evStreamAck, epoch: silent.stored.Epoch, now: at(102 * time.Second), log: leaderLog, ack: walstream.Ack{Received: 9, Persisted: 9}})
	require.Zero(t, heardLate.ack)

	fresh := leader(replication.SyncFull) // whose standby never had anything
	after, _ := fresh.step(event{kind: evSnapshotAsked, now: at(101 * time.Second), log: leaderLog})
	require.Equal(t, fresh.stored, after.stored, "nothing to take back")
}

// What was refused is forgotten when the peer is met, and when it is silent: a
// primary is well again, and a node whose peer died goes on without it.
func TestARefusalEnds(t *testing.T) {
	other := func(m machine) Peer { p := *peerB(m.stored, RoleStarting); p.Settings = "x"; return p }
	m := leader(replication.SyncSemi)
	m, _ = m.step(event{kind: evHeartbeatAck, epoch: ep(3, "a"), now: at(101 * time.Second), log: leaderLog, peer: other(m)})
	require.Contains(t, m.waiting, "settings")
	m, _ = m.step(follows(m, 9))
	require.Empty(t, m.waiting+m.refused)

	m = starter(func(m *machine) { m.stored = with(ep(1, "a"), nil) })
	m, _ = m.step(event{kind: evRefused, now: at(109 * time.Second), reason: "no"})
	m, _ = m.step(event{kind: evTick, now: at(111 * time.Second)})
	require.Equal(t, RoleStarting, m.role, "it is there")
	require.Equal(t, "no", m.waiting)
	m, _ = m.step(event{kind: evTick, now: at(119 * time.Second)})
	require.Equal(t, RoleFencing, m.role, "it is there no more")
}

// A primary in which something hangs is silent, so that its standby takes over. It
// does not withdraw that one's admission meanwhile: its heartbeats in the new epoch
// would keep the standby from it.
func TestAPrimaryThatMakesRoomBeginsNoEpoch(t *testing.T) {
	m := leader(replication.SyncSemi)
	m, _ = m.step(follows(m, 9))
	require.True(t, m.stored.PeerAdmitted)
	room, actions := m.step(event{kind: evTick, useless: true, now: at(200 * time.Second), log: leaderLog})
	require.Equal(t, m.stored, room.stored)
	require.False(t, room.alone)
	require.Empty(t, actions)
	alone, _ := m.step(event{kind: evTick, now: at(200 * time.Second), log: leaderLog})
	require.True(t, alone.alone)
}

// Where no epoch number is left nothing begins that needs one, and nothing is saved
// that the next start would refuse: a primary does not go on alone, no standby is
// rebuilt or promoted, and whoever asks for it hears why.
func TestNoEpochNumberIsLeft(t *testing.T) {
	last := ep(maxEpochNumber-1, "a")
	primary := func(m *machine) {
		m.mode, m.role, m.contact = replication.SyncSemi, RolePrimary, 100*time.Second
		m.stored = with(last, func(s *Stored) { s.PeerAdmitted = true })
	}
	standby := func(m *machine) {
		m.role, m.follows, m.answered = RoleStandby, true, 100*time.Second
		m.stored = with(ep(maxEpochNumber-1, "b"), func(s *Stored) { s.Admitted = true })
		m.peer, m.peerKnown = *peerB(m.stored, RolePrimary), true
	}
	for name, c := range map[string]struct {
		node func(*machine)
		ev   event
		asks bool
	}{
		"degrade":       {primary, event{kind: evTick, now: at(200 * time.Second)}, false},
		"solo":          {primary, event{kind: evSolo, now: at(101 * time.Second)}, true},
		"snapshot":      {primary, event{kind: evSnapshotAsked, now: at(101 * time.Second)}, true},
		"failover":      {standby, event{kind: evTick, now: at(200 * time.Second)}, false},
		"promote":       {standby, event{kind: evPromote, now: at(101 * time.Second)}, true},
		"force":         {standby, event{kind: evPromote, force: true, now: at(101 * time.Second)}, true},
		"standby, solo": {standby, event{kind: evSolo, now: at(101 * time.Second)}, true},
	} {
		m := starter(c.node)
		c.ev.log = leaderLog
		next, actions := m.step(c.ev)
		require.Equal(t, m.stored, next.stored, name)
		require.Equal(t, m.role, next.role, name)
		require.False(t, has(actions, doSave) || has(actions, doStop) || next.alone || next.solo, name)
		require.Contains(t, next.waiting, "no epoch number", name)
		if c.asks {
			require.False(t, actions[len(actions)-1].granted, name)
			require.Equal(t, doReply, actions[len(actions)-1].kind, name)
		}
	}
	m := starter(primary) // one below goes on as ever, and is the last
	m.stored = with(ep(maxEpochNumber-2, "a"), nil)
	m, _ = m.step(event{kind: evSolo, now: at(101 * time.Second), log: leaderLog})
	require.Equal(t, last, m.stored.Epoch)
	require.NoError(t, checkEpochs(m.stored.Epoch, m.stored.Epochs))

	// The number of a stranger's history says nothing.
	m = starter(standby)
	m.stored, m.peer.History, m.peer.Epoch = with(ep(2, "b"), func(s *Stored) { s.Admitted = true }), "another", ep(maxEpochNumber-1, "b")
	m, _ = m.step(event{kind: evTick, now: at(200 * time.Second), log: leaderLog})
	require.Equal(t, ep(3, "a"), m.stored.Epoch)
}

// A server that vanishes within the TLS handshake reads as one that refuses this node
// (transport/DESIGN.md). Whenever that happens, nobody takes over earlier for it, and
// a standby not later either: it waits for its primary's heartbeats.
func TestARefusalBringsNoTakeoverForward(t *testing.T) {
	following := func(m *machine) {
		m.role, m.follows, m.answered, m.heard = RoleStandby, true, 100*time.Second, 100*time.Second
		m.stored = with(ep(1, "b"), func(s *Stored) { s.Admitted = true })
		m.peer, m.peerKnown = *peerB(m.stored, RolePrimary), true
	}
	owner := func(m *machine) { m.stored = with(ep(1, "a"), nil) }
	admitted := func(m *machine) { m.stored = with(ep(1, "b"), func(s *Stored) { s.Admitted = true }) }
	took := func(node func(*machine), refusals int) (second int) {
		m := starter(node)
		for second = 1; m.role == RoleStandby || m.role == RoleStarting; second++ {
			require.Less(t, second, 100, "nobody takes over")
			now := at(100*time.Second + time.Duration(second)*time.Second)
			if refusals>>(second-1)&1 == 1 {
				m, _ = m.step(event{kind: evRefused, now: now, log: leaderLog, reason: "the peer hung up"})
			}
			m, _ = m.step(event{kind: evTick, now: now, log: leaderLog})
		}
		require.Equal(t, RoleFencing, m.role, "it asks the other to stop first")
		return second
	}
	for name, node := range map[string]func(*machine){"standby": following, "owner starts": owner, "admitted starts": admitted} {
		silence := took(node, 0)
		for refusals := range 1 << 12 {
			second := took(node, refusals)
			require.GreaterOrEqual(t, second, silence, "%s %b", name, refusals)
			if name == "standby" {
				require.Equal(t, silence, second, "%b", refusals)
			}
		}
	}
}
