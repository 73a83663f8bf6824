package boltgraph

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/nornicdb/replication"
	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Store is a graph in one bbolt file. Reads are safe at any time; writes are
// made by one goroutine at a time, as replication.Storage says.
type Store struct {
	path    string
	options *bbolt.Options
	old     sync.WaitGroup // replaced files being closed

	// mu guards the fields below: read-held while a write runs or a read
	// begins, write-held while a restore replaces the file. A read that runs
	// then goes on in the old one.
	mu     sync.RWMutex
	db     *bbolt.DB
	broken error // a restore got stuck between the files
}

var (
	_ replication.TxStorage          = (*Store)(nil)
	_ replication.StorageSnapshotter = (*Store)(nil)
	_ replication.EdgeStorage        = (*Store)(nil)
)

// Option changes how a file is opened.
type Option func(*bbolt.Options)

// WithNoSync leaves out the sync of each transaction: what an application
// crash leaves is whole, what a power failure leaves may not be. For tests and
// measurements.
func WithNoSync() Option { return func(o *bbolt.Options) { o.NoSync = true } }

// lockWait is how long Open waits for another process to let go of the file.
const lockWait = time.Second

// initialMmapBytes is the address space reserved for a file. A write that makes
// the file outgrow it waits for every open read, so it is more than most files
// ever need; where reserving it would cost disk or cannot be had it is left out.
func initialMmapBytes() int {
	if strconv.IntSize < 64 || runtime.GOOS == "windows" {
		return 0
	}
	var reserve int64 = 64 << 30
	return int(reserve)
}

// Open opens the store at path, and creates it where there is none. ErrLocked
// where another process has it open; other errors say what is wrong with the
// file.
func Open(path string, opts ...Option) (*Store, error) {
	options := *bbolt.DefaultOptions
	options.Timeout = lockWait
	options.FreelistType = bbolt.FreelistMapType
	options.InitialMmapSize = initialMmapBytes()
	for _, opt := range opts {
		opt(&options)
	}
	db, err := openFile(path, &options)
	if err != nil {
		return nil, err
	}
	// Only now is it certain that no other process is building one.
	if err := os.Remove(path + restoreSuffix); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("boltgraph: removing an unfinished restore: %w", err), db.Close())
	}
	return &Store{path: path, options: &options, db: db}, nil
}

// openFile opens a bbolt file and makes sure that it is one of this package's.
func openFile(path string, options *bbolt.Options) (db *bbolt.DB, err error) {
	db, err = bbolt.Open(path, 0o600, options)
	if errors.Is(err, syscall.ENOMEM) { // the process may not have that much address space
		small := *options
		small.InitialMmapSize = 0
		db, err = bbolt.Open(path, 0o600, &small)
	}
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("boltgraph: %s: %w", path, replication.ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("boltgraph: opening %s: %w", path, err)
	}
	err = db.Update(func(btx *bbolt.Tx) error {
		if k, _ := btx.Cursor().First(); k != nil {
			_, err := readState(btx)
			return err
		}
		for _, name := range allBuckets {
			if _, err := btx.CreateBucket(name); err != nil {
				return err
			}
		}
		return new(state).write(btx)
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), db.Close())
	}
	return db, nil
}

// Close waits for snapshots and reads to end.
func (s *Store) Close() error {
	s.mu.Lock()
	err := s.db.Close()
	s.mu.Unlock()
	s.old.Wait()
	return err
}

// Update implements replication.TxStorage.
func (s *Store) Update(fn func(replication.Tx) error) error {
	return s.update(func(t *tx) error { return fn(t) })
}

func (s *Store) update(fn func(*tx) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.broken != nil {
		return s.broken
	}
	return s.db.Update(func(btx *bbolt.Tx) error {
		t, err := newTx(btx)
		if err != nil {
			return err
		}
		if err := fn(t); err != nil {
			return err
		}
		return t.write(btx)
	})
}

// View implements replication.TxStorage.
func (s *Store) View(fn func(replication.Meta) error) error {
	return s.view(func(t *tx) error { return fn(t) })
}

func (s *Store) view(fn func(*tx) error) error {
	t, err := s.beginRead()
	if err != nil {
		return err
	}
	defer func() { _ = t.btx.Rollback() }() // a read has nothing to lose
	return fn(t)
}

// beginRead begins a read transaction, which its caller rolls back.
func (s *Store) beginRead() (*tx, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.broken != nil {
		return nil, s.broken
	}
	btx, err := s.db.Begin(false)
	if err != nil {
		return nil, err
	}
	t, err := newTx(btx)
	if err != nil {
		return nil, errors.Join(err, btx.Rollback())
	}
	return t, nil
}

// ApplyCommand implements replication.Storage, in a transaction of its own like
// the methods below.
func (s *Store) ApplyCommand(cmd *replication.Command) error {
	return s.update(func(t *tx) error { return t.ApplyCommand(cmd) })
}

// GetWALPosition implements replication.Storage.
func (s *Store) GetWALPosition() (pos uint64, err error) {
	err = s.view(func(t *tx) error { pos = t.position; return nil })
	return pos, err
}

// SetWALPosition implements replication.Storage.
func (s *Store) SetWALPosition(pos uint64) error {
	return s.update(func(t *tx) error { return t.SetWALPosition(pos) })
}

// CreateNode implements replication.Storage.
func (s *Store) CreateNode(n *replication.Node) error {
	return s.update(func(t *tx) error { return t.CreateNode(n) })
}

// UpdateNode implements replication.Storage.
func (s *Store) UpdateNode(n *replication.Node) error {
	return s.update(func(t *tx) error { return t.UpdateNode(n) })
}

// DeleteNode implements replication.Storage.
func (s *Store) DeleteNode(id replication.NodeID) error {
	return s.update(func(t *tx) error { return t.DeleteNode(id) })
}

// CreateEdge implements replication.Storage.
func (s *Store) CreateEdge(e *replication.Edge) error {
	return s.update(func(t *tx) error { return t.CreateEdge(e) })
}

// UpdateEdge implements replication.EdgeStorage.
func (s *Store) UpdateEdge(e *replication.Edge) error {
	return s.update(func(t *tx) error { return t.UpdateEdge(e) })
}

// DeleteEdge implements replication.Storage.
func (s *Store) DeleteEdge(from, to replication.NodeID, relType string) error {
	return s.update(func(t *tx) error { return t.DeleteEdge(from, to, relType) })
}

// DeleteEdgeByID implements replication.EdgeStorage.
func (s *Store) DeleteEdgeByID(id replication.EdgeID) error {
	return s.update(func(t *tx) error { return t.DeleteEdgeByID(id) })
}

// SetProperty implements replication.Storage.
func (s *Store) SetProperty(id replication.NodeID, key string, value interface{}) error {
	return s.update(func(t *tx) error { return t.SetProperty(id, key, value) })
}

// Stats is the content in numbers, all as of Position.
type Stats struct {
	Nodes, Edges, Position uint64
	// Digest is a hash of the whole content, in hexadecimal, that does not
	// depend on the order of insertion.
	Digest string
}

func (t *tx) stats() Stats {
	return Stats{Nodes: t.nodes, Edges: t.edges, Position: t.position, Digest: hex.EncodeToString(t.digest.bytes())}
}

// Stats reads counts and digest, which are kept up as writes are applied.
func (s *Store) Stats() (st Stats, err error) {
	err = s.view(func(t *tx) error { st = t.stats(); return nil })
	return st, err
}

// Node returns a node, or replication.ErrNotFound.
func (s *Store) Node(id replication.NodeID) (n *replication.Node, err error) {
	err = s.view(func(t *tx) error { n, err = t.existing(id); return err })
	return n, err
}

// Edge returns the edge with this identity, or replication.ErrNotFound.
func (s *Store) Edge(from replication.NodeID, relType string, to replication.NodeID, id replication.EdgeID) (e *replication.Edge, err error) {
	want := &replication.Edge{ID: id, StartNode: from, EndNode: to, Type: relType}
	err = s.view(func(t *tx) error {
		if err := checkEdgeIDs(want); err != nil {
			return err
		}
		if e, err = t.edge(want); err == nil && e == nil {
			err = edgeNotFound(want)
		}
		return err
	})
	return e, err
}

// Direction of an edge as seen from a node.
type Direction int

// The directions.
const (
	Out Direction = iota
	In
)

// Edges calls fn for each edge of a node, sorted by type and other end, in one
// read transaction; ErrNotFound without the node.
func (s *Store) Edges(id replication.NodeID, dir Direction, fn func(*replication.Edge) error) error {
	return s.view(func(t *tx) error {
		if _, err := t.existing(id); err != nil {
			return err
		}
		index, decode := t.out, edgeFromOutKey
		if dir == In {
			index, decode = t.in, edgeFromInKey
		}
		return scan(index, joinKey(string(id)), func(k, _ []byte) error {
			e, err := decode(k)
			if err != nil {
				return err
			}
			if e, err = t.edge(e); err != nil {
				return err
			}
			if e == nil {
				return fmt.Errorf("%w: index without edge", errDamaged)
			}
			return fn(e)
		})
	})
}

// Walk calls node for each node and then edge for each edge, sorted, in one
// read transaction, and returns the counts and digest of what it showed.
func (s *Store) Walk(node func(*replication.Node) error, edge func(*replication.Edge) error) (st Stats, err error) {
	err = s.view(func(t *tx) error {
		st = t.stats()
		return t.walk(node, edge)
	})
	return st, err
}

func (t *tx) walk(node func(*replication.Node) error, edge func(*replication.Edge) error) error {
	err := scan(t.nodesB, nil, func(k, _ []byte) error {
		n, err := t.node(replication.NodeID(k))
		if err != nil {
			return err
		}
		return node(n)
	})
	if err != nil {
		return err
	}
	return scan(t.out, nil, func(k, v []byte) error {
		e, err := edgeFromOutKey(k)
		if err != nil {
			return err
		}
		if e, err = edgeWith(e, v); err != nil {
			return err
		}
		return edge(e)
	})
}
