package standby

import (
	"fmt"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/walstream"
)

// rules are what does not change while a node runs.
type rules struct {
	self         string
	wantsPrimary bool // HA_ROLE=primary
	mode         replication.SyncMode
	consistency  bool // partition policy
	auto         bool // AUTO_FAILOVER
	failover     time.Duration
	answer       time.Duration // what the peer gets to answer a Fence
	maxLag       uint64        // entries; a standby closer than that is waited for
	settings     string        // what both nodes must have alike
}

// lease is how long a heartbeat that was answered lets the primary accept writes
// after it was sent.
func (r *rules) lease() time.Duration { return r.failover / 3 * 2 }

// instant is a time on the two clocks that leases are measured by: one that runs
// while the machine is suspended, and the wall clock.
type instant struct{ boot, wall time.Duration }

// machine decides what a node does. It has no clock, goroutine, file or
// connection in it: step takes an event and says what is to be done, in this
// order, each thing durable before the next. It is a value: a copy is
// another machine.
type machine struct {
	rules
	stored Stored
	role   Role

	started   time.Duration
	heard     time.Duration // the peer said something, or the start
	answered  time.Duration // this standby last answered a heartbeat of whom it follows
	follows   bool          // it takes batches of stored.Epoch
	peer      Peer          // what the peer last said
	peerKnown bool
	waiting   string // why nothing happens, for people
	refused   string // why the peer is not one to pair with
	broken    bool   // the own log or Storage failed: nothing happens any more
	// What the Storage holds beside a log that has no history yet.
	hasData     bool
	dataHistory string

	// Of a primary.
	ack       walstream.Ack // what its standby has, in this epoch
	contact   time.Duration // its standby last answered
	leaseFrom instant       // sending of the last heartbeat that its standby answered
	hasLease  bool
	alone     bool   // acknowledges without a standby
	barrier   uint64 // not alone since the log ended here

	// Of a node on its way to become primary.
	began    time.Duration // the promotion
	unfenced bool          // it may go on without the other's answer
	solo     bool          // an operator said that the peer is down
}

type eventKind int

const (
	evTick         eventKind = iota
	evPeer                   // the peer answered a question for its state
	evHeartbeat              // of a primary: peer, commit, admit
	evHeartbeatAck           // to a heartbeat sent at sent: peer, ack, follows
	evStreamAck              // to a batch: ack
	evFence                  // epoch is to be promised
	evFenceAck               // fenced: the peer has stopped
	evFenceLost              // no answer to it
	evFetched                // what the peer had more is in the log, or cannot be had
	evRebuilt                // Storage and log stand on a snapshot: base, epochs
	evPromote                // an operator's word: force
	evSolo
	evSnapshotAsked // the peer is about to be sent a snapshot
	evRefused       // the peer will not speak to this node: reason
	evFailed        // the own log or Storage ended
)

// event is one thing that happened to a node.
type event struct {
	kind   eventKind
	now    instant
	log    logView
	peer   Peer
	sent   instant
	ack    walstream.Ack
	epoch  replication.Epoch
	commit uint64
	base   walstream.Mark
	epochs []EpochStart
	fresh  string // a new history, for founding
	reason string

	admit, follows, fenced, force bool
	plain                         bool // an operator of a pair without epochs
	stood                         bool // a tick so late that this node stood still itself
	useless                       bool // something hangs, and this node makes room for its standby
}

type actionKind int

const (
	doSave     actionKind = iota // stored is durable before what follows
	doSync                       // everything in the log is durable before what follows
	doStop                       // accept no write and take no batch from now on
	doFollow                     // take batches of stored.Epoch
	doLead                       // accept writes in stored.Epoch, send the log
	doReply                      // answer the message: granted or not
	doFence                      // tell the peer to stop
	doFetch                      // get the peer's entries after the log's end
	doSaveTail                   // put aside the entries after position
	doTruncate                   // cut the log after position
	doRebuild                    // get a snapshot of the peer
	doFound                      // make the Storage part of stored.History
	doCommit                     // Storage may go up to position
	doTell                       // an event for subscribers
)

type action struct {
	kind     actionKind
	stored   Stored
	position uint64
	granted  bool
	tell     replication.EventType
	detail   string
}

// step takes an event.
func (m machine) step(ev event) (machine, []action) {
	s := stepper{machine: &m, ev: ev}
	if m.broken {
		s.do(action{kind: doReply, detail: m.waiting})
		return m, s.actions
	}
	switch ev.kind {
	case evTick:
		s.tick()
	case evPeer:
		s.meet()
	case evHeartbeat:
		s.heartbeat()
	case evHeartbeatAck:
		s.heartbeatAck()
	case evStreamAck:
		s.streamAck()
	case evFence:
		s.fence()
	case evFenceAck:
		s.fenceAck()
	case evFenceLost:
		if m.role == RoleFencing && ev.epoch == m.stored.Epoch && m.unfenced && s.quiet() {
			s.lead()
		}
	case evFetched:
		if m.role == RolePromoting {
			s.lead()
		}
	case evRebuilt:
		s.rebuilt()
	case evPromote:
		s.promote()
	case evSolo:
		s.goSolo()
	case evSnapshotAsked:
		s.snapshotAsked()
	case evRefused:
		s.refuse(ev.reason)
	case evFailed:
		s.failed()
	}
	return m, s.actions
}

// stepper is one step under way.
type stepper struct {
	*machine
	ev      event
	actions []action
	stops   bool // the Storage was being given entries until this step
}

func (s *stepper) do(a action)        { s.actions = append(s.actions, a) }
func (s *stepper) save()              { s.do(action{kind: doSave, stored: s.stored}) }
func (s *stepper) now() time.Duration { return s.ev.now.boot }
func (s *stepper) tell(t replication.EventType, detail string) {
	s.do(action{kind: doTell, tell: t, detail: detail})
}

// owns: the node's highest epoch is its own.
func (m *machine) owns() bool { return m.stored.Epoch.Owner == m.self && !m.stored.Epoch.IsZero() }

// silent: the peer has not been heard for the failover timeout.
func (s *stepper) silent() bool { return s.now()-max(s.heard, s.started) >= s.failover }

// mayBeMet: the peer belongs to the same history, or one of both has none yet.
func (m *machine) mayBeMet(p *Peer) bool {
	return p.History == m.stored.History || p.History == "" || m.stored.History == ""
}

// self as the peer hears of it.
func (m *machine) state(log logView) Peer {
	return Peer{NodeID: m.self, History: m.stored.History, Epoch: m.stored.Epoch, Epochs: m.stored.Epochs, Role: m.role,
		Last: log.last, Durable: log.durable, Applied: log.applied, From: log.from, Admitted: m.stored.Admitted,
		Rebuilding: m.stored.Rebuilding, WantsPrimary: m.wantsPrimary, Settings: m.settings}
}

// meet takes in what the peer says of itself. A higher epoch is promised at once,
// whatever this node was doing.
func (s *stepper) meet() {
	p := s.ev.peer
	if p.NodeID == s.self || p.Settings != s.settings {
		s.refuse(fmt.Sprintf("the peer has node ID %q and settings %q, this is %q with %q: they must differ in the first and not in the second",
			p.NodeID, p.Settings, s.self, s.settings))
		if p.NodeID != s.self {
			s.peer.NodeID = p.NodeID // so that it hears of it, too
		}
		return
	}
	if s.waiting == s.refused {
		s.waiting = ""
	}
	s.refused = ""
	s.peer, s.peerKnown, s.heard = p, true, s.now()
	if !s.mayBeMet(&p) {
		s.waiting = "foreign history: the peer's data is of another history; discard one side"
		return
	}
	if s.stored.History != "" && p.Epoch.Compare(s.stored.Epoch) > 0 {
		if p.Epoch.Owner == s.self {
			s.waiting = "the peer knows an epoch of this node that this node does not: its state was lost or set back; discard its data"
			return
		}
		s.yield(p.Epoch)
		s.save()
	}
	s.orient()
}

// refuse notes why this node and its peer, which is there, do not go together.
func (s *stepper) refuse(reason string) {
	s.refused, s.waiting = reason, reason
	if s.role != RoleStandby { // that one waits for its primary's heartbeats
		s.heard = s.now()
	}
}

// yield promises a higher epoch: who was primary stops, who followed stops
// following. The caller saves.
func (s *stepper) yield(e replication.Epoch) {
	was := s.role
	s.stored.promise(e)
	s.follows, s.hasLease, s.solo = false, false, false
	switch was {
	case RoleRebuilding: // goes on; what it gets is compared when it has it
		return
	case RolePrimary:
		s.role, s.stops = RoleFenced, true
		s.do(action{kind: doStop})
		s.tell(replication.EventFenced, e.String())
		s.do(action{kind: doSync})
	default:
		s.role, s.stops = RoleRejoining, was == RoleStandby
		s.do(action{kind: doStop})
	}
}

// orient decides what a node without a part does next (hot standby, "Starting").
func (s *stepper) orient() {
	switch s.role {
	case RoleStarting, RoleRejoining, RoleFenced:
	default:
		return
	}
	d := s.decide()
	s.waiting = d.reason
	// What the peer said is no older than the question; and the Storage stood still
	// before it was asked how far it is: what it was applying may be cut from the log.
	asked := s.ev.kind == evPeer && !s.stops
	switch {
	case d.what == startJoin && asked:
		s.join()
	case d.what == startPromote:
		s.beginPromotion(d.unfenced)
	case d.what == startFound && (asked || s.solo):
		s.found()
	}
}

// found makes this node the first primary of a new history.
func (s *stepper) found() {
	if s.ev.fresh == "" {
		return
	}
	s.stored = Stored{History: s.ev.fresh, Base: walstream.Mark{Position: max(s.ev.log.applied, 1)}, Solo: s.solo}
	s.stored.begin(replication.Epoch{Number: 1, Owner: s.self}, s.stored.Base.Position+1)
	s.do(action{kind: doFound, stored: s.stored})
	s.save()
	s.takeOffice()
}

// tick lets time pass.
func (s *stepper) tick() {
	if s.role == RoleStandby && s.ev.stood {
		s.heard = s.now() // it did not listen
	}
	switch s.role {
	case RoleStarting, RoleRejoining, RoleFenced:
		if s.silent() {
			s.peerKnown, s.refused = false, ""
		}
		s.orient()
	case RoleStandby:
		s.watchPrimary()
	case RoleFencing:
		if s.unfenced && s.quiet() && s.now()-s.began >= s.answer {
			s.lead()
			return
		}
		s.do(action{kind: doFence})
	case RolePrimary:
		s.watchStandby()
	}
}

// quiet: no heartbeat was answered for the failover timeout, nor has the process
// run for less: no lease of an earlier primary is left.
func (s *stepper) quiet() bool { return s.now()-max(s.answered, s.started) >= s.failover }

// watchPrimary is a standby's part in failover.
func (s *stepper) watchPrimary() {
	if s.now()-s.heard < s.failover || !s.quiet() {
		return
	}
	switch {
	case !s.stored.Admitted:
		s.waiting = "the primary is silent, and this standby is not admitted: it may lack acknowledged writes; promote it with force, or bring the primary back"
	case !s.auto:
		s.waiting = "the primary is silent, and automatic failover is off"
	default:
		s.beginPromotion(true)
	}
}
