package replication

import (
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"time"
	"unicode/utf8"
)

// metaMember prefixes the rows of what members are wanted to be; the node's ID
// follows.
var metaMember = []byte(metaPrefix + "member/")

const (
	wishVoter    = "voter"
	wishNonvoter = "nonvoter"
	// maxMemberIDBytes bounds a member's ID, as the handshake does.
	maxMemberIDBytes = 256
)

// MemberWish says what a member of a Raft cluster is to be: a voter as soon as
// it has caught up, or a non-voter for good. It is replicated state, so it
// outlives leaders and restarts; it changes nothing by itself (raftnode/DESIGN.md,
// "What a member is wanted to be").
type MemberWish struct {
	NodeID string
	Voter  bool `json:",omitempty"`
	// IfNone leaves a wish that is there as it is: what a node asks for itself
	// does not override an operator.
	IfNone bool `json:",omitempty"`
	// Forget removes the wish.
	Forget bool `json:",omitempty"`
}

// NewMemberWishCommand makes the command that records a wish. It is for the
// replication layer; ValidateBatch refuses it from a client.
func NewMemberWishCommand(w MemberWish) (*Command, error) {
	if err := w.validate(); err != nil {
		return nil, err
	}
	data, err := json.Marshal(settings{Member: &w})
	if err != nil {
		return nil, err
	}
	return &Command{Type: CmdSettings, Data: data, Timestamp: time.Now()}, nil
}

func (w *MemberWish) validate() error {
	if w.NodeID == "" || len(w.NodeID) > maxMemberIDBytes || !utf8.ValidString(w.NodeID) {
		return fmt.Errorf("%w: member ID %q", ErrInvalidCommand, w.NodeID)
	}
	return nil
}

// wishTable holds the wishes as the rows do: whether a member is to be a voter.
type wishTable map[string]bool

// with returns the table after a wish, and whether that is another one.
func (t wishTable) with(w *MemberWish) (wishTable, bool) {
	voter, known := t[w.NodeID]
	if w.Forget && !known || !w.Forget && known && (w.IfNone || voter == w.Voter) {
		return t, false
	}
	next := maps.Clone(t)
	if next == nil {
		next = make(wishTable)
	}
	if w.Forget {
		delete(next, w.NodeID)
	} else {
		next[w.NodeID] = w.Voter
	}
	return next, true
}

func loadWishes(m Meta) (wishTable, error) {
	var t wishTable
	err := m.ScanMeta(metaMember, func(k, v []byte) error {
		w := MemberWish{NodeID: string(k[len(metaMember):]), Voter: string(v) == wishVoter}
		if err := w.validate(); err != nil || !w.Voter && string(v) != wishNonvoter {
			return fmt.Errorf("metadata row %s is damaged", k)
		}
		t, _ = t.with(&w)
		return nil
	})
	return t, err
}

// write makes the row of a wish what the table says.
func (t wishTable) write(tx Tx, id string) error {
	var value []byte
	if voter, known := t[id]; known {
		value = []byte(wishNonvoter)
		if voter {
			value = []byte(wishVoter)
		}
	}
	return tx.SetMeta(append(append([]byte(nil), metaMember...), id...), value)
}

// wishHolder holds a table that is replaced, never changed. It has a lock of its
// own: nobody waits for the storage to learn what is wished.
type wishHolder struct {
	mu    sync.Mutex
	table wishTable
}

func (h *wishHolder) get() wishTable {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.table
}

func (h *wishHolder) set(t wishTable) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.table = t
}

// take is for a storage without metadata rows.
func (h *wishHolder) take(w *MemberWish) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.table, _ = h.table.with(w)
}

// MemberWish says whether the member is to be a voter; known is false where
// nobody wished anything.
func (a *StorageApplier) MemberWish(id string) (voter, known bool) {
	voter, known = a.wishes.get()[id]
	return voter, known
}

// ExportWishes returns the wishes for a snapshot of a storage that keeps no
// metadata rows; nil where it does.
func (a *StorageApplier) ExportWishes() map[string]bool {
	if a.tx != nil {
		return nil
	}
	return maps.Clone(a.wishes.get())
}

// ImportWishes replaces the wishes by those of a snapshot. With metadata rows it
// does nothing.
func (a *StorageApplier) ImportWishes(wishes map[string]bool) {
	if a.tx == nil {
		a.wishes.set(maps.Clone(wishes))
	}
}

// rememberSettings takes the wishes and the founding of a group that was applied
// before a restart, for a storage without metadata rows. a.mu is held.
func (a *StorageApplier) rememberSettings(g *Group) {
	for _, cmd := range g.Commands {
		if cmd.Type != CmdSettings {
			continue
		}
		s, err := decodeSettings(cmd.Data)
		switch {
		case err != nil:
		case s.Member != nil:
			a.wishes.take(s.Member)
		case a.identity == (Identity{}):
			a.setIdentity(Identity{History: s.History})
		}
	}
}
