package main

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/nornicdb/replication"
)

// benchStore is a Storage in memory that knows nodes only: what is left when
// the graph's file is taken away.
type benchStore struct {
	// mu guards the fields below.
	mu       sync.Mutex
	nodes    map[replication.NodeID]*replication.Node
	rows     map[string][]byte
	position uint64
}

var _ replication.TxStorage = (*benchStore)(nil)

func newBenchStore() *benchStore {
	return &benchStore{nodes: make(map[replication.NodeID]*replication.Node), rows: make(map[string][]byte)}
}

// Update has nothing to roll back: a transaction of one-command groups fails
// only where the store itself does, and this one does not.
func (s *benchStore) Update(fn func(replication.Tx) error) error {
	return s.direct(func(t benchTx) error { return fn(t) })
}

func (s *benchStore) View(fn func(replication.Meta) error) error {
	return s.direct(func(t benchTx) error { return fn(t) })
}

// direct runs one operation as a transaction.
func (s *benchStore) direct(fn func(benchTx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fn(benchTx{s})
}

func (s *benchStore) GetWALPosition() (pos uint64, err error) {
	err = s.direct(func(t benchTx) error { pos = t.s.position; return nil })
	return pos, err
}

func (s *benchStore) ApplyCommand(c *replication.Command) error {
	return s.direct(func(t benchTx) error { return t.ApplyCommand(c) })
}

func (s *benchStore) SetWALPosition(pos uint64) error {
	return s.direct(func(t benchTx) error { return t.SetWALPosition(pos) })
}

func (s *benchStore) CreateNode(n *replication.Node) error {
	return s.direct(func(t benchTx) error { return t.CreateNode(n) })
}

func (s *benchStore) UpdateNode(n *replication.Node) error {
	return s.direct(func(t benchTx) error { return t.UpdateNode(n) })
}

func (s *benchStore) DeleteNode(id replication.NodeID) error {
	return s.direct(func(t benchTx) error { return t.DeleteNode(id) })
}

func (s *benchStore) CreateEdge(*replication.Edge) error { return errBenchStore }

func (s *benchStore) DeleteEdge(_, _ replication.NodeID, _ string) error { return errBenchStore }

func (s *benchStore) SetProperty(replication.NodeID, string, any) error { return errBenchStore }

var errBenchStore = fmt.Errorf("%w: the storage of bench has whole nodes only", replication.ErrInvalidCommand)

// benchTx is a transaction; its store is locked.
type benchTx struct{ s *benchStore }

func (t benchTx) ApplyCommand(c *replication.Command) error { return replication.Dispatch(t, c) }
func (t benchTx) GetWALPosition() (uint64, error)           { return t.s.position, nil }
func (t benchTx) SetWALPosition(pos uint64) error           { t.s.position = pos; return nil }

func (t benchTx) CreateNode(n *replication.Node) error {
	if t.s.nodes[n.ID] != nil {
		return replication.ErrExists
	}
	t.s.nodes[n.ID] = n
	return nil
}

func (t benchTx) UpdateNode(n *replication.Node) error {
	if t.s.nodes[n.ID] == nil {
		return replication.ErrNotFound
	}
	t.s.nodes[n.ID] = n
	return nil
}

func (t benchTx) DeleteNode(id replication.NodeID) error {
	if t.s.nodes[id] == nil {
		return replication.ErrNotFound
	}
	delete(t.s.nodes, id)
	return nil
}

func (t benchTx) CreateEdge(*replication.Edge) error                      { return errBenchStore }
func (t benchTx) DeleteEdge(_, _ replication.NodeID, _ string) error      { return errBenchStore }
func (t benchTx) SetProperty(_ replication.NodeID, _ string, _ any) error { return errBenchStore }

func (t benchTx) GetMeta(k []byte) ([]byte, error) { return bytes.Clone(t.s.rows[string(k)]), nil }

func (t benchTx) SetMeta(k, v []byte) error {
	if v == nil {
		delete(t.s.rows, string(k))
	} else {
		t.s.rows[string(k)] = bytes.Clone(v)
	}
	return nil
}

func (t benchTx) ScanMeta(prefix []byte, fn func(k, v []byte) error) error {
	for _, k := range slices.Sorted(maps.Keys(t.s.rows)) {
		if strings.HasPrefix(k, string(prefix)) {
			if err := fn([]byte(k), t.s.rows[k]); err != nil {
				return err
			}
		}
	}
	return nil
}
