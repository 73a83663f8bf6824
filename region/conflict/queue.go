package conflict

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
)

// What is to be looked at when a write is stable waits in blocks of queueSpan
// writes of one region's stream. A block's row is a list of records, in the
// order in which they were made: the write's place in the block, and the key of
// a row without the common prefix. What was looked at stays until the whole
// block was, or nothing in it waits any more, so that a block is not written
// once for each write.
const queueSpan = 64

// blockID names a block.
type blockID struct {
	region uint8
	number uint64
}

func blockOf(d Dot) blockID { return blockID{d.Region, d.Pos / queueSpan} }

func (b blockID) compare(o blockID) int {
	return cmp.Or(cmp.Compare(b.region, o.region), cmp.Compare(b.number, o.number))
}

func (b blockID) row() []byte {
	key := append(make([]byte, 0, len(rowQueue)+9), rowQueue...)
	return binary.BigEndian.AppendUint64(append(key, b.region), b.number)
}

// queueBlock is a block as long as the Core holds it.
type queueBlock struct {
	id      blockID
	data    []byte // of the row; empty: there is none. What is there is not changed
	records []queueRecord
	last    uint8               // the highest place in a record
	known   map[string]struct{} // records of a large block, place before key; nil: not made
	stored  bool                // there is a row
	dirty   bool                // which is not what data is
}

// queueRecord is a record, and where its key is in the data.
type queueRecord struct {
	place    uint8
	from, to int
}

// block returns a block of the queues, from its row where it is not held yet.
func (c *Core) block(id blockID) (*queueBlock, error) {
	if b := c.lastBlock; b != nil && b.id == id {
		return b, nil
	}
	b, held := c.blocks[id]
	if !held {
		row, err := c.store.GetMeta(id.row())
		if err != nil {
			return nil, err
		}
		if b, err = decodeBlock(row); err != nil {
			return nil, err
		}
		b.id = id
		if c.blocks == nil {
			c.blocks = make(map[blockID]*queueBlock)
		}
		c.blocks[id] = b
	}
	c.lastBlock = b
	return b, nil
}

func decodeBlock(row []byte) (*queueBlock, error) {
	b := &queueBlock{data: row, stored: row != nil}
	r := &reader{b: row}
	for len(r.b) > 0 {
		place, n := r.byte(), r.uint()
		if place >= queueSpan || n > uint64(len(r.b)) {
			r.fail()
			break
		}
		at := len(row) - len(r.b)
		b.note(place, at, at+int(n))
		r.b = r.b[n:]
	}
	if r.err != nil {
		return nil, fmt.Errorf("%w: queue", ErrDamagedRow)
	}
	return b, nil
}

func (b *queueBlock) note(place uint8, from, to int) {
	if b.records == nil {
		b.records = make([]queueRecord, 0, queueSpan)
	}
	b.records = append(b.records, queueRecord{place, from, to})
	b.last = max(b.last, place)
}

func (b *queueBlock) key(r queueRecord) []byte { return b.data[r.from:r.to:r.to] }

// add adds a record, unless it is there.
func (b *queueBlock) add(place uint8, key []byte) {
	if len(b.records) > 0 && place <= b.last && b.has(place, key) {
		return
	}
	if b.data == nil {
		b.data = make([]byte, 0, 256)
	}
	b.data = binary.AppendUvarint(append(b.data, place), uint64(len(key)))
	from := len(b.data)
	b.data = append(b.data, key...)
	b.note(place, from, len(b.data))
	b.dirty = true
}

// has says whether a record is there. What one write, or one merge of a state,
// puts into a block is not bounded.
func (b *queueBlock) has(place uint8, key []byte) bool {
	if len(b.records) <= queueSpan {
		return slices.ContainsFunc(b.records, func(r queueRecord) bool { return r.place == place && bytes.Equal(b.key(r), key) })
	}
	name := func(place uint8, key []byte) string { return string(append([]byte{place}, key...)) }
	if b.known == nil {
		b.known = make(map[string]struct{}, 2*len(b.records))
	}
	for _, r := range b.records[len(b.known):] { // records are not there twice
		b.known[name(r.place, b.key(r))] = struct{}{}
	}
	_, there := b.known[name(place, key)]
	return there
}

// drop drops the block if all of it was looked at.
func (b *queueBlock) drop(collected uint64) {
	if len(b.records) > 0 && b.id.number*queueSpan+uint64(b.last) <= collected {
		b.data, b.records, b.known, b.last, b.dirty = nil, nil, nil, 0, true
	}
}

// enqueue has the rows looked at again when the write d is stable.
func (c *Core) enqueue(d Dot, keys ...[]byte) error {
	if len(keys) == 0 {
		return nil
	}
	b, err := c.block(blockOf(d))
	if err != nil {
		return err
	}
	for _, k := range keys {
		b.add(uint8(d.Pos%queueSpan), k)
	}
	return nil
}

// maxBlocks bounds the blocks that are kept when they are written.
const maxBlocks = 16

// saveBlocks writes the blocks that have changed, in order.
func (c *Core) saveBlocks() error {
	changed := c.changed[:0]
	for _, b := range c.blocks {
		if b.dirty && (b.stored || len(b.data) > 0) {
			changed = append(changed, b)
		}
	}
	c.changed = changed
	slices.SortFunc(changed, func(a, b *queueBlock) int { return a.id.compare(b.id) })
	for _, b := range changed {
		row := b.data
		if len(row) == 0 {
			row = nil
		}
		if err := c.store.SetMeta(b.id.row(), row); err != nil {
			return err
		}
		b.dirty, b.stored = false, row != nil
	}
	if clear(changed); len(c.blocks) > maxBlocks {
		clear(c.blocks)
		c.lastBlock = nil
	}
	return nil
}

// waiting collects, for one pass of collect, what is to be looked at later. It is
// enqueued when the pass is over.
type waiting struct {
	dots []Dot
	keys [][]byte
}

func (w *waiting) add(d Dot, key []byte) {
	w.dots = append(w.dots, d)
	w.keys = append(w.keys, key)
}

func (c *Core) enqueueLater(w *waiting) error {
	for i, d := range w.dots {
		if err := c.enqueue(d, w.keys[i]); err != nil {
			return err
		}
	}
	return nil
}
