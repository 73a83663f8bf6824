package region

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region/conflict"
	"github.com/nornicdb/replication/walstream"
)

// Metadata rows of this package, beside those of package conflict.
//
//	s          settings, JSON
//	h          header, JSON
//	o<block>   a block of the outbox
//	l<pos>     an entry of the outbox that is too large for a block
//	t<region><row> a staged row of another region's state
//	q<number>  what became of a request in another region
//	r<id>      its number
const (
	rowPrefix   = "replication/region/"
	rowSettings = rowPrefix + "s"
	rowHeader   = rowPrefix + "h"
	rowOutbox   = rowPrefix + "o"
	rowLarge    = rowPrefix + "l"
	rowStaged   = rowPrefix + "t"

	rowRequestAt = rowPrefix + "q"
	rowRequest   = rowPrefix + "r"
)

// header is the replicated state of this package as a whole.
type header struct {
	// The outbox has the entries First to Last of this region's stream; it is
	// empty where First = Last+1. Bytes is what they take.
	First, Last, Bytes uint64
	// Cursors say how far each other region is in this region's stream.
	Cursors cursors
	// Epoch says which region accepts writes; zero: all do.
	Epoch replication.Epoch
	// Requests counts the requests of other regions that are remembered.
	Requests requests
	// Stamps say, for each region, which entries are the applied ones of its
	// stream, Base which the own ones before First are.
	Stamps map[string]uint64 `json:",omitempty"`
	Base   uint64            `json:",omitempty"`
	// Lost are the regions that know own entries which this region has lost.
	Lost map[string]loss `json:",omitempty"`
	// Staged are the transfers whose rows are staged, by sender.
	Staged map[string]staged
}

func newHeader(s *settings) header {
	h := header{First: 1, Cursors: make(cursors), Base: firstStamp}
	for _, r := range s.Conflict.Regions {
		h.setStamp(r, firstStamp)
	}
	for _, r := range s.others() {
		h.Cursors[r] = 0
	}
	if s.WriteRegion != "" {
		h.Epoch = replication.Epoch{Number: 1, Owner: s.WriteRegion}
	}
	return h
}

func readHeader(m replication.Meta) (h header, err error) {
	row, err := m.GetMeta([]byte(rowHeader))
	if err == nil {
		err = json.Unmarshal(row, &h)
	}
	if err != nil {
		return h, fmt.Errorf("metadata row %s: %w", rowHeader, err)
	}
	return h, nil
}

// errEntryTooLarge is a verdict: the effects of the write fit no frame. What
// was done of it is rolled back.
var errEntryTooLarge = errors.New("the write's effects do not fit a frame between regions")

// emit puts an own entry into the outbox; nil: there is none.
func (t *txn) emit(e *conflict.Entry, err error) error {
	if err != nil || e == nil {
		return err
	}
	data := append(t.buffer[:0], make([]byte, stampBytes)...)
	data = e.Append(data)
	t.buffer = data
	if size := uint64(len(data) - stampBytes); size > t.settings.MaxEntryBytes {
		return fmt.Errorf("%w: %w: %d bytes, at most %d", replication.ErrInvalidCommand, errEntryTooLarge, size, t.settings.MaxEntryBytes)
	}
	stamp := stamped(t.head.Stamps[t.settings.Self], data[stampBytes:])
	binary.BigEndian.PutUint64(data, stamp)
	t.head.setStamp(t.settings.Self, stamp)
	if err := t.blocks.add(t.Tx, e.Dot.Pos, data); err != nil {
		return err
	}
	t.head.Last = e.Dot.Pos
	t.head.Bytes += uint64(len(data))
	return t.trim()
}

// trimBeyond is how many entries beyond the caps go at a time, so that a cap that
// was lowered does not make one transaction of what is beyond it.
const trimBeyond = 1024

// trim drops entries that all regions have, and the oldest beyond the caps: a
// region that lacks one of those is caught up by state transfer.
func (t *txn) trim() error {
	have := t.head.Last
	for _, pos := range t.head.Cursors {
		if mutants.trimUnread {
			break
		}
		have = min(have, pos)
	}
	h := &t.head
	for beyond := 0; h.First <= h.Last; {
		if h.First > have {
			over := h.Last-h.First+1 > t.settings.OutboxMaxEntries || h.Bytes > t.settings.OutboxMaxBytes
			if beyond++; !over || h.First == h.Last || beyond > trimBeyond {
				return nil
			}
		}
		row, err := t.blocks.drop(t.Tx, h.First)
		if err != nil {
			return err
		}
		h.Bytes -= uint64(len(row))
		h.Base, _ = splitOutboxRow(row)
		h.First++
	}
	return nil
}

// moveCursors takes what the other regions have acknowledged. Cursors only grow.
func (t *txn) moveCursors(body []byte) error {
	var acked cursors
	if err := decodeBody(body, &acked); err != nil {
		return err
	}
	for region, pos := range acked {
		if old, known := t.head.Cursors[region]; known && pos > old && pos <= t.head.Last {
			t.head.Cursors[region] = pos
		}
	}
	return t.trim()
}

// outbox is the outbox as the source of a stream.
type outbox struct{ m *machine }

var _ walstream.Source = outbox{}

// Last implements walstream.Source.
func (o outbox) Last() uint64 {
	v, _ := o.m.now()
	return v.head.Last
}

// Changed implements walstream.Source.
func (o outbox) Changed(after uint64) <-chan struct{} {
	v, changed := o.m.now()
	if v.head.Last > after {
		now := make(chan struct{})
		close(now)
		return now
	}
	return changed
}

// Read implements walstream.Source.
func (o outbox) Read(after uint64, maxEntries, maxBytes int) (*walstream.Batch, error) {
	b := &walstream.Batch{Prev: walstream.Mark{Position: after}}
	err := o.m.View(func(m replication.Meta) error {
		v, err := readView(m)
		switch {
		case err != nil:
			return err
		case v.settings == nil:
			return fmt.Errorf("%w: the region's settings are not founded", replication.ErrNotReady)
		case after+1 < v.head.First || mutants.outboxFromLog && after < o.m.restoredUpTo():
			return fmt.Errorf("%w: the outbox begins at %d", walstream.ErrCompacted, v.head.First)
		case after > v.head.Last:
			return fmt.Errorf("%w: the outbox ends at %d, the peer has %d", walstream.ErrAhead, v.head.Last, after)
		}
		from := blockReader{m: m}
		for pos := after + 1; pos <= v.head.Last && len(b.Entries) < maxEntries; pos++ {
			row, err := from.entry(pos)
			if err != nil {
				return err
			}
			if len(b.Entries) > 0 && b.Bytes+len(row) > maxBytes {
				return nil
			}
			_, entry := splitOutboxRow(row)
			e, err := conflict.DecodeOwn(entry)
			if err != nil {
				return fmt.Errorf("outbox entry %d: %w", pos, err)
			}
			if mutants.contextForgotten && pos <= o.m.restoredUpTo() {
				e.Context = conflict.Vector{}
				e.Context[e.Dot.Region] = pos - 1
			}
			b.Entries = append(b.Entries, &walstream.WireEntry{WALEntry: *v.settings.Conflict.ToWAL(e)})
			b.Bytes += len(row)
		}
		return nil
	})
	return b, err
}
