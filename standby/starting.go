package standby

import "cmp"

type startKind int

const (
	startWait startKind = iota
	startJoin
	startPromote
	startFound
)

// decision is what a node without a part does next.
type decision struct {
	what     startKind
	reason   string
	unfenced bool // a promotion may go on without the peer's answer
}

func wait(reason string) decision { return decision{what: startWait, reason: reason} }

// decide is the table of hot standby, "Starting". A node joins a primary whose
// epoch is not below what it has promised; it promotes itself if it owns the
// highest epoch of both; it never does so where its data could be stale.
func (s *stepper) decide() decision {
	p := &s.peer
	switch {
	case s.refused != "":
		return wait(s.refused)
	case s.peerKnown && !s.mayBeMet(p):
		return wait(s.waiting)
	case s.stored.History == "" || s.stored.Rebuilding:
		return s.decideEmpty()
	case !s.peerKnown:
		return s.decideAlone()
	case p.Epoch.Compare(s.stored.Epoch) > 0:
		if p.Role == RolePrimary {
			return decision{what: startJoin}
		}
		return wait("the peer knows a higher epoch and is not primary yet")
	case p.Role == RolePrimary && p.Epoch == s.stored.Epoch:
		return decision{what: startJoin}
	case s.owns():
		return decision{what: startPromote, reason: "owns its epoch", unfenced: !s.consistency}
	case p.Role == RolePrimary:
		return wait("the peer is primary of an epoch below the one that is known here, and will step down")
	}
	return s.decideBetween()
}

// decideEmpty is for a node that has no history, or whose data is being replaced.
func (s *stepper) decideEmpty() decision {
	p := &s.peer
	switch {
	case s.peerKnown && p.History != "" && s.hasData && s.dataHistory != p.History && !s.stored.Rebuilding:
		return wait("foreign history: the storage holds data that is not the peer's; discard one side")
	case s.peerKnown && p.History != "" && p.Role == RolePrimary && p.Epoch.Compare(s.stored.Epoch) >= 0:
		return decision{what: startJoin}
	case s.stored.Rebuilding:
		return wait("a snapshot was being installed; it needs a primary to begin again from")
	case s.peerKnown && p.History != "":
		return wait("the peer has a history and is not primary yet")
	case s.solo && (!s.peerKnown || p.History == ""):
		return decision{what: startFound}
	case !s.peerKnown:
		return wait("no history, and the peer does not answer; solo founds one without it")
	case s.wantsPrimary && p.WantsPrimary:
		return wait("both nodes have HA_ROLE=primary and no history")
	case s.wantsPrimary:
		return decision{what: startFound}
	}
	return wait("no history yet, and neither has the peer")
}

// decideAlone is for a node that hears nothing of its peer.
func (s *stepper) decideAlone() decision {
	switch {
	case !s.silent():
		return wait("asking the peer")
	case s.consistency:
		return wait("the peer is silent, and under the policy consistency a node that starts waits for it; promote with force, or solo")
	case s.owns() || s.stored.Admitted && s.auto:
		return decision{what: startPromote, reason: "the peer is silent", unfenced: true}
	}
	return wait("the peer is silent, and this node may lack acknowledged writes; promote it with force, or bring the peer back")
}

// decideBetween is for two nodes of which neither is primary, this one's epoch
// being not below the peer's and not its own.
func (s *stepper) decideBetween() decision {
	p := &s.peer
	whole := p.History != "" && !p.Rebuilding
	switch {
	case whole && p.Epoch == s.stored.Epoch && p.Epoch.Owner == p.NodeID:
		return wait("the peer owns the epoch and will promote itself")
	case !whole || s.stored.Epoch.Owner == p.NodeID:
		// Its owner lost its state; what it acknowledged may be nowhere but here.
		if s.stored.Admitted && s.auto {
			return decision{what: startPromote, reason: "the primary has lost its data", unfenced: !s.consistency}
		}
		return wait("the owner of the epoch has lost its data, and this node may lack acknowledged writes; promote it with force")
	}
	// The epoch's owner is neither of both: a node that was replaced.
	if c := cmp.Or(s.stored.Epoch.Compare(p.Epoch), s.ev.log.last.Epoch.Compare(p.Last.Epoch),
		cmp.Compare(s.ev.log.last.Position, p.Last.Position), cmp.Compare(s.self, p.NodeID)); c > 0 {
		return decision{what: startPromote, reason: "it has the higher position", unfenced: false}
	}
	return wait("the peer has the higher position and will promote itself")
}
