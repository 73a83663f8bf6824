package walstream

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// record and recordCommand are the version 1 payload. The order of the fields
// is the format.
type record struct {
	//lint:ignore U1000 the codec reads its tag by reflection
	_struct     bool `codec:",toarray"`
	EpochNumber uint64
	EpochOwner  string
	TimestampNS int64 // Unix; math.MinInt64 where there is none
	RequestID   string
	Hash        []byte // empty: that of Commands
	Conditional bool
	ValidAt     uint64
	Commands    []recordCommand
}

type recordCommand struct {
	//lint:ignore U1000 the codec reads its tag by reflection
	_struct     bool `codec:",toarray"`
	Type        uint8
	Data        []byte
	TimestampNS int64
}

const noTimestamp = math.MinInt64

func msgpackHandle() *codec.MsgpackHandle {
	h := &codec.MsgpackHandle{WriteExt: true}
	h.MaxInitLen = 1024 // what a length in the input may make it allocate at once
	return h
}

var handle = msgpackHandle()

// Decoders are kept, as making one costs more than an entry.
var (
	decoders = sync.Pool{New: func() any { return codec.NewDecoderBytes(nothing, handle) }}
	nothing  = []byte{} // what one that is kept refers to
)

// sizeBound is at least what append appends.
func (r *record) sizeBound() int {
	size := 64 + len(r.EpochOwner) + len(r.RequestID) + len(r.Hash)
	for i := range r.Commands {
		size += 24 + len(r.Commands[i].Data)
	}
	return size
}

// append appends the MessagePack of a record, as the codec would write it: every
// write is encoded on two nodes, and the codec takes ten times as long. Data is
// made to refer to what was appended; dst must have room for it, see sizeBound.
func (r *record) append(dst []byte) []byte {
	dst = append(dst, fixArray|8)
	dst = appendUint(dst, r.EpochNumber)
	dst = appendString(dst, r.EpochOwner)
	dst = appendInt(dst, r.TimestampNS)
	dst = appendString(dst, r.RequestID)
	if r.Hash == nil {
		dst = append(dst, 0xc0)
	} else {
		dst = append(appendHead(dst, binHead, len(r.Hash)), r.Hash...)
	}
	dst = appendBool(dst, r.Conditional)
	dst = appendUint(dst, r.ValidAt)
	dst = appendHead(dst, arrayHead, len(r.Commands))
	for i := range r.Commands {
		c := &r.Commands[i]
		dst = append(dst, fixArray|3)
		dst = appendUint(dst, uint64(c.Type))
		dst = appendHead(dst, binHead, len(c.Data))
		begin := len(dst)
		dst = append(dst, c.Data...)
		c.Data = dst[begin:len(dst):len(dst)]
		dst = appendInt(dst, c.TimestampNS)
	}
	return dst
}

// head says how MessagePack writes a length: in the first byte below fixed, else
// in 1 (where there is that form), 2 or 4 bytes behind it.
type head struct {
	fix                byte
	fixed              int
	one8, one16, one32 byte
}

const fixArray = 0x90

var (
	stringHead = head{0xa0, 32, 0xd9, 0xda, 0xdb}
	binHead    = head{0, 0, 0xc4, 0xc5, 0xc6}
	arrayHead  = head{fixArray, 16, 0, 0xdc, 0xdd}
)

func appendHead(dst []byte, h head, n int) []byte {
	switch {
	case n < h.fixed:
		return append(dst, h.fix|byte(n))
	case h.one8 != 0 && n < 1<<8:
		return append(dst, h.one8, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(dst, h.one16), uint16(n))
	}
	return binary.BigEndian.AppendUint32(append(dst, h.one32), uint32(n))
}

func appendString(dst []byte, s string) []byte {
	return append(appendHead(dst, stringHead, len(s)), s...)
}

func appendBool(dst []byte, b bool) []byte {
	if b {
		return append(dst, 0xc3)
	}
	return append(dst, 0xc2)
}

func appendUint(dst []byte, u uint64) []byte {
	switch {
	case u <= math.MaxInt8:
		return append(dst, byte(u))
	case u <= math.MaxUint8:
		return append(dst, 0xcc, byte(u))
	case u <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, 0xcd), uint16(u))
	case u <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(dst, 0xce), uint32(u))
	}
	return binary.BigEndian.AppendUint64(append(dst, 0xcf), u)
}

func appendInt(dst []byte, i int64) []byte {
	switch {
	case i >= -32 && i <= math.MaxInt8:
		return append(dst, byte(i))
	case i >= math.MinInt8 && i < 0:
		return append(dst, 0xd0, byte(i))
	case i >= math.MinInt16 && i <= math.MaxInt16:
		return binary.BigEndian.AppendUint16(append(dst, 0xd1), uint16(i))
	case i >= math.MinInt32 && i <= math.MaxInt32:
		return binary.BigEndian.AppendUint32(append(dst, 0xd2), uint32(i))
	}
	return binary.BigEndian.AppendUint64(append(dst, 0xd3), uint64(i))
}

// decodeBytes decodes v and turns a decoder's panic on malformed input into an
// error.
func decodeBytes(data []byte, v any) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("msgpack: %v", r)
		}
	}()
	dec := decoders.Get().(*codec.Decoder) // one that panics is not kept
	dec.ResetBytes(data)
	err = dec.Decode(v)
	n := dec.NumBytesRead()
	dec.ResetBytes(nothing)
	decoders.Put(dec)
	if err == nil && n != len(data) {
		err = fmt.Errorf("%d bytes after the payload", len(data)-n)
	}
	return err
}
