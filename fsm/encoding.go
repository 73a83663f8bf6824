package fsm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/bits"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/nornicdb/replication"
)

// A log entry is a version byte, the CRC-32C of version and payload (4 bytes,
// big endian), and the payload. Version 1: the msgpack array of wireGroups.
// A version that was ever written stays readable.
const (
	entryVersion1  = 1
	entryHeaderLen = 5
)

// ErrCorruptEntry: a log entry has a wrong checksum, an unknown version or a
// payload that does not decode. It is a storage failure, not a verdict.
var ErrCorruptEntry = errors.New("corrupt log entry")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// wireGroup and wireCommand are the version 1 payload. The order of the fields
// is the format.
type wireGroup struct {
	//lint:ignore U1000 the codec reads its tag by reflection
	_struct     bool `codec:",toarray"`
	RequestID   string
	Hash        []byte // empty: that of Commands
	Conditional bool
	ValidAt     uint64
	Commands    []wireCommand
}

type wireCommand struct {
	//lint:ignore U1000 the codec reads its tag by reflection
	_struct      bool `codec:",toarray"`
	Type         uint8
	Data         []byte
	TimestampNS  int64 // Unix; 0 where there is none
	HasTimestamp bool
}

// minInitLen is what a length in the input may make the decoder allocate at
// once, in elements.
const minInitLen = 1024

func msgpackHandle(initLen int) *codec.MsgpackHandle {
	h := &codec.MsgpackHandle{WriteExt: true}
	h.MaxInitLen = initLen
	return h
}

var handle = msgpackHandle(minInitLen)

// handles are those for larger data: the n-th is for a quarter to a half of it.
var handles = func() (list [24]*codec.MsgpackHandle) {
	for i := range list {
		list[i] = msgpackHandle(minInitLen << i)
	}
	return list
}()

// handleFor is the handle to decode data with. The decoder reads a byte string
// in steps of MaxInitLen and copies all before at each, so the step grows with
// the data: the entries of another region's stream are one string.
func handleFor(data []byte) *codec.MsgpackHandle {
	return handles[min(bits.Len(uint(len(data)/(4*minInitLen))), len(handles)-1)]
}

// EncodeEntry encodes the groups of one log entry.
func EncodeEntry(groups []replication.Group) ([]byte, error) {
	wire := make([]wireGroup, len(groups))
	for i := range groups {
		wire[i] = toWire(&groups[i])
	}
	out := make([]byte, 0, entryHeaderLen+EncodedSize(groups))
	var payload []byte
	if err := codec.NewEncoderBytes(&payload, handle).Encode(wire); err != nil {
		return nil, fmt.Errorf("encoding a log entry: %w", err)
	}
	out = append(out, entryVersion1, 0, 0, 0, 0)
	out = append(out, payload...)
	binary.BigEndian.PutUint32(out[1:], entryChecksum(out))
	return out, nil
}

// EncodedSize estimates, from above, the bytes that groups take in an entry.
func EncodedSize(groups []replication.Group) int {
	size := 8
	for i := range groups {
		size += 48 + len(groups[i].RequestID)
		for _, c := range groups[i].Commands {
			size += 24 + len(c.Data)
		}
	}
	return size
}

func entryChecksum(entry []byte) uint32 {
	sum := crc32.Update(0, castagnoli, entry[:1])
	return crc32.Update(sum, castagnoli, entry[entryHeaderLen:])
}

func toWire(g *replication.Group) wireGroup {
	w := wireGroup{RequestID: g.RequestID, Conditional: g.Conditional, ValidAt: g.ValidAt,
		Commands: make([]wireCommand, len(g.Commands))}
	if g.Hash != ([16]byte{}) {
		w.Hash = g.Hash[:]
	}
	for i, c := range g.Commands {
		w.Commands[i] = wireCommand{Type: uint8(c.Type), Data: c.Data}
		if !c.Timestamp.IsZero() {
			w.Commands[i].TimestampNS, w.Commands[i].HasTimestamp = c.Timestamp.UnixNano(), true
		}
	}
	return w
}

// DecodeEntry decodes a log entry; the error wraps ErrCorruptEntry. The groups
// own their memory.
func DecodeEntry(data []byte) ([]replication.Group, error) {
	if len(data) < entryHeaderLen {
		return nil, fmt.Errorf("%w: %d bytes", ErrCorruptEntry, len(data))
	}
	if data[0] != entryVersion1 {
		return nil, fmt.Errorf("%w: version %d is not known here", ErrCorruptEntry, data[0])
	}
	if binary.BigEndian.Uint32(data[1:]) != entryChecksum(data) {
		return nil, fmt.Errorf("%w: checksum", ErrCorruptEntry)
	}
	var wire []wireGroup
	if err := decodeBytes(data[entryHeaderLen:], &wire); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorruptEntry, err)
	}
	groups := make([]replication.Group, len(wire))
	for i := range wire {
		g, err := fromWire(&wire[i])
		if err != nil {
			return nil, err
		}
		groups[i] = g
	}
	return groups, nil
}

// decodeBytes decodes v and turns a decoder's panic on malformed input into an
// error.
func decodeBytes(data []byte, v any) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("msgpack: %v", r)
		}
	}()
	dec := codec.NewDecoderBytes(data, handleFor(data))
	if err := dec.Decode(v); err != nil {
		return err
	}
	if n := dec.NumBytesRead(); n != len(data) {
		return fmt.Errorf("%d bytes after the payload", len(data)-n)
	}
	return nil
}

func fromWire(w *wireGroup) (replication.Group, error) {
	g := replication.Group{RequestID: w.RequestID, Conditional: w.Conditional, ValidAt: w.ValidAt,
		Commands: make([]*replication.Command, len(w.Commands))}
	if len(w.Hash) != 0 && len(w.Hash) != len(g.Hash) {
		return g, fmt.Errorf("%w: hash of %d bytes", ErrCorruptEntry, len(w.Hash))
	}
	copy(g.Hash[:], w.Hash)
	for i := range w.Commands {
		c := &replication.Command{Type: replication.CommandType(w.Commands[i].Type), Data: w.Commands[i].Data}
		if w.Commands[i].HasTimestamp {
			c.Timestamp = time.Unix(0, w.Commands[i].TimestampNS).UTC()
		}
		g.Commands[i] = c
	}
	if len(g.Commands) > 0 {
		g.Commands[0].RequestID = g.RequestID
	}
	return g, nil
}
