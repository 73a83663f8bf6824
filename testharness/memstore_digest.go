package testharness

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math/bits"
	"slices"

	"github.com/nornicdb/replication"
)

// digest is the sum, modulo 2^256, of the SHA-256 of each node's and edge's
// canonical JSON: the digest of fsm/boltgraph, so that equal graphs have equal
// digests in either store. Least significant word first.
type digest [4]uint64

func (d *digest) add(o digest) {
	var carry uint64
	for i := range d {
		d[i], carry = bits.Add64(d[i], o[i], carry)
	}
}

func (d digest) String() string {
	b := make([]byte, 0, 32)
	for _, w := range d {
		b = binary.LittleEndian.AppendUint64(b, w)
	}
	return hex.EncodeToString(b)
}

// digestOf hashes one element. Its values were normalized when it was stored,
// so there is no value without a JSON form.
func digestOf(kind byte, v interface{ MarshalJSON() ([]byte, error) }) (d digest) {
	data, err := v.MarshalJSON()
	if err != nil {
		panic(err)
	}
	sum := sha256.Sum256(append([]byte{kind}, data...))
	for i := range d {
		d[i] = binary.LittleEndian.Uint64(sum[8*i:])
	}
	return d
}

// digest of a node; its labels are a set. It is made when it is first asked
// for and kept.
func (n *memNode) digest() digest {
	if d := n.sum.Load(); d != nil {
		return *d
	}
	labels := slices.Clone(n.Labels)
	slices.Sort(labels)
	d := digestOf('n', &replication.Node{ID: n.ID, Labels: slices.Compact(labels), Properties: n.Properties})
	n.sum.Store(&d)
	return d
}

func (e *memEdge) digest() digest {
	if d := e.sum.Load(); d != nil {
		return *d
	}
	d := digestOf('e', &e.Edge)
	e.sum.Store(&d)
	return d
}

func (s *memState) digest() (sum digest) {
	for _, n := range s.nodes.all() {
		sum.add(n.digest())
	}
	for _, e := range s.out.all() {
		sum.add(e.digest())
	}
	return sum
}
