package replication

import (
	"sync"
	"time"
)

// EventType is one of a closed set of things that happen to a node.
type EventType string

// The events.
const (
	// EventStarted: the replicator serves.
	EventStarted EventType = "started"
	// EventStopped: Shutdown has finished.
	EventStopped EventType = "stopped"
	// EventLeaderChanged: Leader is the new one, or empty where there is none.
	EventLeaderChanged EventType = "leader_changed"
	// EventRoleChanged: Role is this node's new role.
	EventRoleChanged EventType = "role_changed"
	// EventMemberChanged: Peer was added, removed, or changed its suffrage.
	EventMemberChanged EventType = "member_changed"
	// EventPeerDown and EventPeerUp: contact with Peer was lost or is back.
	EventPeerDown EventType = "peer_down"
	EventPeerUp   EventType = "peer_up"
	// EventSnapshotTaken and EventSnapshotInstalled carry the Position.
	EventSnapshotTaken     EventType = "snapshot_taken"
	EventSnapshotInstalled EventType = "snapshot_installed"
	// EventStorageFailed: the node applies nothing more; Detail says why.
	EventStorageFailed EventType = "storage_failed"
	// EventDegraded and EventRestored: less, or again all, of what the mode
	// promises is given.
	EventDegraded EventType = "degraded"
	EventRestored EventType = "restored"
	// EventFenced: the node was fenced by a higher epoch.
	EventFenced EventType = "fenced"
	// EventDiverged: writes were put aside; Detail names the file.
	EventDiverged EventType = "diverged"
	// EventConflict: conflicts between regions arose; Detail says about what.
	EventConflict EventType = "conflict"
	// EventRegionEpoch: the region that accepts writes is Leader now.
	EventRegionEpoch EventType = "region_epoch"
	// EventClockSkew: this region's clock went off from that of other regions,
	// or came back; Detail says which.
	EventClockSkew EventType = "clock_skew"
	// EventsLost: Lost events were dropped before this one.
	EventsLost EventType = "events_lost"
)

// Event is one thing that happened. Fields that do not apply are zero.
type Event struct {
	Type     EventType
	Time     time.Time
	Leader   string
	Role     string
	Peer     string
	Term     uint64
	Position uint64
	Lost     int
	Detail   string
}

// EventHub hands events to subscribers without ever blocking the publisher.
// The zero value is ready. Safe for concurrent use.
type EventHub struct {
	mu     sync.Mutex
	subs   map[*subscription]struct{}
	closed bool
}

type subscription struct {
	ch   chan Event
	lost int // events dropped since the last EventsLost was delivered
}

// Subscribe implements Subscriber. A buffer below 2 is taken as 2.
func (h *EventHub) Subscribe(buffer int) (<-chan Event, func()) {
	s := &subscription{ch: make(chan Event, max(buffer, 2))}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		close(s.ch)
		return s.ch, func() {}
	}
	if h.subs == nil {
		h.subs = make(map[*subscription]struct{})
	}
	h.subs[s] = struct{}{}
	return s.ch, func() { h.remove(s) }
}

func (h *EventHub) remove(s *subscription) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.subs[s]; ok {
		delete(h.subs, s)
		close(s.ch)
	}
}

// Publish delivers e to every subscriber; one whose buffer is full loses its
// oldest events.
func (h *EventHub) Publish(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		s.deliver(e)
	}
}

func (s *subscription) deliver(e Event) {
	need := 1
	if s.lost > 0 {
		need = 2
	}
	for cap(s.ch)-len(s.ch) < need {
		select {
		case old := <-s.ch:
			if old.Type == EventsLost {
				s.lost += old.Lost
			} else {
				s.lost++
			}
			need = 2
		default: // the reader was faster
		}
	}
	if s.lost > 0 {
		s.ch <- Event{Type: EventsLost, Time: e.Time, Lost: s.lost}
		s.lost = 0
	}
	s.ch <- e
}

// Close closes every subscriber's channel. Idempotent.
func (h *EventHub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for s := range h.subs {
		delete(h.subs, s)
		close(s.ch)
	}
}
