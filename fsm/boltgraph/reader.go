package boltgraph

import "github.com/nornicdb/replication"

// The methods of tx by which the conflict resolution of multi-region mode
// looks at the graph inside a transaction (conflict.GraphReader, conflict.ReadStore).

// HasNode says whether there is a node.
func (t *tx) HasNode(id replication.NodeID) (bool, error) {
	return t.nodeRows().get([]byte(id)) != nil, nil
}

// GetNode returns the node, nil where there is none.
func (t *tx) GetNode(id replication.NodeID) (*replication.Node, error) {
	v := t.nodeRows().get([]byte(id))
	if v == nil {
		return nil, nil
	}
	return decodeNode(id, v)
}

// GetEdge returns the edge without an ID, nil where there is none.
func (t *tx) GetEdge(from, to replication.NodeID, relType string) (*replication.Edge, error) {
	return t.edge(&replication.Edge{StartNode: from, EndNode: to, Type: relType})
}

// ScanEdges calls fn for each edge that starts at the node, then for each that
// ends there.
func (t *tx) ScanEdges(id replication.NodeID, fn func(*replication.Edge) error) error {
	prefix := joinKey(string(id))
	if err := t.out().scan(prefix, func(k, _ []byte) error { return t.visit(k, edgeFromOutKey, fn) }); err != nil {
		return err
	}
	return t.in().scan(prefix, func(k, _ []byte) error { return t.visit(k, edgeFromInKey, fn) })
}

func (t *tx) visit(key []byte, decode func([]byte) (*replication.Edge, error), fn func(*replication.Edge) error) error {
	e, err := decode(key)
	if err != nil {
		return err
	}
	return fn(e)
}
