package testharness

import (
	"sync"
	"sync/atomic"

	"github.com/nornicdb/replication"
)

// MemStore is a replication.Storage in memory, with every optional ability but
// EffectRecorder (see WithEffects). It gives the verdicts that fsm/boltgraph
// gives, and its digest. A transaction, a snapshot and a Clone each cost a
// pointer, so it can stand in benchmarks.
//
// It is safe for concurrent use; writers wait for each other, readers for
// nobody. "Durable" means committed: what a process that dies leaves is what
// Clone copies.
type MemStore struct {
	// writer is held while a transaction runs.
	writer   sync.Mutex
	onCommit func(Commit) // guarded by writer

	state atomic.Pointer[memState] // what is committed; never nil, never changed in place
}

var (
	_ replication.TxStorage          = (*MemStore)(nil)
	_ replication.StorageSnapshotter = (*MemStore)(nil)
	_ replication.EdgeStorage        = (*MemStore)(nil)
	_ GraphReader                    = (*MemStore)(nil)
)

// Commit is what one committed transaction did.
type Commit struct {
	// Position of the store after the transaction.
	Position uint64
	// Executed are the commands that were executed, in order, those included
	// that got a verdict. Commands of a transaction that was rolled back are in
	// no Commit.
	Executed []Execution
	// TakenBack: it is no transaction; those above Position are no more, as they
	// were deferred and a crash came first.
	TakenBack bool
}

// Execution is one command as the store executed it.
type Execution struct {
	Command *replication.Command
	Err     error // nil or a verdict
}

// NewMemStore makes an empty store at position 0.
func NewMemStore() *MemStore {
	s := new(MemStore)
	s.state.Store(emptyMemState())
	return s
}

// OnCommit sets the function that is told of every committed transaction, in
// order and before Update returns; nil removes it. It must not use the store.
func (s *MemStore) OnCommit(fn func(Commit)) {
	s.writer.Lock()
	defer s.writer.Unlock()
	s.onCommit = fn
}

// tellTakenBack tells OnCommit's function that a crash left an older state.
func (s *MemStore) tellTakenBack() {
	s.writer.Lock()
	defer s.writer.Unlock()
	if s.onCommit != nil {
		s.onCommit(Commit{Position: s.state.Load().position, TakenBack: true})
	}
}

// Clone makes a store of its own with the committed content of this one: what
// a process finds that starts after this one died. A transaction that runs is
// not in it, so it may be called within one. OnCommit is not copied.
func (s *MemStore) Clone() *MemStore {
	c := new(MemStore)
	c.state.Store(s.state.Load())
	return c
}

// Update implements replication.TxStorage. A panic of fn leaves no trace
// either.
func (s *MemStore) Update(fn func(replication.Tx) error) error {
	return s.update(func(t *memTx) error { return fn(t) })
}

func (s *MemStore) update(fn func(*memTx) error) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	work := *s.state.Load()
	t := &memTx{memState: &work, record: s.onCommit != nil}
	defer func() { t.memState = nil }() // a use after the end panics
	if err := fn(t); err != nil {
		return err
	}
	s.state.Store(&work)
	if s.onCommit != nil {
		s.onCommit(Commit{Position: work.position, Executed: t.executed})
	}
	return nil
}

// View implements replication.TxStorage.
func (s *MemStore) View(fn func(replication.Meta) error) error { return fn(s.state.Load()) }

// ApplyCommand implements replication.Storage, in a transaction of its own like
// the methods below.
func (s *MemStore) ApplyCommand(cmd *replication.Command) error {
	return s.update(func(t *memTx) error { return t.ApplyCommand(cmd) })
}

// GetWALPosition implements replication.Storage.
func (s *MemStore) GetWALPosition() (uint64, error) { return s.state.Load().position, nil }

// SetWALPosition implements replication.Storage.
func (s *MemStore) SetWALPosition(pos uint64) error {
	return s.update(func(t *memTx) error { return t.SetWALPosition(pos) })
}

// CreateNode implements replication.Storage.
func (s *MemStore) CreateNode(n *replication.Node) error {
	return s.update(func(t *memTx) error { return t.CreateNode(n) })
}

// UpdateNode implements replication.Storage.
func (s *MemStore) UpdateNode(n *replication.Node) error {
	return s.update(func(t *memTx) error { return t.UpdateNode(n) })
}

// DeleteNode implements replication.Storage.
func (s *MemStore) DeleteNode(id replication.NodeID) error {
	return s.update(func(t *memTx) error { return t.DeleteNode(id) })
}

// CreateEdge implements replication.Storage.
func (s *MemStore) CreateEdge(e *replication.Edge) error {
	return s.update(func(t *memTx) error { return t.CreateEdge(e) })
}

// UpdateEdge implements replication.EdgeStorage.
func (s *MemStore) UpdateEdge(e *replication.Edge) error {
	return s.update(func(t *memTx) error { return t.UpdateEdge(e) })
}

// DeleteEdge implements replication.Storage.
func (s *MemStore) DeleteEdge(from, to replication.NodeID, relType string) error {
	return s.update(func(t *memTx) error { return t.DeleteEdge(from, to, relType) })
}

// DeleteEdgeByID implements replication.EdgeStorage.
func (s *MemStore) DeleteEdgeByID(id replication.EdgeID) error {
	return s.update(func(t *memTx) error { return t.DeleteEdgeByID(id) })
}

// SetProperty implements replication.Storage.
func (s *MemStore) SetProperty(id replication.NodeID, key string, value interface{}) error {
	return s.update(func(t *memTx) error { return t.SetProperty(id, key, value) })
}

// Node implements GraphReader.
func (s *MemStore) Node(id replication.NodeID) (*replication.Node, error) {
	n, err := s.state.Load().node(id)
	if err != nil {
		return nil, err
	}
	return &replication.Node{ID: n.ID, Labels: append([]string(nil), n.Labels...), Properties: copyProperties(n.Properties)}, nil
}

// Edge implements GraphReader.
func (s *MemStore) Edge(from replication.NodeID, relType string, to replication.NodeID, id replication.EdgeID) (*replication.Edge, error) {
	e, err := s.state.Load().edge(outKey(&replication.Edge{ID: id, StartNode: from, EndNode: to, Type: relType}))
	if err != nil {
		return nil, err
	}
	return &replication.Edge{ID: e.ID, StartNode: e.StartNode, EndNode: e.EndNode, Type: e.Type, Properties: copyProperties(e.Properties)}, nil
}

// Property returns one property of a node, nil where it has none:
// replication.ErrNotFound without the node. It is what a History's clients read
// registers with.
func (s *MemStore) Property(id replication.NodeID, key string) (any, error) {
	n, err := s.state.Load().node(id)
	if err != nil {
		return nil, err
	}
	return copyProperties(map[string]any{key: n.Properties[key]})[key], nil
}

// MemStats is the content of a MemStore in numbers, all as of Position.
type MemStats struct {
	Nodes, Edges, Rows int
	Position           uint64
	// Digest of nodes and edges, in hexadecimal. It does not depend on the
	// order in which they came, and fsm/boltgraph has the same.
	Digest string
}

// Stats counts the content and hashes it: the digest of an element is made once,
// but all are added up each time.
func (s *MemStore) Stats() MemStats {
	st := s.state.Load()
	return MemStats{Nodes: st.nodes.len(), Edges: st.out.len(), Rows: st.rows.len(), Position: st.position, Digest: st.digest().String()}
}

// EffectStore is a MemStore that is also a replication.EffectRecorder.
type EffectStore struct {
	*MemStore
	record func(GraphReader, *replication.Command) ([]*replication.Command, error)
}

var _ replication.EffectRecorder = (*EffectStore)(nil)

// WithEffects makes the store an EffectRecorder: record says what a command
// amounts to in the state that it is given, which does not change meanwhile.
func (s *MemStore) WithEffects(record func(GraphReader, *replication.Command) ([]*replication.Command, error)) *EffectStore {
	return &EffectStore{MemStore: s, record: record}
}

// RecordEffects implements replication.EffectRecorder.
func (s *EffectStore) RecordEffects(cmd *replication.Command) ([]*replication.Command, uint64, error) {
	at := s.Clone()
	pos, _ := at.GetWALPosition() // has no error
	effects, err := s.record(at, cmd)
	return effects, pos, err
}
