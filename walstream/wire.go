package walstream

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/nornicdb/replication"
)

// WireEntry is an entry of a WALBatch (code 5) or of a FetchResponse (code 28).
// Peers that know the documented fields alone find their Command in it; what is
// added is sent between nodes of this project.
type WireEntry struct {
	replication.WALEntry
	// Commands are those of a group that is not one plain command; Command is
	// then missing. RequestID, Hash, Conditional and ValidAt belong to it.
	Commands    []*replication.Command `json:",omitempty"`
	RequestID   string                 `json:",omitempty"`
	Hash        []byte                 `json:",omitempty"`
	Conditional bool                   `json:",omitempty"`
	ValidAt     uint64                 `json:",omitempty"`
	// Checksum is that of the entry in its sender's log.
	Checksum uint32 `json:",omitempty"`
	// History is that of the log; the first entry of a batch has it.
	History string `json:",omitempty"`
}

// Batch is entries on their way to a peer, in order and without a gap.
type Batch struct {
	// Prev is the mark before the first entry.
	Prev    Mark
	Entries Entries
	Bytes   int // about what they take
}

// Last is the position of the last entry, or of Prev in a batch without any.
func (b *Batch) Last() uint64 {
	if len(b.Entries) == 0 {
		return b.Prev.Position
	}
	return b.Entries[len(b.Entries)-1].Position
}

// toWire makes an entry ready for the network, in w. It shares the epoch and the commands.
func toWire(w *WireEntry, e *Entry) *WireEntry {
	*w = WireEntry{WALEntry: replication.WALEntry{Position: e.Position, Timestamp: e.Timestamp, Epoch: &e.Epoch}, Checksum: e.Checksum}
	g := &e.Group
	if len(g.Commands) == 1 && !g.Conditional && g.Hash == ([16]byte{}) {
		w.Command = g.Commands[0]
		return w
	}
	w.Commands, w.RequestID, w.Conditional, w.ValidAt = g.Commands, g.RequestID, g.Conditional, g.ValidAt
	if g.Hash != ([16]byte{}) {
		w.Hash = g.Hash[:]
	}
	return w
}

// fromWire makes the stored form of an entry that came over the network. Where
// the sender gave a checksum, it must be that of the result: so what is stored
// here is what is stored there. Errors wrap ErrCorrupt.
func fromWire(w *WireEntry) (stored, error) {
	var g replication.Group
	if w.Command != nil {
		g = replication.NewGroup(w.Command)
	} else {
		g = replication.Group{Commands: w.Commands, RequestID: w.RequestID, Conditional: w.Conditional, ValidAt: w.ValidAt}
		if len(w.Hash) != 0 && len(w.Hash) != len(g.Hash) {
			return stored{}, fmt.Errorf("%w: entry %d: hash of %d bytes", ErrCorrupt, w.Position, len(w.Hash))
		}
		copy(g.Hash[:], w.Hash)
	}
	var epoch replication.Epoch
	if w.Epoch != nil {
		epoch = *w.Epoch
	}
	s, err := encode(epoch, w.Timestamp, g)
	if err != nil {
		return stored{}, fmt.Errorf("%w: entry %d: %w", ErrCorrupt, w.Position, err)
	}
	s = s.seal(w.Position)
	if w.Checksum != s.entry.Checksum && (w.Checksum != 0 || !epoch.IsZero()) {
		return stored{}, fmt.Errorf("%w: entry %d: checksum", ErrCorrupt, w.Position)
	}
	return s, nil
}

// MaxBatchEntries bounds the entries of one batch that a node takes.
const MaxBatchEntries = 1 << 16

// DecodeBatch decodes the payload of a WALBatch or a FetchResponse; errors wrap
// ErrInvalidCommand. What it allocates is bounded by the bytes it has read.
func DecodeBatch(payload []byte) ([]*WireEntry, error) {
	r := wireReader{data: payload}
	if entries, ok := r.batch(); ok {
		return entries, nil
	}
	return decodeBatchJSON(payload)
}

// decodeBatchJSON decodes a batch in any form.
func decodeBatchJSON(payload []byte) ([]*WireEntry, error) {
	if bytes.Equal(bytes.TrimSpace(payload), []byte("null")) {
		return nil, nil
	}
	dec := json.NewDecoder(bytes.NewReader(payload))
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return nil, fmt.Errorf("%w: a batch is an array of entries: %v", replication.ErrInvalidCommand, err)
	}
	var entries []*WireEntry
	for dec.More() {
		if len(entries) == MaxBatchEntries {
			return nil, fmt.Errorf("%w: more than %d entries", replication.ErrInvalidCommand, MaxBatchEntries)
		}
		e := new(WireEntry)
		if err := dec.Decode(e); err != nil {
			return nil, fmt.Errorf("%w: entry %d of the batch: %v", replication.ErrInvalidCommand, len(entries), err)
		}
		entries = append(entries, e)
	}
	if _, err := dec.Token(); err != nil {
		return nil, fmt.Errorf("%w: the end of the batch: %v", replication.ErrInvalidCommand, err)
	}
	return entries, nil
}
