package boltgraph

import (
	"bytes"

	"go.etcd.io/bbolt"
)

// The buckets of a file that layers can lie over, and their places in a table.
const (
	nodesBucket = iota // ID → canonical node JSON
	outBucket          // from, type, to, ID → canonical properties
	inBucket           // to, type, from, ID → nothing
	idsBucket          // non-empty edge ID → key in out
	rowsBucket         // metadata rows
	layeredBuckets
)

var bucketNames = [layeredBuckets][]byte{[]byte("nodes"), []byte("out"), []byte("in"), []byte("edge_ids"), []byte("rows")}

// table is what transactions changed since the file was written, or since an
// older table was set aside to be written, and the state after the last one.
type table struct {
	roots   [layeredBuckets]*layerNode
	bytes   int
	state   state
	written state // what it began with
}

// bucket is a bucket as one transaction sees it: its file, over that the table
// being written, over that the latest one.
type bucket struct {
	base   *bbolt.Bucket
	cursor *bbolt.Cursor // of base, for get: bbolt's own Get makes a new one each time
	frozen *layerNode
	latest layerEdit
	last   lookup
}

// lookup is what get found last: who changes a thing has often looked whether it
// is there before.
type lookup struct {
	valid      bool
	key, value []byte
}

// get returns a value that must not be changed, and is valid as long as the
// transaction; nil where there is none.
func (b *bucket) get(key []byte) []byte {
	if b.last.valid && bytes.Equal(b.last.key, key) {
		return b.last.value
	}
	v := b.find(key)
	b.last = lookup{valid: true, key: append(b.last.key[:0], key...), value: v}
	return v
}

func (b *bucket) find(key []byte) []byte {
	if v, known := b.latest.root.get(key); known {
		return v
	}
	if v, known := b.frozen.get(key); known {
		return v
	}
	if b.cursor == nil {
		b.cursor = b.base.Cursor()
	}
	if k, v := b.cursor.Seek(key); bytes.Equal(k, key) {
		return v
	}
	return nil
}

// put sets a value; nil deletes it. It keeps both slices.
func (b *bucket) put(key, value []byte) {
	b.last.valid = false
	b.latest.put(key, value)
}

// scan calls fn for each key with the prefix, in order, until it fails. What fn
// writes to the bucket it does not see.
func (b *bucket) scan(prefix []byte, fn func(k, v []byte) error) error {
	return b.scanFrom(prefix, nil, fn)
}

// scanFrom is scan without the keys below from.
func (b *bucket) scanFrom(prefix, from []byte, fn func(k, v []byte) error) error {
	if bytes.Compare(from, prefix) < 0 {
		from = prefix
	}
	defer b.latest.done()
	newest, older, file := b.latest.view().seek(from), b.frozen.seek(from), b.base.Cursor()
	baseK, baseV := file.Seek(from)
	for {
		k, v := newest.item()
		olderK, olderV := older.item()
		k, v = lower(k, v, olderK, olderV)
		k, v = lower(k, v, baseK, baseV)
		if k == nil || !bytes.HasPrefix(k, prefix) {
			return nil
		}
		if newestK, _ := newest.item(); bytes.Equal(newestK, k) {
			newest.advance()
		}
		if bytes.Equal(olderK, k) {
			older.advance()
		}
		same := bytes.Equal(baseK, k)
		if v != nil {
			if err := fn(k, v); err != nil {
				return err
			}
		}
		if same {
			baseK, baseV = file.Next()
		}
	}
}

// lower returns the item with the lower key, the first one if they are equal; a
// nil key is above all.
func lower(k1, v1, k2, v2 []byte) (k, v []byte) {
	if k2 == nil || k1 != nil && bytes.Compare(k1, k2) <= 0 {
		return k1, v1
	}
	return k2, v2
}
