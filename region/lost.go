package region

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc64"
	"maps"
	"slices"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region/conflict"
	"github.com/nornicdb/replication/walstream"
)

// A stamp names a prefix of a region's stream: a checksum over all of its
// entries. A region keeps its own at each position of its outbox and at the one
// before, and of each other region's stream that of what it has applied. Two
// regions that have the same number of a region's entries, and other ones, have
// other stamps. 0: it is not known, and so is any later one.
const firstStamp = 1 // of the empty prefix

var stampTable = crc64.MakeTable(crc64.ECMA)

// stamped is the stamp of a prefix and the entry behind it.
func stamped(before uint64, entry []byte) uint64 {
	if before == 0 {
		return 0
	}
	return max(crc64.Update(before, stampTable, entry), 1)
}

// stampBytes is what a stamp takes in the outbox, before its entry.
const stampBytes = 8

// splitOutboxRow takes apart what the outbox has of an entry.
func splitOutboxRow(row []byte) (stamp uint64, entry []byte) {
	if len(row) < stampBytes {
		return 0, nil
	}
	return binary.BigEndian.Uint64(row), row[stampBytes:]
}

func (h *header) setStamp(region string, stamp uint64) {
	if h.Stamps == nil {
		h.Stamps = make(map[string]uint64)
	}
	h.Stamps[region] = stamp
}

// stampAt is the stamp of this region's own stream at a position; 0: it is not
// known any more, or not there yet.
func (v *view) stampAt(m replication.Meta, pos uint64) (uint64, error) {
	h := &v.head
	switch {
	case pos == h.Last:
		return h.Stamps[v.settings.Self], nil
	case pos+1 == h.First:
		return h.Base, nil
	case pos < h.First || pos > h.Last:
		return 0, nil
	}
	row, err := (&blockReader{m: m}).entry(pos)
	stamp, _ := splitOutboxRow(row)
	return stamp, err
}

// meeting is the body of kindMeet: what a region says it has of this region's
// stream.
type meeting struct {
	Region     string
	Pos, Stamp uint64
}

// loss says what another region knows that this one has lost.
type loss struct {
	// Pos is how far the other region is; 0: it was told of in an entry or a state.
	Pos uint64
	// Forked: this region has written other entries since at positions that were
	// taken.
	Forked bool
}

// lost says whether this region has lost what the other one has; sure is whether
// it could be told.
func (v *view) lost(m replication.Meta, with *meeting) (lost, sure bool, err error) {
	if with.Pos > v.head.Last {
		return true, true, nil
	}
	ours, err := v.stampAt(m, with.Pos)
	sure = ours != 0 && with.Stamp != 0
	return sure && ours != with.Stamp, sure, err
}

// meet notes what another region has of this one's stream, where that says that
// this region has lost writes, or does not say so any more: the other one was
// restored, too.
func (t *txn) meet(body []byte) error {
	var m meeting
	if err := decodeBody(body, &m); err != nil {
		return err
	}
	if m.Region == t.settings.Self || t.settings.index(m.Region) < 0 {
		return fmt.Errorf("%w: region %.80q", errBadCommand, m.Region)
	}
	lost, sure, err := t.lost(t.Tx, &m)
	before, known := t.head.Lost[m.Region]
	switch {
	case err != nil:
		return err
	case lost:
		t.lose(m.Region, loss{Pos: m.Pos, Forked: m.Pos <= t.head.Last})
	case sure && known && before.Pos > 0:
		delete(t.head.Lost, m.Region)
	}
	return nil
}

func (t *txn) lose(region string, l loss) {
	if t.head.Lost == nil {
		t.head.Lost = make(map[string]loss)
	}
	t.head.Lost[region] = l
}

// told notes that another region's entry or state speaks of writes that this one
// has lost.
func (t *txn) told(by int, err error) error {
	if !errors.Is(err, conflict.ErrAhead) {
		return err
	}
	region := t.settings.Conflict.Regions[by]
	if _, known := t.head.Lost[region]; !known {
		t.lose(region, loss{})
	}
	return err
}

// err is what a region that has lost writes answers to new ones; nil: it has not.
func (h *header) err() error {
	if len(h.Lost) == 0 {
		return nil
	}
	region := slices.Min(slices.Collect(maps.Keys(h.Lost)))
	l := h.Lost[region]
	switch {
	case l.Forked:
		return fmt.Errorf("%w: of the %d that region %s has, others are here", conflict.ErrAhead, l.Pos, region)
	case l.Pos == 0:
		return fmt.Errorf("%w: region %s speaks of such", conflict.ErrAhead, region)
	}
	return fmt.Errorf("%w: region %s has %d, here are %d", conflict.ErrAhead, region, l.Pos, h.Last)
}

// forked: what this region has in its stream is in no other region, or is not all
// of it, and must not get there.
func (h *header) forked() bool {
	for _, l := range h.Lost {
		if l.Forked {
			return true
		}
	}
	return false
}

// meet compares what another region has of this region's stream with what is
// here. A loss is written down in the region's log, so that the next leader knows
// of it, and is the error.
func (n *Node) meet(ctx context.Context, m *meeting) error {
	if v, _ := n.machine.now(); m.Pos > v.head.Last {
		// A new leader may not have applied all yet; the barrier tells.
		if _, err := n.inner.ReadBarrier(ctx, replication.ConsistencyLocalQuorum); err != nil {
			return err
		}
	}
	var v view
	var lost, sure bool
	err := n.machine.View(func(meta replication.Meta) (err error) {
		if v, err = readView(meta); err == nil && v.settings != nil {
			lost, sure, err = v.lost(meta, m)
		}
		return err
	})
	if err != nil {
		return err
	}
	before, known := v.head.Lost[m.Region]
	if lost && (!known || before.Pos != m.Pos) || !lost && sure && known && before.Pos > 0 {
		if err := n.propose(ctx, &logCommand{kind: kindMeet, body: jsonBody(m)}); err != nil {
			return err
		}
	}
	if v, _ = n.machine.now(); lost || v.head.forked() {
		return fmt.Errorf("%w: %w", walstream.ErrDiverged, v.head.err())
	}
	return nil
}
