package standby

import (
	"fmt"
	"slices"

	"github.com/nornicdb/replication"
)

// join makes this node the standby of its peer, which is primary of an epoch not
// below its own. Entries that the primary does not have are put aside, durably,
// before they are cut; if Storage has got past them, it is rebuilt.
func (s *stepper) join() {
	p, log := &s.peer, s.ev.log
	if s.stored.History == "" || s.stored.Rebuilding {
		s.rebuild()
		return
	}
	prefix, common := commonPrefix(s.stored.Epochs, log.last.Position, p.Epochs, p.Last.Position)
	if !common {
		prefix = 0
	}
	tail := log.last.Position > prefix
	if tail {
		s.do(action{kind: doSync})
		s.do(action{kind: doSaveTail, position: prefix})
	}
	if !common || prefix < p.From || tail && (log.applied > prefix || prefix < log.from) {
		s.rebuild()
		return
	}
	if tail {
		s.do(action{kind: doTruncate, position: prefix})
	}
	admitted := s.stored.Admitted && p.Epoch == s.stored.Epoch && !tail
	s.stored.promise(p.Epoch)
	s.stored.Admitted = admitted
	s.follow(p.Epochs)
}

// follow takes the primary's epoch list and its batches.
func (s *stepper) follow(epochs []EpochStart) {
	s.stored.Epochs = slices.Clone(epochs)
	s.save()
	s.role, s.follows, s.waiting = RoleStandby, true, ""
	s.heard = s.now()
	s.do(action{kind: doFollow})
	s.tell(replication.EventRoleChanged, string(RoleStandby))
}

// rebuild replaces what this node has by a snapshot of its peer.
func (s *stepper) rebuild() {
	history := s.peer.History
	s.stored.promise(s.peer.Epoch)
	s.stored.History, s.stored.Rebuilding = history, true
	s.save()
	s.role, s.follows = RoleRebuilding, false
	s.do(action{kind: doStop})
	s.do(action{kind: doRebuild})
}

// rebuilt: Storage and log stand on a snapshot of whom the epoch belonged to then.
func (s *stepper) rebuilt() {
	if s.role != RoleRebuilding {
		return
	}
	if !s.ev.fenced { // it did not succeed: look again
		s.role = RoleRejoining
		s.waiting = "the snapshot could not be had"
		return
	}
	s.stored.Rebuilding = false
	s.stored.Base = s.ev.base
	if s.ev.epoch.Compare(s.stored.Epoch) < 0 { // a higher one was met meanwhile
		s.stored.Epochs = slices.Clone(s.ev.epochs)
		s.save()
		s.role = RoleRejoining
		return
	}
	s.stored.promise(s.ev.epoch)
	s.follow(s.ev.epochs)
}

// heartbeat is a primary's. The answer carries this node's state in any case; it
// counts as an answer for the primary's lease only where this node follows it.
func (s *stepper) heartbeat() {
	p := s.ev.peer
	s.meet()
	if s.role != RoleStandby || !s.follows || s.refused != "" || p.Epoch != s.stored.Epoch || p.Epoch.Owner != p.NodeID {
		s.do(action{kind: doReply})
		return
	}
	if s.ev.log.last.Position < p.From { // the stream cannot go on: ask, and be rebuilt
		s.role, s.follows = RoleRejoining, false
		s.waiting = "the primary's log no longer goes back to where this one ends"
		s.do(action{kind: doStop})
		s.do(action{kind: doReply})
		return
	}
	s.answered, s.waiting = s.now(), ""
	if s.ev.admit && !s.stored.Admitted {
		s.stored.Admitted = true
		s.save()
	}
	s.do(action{kind: doCommit, position: s.ev.commit})
	s.do(action{kind: doReply, granted: true})
}

// fence is the order to promise a higher epoch. Everything in the log is durable
// before the answer says what there is.
func (s *stepper) fence() {
	p := s.ev.peer
	e := s.ev.epoch
	again := e == s.stored.Epoch && e.Owner == p.NodeID && e.Owner != s.self
	if !s.mayBeMet(&p) || !again && e.Compare(s.stored.Epoch) <= 0 {
		s.do(action{kind: doReply})
		return
	}
	s.peer, s.peerKnown, s.heard = p, true, s.now()
	if s.stored.History == "" { // nothing to promise by, and nothing to lose
		s.do(action{kind: doReply, granted: true})
		return
	}
	if !again {
		s.yield(e)
		s.do(action{kind: doSync})
		s.save()
	}
	s.waiting = fmt.Sprintf("fenced by %s, which is about to become primary", e)
	s.do(action{kind: doReply, granted: true})
}
