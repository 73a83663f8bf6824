package walstream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"time"
	"unicode/utf8"

	"github.com/nornicdb/replication"
)

// A stored entry is a version byte, a CRC-32C (4 bytes, big endian) and the
// payload. Version 1: the msgpack array of a record. The checksum covers
// version, payload and position, so that an entry at another place than its own
// is found out. A version that was ever written stays readable.
const (
	entryVersion1  = 1
	entryHeadBytes = 5
)

// maxEpochNumber bounds epoch numbers: what every JSON reader keeps exact.
const maxEpochNumber = 1 << 53

// ErrCorrupt: a log entry has a wrong checksum, an unknown version or a payload
// that does not decode, or the log has a hole. It is a storage failure.
var ErrCorrupt = errors.New("corrupt write-ahead log")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Mark is a place in a log: a position and the epoch of the entry there.
type Mark struct {
	Position uint64
	Epoch    replication.Epoch
}

func (m Mark) String() string { return fmt.Sprintf("%d in epoch %s", m.Position, m.Epoch) }

// Entry is one write of the log. It is not changed once it was made.
type Entry struct {
	Position  uint64
	Epoch     replication.Epoch
	Timestamp time.Time
	Group     replication.Group
	// Checksum is that of the stored form. Equal entries have equal ones on
	// every node.
	Checksum uint32
	size     int // bytes of the stored form
}

// Mark of the entry.
func (e *Entry) Mark() Mark { return Mark{e.Position, e.Epoch} }

// stored is an entry with its stored form, on its way into the log. The
// checksum is that of version and payload until seal adds the position.
type stored struct {
	entry *Entry
	data  []byte
}

// encode makes the stored form of an entry but for its position. What would not
// be the same after a journey as JSON is refused with ErrInvalidCommand.
func encode(epoch replication.Epoch, at time.Time, g replication.Group) (stored, error) {
	r := record{EpochNumber: epoch.Number, EpochOwner: epoch.Owner, RequestID: g.RequestID, Conditional: g.Conditional, ValidAt: g.ValidAt}
	var one [1]recordCommand
	if r.Commands = one[:]; len(g.Commands) != 1 {
		r.Commands = make([]recordCommand, len(g.Commands))
	}
	if epoch.Number >= maxEpochNumber || !utf8.ValidString(epoch.Owner) {
		return stored{}, fmt.Errorf("%w: epoch %s", replication.ErrInvalidCommand, epoch)
	}
	if !utf8.ValidString(g.RequestID) || len(g.RequestID) > replication.MaxRequestIDBytes {
		return stored{}, fmt.Errorf("%w: request ID %q", replication.ErrInvalidCommand, g.RequestID)
	}
	if g.Hash != ([16]byte{}) {
		r.Hash = g.Hash[:]
	}
	var err error
	if r.TimestampNS, err = toNanos(at); err != nil {
		return stored{}, err
	}
	for i, c := range g.Commands {
		if c == nil {
			return stored{}, fmt.Errorf("%w: command %d is missing", replication.ErrInvalidCommand, i)
		}
		r.Commands[i] = recordCommand{Type: uint8(c.Type), Data: c.Data}
		if r.Commands[i].TimestampNS, err = toNanos(c.Timestamp); err != nil {
			return stored{}, err
		}
	}
	data := make([]byte, entryHeadBytes, entryHeadBytes+r.sizeBound())
	data[0] = entryVersion1
	data = r.append(data)
	p := new(entryParts)
	g.Commands = r.ownCommands(g.Commands, p)
	e := &p.entry
	*e = Entry{Epoch: epoch, Timestamp: at, Group: g, size: len(data)}
	e.Checksum = checksum(data)
	return stored{e, data}, nil
}

// entryParts are what an entry mostly consists of, made at once.
type entryParts struct {
	entry   Entry
	command [1]replication.Command
	list    [1]*replication.Command
}

// ownCommands are the commands of a record that was encoded: the caller keeps its
// own. Their Data is that of the stored form. A single one is that of p.
func (r *record) ownCommands(theirs []*replication.Command, p *entryParts) []*replication.Command {
	list, own := p.command[:], p.list[:]
	if len(theirs) != 1 {
		list, own = make([]replication.Command, len(theirs)), make([]*replication.Command, len(theirs))
	}
	for i, c := range theirs {
		list[i] = replication.Command{Type: c.Type, Data: r.Commands[i].Data, Timestamp: c.Timestamp}
		own[i] = &list[i]
	}
	if len(own) > 0 {
		own[0].RequestID = r.RequestID
	}
	return own
}

// checksum is that of everything but the position.
func checksum(data []byte) uint32 {
	sum := crc32.Update(0, castagnoli, data[:1])
	return crc32.Update(sum, castagnoli, data[entryHeadBytes:])
}

func withPosition(sum uint32, position uint64) uint32 {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], position)
	return crc32.Update(sum, castagnoli, b[:])
}

// seal gives an entry its position.
func (s stored) seal(position uint64) stored {
	s.entry.Position = position
	s.entry.Checksum = withPosition(s.entry.Checksum, position)
	binary.BigEndian.PutUint32(s.data[1:], s.entry.Checksum)
	return s
}

// decode decodes the stored form of the entry at a position; errors wrap
// ErrCorrupt. The entry owns its memory.
func decode(position uint64, data []byte) (*Entry, error) {
	if len(data) < entryHeadBytes {
		return nil, fmt.Errorf("%w: entry %d has %d bytes", ErrCorrupt, position, len(data))
	}
	if data[0] != entryVersion1 {
		return nil, fmt.Errorf("%w: entry %d: version %d is not known here", ErrCorrupt, position, data[0])
	}
	sum := withPosition(checksum(data), position)
	if binary.BigEndian.Uint32(data[1:]) != sum {
		return nil, fmt.Errorf("%w: entry %d: checksum", ErrCorrupt, position)
	}
	var r record
	if err := decodeBytes(data[entryHeadBytes:], &r); err != nil {
		return nil, fmt.Errorf("%w: entry %d: %w", ErrCorrupt, position, err)
	}
	e, err := r.entry()
	if err != nil {
		return nil, fmt.Errorf("%w: entry %d: %w", ErrCorrupt, position, err)
	}
	e.Position, e.Checksum, e.size = position, sum, len(data)
	return e, nil
}

func (r *record) entry() (*Entry, error) {
	e := &Entry{Epoch: replication.Epoch{Number: r.EpochNumber, Owner: r.EpochOwner}, Timestamp: fromNanos(r.TimestampNS)}
	e.Group = replication.Group{RequestID: r.RequestID, Conditional: r.Conditional, ValidAt: r.ValidAt,
		Commands: make([]*replication.Command, len(r.Commands))}
	if len(r.Hash) != 0 && len(r.Hash) != len(e.Group.Hash) || r.EpochNumber >= maxEpochNumber {
		return nil, fmt.Errorf("hash of %d bytes, epoch %s", len(r.Hash), e.Epoch)
	}
	copy(e.Group.Hash[:], r.Hash)
	for i := range r.Commands {
		c := &r.Commands[i]
		e.Group.Commands[i] = &replication.Command{Type: replication.CommandType(c.Type), Data: c.Data, Timestamp: fromNanos(c.TimestampNS)}
	}
	if len(e.Group.Commands) > 0 {
		e.Group.Commands[0].RequestID = r.RequestID
	}
	return e, nil
}

// Times outside these cannot be told in nanoseconds since 1970.
var (
	minTime = time.Unix(0, math.MinInt64+1)
	maxTime = time.Unix(0, math.MaxInt64)
)

func toNanos(t time.Time) (int64, error) {
	if t.IsZero() {
		return noTimestamp, nil
	}
	if t.Before(minTime) || t.After(maxTime) {
		return 0, fmt.Errorf("%w: timestamp in the year %d", replication.ErrInvalidCommand, t.Year())
	}
	return t.UnixNano(), nil
}

func fromNanos(ns int64) time.Time {
	if ns == noTimestamp {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}
