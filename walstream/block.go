package walstream

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/hashicorp/raft"
)

// A block is what one raft.Log of the store holds: entries that one sync took, at
// successive positions. A store's work is for each of its logs, not for each byte
// of them: so a sync of many small entries costs little more than one of a single
// one. The block's index in the store says nothing about positions.
//
// It is a version byte, a CRC-32C (4 bytes) of the rest of the head and the index,
// the position of the first entry (8), the number of entries (4), and the entries,
// each as its length (4) and its stored form, which has a checksum of its own. All
// numbers are big endian. A block whose first position is not above that of the
// log's last entry cuts the log before it: that is how a tail is cut off, by a
// block without entries, in one write. A version 1 block is the stored form of one
// entry, whose position is the block's index.
const (
	blockVersion2  = 2
	blockHeadBytes = 1 + 4 + 8 + 4
	// What pack puts into one block; a larger entry goes alone.
	blockEntries = 256
	blockBytes   = 64 << 10
)

// block is a block that was opened. Its entries refer to the store's bytes.
type block struct {
	first   uint64
	entries [][]byte
}

// segment is a block of the store and where the part of it that is in the log
// begins, which ends where the next segment's begins.
type segment struct {
	index uint64
	first uint64
}

// pack puts entries of one sync, at successive positions, into blocks from an index
// on, at most maxEntries into one.
func pack(index uint64, entries []stored, maxEntries int) (logs []*raft.Log, segments []segment) {
	for len(entries) > 0 {
		n, size := 1, len(entries[0].data)
		for n < min(len(entries), maxEntries) && size+len(entries[n].data) <= blockBytes {
			size += len(entries[n].data)
			n++
		}
		segments = append(segments, segment{index: index, first: entries[0].entry.Position})
		logs = append(logs, newBlock(index, entries[0].entry.Position, entries[n-1].entry.Epoch.Number, entries[:n]))
		entries = entries[n:]
		index++
	}
	return logs, segments
}

// newBlock makes a block in the form in which the store takes it.
func newBlock(index, first, term uint64, entries []stored) *raft.Log {
	size := blockHeadBytes
	for i := range entries {
		size += 4 + len(entries[i].data)
	}
	data := make([]byte, blockHeadBytes, size)
	data[0] = blockVersion2
	binary.BigEndian.PutUint64(data[5:], first)
	binary.BigEndian.PutUint32(data[13:], uint32(len(entries)))
	binary.BigEndian.PutUint32(data[1:], headChecksum(index, data))
	for i := range entries {
		data = binary.BigEndian.AppendUint32(data, uint32(len(entries[i].data)))
		data = append(data, entries[i].data...)
	}
	return &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: data}
}

// headChecksum covers a block's index too, so that a block at another place than
// its own is found out.
func headChecksum(index uint64, data []byte) uint32 {
	sum := crc32.Update(0, castagnoli, data[:1])
	sum = crc32.Update(sum, castagnoli, data[5:blockHeadBytes])
	return withPosition(sum, index)
}

// openBlock finds the entries of a block; errors wrap ErrCorrupt. It decodes none
// of them.
func openBlock(index uint64, data []byte) (block, error) {
	if len(data) > 0 && data[0] == entryVersion1 {
		return block{first: index, entries: [][]byte{data}}, nil
	}
	if len(data) < blockHeadBytes {
		return block{}, fmt.Errorf("%w: block %d has %d bytes", ErrCorrupt, index, len(data))
	}
	if data[0] != blockVersion2 {
		return block{}, fmt.Errorf("%w: block %d: version %d is not known here", ErrCorrupt, index, data[0])
	}
	if binary.BigEndian.Uint32(data[1:]) != headChecksum(index, data) {
		return block{}, fmt.Errorf("%w: block %d: checksum", ErrCorrupt, index)
	}
	b := block{first: binary.BigEndian.Uint64(data[5:])}
	count := int64(binary.BigEndian.Uint32(data[13:]))
	rest := data[blockHeadBytes:]
	if count*(4+entryHeadBytes) > int64(len(rest)) {
		return block{}, fmt.Errorf("%w: block %d: %d entries in %d bytes", ErrCorrupt, index, count, len(rest))
	}
	b.entries = make([][]byte, 0, count)
	for range count {
		if len(rest) < 4 || uint64(binary.BigEndian.Uint32(rest)) > uint64(len(rest)-4) {
			return block{}, fmt.Errorf("%w: block %d is cut short", ErrCorrupt, index)
		}
		end := 4 + int(binary.BigEndian.Uint32(rest))
		b.entries = append(b.entries, rest[4:end:end])
		rest = rest[end:]
	}
	if len(rest) > 0 {
		return block{}, fmt.Errorf("%w: block %d: %d bytes after its entries", ErrCorrupt, index, len(rest))
	}
	return b, nil
}

// load reads all of the store.
func (l *Log) load() error {
	lowest, err := l.store.FirstIndex()
	if err != nil {
		return fmt.Errorf("reading the log: %w", err)
	}
	highest, err := l.store.LastIndex()
	if err != nil {
		return fmt.Errorf("reading the log: %w", err)
	}
	if highest == 0 {
		return nil
	}
	if lowest == 0 || highest < lowest {
		return fmt.Errorf("%w: it has blocks %d to %d", ErrCorrupt, lowest, highest)
	}
	l.lowest, l.next = lowest, highest+1
	for index := lowest; index <= highest; index++ {
		b, err := l.readBlock(index)
		if err != nil {
			return err
		}
		if err := l.loadBlock(index, b); err != nil {
			return err
		}
	}
	l.durable, l.handed = l.last, l.last.Position
	return nil
}

// loadBlock puts a block's entries behind those that were loaded before, of which
// it may cut off some.
func (l *Log) loadBlock(index uint64, b block) error {
	if index == l.lowest && len(b.entries) > 0 && b.first > l.base.Position {
		l.first = b.first // what was before it was compacted away
		l.last.Position = b.first - 1
	}
	if b.first > l.last.Position+1 || b.first < l.first || b.first <= l.base.Position {
		return fmt.Errorf("%w: block %d begins at %d, the log has %d to %d above base %d", ErrCorrupt, index, b.first, l.first, l.last.Position, l.base.Position)
	}
	if err := l.loadCut(b.first - 1); err != nil {
		return err
	}
	if len(b.entries) > 0 {
		l.segments = append(l.segments, segment{index, b.first})
	}
	for i, data := range b.entries {
		e, err := decode(b.first+uint64(i), data)
		if err != nil {
			return err
		}
		if e.Epoch.Compare(l.last.Epoch) < 0 {
			return fmt.Errorf("%w: entry %d is of epoch %s, after %s", ErrCorrupt, e.Position, e.Epoch, l.last.Epoch)
		}
		l.last = e.Mark()
		l.sizes = append(l.sizes, uint32(e.size))
		l.total += int64(e.size)
	}
	return nil
}

// loadCut cuts what was loaded after a position.
func (l *Log) loadCut(after uint64) error {
	if after >= l.last.Position {
		return nil
	}
	mark := l.base
	if after > l.base.Position {
		s, _ := l.segmentOf(after)
		entries, err := l.readFrom(s, after, after)
		if err != nil {
			return err
		}
		mark = entries[0].Mark()
	}
	l.forget(mark)
	return nil
}

// forget takes what is after mark out of what is known of the log. l.mu is held.
func (l *Log) forget(mark Mark) {
	keep := mark.Position + 1 - l.first
	for _, size := range l.sizes[keep:] {
		l.total -= int64(size)
	}
	l.sizes = l.sizes[:keep]
	for n := len(l.cache); n > 0 && l.cache[n-1].Position > mark.Position; n-- {
		l.cached -= l.cache[n-1].size
		l.cache = l.cache[: n-1 : n-1] // what a reader holds is not written over
	}
	for n := len(l.segments); n > 0 && l.segments[n-1].first > mark.Position; n-- {
		l.segments = l.segments[:n-1]
	}
	l.last, l.durable, l.handed = mark, mark, mark.Position
	l.cuts++
}

// segmentOf is the segment that has a durable position of the log, and the last
// position that it has. l.mu is held.
func (l *Log) segmentOf(position uint64) (s segment, last uint64) {
	i, found := slices.BinarySearchFunc(l.segments, position, func(s segment, p uint64) int {
		switch {
		case s.first < p:
			return -1
		case s.first > p:
			return 1
		}
		return 0
	})
	if !found {
		i-- // it begins before the position, and the next one after it
	}
	if i+1 < len(l.segments) {
		return l.segments[i], l.segments[i+1].first - 1
	}
	return l.segments[i], l.durable.Position
}
