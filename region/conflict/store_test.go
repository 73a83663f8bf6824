package conflict

import (
	"bytes"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strings"
	"testing"

	"github.com/nornicdb/replication"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(800)    // many small histories
	stepRows, laterKeys = 2, 3 // so that their states take several steps
	goleak.VerifyTestMain(m)
}

// memStore is a Store in memory that holds callers to the contract of
// Storage, and to more: a node goes only after its edges.
type memStore struct {
	rows  map[string][]byte
	nodes map[string]*replication.Node
	edges map[edgeKey]*replication.Edge
}

func newStore() *memStore {
	return &memStore{rows: make(map[string][]byte), nodes: make(map[string]*replication.Node),
		edges: make(map[edgeKey]*replication.Edge)}
}

func (s *memStore) GetMeta(key []byte) ([]byte, error) { return bytes.Clone(s.rows[string(key)]), nil }

func (s *memStore) SetMeta(key, value []byte) error {
	if value == nil {
		delete(s.rows, string(key))
	} else {
		s.rows[string(key)] = bytes.Clone(value)
	}
	return nil
}

func (s *memStore) ScanMeta(prefix []byte, fn func(k, v []byte) error) error {
	return s.ScanMetaFrom(prefix, prefix, fn)
}

func (s *memStore) ScanMetaFrom(prefix, from []byte, fn func(k, v []byte) error) error {
	var keys []string
	for k := range s.rows {
		if strings.HasPrefix(k, string(prefix)) && k >= string(from) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		if err := fn([]byte(k), s.rows[k]); err != nil {
			return err
		}
	}
	return nil
}

func (s *memStore) HasNode(id replication.NodeID) (bool, error) {
	return s.nodes[string(id)] != nil, nil
}

func (s *memStore) GetNode(id replication.NodeID) (*replication.Node, error) {
	return s.nodes[string(id)], nil
}

func (s *memStore) GetEdge(from, to replication.NodeID, relType string) (*replication.Edge, error) {
	return s.edges[edgeKey{string(from), relType, string(to)}], nil
}

func (s *memStore) ScanEdges(id replication.NodeID, fn func(*replication.Edge) error) error {
	for _, e := range s.edges {
		if e.StartNode == id || e.EndNode == id {
			if err := fn(e); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *memStore) CreateNode(n *replication.Node) error {
	if s.nodes[string(n.ID)] != nil {
		return fmt.Errorf("create node %s: %w", n.ID, replication.ErrExists)
	}
	s.nodes[string(n.ID)] = n
	return nil
}

func (s *memStore) UpdateNode(n *replication.Node) error {
	if s.nodes[string(n.ID)] == nil {
		return fmt.Errorf("update node %s: %w", n.ID, replication.ErrNotFound)
	}
	s.nodes[string(n.ID)] = n
	return nil
}

func (s *memStore) DeleteNode(id replication.NodeID) error {
	if s.nodes[string(id)] == nil {
		return fmt.Errorf("delete node %s: %w", id, replication.ErrNotFound)
	}
	for k := range s.edges {
		if k.from == string(id) || k.to == string(id) {
			return fmt.Errorf("delete node %s before its edge %v", id, k)
		}
	}
	delete(s.nodes, string(id))
	return nil
}

func (s *memStore) CreateEdge(e *replication.Edge) error {
	k := edgeKey{string(e.StartNode), e.Type, string(e.EndNode)}
	if s.nodes[k.from] == nil || s.nodes[k.to] == nil {
		return fmt.Errorf("create edge %v: %w", k, replication.ErrMissingEnd)
	}
	if s.edges[k] != nil {
		return fmt.Errorf("create edge %v: %w", k, replication.ErrExists)
	}
	s.edges[k] = e
	return nil
}

func (s *memStore) DeleteEdge(from, to replication.NodeID, relType string) error {
	k := edgeKey{string(from), relType, string(to)}
	if s.edges[k] == nil {
		return fmt.Errorf("delete edge %v: %w", k, replication.ErrNotFound)
	}
	delete(s.edges, k)
	return nil
}

func (s *memStore) SetProperty(id replication.NodeID, key string, value interface{}) error {
	n := s.nodes[string(id)]
	if n == nil {
		return fmt.Errorf("set property of %s: %w", id, replication.ErrNotFound)
	}
	props := maps.Clone(n.Properties)
	if value == nil {
		delete(props, key)
	} else {
		props[key] = value
	}
	s.nodes[string(id)] = &replication.Node{ID: id, Labels: n.Labels, Properties: props}
	return nil
}

// graph is the content as a text that equal graphs have in common.
func (s *memStore) graph() string {
	var lines []string
	for _, n := range s.nodes {
		b, err := n.MarshalJSON()
		if err != nil {
			panic(err)
		}
		lines = append(lines, string(b))
	}
	for _, e := range s.edges {
		b, err := e.MarshalJSON()
		if err != nil {
			panic(err)
		}
		lines = append(lines, string(b))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// unsettled counts the rows of nodes and edges, their bytes, and those that
// have conflicts.
func (s *memStore) unsettled() (rows, size, conflicts uint64) {
	for k, v := range s.rows {
		if strings.HasPrefix(k, rowNode) || strings.HasPrefix(k, rowEdge) {
			rows++
			size += uint64(len(k) + len(v))
		}
		if strings.HasPrefix(k, rowConflict) {
			conflicts++
		}
	}
	return rows, size, conflicts
}

// equal compares graph and rows.
func (s *memStore) equal(o *memStore) bool {
	return s.graph() == o.graph() && maps.EqualFunc(s.rows, o.rows, bytes.Equal)
}

func (s *memStore) clone() *memStore {
	return &memStore{rows: maps.Clone(s.rows), nodes: maps.Clone(s.nodes), edges: maps.Clone(s.edges)}
}

// edgeStore has updates of edges.
type edgeStore struct{ *memStore }

func (s edgeStore) UpdateEdge(e *replication.Edge) error {
	if err := s.DeleteEdge(e.StartNode, e.EndNode, e.Type); err != nil {
		return err
	}
	return s.CreateEdge(e)
}
func (s edgeStore) DeleteEdgeByID(replication.EdgeID) error { return replication.ErrUnsupported }
