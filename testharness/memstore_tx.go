package testharness

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/nornicdb/replication"
)

// maxIDBytes bounds a node ID, an edge type and an edge ID, as in fsm/boltgraph.
const maxIDBytes = 4096

// memState is one version of the content. Nothing that a tree holds is changed
// once it is in it.
type memState struct {
	position uint64
	nodes    tree[replication.NodeID, *memNode]
	out      tree[edgeKey, *memEdge] // start, type, end, ID
	in       tree[edgeKey, *memEdge] // end, type, start, ID: the same edges
	ids      tree[replication.EdgeID, *memEdge]
	rows     tree[string, []byte]
}

type memNode struct {
	replication.Node
	sum atomic.Pointer[digest]
}

type memEdge struct {
	replication.Edge
	sum atomic.Pointer[digest]
}

// edgeKey is an edge's identity as one of its two ends sees it.
type edgeKey struct {
	near  replication.NodeID
	kind  string
	other replication.NodeID
	id    replication.EdgeID
}

func outKey(e *replication.Edge) edgeKey { return edgeKey{e.StartNode, e.Type, e.EndNode, e.ID} }
func inKey(e *replication.Edge) edgeKey  { return edgeKey{e.EndNode, e.Type, e.StartNode, e.ID} }

func compareEdgeKeys(a, b edgeKey) int {
	return cmp.Or(cmp.Compare(a.near, b.near), cmp.Compare(a.kind, b.kind), cmp.Compare(a.other, b.other), cmp.Compare(a.id, b.id))
}

func emptyMemState() *memState {
	return &memState{
		nodes: tree[replication.NodeID, *memNode]{compare: cmp.Compare[replication.NodeID]},
		out:   tree[edgeKey, *memEdge]{compare: compareEdgeKeys},
		in:    tree[edgeKey, *memEdge]{compare: compareEdgeKeys},
		ids:   tree[replication.EdgeID, *memEdge]{compare: cmp.Compare[replication.EdgeID]},
		rows:  tree[string, []byte]{compare: cmp.Compare[string]},
	}
}

// GetMeta implements replication.Meta.
func (s *memState) GetMeta(key []byte) ([]byte, error) {
	v, _ := s.rows.get(string(key))
	return bytes.Clone(v), nil
}

// ScanMeta implements replication.Meta.
func (s *memState) ScanMeta(prefix []byte, fn func(k, v []byte) error) error {
	for k, v := range s.rows.from(string(prefix)) {
		if !strings.HasPrefix(k, string(prefix)) {
			return nil
		}
		if err := fn([]byte(k), bytes.Clone(v)); err != nil {
			return err
		}
	}
	return nil
}

func (s *memState) node(id replication.NodeID) (*memNode, error) {
	if err := checkIDs(string(id)); err != nil {
		return nil, err
	}
	n, ok := s.nodes.get(id)
	if !ok {
		return nil, fmt.Errorf("%w: node %q", replication.ErrNotFound, id)
	}
	return n, nil
}

func (s *memState) edge(k edgeKey) (*memEdge, error) {
	if err := checkEdgeKey(k); err != nil {
		return nil, err
	}
	e, ok := s.out.get(k)
	if !ok {
		return nil, fmt.Errorf("%w: edge %q -%s-> %q %s", replication.ErrNotFound, k.near, k.kind, k.other, k.id)
	}
	return e, nil
}

// memTx is a transaction: a version of its own that Update publishes or drops.
type memTx struct {
	*memState
	record   bool // executed is wanted
	executed []Execution
}

var (
	_ replication.Tx          = (*memTx)(nil)
	_ replication.EdgeStorage = (*memTx)(nil)
)

// ApplyCommand implements replication.Storage.
func (t *memTx) ApplyCommand(cmd *replication.Command) error {
	err := replication.Dispatch(t, cmd)
	if t.record {
		t.executed = append(t.executed, Execution{Command: cmd, Err: err})
	}
	return err
}

// GetWALPosition implements replication.Storage.
func (t *memTx) GetWALPosition() (uint64, error) { return t.position, nil }

// SetWALPosition implements replication.Storage.
func (t *memTx) SetWALPosition(pos uint64) error {
	t.position = pos
	return nil
}

// SetMeta implements replication.Tx.
func (t *memTx) SetMeta(key, value []byte) error {
	if len(key) == 0 {
		return fmt.Errorf("%w: metadata row without key", replication.ErrInvalidCommand)
	}
	if value == nil {
		t.rows = t.rows.remove(string(key))
	} else {
		t.rows = t.rows.set(string(key), bytes.Clone(value))
	}
	return nil
}

// CreateNode implements replication.Storage.
func (t *memTx) CreateNode(n *replication.Node) error {
	if err := checkIDs(string(n.ID)); err != nil {
		return err
	}
	if t.nodes.has(n.ID) {
		return fmt.Errorf("%w: node %q", replication.ErrExists, n.ID)
	}
	return t.putNode(n)
}

// UpdateNode implements replication.Storage.
func (t *memTx) UpdateNode(n *replication.Node) error {
	if _, err := t.node(n.ID); err != nil {
		return err
	}
	return t.putNode(n)
}

func (t *memTx) putNode(n *replication.Node) error {
	props, err := normalizeProperties(n.Properties)
	if err != nil {
		return err
	}
	t.nodes = t.nodes.set(n.ID, &memNode{Node: replication.Node{ID: n.ID, Labels: slices.Clone(n.Labels), Properties: props}})
	return nil
}

// SetProperty implements replication.Storage.
func (t *memTx) SetProperty(id replication.NodeID, key string, value interface{}) error {
	old, err := t.node(id)
	if err != nil {
		return err
	}
	list, err := replication.NormalizeValue([]any{value}) // as deep as in the map of properties
	if err != nil {
		return err
	}
	props := make(map[string]any, len(old.Properties)+1)
	for k, v := range old.Properties {
		if k != key {
			props[k] = v
		}
	}
	if v := list.([]any)[0]; v != nil {
		props[key] = v
	}
	t.nodes = t.nodes.set(id, &memNode{Node: replication.Node{ID: id, Labels: old.Labels, Properties: props}})
	return nil
}

// DeleteNode implements replication.Storage.
func (t *memTx) DeleteNode(id replication.NodeID) error {
	if _, err := t.node(id); err != nil {
		return err
	}
	for _, index := range []tree[edgeKey, *memEdge]{t.out, t.in} { // as they were: trees do not change
		for k, e := range index.from(edgeKey{near: id}) {
			if k.near != id {
				break
			}
			t.forgetEdge(e)
		}
	}
	t.nodes = t.nodes.remove(id)
	return nil
}

// CreateEdge implements replication.Storage.
func (t *memTx) CreateEdge(e *replication.Edge) error {
	key := outKey(e)
	if err := checkEdgeKey(key); err != nil {
		return err
	}
	for _, end := range []replication.NodeID{e.StartNode, e.EndNode} {
		if !t.nodes.has(end) {
			return fmt.Errorf("%w: node %q", replication.ErrMissingEnd, end)
		}
	}
	if t.out.has(key) || e.ID != "" && t.ids.has(e.ID) {
		return fmt.Errorf("%w: edge %q -%s-> %q %s", replication.ErrExists, e.StartNode, e.Type, e.EndNode, e.ID)
	}
	return t.putEdge(e)
}

// UpdateEdge implements replication.EdgeStorage.
func (t *memTx) UpdateEdge(e *replication.Edge) error {
	if _, err := t.edge(outKey(e)); err != nil {
		return err
	}
	return t.putEdge(e)
}

func (t *memTx) putEdge(e *replication.Edge) error {
	props, err := normalizeProperties(e.Properties)
	if err != nil {
		return err
	}
	stored := &memEdge{Edge: replication.Edge{ID: e.ID, StartNode: e.StartNode, EndNode: e.EndNode, Type: e.Type, Properties: props}}
	t.out = t.out.set(outKey(e), stored)
	t.in = t.in.set(inKey(e), stored)
	if e.ID != "" {
		t.ids = t.ids.set(e.ID, stored)
	}
	return nil
}

// DeleteEdge implements replication.Storage.
func (t *memTx) DeleteEdge(from, to replication.NodeID, relType string) error {
	e, err := t.edge(edgeKey{near: from, kind: relType, other: to})
	if err != nil {
		return err
	}
	t.forgetEdge(e)
	return nil
}

// DeleteEdgeByID implements replication.EdgeStorage.
func (t *memTx) DeleteEdgeByID(id replication.EdgeID) error {
	if err := checkIDs(string(id)); err != nil {
		return err
	}
	e, ok := t.ids.get(id)
	if !ok {
		return fmt.Errorf("%w: edge %q", replication.ErrNotFound, id)
	}
	t.forgetEdge(e)
	return nil
}

func (t *memTx) forgetEdge(e *memEdge) {
	t.out = t.out.remove(outKey(&e.Edge))
	t.in = t.in.remove(inKey(&e.Edge))
	if e.ID != "" {
		t.ids = t.ids.remove(e.ID)
	}
}

// normalizeProperties copies properties in the types of DecodeValue; one that
// is null is not there.
func normalizeProperties(props map[string]any) (map[string]any, error) {
	v, err := replication.NormalizeValue(props)
	if err != nil {
		return nil, err
	}
	normal := v.(map[string]any)
	for k, v := range normal {
		if v == nil {
			delete(normal, k)
		}
	}
	return normal, nil
}

// copyProperties copies what normalizeProperties made.
func copyProperties(props map[string]any) map[string]any {
	v, err := replication.NormalizeValue(props)
	if err != nil {
		panic(err) // normal values are normal
	}
	return v.(map[string]any)
}

// checkIDs gives the verdict on identifiers that fsm/boltgraph cannot store.
func checkIDs(ids ...string) error {
	for _, id := range ids {
		if id == "" {
			return fmt.Errorf("%w: empty identifier", replication.ErrInvalidCommand)
		}
		if len(id) > maxIDBytes {
			return fmt.Errorf("%w: identifier of %d bytes, at most %d", replication.ErrInvalidCommand, len(id), maxIDBytes)
		}
	}
	return nil
}

func checkEdgeKey(k edgeKey) error {
	if len(k.id) > maxIDBytes {
		return fmt.Errorf("%w: edge ID of %d bytes, at most %d", replication.ErrInvalidCommand, len(k.id), maxIDBytes)
	}
	return checkIDs(string(k.near), k.kind, string(k.other))
}
