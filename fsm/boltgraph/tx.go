package boltgraph

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/nornicdb/replication"
	"go.etcd.io/bbolt"
)

var (
	bucketState = []byte("state") // one row: see state
	keyState    = []byte("state")
)

const (
	formatVersion = 1
	stateBytes    = 1 + 8*3 + 32
)

var errDamaged = errors.New("boltgraph: the file is damaged")

// state is what changes with every transaction.
type state struct {
	position, nodes, edges uint64
	digest                 digest
}

func readState(btx *bbolt.Tx) (s state, err error) {
	b := btx.Bucket(bucketState)
	if b == nil {
		return s, fmt.Errorf("%w: no state", errDamaged)
	}
	v := b.Get(keyState)
	if len(v) != stateBytes {
		return s, fmt.Errorf("%w: state of %d bytes", errDamaged, len(v))
	}
	if v[0] != formatVersion {
		return s, fmt.Errorf("boltgraph: the file has format version %d, this program knows %d", v[0], formatVersion)
	}
	s.position = binary.BigEndian.Uint64(v[1:])
	s.nodes = binary.BigEndian.Uint64(v[9:])
	s.edges = binary.BigEndian.Uint64(v[17:])
	s.digest = digestFromBytes(v[25:])
	return s, nil
}

func (s *state) encode() []byte {
	v := []byte{formatVersion}
	v = binary.BigEndian.AppendUint64(v, s.position)
	v = binary.BigEndian.AppendUint64(v, s.nodes)
	v = binary.BigEndian.AppendUint64(v, s.edges)
	return append(v, s.digest.bytes()...)
}

// tx is a transaction: a read transaction of the file, what memory has over it,
// and the transaction's own changes, which the file gets later.
type tx struct {
	btx *bbolt.Tx
	state
	buckets [layeredBuckets]bucket
}

var (
	_ replication.Tx          = (*tx)(nil)
	_ replication.MetaSeeker  = (*tx)(nil)
	_ replication.EdgeStorage = (*tx)(nil)
)

// newTx makes a transaction over a file, the table being written to it, if any,
// and the latest table.
func newTx(btx *bbolt.Tx, frozen, latest *table) *tx {
	t := &tx{btx: btx, state: latest.state}
	for i, name := range bucketNames {
		b := &t.buckets[i]
		b.base = btx.Bucket(name)
		if frozen != nil {
			b.frozen = frozen.roots[i]
		}
		b.latest.root = latest.roots[i]
	}
	return t
}

// table is what before, the latest table, becomes with the transaction.
func (t *tx) table(before *table) *table {
	result := &table{bytes: before.bytes, state: t.state, written: before.written}
	for i := range t.buckets {
		result.roots[i] = t.buckets[i].latest.root
		result.bytes += t.buckets[i].latest.bytes
	}
	return result
}

func (t *tx) nodeRows() *bucket { return &t.buckets[nodesBucket] }
func (t *tx) out() *bucket      { return &t.buckets[outBucket] }
func (t *tx) in() *bucket       { return &t.buckets[inBucket] }
func (t *tx) ids() *bucket      { return &t.buckets[idsBucket] }
func (t *tx) rows() *bucket     { return &t.buckets[rowsBucket] }

func (t *tx) ApplyCommand(cmd *replication.Command) error { return replication.Dispatch(t, cmd) }

func (t *tx) GetWALPosition() (uint64, error)  { return t.position, nil }
func (t *tx) SetWALPosition(pos uint64) error  { t.position = pos; return nil }
func (t *tx) GetMeta(k []byte) ([]byte, error) { return bytes.Clone(t.rows().get(k)), nil }

func (t *tx) SetMeta(key, value []byte) error {
	if len(key) == 0 || len(key) > bbolt.MaxKeySize {
		return fmt.Errorf("boltgraph: metadata key of %d bytes", len(key))
	}
	t.rows().put(bytes.Clone(key), bytes.Clone(value))
	return nil
}

func (t *tx) ScanMeta(prefix []byte, fn func(k, v []byte) error) error {
	return t.rows().scan(prefix, fn)
}

// ScanMetaFrom implements replication.MetaSeeker.
func (t *tx) ScanMetaFrom(prefix, from []byte, fn func(k, v []byte) error) error {
	return t.rows().scanFrom(prefix, from, fn)
}

// decodeNode decodes a stored node.
func decodeNode(id replication.NodeID, stored []byte) (*replication.Node, error) {
	n := new(replication.Node)
	if err := n.UnmarshalJSON(stored); err != nil {
		return nil, fmt.Errorf("%w: node %q: %v", errDamaged, id, err)
	}
	return n, nil
}

// withoutNulls leaves out the properties that are null: they are not there.
func withoutNulls(props map[string]any) map[string]any {
	nulls := 0
	for _, v := range props {
		if v == nil {
			nulls++
		}
	}
	if props != nil && nulls == 0 {
		return props
	}
	kept := make(map[string]any, len(props)-nulls)
	for k, v := range props {
		if v != nil {
			kept[k] = v
		}
	}
	return kept
}

// putNode stores a node in place of old, its stored form; nil: there is none.
func (t *tx) putNode(n *replication.Node, old []byte) error {
	n = &replication.Node{ID: n.ID, Labels: n.Labels, Properties: withoutNulls(n.Properties)}
	data, err := n.MarshalJSON()
	if err != nil {
		return err // a value without JSON form: the verdict ErrInvalidCommand
	}
	d, err := nodeDigest(data, func() (*replication.Node, error) { return n, nil })
	if err != nil {
		return err
	}
	if old != nil {
		if err := t.forgetNode(n.ID, old); err != nil {
			return err
		}
	}
	t.digest.add(d)
	t.nodes++
	t.nodeRows().put([]byte(n.ID), data)
	return nil
}

func (t *tx) forgetNode(id replication.NodeID, old []byte) error {
	d, err := nodeDigest(old, func() (*replication.Node, error) { return decodeNode(id, old) })
	if err != nil {
		return err
	}
	t.digest.sub(d)
	t.nodes--
	return nil
}

func (t *tx) CreateNode(n *replication.Node) error {
	if err := checkIDs(string(n.ID)); err != nil {
		return err
	}
	if t.nodeRows().get([]byte(n.ID)) != nil {
		return fmt.Errorf("%w: node %q", replication.ErrExists, n.ID)
	}
	return t.putNode(n, nil)
}

// stored is the stored form of a node.
func (t *tx) stored(id replication.NodeID) ([]byte, error) {
	if err := checkIDs(string(id)); err != nil {
		return nil, err
	}
	v := t.nodeRows().get([]byte(id))
	if v == nil {
		return nil, fmt.Errorf("%w: node %q", replication.ErrNotFound, id)
	}
	return v, nil
}

func (t *tx) existing(id replication.NodeID) (*replication.Node, error) {
	v, err := t.stored(id)
	if err != nil {
		return nil, err
	}
	return decodeNode(id, v)
}

func (t *tx) UpdateNode(n *replication.Node) error {
	old, err := t.stored(n.ID)
	if err != nil {
		return err
	}
	return t.putNode(n, old)
}

func (t *tx) SetProperty(id replication.NodeID, key string, value interface{}) error {
	old, err := t.stored(id)
	if err != nil {
		return err
	}
	n, err := decodeNode(id, old)
	if err != nil {
		return err
	}
	value, err = replication.NormalizeValue(value)
	if err != nil {
		return err
	}
	if value == nil {
		delete(n.Properties, key)
	} else {
		n.Properties[key] = value
	}
	return t.putNode(n, old)
}

func (t *tx) DeleteNode(id replication.NodeID) error {
	old, err := t.stored(id)
	if err != nil {
		return err
	}
	prefix := joinKey(string(id))
	if err := t.deleteEdges(t.out(), prefix, edgeFromOutKey); err != nil {
		return err
	}
	if err := t.deleteEdges(t.in(), prefix, edgeFromInKey); err != nil {
		return err
	}
	if err := t.forgetNode(id, old); err != nil {
		return err
	}
	t.nodeRows().put([]byte(id), nil)
	return nil
}

// errEnough ends a scan.
var errEnough = errors.New("enough")

// deleteEdges deletes every edge under a prefix of an index, some at a time: a
// node may have more of them than memory should hold at once.
func (t *tx) deleteEdges(index *bucket, prefix []byte, decode func([]byte) (*replication.Edge, error)) error {
	const step = 1000
	for {
		var batch []*replication.Edge
		err := index.scan(prefix, func(k, _ []byte) error {
			e, err := decode(k)
			if err == nil {
				if batch = append(batch, e); len(batch) == step {
					err = errEnough
				}
			}
			return err
		})
		if err != nil && err != errEnough {
			return err
		}
		for _, e := range batch {
			if err := t.deleteEdge(e); err != nil {
				return err
			}
		}
		if len(batch) < step {
			return nil
		}
	}
}

// edge reads the edge with the identity of e; nil where there is none.
func (t *tx) edge(e *replication.Edge) (*replication.Edge, error) {
	v := t.out().get(outKey(e))
	if v == nil {
		return nil, nil
	}
	return edgeWith(e, v)
}

// edgeWith is e with the properties stored for it.
func edgeWith(e *replication.Edge, stored []byte) (*replication.Edge, error) {
	v, err := replication.DecodeValue(stored)
	props, ok := v.(map[string]any)
	if err != nil || !ok {
		return nil, fmt.Errorf("%w: edge %s: %v", errDamaged, outKey(e), err)
	}
	return &replication.Edge{ID: e.ID, StartNode: e.StartNode, EndNode: e.EndNode, Type: e.Type, Properties: props}, nil
}

func (t *tx) putEdge(e *replication.Edge, old *replication.Edge) error {
	e = &replication.Edge{ID: e.ID, StartNode: e.StartNode, EndNode: e.EndNode, Type: e.Type, Properties: withoutNulls(e.Properties)}
	props, err := replication.AppendValue(nil, e.Properties)
	if err != nil {
		return err
	}
	d, err := edgeDigest(e)
	if err != nil {
		return err
	}
	if old != nil {
		was, err := edgeDigest(old)
		if err != nil {
			return err
		}
		t.digest.sub(was)
	} else {
		t.edges++
	}
	t.digest.add(d)
	key := outKey(e)
	t.out().put(key, props)
	if old != nil {
		return nil
	}
	t.in().put(inKey(e), []byte{})
	if e.ID != "" {
		t.ids().put([]byte(e.ID), key)
	}
	return nil
}

func (t *tx) CreateEdge(e *replication.Edge) error {
	if err := checkEdgeIDs(e); err != nil {
		return err
	}
	for _, end := range []replication.NodeID{e.StartNode, e.EndNode} {
		if t.nodeRows().get([]byte(end)) == nil {
			return fmt.Errorf("%w: node %q", replication.ErrMissingEnd, end)
		}
	}
	if t.out().get(outKey(e)) != nil || e.ID != "" && t.ids().get([]byte(e.ID)) != nil {
		return fmt.Errorf("%w: edge %q -%s-> %q %s", replication.ErrExists, e.StartNode, e.Type, e.EndNode, e.ID)
	}
	return t.putEdge(e, nil)
}

func (t *tx) UpdateEdge(e *replication.Edge) error {
	if err := checkEdgeIDs(e); err != nil {
		return err
	}
	old, err := t.edge(e)
	if err != nil {
		return err
	}
	if old == nil {
		return edgeNotFound(e)
	}
	return t.putEdge(e, old)
}

func edgeNotFound(e *replication.Edge) error {
	return fmt.Errorf("%w: edge %q -%s-> %q %s", replication.ErrNotFound, e.StartNode, e.Type, e.EndNode, e.ID)
}

func (t *tx) DeleteEdge(from, to replication.NodeID, relType string) error {
	e := &replication.Edge{StartNode: from, EndNode: to, Type: relType}
	if err := checkEdgeIDs(e); err != nil {
		return err
	}
	return t.deleteEdge(e)
}

func (t *tx) DeleteEdgeByID(id replication.EdgeID) error {
	if err := checkIDs(string(id)); err != nil {
		return err
	}
	key := t.ids().get([]byte(id))
	if key == nil {
		return fmt.Errorf("%w: edge %q", replication.ErrNotFound, id)
	}
	e, err := edgeFromOutKey(key)
	if err != nil {
		return err
	}
	return t.deleteEdge(e)
}

func (t *tx) deleteEdge(e *replication.Edge) error {
	old, err := t.edge(e)
	if err != nil {
		return err
	}
	if old == nil {
		return edgeNotFound(e)
	}
	d, err := edgeDigest(old)
	if err != nil {
		return err
	}
	t.digest.sub(d)
	t.edges--
	t.out().put(outKey(e), nil)
	t.in().put(inKey(e), nil)
	if e.ID != "" {
		t.ids().put([]byte(e.ID), nil)
	}
	return nil
}
