package standby

import (
	"slices"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/walstream"
)

// Role is a node's part in the pair.
type Role string

// The roles. Only a primary accepts writes.
const (
	// RoleStarting: it asks its peer how things stand.
	RoleStarting Role = "starting"
	RolePrimary  Role = "primary"
	RoleStandby  Role = "standby"
	// RoleFencing: it has stored its new epoch and tells the other to stop.
	RoleFencing Role = "fencing"
	// RolePromoting: the other has stopped; what this node lacks is fetched.
	RolePromoting Role = "promoting"
	// RoleFenced: it was primary, met a higher epoch and stopped.
	RoleFenced Role = "fenced"
	// RoleRejoining: it waits for the primary of the epoch that it has met.
	RoleRejoining Role = "rejoining"
	// RoleRebuilding: a snapshot replaces what it had.
	RoleRebuilding Role = "rebuilding"
)

// maxEpochs bounds an epoch list; older epochs than these are forgotten, and a
// node that knows none of them any more is rebuilt, with all it has put aside. Only
// epochs with entries count.
const maxEpochs = 128

// EpochStart says at which position an epoch begins.
type EpochStart struct {
	Epoch replication.Epoch `json:"epoch"`
	Start uint64            `json:"start"`
}

// Stored is what a node keeps in its state file (hot standby, "Identity").
type Stored struct {
	History string `json:"history,omitempty"`
	// Epoch is the highest this node has promised anything to: its own while it
	// is or becomes primary, otherwise that of whom it follows or was fenced by.
	Epoch     replication.Epoch `json:"epoch"`
	Promoting bool              `json:"promoting,omitempty"`
	// Epochs of this history, as far as this node's log goes or will go.
	Epochs []EpochStart `json:"epochs,omitempty"`
	// Admitted: as a standby it holds the admission of Epoch.
	Admitted bool `json:"admitted,omitempty"`
	// PeerAdmitted: as primary it has admitted its standby into Epoch.
	PeerAdmitted bool `json:"peer_admitted,omitempty"`
	// Solo: an operator said that the peer is down.
	Solo bool `json:"solo,omitempty"`
	// Rebuilding: what WAL and Storage hold is being replaced.
	Rebuilding bool `json:"rebuilding,omitempty"`
	// Base of the log, where it has no entry.
	Base walstream.Mark `json:"base"`
}

// promise notes a higher epoch of somebody else: everything that was granted in
// a lower one is void.
func (s *Stored) promise(e replication.Epoch) {
	s.Epoch = e
	s.Promoting, s.Admitted, s.PeerAdmitted, s.Solo = false, false, false, false
}

// begin notes that an epoch of this node's own begins at a position, where its log
// ends. Epochs said to begin there or above are dropped, as this log has no entry of
// them: nobody wrote in them, a power failure took what was written, or this node
// had not got as far as its primary. So restarts alone do not fill the list. The
// first epoch stays: two logs of a history have it in common.
func (s *Stored) begin(e replication.Epoch, start uint64) {
	s.Epoch = e
	s.Promoting, s.Admitted, s.PeerAdmitted = false, false, false
	first := s.Epochs[:min(len(s.Epochs), 1)]
	reached := slices.DeleteFunc(slices.Clone(s.Epochs), func(x EpochStart) bool { return x.Start >= start })
	if len(reached) == 0 && len(first) > 0 && first[0].Start == start {
		reached = slices.Clone(first)
	}
	s.Epochs = append(reached, EpochStart{e, start})
	if n := len(s.Epochs); n > maxEpochs {
		s.Epochs = s.Epochs[n-maxEpochs:]
	}
}

// Peer is what a node says of itself in messages 25, 7, 8, 9 and 10.
type Peer struct {
	NodeID       string
	History      string
	Epoch        replication.Epoch
	Epochs       []EpochStart
	Role         Role
	Last         walstream.Mark // of its log, durable or not
	Durable      uint64         // ≤ Last.Position
	Applied      uint64         // ≤ Durable
	From         uint64         // its log can be read after this position and above
	Admitted     bool
	Rebuilding   bool
	WantsPrimary bool // HA_ROLE=primary
	Settings     string
}

// logView is a node's log at the time of an event.
type logView struct {
	last    walstream.Mark // ≥ durable
	durable uint64         // ≥ applied
	from    uint64
	applied uint64 // Storage
}

// commonPrefix is the position up to which two logs are the same: the smaller end
// of the last epoch that both epoch lists contain; false where there is none.
func commonPrefix(a []EpochStart, aLast uint64, b []EpochStart, bLast uint64) (uint64, bool) {
	for i := len(a) - 1; i >= 0; i-- {
		j := slices.Index(b, a[i])
		if j >= 0 {
			return min(epochEnd(a, i, aLast), epochEnd(b, j, bLast)), true
		}
	}
	return 0, false
}

// epochEnd is the last position of the i-th epoch in a log that ends at last.
func epochEnd(list []EpochStart, i int, last uint64) uint64 {
	if i+1 < len(list) {
		return min(last, list[i+1].Start-1)
	}
	return last
}
