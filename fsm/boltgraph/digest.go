package boltgraph

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"slices"

	"github.com/nornicdb/replication"
)

// digest is a hash of a set of nodes and edges that does not depend on the
// order in which they came: the sum, modulo 2^256, of the SHA-256 of each one's
// canonical JSON. It tells replicas that differ by mistake from equal ones; it
// is not meant to withstand somebody who makes up colliding graphs.
type digest [4]uint64 // least significant first

func digestFromBytes(b []byte) (d digest) {
	for i := range d {
		d[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return d
}

func (d digest) bytes() []byte {
	b := make([]byte, 0, 32)
	for _, w := range d {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return b
}

func (d *digest) add(o digest) {
	var carry uint64
	for i := range d {
		d[i], carry = bits.Add64(d[i], o[i], carry)
	}
}

func (d *digest) sub(o digest) {
	var borrow uint64
	for i := range d {
		d[i], borrow = bits.Sub64(d[i], o[i], borrow)
	}
}

// nodeDigest hashes a node, whose canonical JSON is data; its labels are a set.
// Where they are sorted and differ already, as those of most nodes are, the
// JSON is what is hashed and n is not asked for.
func nodeDigest(data []byte, n func() (*replication.Node, error)) (digest, error) {
	if sortedLabels(data) {
		return elementDigest('n', data), nil
	}
	node, err := n()
	if err != nil {
		return digest{}, err
	}
	labels := slices.Clone(node.Labels)
	slices.Sort(labels)
	data, err = (&replication.Node{ID: node.ID, Labels: slices.Compact(labels), Properties: node.Properties}).MarshalJSON()
	return elementDigest('n', data), err
}

// sortedLabels: the labels in a node's canonical JSON ascend. It may say no
// where they do.
func sortedLabels(data []byte) bool {
	rest, ok := bytes.CutPrefix(data, []byte(`{"id":`))
	_, rest, ok = cutString(rest, ok)
	rest, found := bytes.CutPrefix(rest, []byte(`,"labels":[`))
	ok = ok && found
	var label, last []byte
	for first := true; ok && len(rest) > 0; first = false {
		if rest[0] == ']' {
			return true
		}
		if !first {
			rest = rest[1:] // a comma
		}
		if label, rest, ok = cutString(rest, true); !first && bytes.Compare(last, label) >= 0 {
			return false
		}
		last = label
	}
	return false
}

// cutString cuts a JSON string without escapes from the front.
func cutString(b []byte, ok bool) (s, rest []byte, found bool) {
	if !ok || len(b) < 2 || b[0] != '"' {
		return nil, nil, false
	}
	end := bytes.IndexAny(b[1:], `"\`)
	if end < 0 || b[1+end] != '"' {
		return nil, nil, false
	}
	return b[1 : 1+end], b[2+end:], true
}

func edgeDigest(e *replication.Edge) (digest, error) {
	data, err := e.MarshalJSON()
	return elementDigest('e', data), err
}

func elementDigest(kind byte, data []byte) digest {
	sum := sha256.Sum256(append([]byte{kind}, data...))
	return digestFromBytes(sum[:])
}
