package testharness

import "github.com/nornicdb/replication"

// The methods of memState by which the conflict resolution of multi-region mode
// looks at the graph inside a transaction (conflict.GraphReader, conflict.ReadStore).

// HasNode says whether there is a node.
func (t *memState) HasNode(id replication.NodeID) (bool, error) { return t.nodes.has(id), nil }

// GetNode returns the node, nil where there is none.
func (t *memState) GetNode(id replication.NodeID) (*replication.Node, error) {
	n, ok := t.nodes.get(id)
	if !ok {
		return nil, nil
	}
	return &replication.Node{ID: n.ID, Labels: append([]string(nil), n.Labels...), Properties: copyProperties(n.Properties)}, nil
}

// GetEdge returns the edge without an ID, nil where there is none.
func (t *memState) GetEdge(from, to replication.NodeID, relType string) (*replication.Edge, error) {
	e, ok := t.out.get(edgeKey{near: from, kind: relType, other: to})
	if !ok {
		return nil, nil
	}
	return &replication.Edge{StartNode: e.StartNode, EndNode: e.EndNode, Type: e.Type, Properties: copyProperties(e.Properties)}, nil
}

// ScanEdges calls fn for each edge that starts at the node, then for each that
// ends there.
func (t *memState) ScanEdges(id replication.NodeID, fn func(*replication.Edge) error) error {
	for _, index := range []tree[edgeKey, *memEdge]{t.out, t.in} {
		for k, e := range index.from(edgeKey{near: id}) {
			if k.near != id {
				break
			}
			if err := fn(&replication.Edge{ID: e.ID, StartNode: e.StartNode, EndNode: e.EndNode, Type: e.Type}); err != nil {
				return err
			}
		}
	}
	return nil
}
