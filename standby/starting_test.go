package standby

import (
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/walstream"
	"github.com/stretchr/testify/require"
)

func ep(n uint64, owner string) replication.Epoch {
	return replication.Epoch{Number: n, Owner: owner}
}

func at(t time.Duration) instant { return instant{t, t} }

// starter is node a, started at 100 s, with a failover timeout of 10 s.
func starter(change func(*machine)) machine {
	m := machine{rules: rules{self: "a", mode: replication.SyncSemi, auto: true, failover: 10 * time.Second, maxLag: 10},
		role: RoleStarting, started: 100 * time.Second, heard: 100 * time.Second}
	if change != nil {
		change(&m)
	}
	return m
}

// with is a state of a history whose epoch 1 was a's and epoch 2 was b's.
func with(e replication.Epoch, change func(*Stored)) Stored {
	s := Stored{History: "h", Epoch: e, Epochs: []EpochStart{{ep(1, "a"), 1}, {ep(2, "b"), 5}}}
	if e.Number == 1 {
		s.Epochs = s.Epochs[:1]
	}
	if change != nil {
		change(&s)
	}
	return s
}

func peerB(s Stored, role Role) *Peer {
	return &Peer{NodeID: "b", History: s.History, Epoch: s.Epoch, Epochs: s.Epochs, Role: role, Rebuilding: s.Rebuilding,
		Last: walstream.Mark{Position: 6, Epoch: s.Epoch}}
}

func has(actions []action, k actionKind) bool {
	for _, a := range actions {
		if a.kind == k {
			return true
		}
	}
	return false
}

// TestStartingTable has every row of hot standby, "Starting".
func TestStartingTable(t *testing.T) {
	mine := with(ep(1, "a"), nil)
	theirs := with(ep(2, "b"), nil)
	none := Stored{}
	primary := func(m *machine) { m.wantsPrimary = true }
	for name, c := range map[string]struct {
		stored Stored
		change func(*machine)
		peer   *Peer // nil: silent for the failover timeout
		want   Role
		saves  bool // something was promised
		waits  string
	}{
		"no history, peer has one and is primary": {none, primary, peerB(theirs, RolePrimary), RoleRebuilding, true, ""},
		"no history, peer has one, not primary":   {none, primary, peerB(theirs, RoleStarting), RoleStarting, false, "not primary yet"},
		"neither, HA_ROLE=primary":                {none, primary, peerB(none, RoleStarting), RolePrimary, true, ""},
		"neither, HA_ROLE=standby":                {none, nil, peerB(none, RoleStarting), RoleStarting, false, "no history yet"},
		"neither, both HA_ROLE=primary": {none, primary, func() *Peer { p := peerB(none, RoleStarting); p.WantsPrimary = true; return p }(),
			RoleStarting, false, "both nodes"},
		"no history, peer silent":           {none, primary, nil, RoleStarting, false, "does not answer"},
		"no history, own data, peer's data": {none, func(m *machine) { m.hasData, m.dataHistory = true, "x" }, peerB(theirs, RolePrimary), RoleStarting, false, "foreign history"},
		"peer has a higher epoch":           {mine, nil, peerB(theirs, RolePrimary), RoleStandby, true, ""},
		"peer has a higher epoch, starting": {mine, nil, peerB(theirs, RoleStarting), RoleRejoining, true, "will promote itself"},
		"peer is primary of the same epoch": {theirs, nil, peerB(theirs, RolePrimary), RoleStandby, true, ""},
		"peer not higher, owns its epoch":   {mine, nil, peerB(mine, RoleStandby), RoleFencing, true, ""},
		"peer not higher, peer owns epoch":  {theirs, nil, peerB(theirs, RoleStarting), RoleStarting, false, "will promote itself"},
		"neither owns it, this one has less": {with(ep(2, "z"), nil), nil, peerB(with(ep(2, "z"), nil), RoleStarting), RoleStarting, false,
			"higher position"},
		"neither owns it, peer has less": {with(ep(2, "z"), nil), nil, func() *Peer {
			p := peerB(with(ep(2, "z"), nil), RoleStarting)
			p.Last = walstream.Mark{Position: 3, Epoch: ep(1, "a")}
			return p
		}(), RoleFencing, true, ""},
		"silent, owns its epoch":              {mine, nil, nil, RoleFencing, true, ""},
		"silent, admitted":                    {with(ep(2, "b"), func(s *Stored) { s.Admitted = true }), nil, nil, RoleFencing, true, ""},
		"silent, neither":                     {theirs, nil, nil, RoleStarting, false, "may lack"},
		"silent, consistency":                 {mine, func(m *machine) { m.consistency, m.mode = true, replication.SyncFull }, nil, RoleStarting, false, "consistency"},
		"silent, admitted, consistency":       {with(ep(2, "b"), func(s *Stored) { s.Admitted = true }), func(m *machine) { m.consistency = true }, nil, RoleStarting, false, "consistency"},
		"another history":                     {mine, nil, peerB(Stored{History: "x", Epoch: ep(9, "b")}, RolePrimary), RoleStarting, false, "foreign history"},
		"own state set back":                  {mine, nil, peerB(with(ep(3, "a"), nil), RoleStandby), RoleStarting, false, "set back"},
		"rebuilding, peer is primary":         {with(ep(2, "b"), func(s *Stored) { s.Rebuilding = true }), nil, peerB(theirs, RolePrimary), RoleRebuilding, true, ""},
		"rebuilding, owns its epoch, silent":  {with(ep(1, "a"), func(s *Stored) { s.Rebuilding = true }), nil, nil, RoleStarting, false, "snapshot"},
		"owner lost its data, admitted":       {with(ep(2, "b"), func(s *Stored) { s.Admitted = true }), nil, peerB(none, RoleStarting), RoleFencing, true, ""},
		"owner lost its data, not admitted":   {theirs, nil, peerB(none, RoleStarting), RoleStarting, false, "lost its data"},
		"peer has this node's ID":             {mine, nil, func() *Peer { p := peerB(theirs, RolePrimary); p.NodeID = "a"; return p }(), RoleStarting, false, "node ID"},
		"peer has other settings":             {mine, nil, func() *Peer { p := peerB(theirs, RolePrimary); p.Settings = "x"; return p }(), RoleStarting, false, "settings"},
		"crashed while promoting, peer alive": {with(ep(3, "a"), func(s *Stored) { s.Promoting = true }), nil, peerB(theirs, RolePrimary), RoleFencing, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			m := starter(c.change)
			m.stored = c.stored
			log := logView{last: walstream.Mark{Position: 4, Epoch: ep(1, "a")}, durable: 4}
			ev := event{kind: evPeer, now: at(101 * time.Second), log: log, fresh: "new"}
			if c.peer == nil {
				ev.kind, ev.now = evTick, at(110*time.Second)
			} else {
				ev.peer = *c.peer
			}
			next, actions := m.step(ev)
			require.Equal(t, c.want, next.role, next.waiting)
			require.Equal(t, c.saves, has(actions, doSave))
			require.Contains(t, next.waiting, c.waits)
			if next.role == RoleFencing {
				require.Equal(t, "a", next.stored.Epoch.Owner)
				require.Greater(t, next.stored.Epoch.Number, c.stored.Epoch.Number)
				require.True(t, next.stored.Promoting)
			}
			require.False(t, next.accepts(ev.now) && next.role != RolePrimary)
		})
	}
}

func TestCommonPrefix(t *testing.T) {
	list := func(starts ...uint64) (l []EpochStart) {
		for i, s := range starts {
			l = append(l, EpochStart{ep(uint64(i+1), "a"), s})
		}
		return l
	}
	fork := append(list(1, 5), EpochStart{ep(3, "b"), 8})
	for name, c := range map[string]struct {
		a, b         []EpochStart
		aLast, bLast uint64
		want         uint64
	}{
		"one lags":                      {list(1), list(1), 3, 9, 3},
		"the other began an epoch":      {list(1), list(1, 5), 9, 9, 4},
		"a fork":                        {append(list(1, 5), EpochStart{ep(3, "a"), 7}), fork, 20, 20, 6},
		"an epoch without entries here": {list(1, 5), list(1, 5), 3, 9, 3},
	} {
		got, ok := commonPrefix(c.a, c.aLast, c.b, c.bLast)
		require.True(t, ok, name)
		require.Equal(t, c.want, got, name)
		back, _ := commonPrefix(c.b, c.bLast, c.a, c.aLast)
		require.Equal(t, got, back, "it does not matter who asks")
	}
	_, ok := commonPrefix(list(1), 3, []EpochStart{{ep(9, "z"), 1}}, 3)
	require.False(t, ok)
}

// The lease ends by whichever clock says so, counted from when the heartbeat was
// sent, not from when it was answered.
func TestLease(t *testing.T) {
	m := starter(func(m *machine) {
		m.role, m.consistency, m.stored = RolePrimary, true, with(ep(1, "a"), func(s *Stored) { s.PeerAdmitted = true })
	})
	require.False(t, m.accepts(at(100*time.Second)), "no heartbeat was answered yet")
	ack := event{kind: evHeartbeatAck, epoch: ep(1, "a"), follows: true, peer: *peerB(m.stored, RoleStandby), sent: at(100 * time.Second), now: at(103 * time.Second)}
	m, _ = m.step(ack)
	require.True(t, m.accepts(at(106*time.Second)))
	require.False(t, m.accepts(at(107*time.Second)), "two thirds of the timeout after it was sent")
	require.False(t, m.accepts(instant{boot: 108 * time.Second, wall: 101 * time.Second}), "the machine was suspended")
	require.False(t, m.accepts(instant{boot: 101 * time.Second, wall: 108 * time.Second}), "the wall clock says so")
	require.False(t, m.accepts(instant{boot: 101 * time.Second, wall: 90 * time.Second}), "the wall clock went back")
	m.stored.PeerAdmitted = false
	require.True(t, m.accepts(at(500*time.Second)), "nobody else can become primary")
}

// Operators: what is refused, and with which reason.
func TestPromoteAndSolo(t *testing.T) {
	base := func(admitted bool) machine {
		return starter(func(m *machine) {
			m.role, m.follows, m.answered = RoleStandby, true, 100*time.Second
			m.stored = with(ep(2, "b"), func(s *Stored) { s.Admitted = admitted })
			m.peer, m.peerKnown = *peerB(m.stored, RolePrimary), true
		})
	}
	log := logView{last: walstream.Mark{Position: 6, Epoch: ep(2, "b")}, durable: 6}
	next, actions := base(false).step(event{kind: evPromote, now: at(101 * time.Second), log: log})
	require.Equal(t, RoleStandby, next.role)
	require.Contains(t, actions[0].detail, "not admitted")
	_, actions = base(true).step(event{kind: evPromote, now: at(120 * time.Second), log: log})
	require.Contains(t, actions[0].detail, "does not answer")

	// A forced one waits until no lease can be left.
	next, _ = base(false).step(event{kind: evPromote, force: true, now: at(101 * time.Second), log: log})
	require.Equal(t, RoleFencing, next.role)
	next, _ = next.step(event{kind: evTick, now: at(109 * time.Second), log: log})
	require.Equal(t, RoleFencing, next.role)
	next, actions = next.step(event{kind: evTick, now: at(110 * time.Second), log: log})
	require.Equal(t, RolePrimary, next.role)
	require.True(t, has(actions, doLead))
	require.Equal(t, EpochStart{ep(3, "a"), 7}, next.stored.Epochs[2])

	solo, _ := next.step(event{kind: evSolo, now: at(111 * time.Second), log: log})
	require.Equal(t, ep(4, "a"), solo.stored.Epoch)
	require.True(t, solo.stored.Solo && solo.alone && !solo.stored.PeerAdmitted)

	broken, actions := solo.step(event{kind: evFailed, now: at(112 * time.Second), log: log})
	require.True(t, has(actions, doStop))
	require.False(t, broken.accepts(at(112*time.Second)))
	for _, k := range []eventKind{evTick, evPeer, evPromote, evFence} {
		after, actions := broken.step(event{kind: k, now: at(200 * time.Second), log: log, peer: *peerB(with(ep(9, "b"), nil), RoleFencing), epoch: ep(9, "b"), force: true})
		require.Equal(t, RoleFenced, after.role, "a node whose log failed takes no part")
		require.False(t, has(actions, doSave))
	}
}

// The word that the peer is down ends with the peer's: a promotion later on, by the
// node itself, acknowledges nothing alone under sync.
func TestSoloEndsWithAHigherEpoch(t *testing.T) {
	log := logView{last: walstream.Mark{Position: 6, Epoch: ep(2, "b")}, durable: 6}
	m := starter(func(m *machine) {
		m.mode, m.role, m.follows, m.answered = replication.SyncFull, RoleStandby, true, 100*time.Second
		m.stored = with(ep(2, "b"), func(s *Stored) { s.Admitted = true })
		m.peer, m.peerKnown = *peerB(m.stored, RolePrimary), true
	})
	m, _ = m.step(event{kind: evPromote, now: at(101 * time.Second), log: log}) // under way already
	m, _ = m.step(event{kind: evSolo, now: at(101 * time.Second), log: log})
	require.Equal(t, RoleFencing, m.role)
	alone := m // where the peer says nothing
	for second := 102; alone.role != RolePrimary && second < 140; second++ {
		alone, _ = alone.step(event{kind: evTick, now: at(time.Duration(second) * time.Second), log: log})
	}
	require.True(t, alone.stored.Solo && alone.alone)
	higher := with(ep(5, "b"), func(s *Stored) { s.Epochs = append(s.Epochs, EpochStart{ep(5, "b"), 7}) })
	m, _ = m.step(event{kind: evPeer, now: at(102 * time.Second), log: log, peer: *peerB(higher, RolePrimary)})
	m, _ = m.step(event{kind: evPeer, now: at(102 * time.Second), log: log, peer: *peerB(higher, RolePrimary)})
	require.Equal(t, RoleStandby, m.role)
	m, _ = m.step(event{kind: evHeartbeat, now: at(103 * time.Second), log: log, peer: *peerB(higher, RolePrimary), admit: true})
	for second := 104; m.role != RolePrimary && second < 140; second++ {
		m, _ = m.step(event{kind: evTick, now: at(time.Duration(second) * time.Second), log: log})
	}
	require.Equal(t, RolePrimary, m.role)
	require.False(t, m.stored.Solo || m.alone)
}

// A node that cannot go on alone says so, and does not keep the word for later.
func TestSoloIsRefused(t *testing.T) {
	for name, stored := range map[string]Stored{
		"no history, the peer has one": {},
		"whole copy":                   with(ep(2, "b"), func(s *Stored) { s.Rebuilding = true }),
	} {
		m := starter(func(m *machine) {
			m.stored, m.peer, m.peerKnown = stored, *peerB(with(ep(2, "b"), nil), RoleStarting), true
		})
		next, actions := m.step(event{kind: evSolo, now: at(101 * time.Second), fresh: "new"})
		require.False(t, actions[len(actions)-1].granted, name)
		require.NotEmpty(t, actions[len(actions)-1].detail, name)
		require.Equal(t, m.stored, next.stored, name)
		require.False(t, next.solo, name)
	}
}

// A higher epoch ends a primary; a lower or equal one of another changes nothing.
func TestFence(t *testing.T) {
	m := starter(func(m *machine) { m.role, m.stored = RolePrimary, with(ep(5, "a"), nil) })
	for _, e := range []replication.Epoch{ep(4, "b"), ep(4, "z"), ep(5, "a")} {
		next, actions := m.step(event{kind: evFence, now: at(101 * time.Second), epoch: e, peer: *peerB(with(e, nil), RoleFencing)})
		require.Equal(t, RolePrimary, next.role)
		require.False(t, has(actions, doSave) || actions[len(actions)-1].granted)
	}
	next, actions := m.step(event{kind: evFence, now: at(101 * time.Second), epoch: ep(5, "b"), peer: *peerB(with(ep(5, "b"), nil), RoleFencing)})
	require.Equal(t, RoleFenced, next.role)
	var order []actionKind
	for _, a := range actions {
		order = append(order, a.kind)
	}
	require.Equal(t, []actionKind{doStop, doTell, doSync, doSync, doSave, doReply}, order, "it stops, is durable, has promised, and answers")
	again, actions := next.step(event{kind: evFence, now: at(102 * time.Second), epoch: ep(5, "b"), peer: *peerB(with(ep(5, "b"), nil), RoleFencing)})
	require.Equal(t, RoleFenced, again.role)
	require.True(t, actions[len(actions)-1].granted, "the answer was lost: the same again")
}

// A standby that stood still itself (SIGSTOP, a machine that was suspended) has not
// listened: it gives its primary the whole timeout before it takes its place.
func TestAStandbyThatStoodStillListensFirst(t *testing.T) {
	log := logView{last: walstream.Mark{Position: 6, Epoch: ep(2, "b")}, durable: 6}
	m := starter(func(m *machine) {
		m.role, m.follows, m.heard, m.answered = RoleStandby, true, 100*time.Second, 100*time.Second
		m.stored = with(ep(2, "b"), func(s *Stored) { s.Admitted = true })
		m.peer, m.peerKnown = *peerB(m.stored, RolePrimary), true
	})
	tick := func(second int, stood bool) {
		m, _ = m.step(event{kind: evTick, stood: stood, now: at(time.Duration(second) * time.Second), log: log})
	}
	tick(101, false)
	for i := 150; i < 160; i++ {
		tick(i, i == 150)
		require.Equal(t, RoleStandby, m.role, i)
	}
	tick(160, false)
	require.Equal(t, RoleFencing, m.role)
}
