package region

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/nornicdb/replication"
)

// The outbox is kept in blocks of blockSpan positions, so that an entry does not
// cost a row. A block's row has the place of its first entry, and for each from
// there on the length, the stamp (lost.go) and what Entry.Encode made; a block that is not full grows
// with the next transaction, and one that was emptied begins anew. An entry of
// more than maxInBlock bytes has a row of its own, and length 0 in the block, so
// that a block that grows is never large.
const (
	blockSpan  = 64
	maxInBlock = 2 << 10
)

// block is a block of the outbox in memory.
type block struct {
	number uint64
	data   []byte  // of the row; empty where there are no entries
	first  uint64  // position of the first entry; only where there is one
	items  []place // of the entries, by position
	dirty  bool    // data is not what the row is
}

// place is where an entry is in the data; size 0: in a row of its own.
type place struct{ from, size int }

func blockRow(number uint64) []byte { return binary.BigEndian.AppendUint64([]byte(rowOutbox), number) }
func entryRow(pos uint64) []byte    { return binary.BigEndian.AppendUint64([]byte(rowLarge), pos) }

// readBlock reads a block; one that has no row is empty.
func readBlock(m replication.Meta, number uint64) (*block, error) {
	row, err := m.GetMeta(blockRow(number))
	if err != nil {
		return nil, err
	}
	b := &block{number: number, data: slices.Clip(row)} // which is not ours to write to
	if len(row) == 0 {
		return b, nil
	}
	b.first = number*blockSpan + uint64(row[0])
	for at := 1; at < len(row); {
		size, n := binary.Uvarint(row[at:])
		if n <= 0 || size > uint64(len(row)-at-n) || int(row[0])+len(b.items) >= blockSpan {
			return nil, fmt.Errorf("metadata row of the outbox's block %d is damaged", number)
		}
		b.items = append(b.items, place{at + n, int(size)})
		at += n + int(size)
	}
	return b, nil
}

// entry is an entry as it is encoded. It is valid as long as the block.
func (b *block) entry(m replication.Meta, pos uint64) ([]byte, error) {
	i := pos - b.first
	if pos < b.first || i >= uint64(len(b.items)) {
		return nil, fmt.Errorf("entry %d is not in the outbox", pos)
	}
	if it := b.items[i]; it.size > 0 {
		return b.data[it.from : it.from+it.size : it.from+it.size], nil
	}
	row, err := m.GetMeta(entryRow(pos))
	if err == nil && row == nil {
		err = fmt.Errorf("entry %d of the outbox has no row", pos)
	}
	return row, err
}

// add adds the entry behind the last one.
func (b *block) add(tx replication.Tx, pos uint64, data []byte) error {
	if len(b.items) == 0 {
		b.first, b.data = pos, append(b.data[:0], byte(pos%blockSpan))
	}
	if pos != b.first+uint64(len(b.items)) {
		return fmt.Errorf("entry %d of the outbox behind %d from %d on", pos, len(b.items), b.first)
	}
	b.dirty = true
	if len(data) > maxInBlock {
		b.items = append(b.items, place{})
		b.data = append(b.data, 0)
		return tx.SetMeta(entryRow(pos), data)
	}
	b.data = binary.AppendUvarint(b.data, uint64(len(data)))
	b.items = append(b.items, place{len(b.data), len(data)})
	b.data = append(b.data, data...)
	return nil
}

// save writes the block's row.
func (b *block) save(tx replication.Tx) error {
	if b == nil || !b.dirty {
		return nil
	}
	b.dirty = false
	return tx.SetMeta(blockRow(b.number), b.data)
}

// blocks are the two blocks that a transaction works at: it writes the last, and
// drops what is in the first.
type blocks struct{ head, tail *block }

// at returns a block to be read.
func (o *blocks) at(tx replication.Tx, number uint64) (*block, error) {
	if o.tail != nil && o.tail.number == number {
		return o.tail, nil
	}
	if o.head == nil || o.head.number != number {
		b, err := readBlock(tx, number)
		if err != nil {
			return nil, err
		}
		o.head = b
	}
	return o.head, nil
}

// add adds an entry to the last block.
func (o *blocks) add(tx replication.Tx, pos uint64, data []byte) error {
	if number := pos / blockSpan; o.tail == nil || o.tail.number != number {
		if err := o.tail.save(tx); err != nil {
			return err
		}
		b, err := o.at(tx, number)
		if err != nil {
			return err
		}
		if o.tail = b; b == o.head { // one copy of a block, as it changes
			o.head = nil
		}
	}
	return o.tail.add(tx, pos, data)
}

// drop drops the entry, which is the first that is left, and returns it. The row of
// a block goes with the last of its entries.
func (o *blocks) drop(tx replication.Tx, pos uint64) (data []byte, err error) {
	b, err := o.at(tx, pos/blockSpan)
	if err != nil {
		return nil, err
	}
	if data, err = b.entry(tx, pos); err != nil {
		return nil, err
	}
	if len(data) > maxInBlock {
		if err := tx.SetMeta(entryRow(pos), nil); err != nil {
			return nil, err
		}
	}
	if pos < b.first+uint64(len(b.items))-1 {
		return data, nil
	}
	*b = block{number: b.number}
	return data, tx.SetMeta(blockRow(b.number), nil)
}

// blockReader reads entries of the outbox one after the other.
type blockReader struct {
	m replication.Meta
	b *block
}

func (r *blockReader) entry(pos uint64) ([]byte, error) {
	if number := pos / blockSpan; r.b == nil || r.b.number != number {
		b, err := readBlock(r.m, number)
		if err != nil {
			return nil, err
		}
		r.b = b
	}
	return r.b.entry(r.m, pos)
}
