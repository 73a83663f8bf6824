package standby

import (
	"fmt"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/walstream"
)

// nextEpoch is an epoch of this node's that nobody had; false: no number is left.
func (s *stepper) nextEpoch() (replication.Epoch, bool) {
	e := replication.Epoch{Number: 1 + s.stored.Epoch.Number, Owner: s.self}
	if s.mayBeMet(&s.peer) {
		e.Number = max(e.Number, 1+s.peer.Epoch.Number)
	}
	if e.Number >= maxEpochNumber {
		s.waiting = "no epoch number is left"
		return replication.Epoch{}, false
	}
	return e, true
}

// beginPromotion takes an epoch that nobody had, durably, before anything else.
// false: there is none, and nothing was done.
func (s *stepper) beginPromotion(unfenced bool) bool {
	e, ok := s.nextEpoch()
	if !ok {
		return false
	}
	s.follows = false
	s.do(action{kind: doStop})
	s.do(action{kind: doSync})
	s.stored.promise(e)
	s.stored.Promoting = true
	s.save()
	s.role, s.unfenced, s.waiting, s.began = RoleFencing, unfenced, "", s.now()
	s.do(action{kind: doFence})
	s.tell(replication.EventRoleChanged, string(RoleFencing))
	return true
}

// fenceAck is the answer to doFence. With it, what the other has more is fetched,
// if its log continues this one.
func (s *stepper) fenceAck() {
	if s.role != RoleFencing || s.ev.epoch != s.stored.Epoch {
		return
	}
	p := s.ev.peer
	if !s.ev.fenced {
		s.meet() // perhaps of a higher epoch
		return
	}
	s.peer, s.peerKnown, s.heard = p, true, s.now()
	s.role = RolePromoting
	mine := s.ev.log.last.Position
	prefix, common := commonPrefix(s.stored.Epochs, mine, p.Epochs, p.Last.Position)
	if common && prefix == mine && p.Last.Position > mine && p.From <= mine && !p.Rebuilding {
		s.do(action{kind: doFetch, position: p.Last.Position})
		return
	}
	s.lead()
}

// lead makes this node primary of the epoch that it has stored.
func (s *stepper) lead() {
	s.stored.Solo = s.solo
	s.stored.begin(s.stored.Epoch, s.ev.log.last.Position+1)
	s.save()
	s.takeOffice()
}

func (s *stepper) takeOffice() {
	s.role, s.follows, s.waiting = RolePrimary, false, ""
	s.unfenced, s.solo = false, false
	s.standAlone()
	s.do(action{kind: doLead})
	s.tell(replication.EventRoleChanged, string(RolePrimary))
}

// standAlone begins an epoch of a primary, without a standby in it.
func (s *stepper) standAlone() {
	s.ack, s.hasLease, s.barrier = walstream.Ack{}, false, 0
	s.contact = s.now()
	s.alone = s.mode == replication.SyncSemi || s.stored.Solo
	if !s.alone {
		s.barrier = s.ev.log.last.Position
	}
}

// raise withdraws the standby's admission: a new epoch begins, so that nothing
// that was said in the old one can give it back. false: no number is left, and the
// old one goes on.
func (s *stepper) raise(solo bool) bool {
	e, ok := s.nextEpoch()
	if !ok {
		return false
	}
	s.stored.begin(e, s.ev.log.last.Position+1)
	s.stored.Solo = s.stored.Solo || solo
	s.save()
	s.standAlone()
	s.do(action{kind: doLead})
	return true
}

// watchStandby lets a primary go on without a standby that is away (semi_sync
// under the policy availability), and without one that it waits for to admit it; but
// not while it is silent so that the standby takes over: that one would hear of a new
// epoch instead.
func (s *stepper) watchStandby() {
	if s.now()-s.contact < s.failover || s.ev.useless {
		return
	}
	switch {
	case s.stored.PeerAdmitted && s.mode == replication.SyncSemi && !s.consistency:
		if s.raise(false) {
			s.tell(replication.EventDegraded, "no standby: writes are acknowledged alone")
		}
	case !s.stored.PeerAdmitted && !s.alone && (s.mode == replication.SyncSemi || s.stored.Solo):
		s.alone = true
	}
}

// heartbeatAck is the standby's answer to a heartbeat that was sent at ev.sent.
func (s *stepper) heartbeatAck() {
	p := s.ev.peer
	if s.role != RolePrimary || s.ev.epoch != s.stored.Epoch {
		return
	}
	s.meet()
	if s.role != RolePrimary || s.refused != "" || !s.mayBeMet(&p) || !s.ev.follows {
		return
	}
	s.contact = s.now()
	if !s.hasLease || s.ev.sent.boot > s.leaseFrom.boot {
		s.leaseFrom, s.hasLease = s.ev.sent, true
	}
	s.streamAck()
	s.admit()
}

// streamAck takes what the standby has.
func (s *stepper) streamAck() {
	if s.role != RolePrimary || s.ev.epoch != s.stored.Epoch {
		return
	}
	last := s.ev.log.last.Position
	s.ack.Received = max(s.ack.Received, min(s.ev.ack.Received, last))
	s.ack.Persisted = max(s.ack.Persisted, min(s.ev.ack.Persisted, last))
}

// admit admits a standby that has every write that was acknowledged: first
// nothing is acknowledged without it any more, then, when it is durable up to
// where the log ended at that moment, it is admitted.
func (s *stepper) admit() {
	last := s.ev.log.last.Position
	if s.stored.PeerAdmitted {
		return
	}
	if s.alone {
		if s.ack.Persisted+s.maxLag < last {
			return
		}
		s.alone, s.barrier = false, last
	}
	if s.ack.Persisted >= s.barrier {
		s.stored.PeerAdmitted, s.stored.Solo = true, false
		s.save()
		s.tell(replication.EventRestored, "the standby is admitted")
	}
}

// snapshotAsked: a standby that needs a snapshot has lost what it was admitted for,
// or what it would be: what it said that it had counts for nothing any more.
func (s *stepper) snapshotAsked() {
	// One that followed may have acknowledged more, on another connection, than was heard.
	if admitted := s.stored.PeerAdmitted; s.role == RolePrimary && (admitted || s.hasLease || s.ack != walstream.Ack{}) {
		if !s.raise(false) {
			s.do(action{kind: doReply})
			return
		}
		if admitted {
			s.tell(replication.EventDegraded, "the standby is being rebuilt")
		}
	}
	s.do(action{kind: doReply, granted: s.role == RolePrimary})
}

// leased: the primary holds its lease, or needs none.
func (m *machine) leased(now instant) bool {
	if !m.consistency || !m.stored.PeerAdmitted {
		return true
	}
	return m.hasLease && now.boot-m.leaseFrom.boot < m.lease() && now.wall-m.leaseFrom.wall < m.lease() && now.wall >= m.leaseFrom.wall
}

// accepts says whether a write may be appended now.
func (m *machine) accepts(now instant) bool { return m.role == RolePrimary && m.leased(now) }

// commit is the position up to which writes are as safe as the mode promises: up
// to it they are acknowledged and may be applied. false: none may be now.
func (m *machine) commit(now instant, durable uint64) (uint64, bool) {
	if m.role != RolePrimary || !m.leased(now) {
		return 0, false
	}
	switch {
	case m.mode == replication.SyncAsync || m.alone:
		return durable, true
	case m.mode == replication.SyncSemi:
		return min(durable, m.ack.Received), true
	}
	return min(durable, m.ack.Persisted), true
}

// waitsForStandby: a primary whose writes wait for a standby that is away, or answers
// and does not follow, as its disk has failed, say.
func (m *machine) waitsForStandby(now time.Duration) bool {
	if m.role != RolePrimary || m.mode == replication.SyncAsync || m.alone {
		return false
	}
	return now-m.contact >= m.failover || m.peer.Role != RoleStandby
}

// promote is an operator's word. A planned switch needs the primary's answer and
// its admission; a forced one neither, but it waits until no lease is left.
func (s *stepper) promote() {
	switch {
	case s.role == RolePrimary:
		s.do(action{kind: doReply, granted: true})
		return
	case s.ev.plain && s.stored.History == "" && s.ev.log.applied == s.ev.log.last.Position:
		s.found()
		s.do(action{kind: doReply, granted: true})
		return
	case s.stored.History == "" || s.stored.Rebuilding:
		s.do(action{kind: doReply, detail: "it has no whole copy of the data"})
		return
	case s.ev.force:
		if s.role != RoleFencing && s.role != RolePromoting && !s.beginPromotion(true) {
			s.do(action{kind: doReply, detail: s.waiting})
			return
		}
		s.unfenced = true
	case s.role != RoleStandby || !s.follows:
		s.do(action{kind: doReply, detail: fmt.Sprintf("it is %s: %s", s.role, s.waiting)})
		return
	case !s.stored.Admitted:
		s.do(action{kind: doReply, detail: "it is not admitted: it may lack acknowledged writes"})
		return
	case s.now()-s.heard >= s.failover:
		s.do(action{kind: doReply, detail: "the primary does not answer"})
		return
	case !s.beginPromotion(true):
		s.do(action{kind: doReply, detail: s.waiting})
		return
	}
	s.do(action{kind: doReply, granted: true})
}

// goSolo takes an operator's word that the peer is down.
func (s *stepper) goSolo() {
	switch {
	case s.role == RolePrimary:
		if !s.raise(true) {
			s.do(action{kind: doReply, detail: s.waiting})
			return
		}
		s.tell(replication.EventDegraded, "solo")
	case s.stored.Rebuilding:
		s.do(action{kind: doReply, detail: "it has no whole copy of the data"})
		return
	case s.stored.History == "":
		s.solo = true
		s.orient()
		s.solo = false
		if s.role != RolePrimary {
			s.do(action{kind: doReply, detail: s.waiting})
			return
		}
	default:
		if s.role != RoleFencing && s.role != RolePromoting && !s.beginPromotion(true) {
			s.do(action{kind: doReply, detail: s.waiting})
			return
		}
		s.solo, s.unfenced = true, true
	}
	s.do(action{kind: doReply, granted: true})
}

// failed: the own log or Storage is of no use any more. The incarnation ends.
func (s *stepper) failed() {
	s.follows, s.hasLease = false, false
	s.role, s.broken, s.waiting = RoleFenced, true, "the own log or storage failed; this node takes no part until it is restarted"
	s.do(action{kind: doStop})
}
