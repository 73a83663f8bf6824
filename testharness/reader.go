package testharness

import "github.com/nornicdb/replication"

// GraphReader is a Storage whose content can be read back. MemStore and
// boltgraph.Store are. Safe for concurrent use.
type GraphReader interface {
	// Node returns a copy of a node, or replication.ErrNotFound.
	Node(id replication.NodeID) (*replication.Node, error)
	// Edge returns a copy of the edge with this identity, or
	// replication.ErrNotFound.
	Edge(from replication.NodeID, relType string, to replication.NodeID, id replication.EdgeID) (*replication.Edge, error)
}
