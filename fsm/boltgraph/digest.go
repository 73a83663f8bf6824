package boltgraph

import (
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

// nodeDigest hashes a node; its labels are a set.
func nodeDigest(n *replication.Node) (digest, error) {
	labels := slices.Clone(n.Labels)
	slices.Sort(labels)
	return elementDigest('n', &replication.Node{ID: n.ID, Labels: slices.Compact(labels), Properties: n.Properties})
}

func edgeDigest(e *replication.Edge) (digest, error) { return elementDigest('e', e) }

func elementDigest(kind byte, v interface{ MarshalJSON() ([]byte, error) }) (digest, error) {
	data, err := v.MarshalJSON()
	if err != nil {
		return digest{}, err
	}
	sum := sha256.Sum256(append([]byte{kind}, data...))
	return digestFromBytes(sum[:]), nil
}
