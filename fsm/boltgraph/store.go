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

// Store is a graph in one bbolt file, and what was changed since the file was
// last written. Reads are safe at any time and wait for nobody; writes are made
// by one goroutine at a time, as replication.Storage says. See DESIGN.md.
type Store struct {
	path    string
	options *bbolt.Options
	limits  limits

	// The locks are taken in this order.
	flushing sync.Mutex     // held while the file is written or replaced
	writer   sync.Mutex     // held by a transaction, and while a table is frozen
	closing  sync.WaitGroup // replaced files being closed

	// mu guards the fields below.
	mu       sync.Mutex
	db       *bbolt.DB
	latest   *table // never nil; what frozen and the file do not have
	frozen   *table // being written to the file; nil
	deferred *flusher
	failed   error // of a flush, or a restore got stuck between the files
}

var (
	_ replication.DeferringStorage   = (*Store)(nil)
	_ replication.LargeTxStorage     = (*Store)(nil)
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

// initialMmapBytes is the address space reserved for a file. A flush that makes
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
	s, err := openStore(path, &options)
	if err != nil {
		return nil, err
	}
	// Only now is it certain that no other process is building one.
	if err := os.Remove(path + restoreSuffix); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("boltgraph: removing an unfinished restore: %w", err), s.Close())
	}
	return s, nil
}

func openStore(path string, options *bbolt.Options) (*Store, error) {
	db, state, err := openFile(path, options)
	if err != nil {
		return nil, err
	}
	return &Store{path: path, options: options, limits: defaultLimits, db: db, latest: &table{state: state, written: state}}, nil
}

// openFile opens a bbolt file and makes sure that it is one of this package's.
func openFile(path string, options *bbolt.Options) (db *bbolt.DB, s state, err error) {
	db, err = bbolt.Open(path, 0o600, options)
	if errors.Is(err, syscall.ENOMEM) { // the process may not have that much address space
		small := *options
		small.InitialMmapSize = 0
		db, err = bbolt.Open(path, 0o600, &small)
	}
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, s, fmt.Errorf("boltgraph: %s: %w", path, replication.ErrLocked)
	}
	if err != nil {
		return nil, s, fmt.Errorf("boltgraph: opening %s: %w", path, err)
	}
	empty := false
	err = db.View(func(btx *bbolt.Tx) (err error) {
		if k, _ := btx.Cursor().First(); k == nil {
			empty = true
			return nil
		}
		for _, name := range bucketNames {
			if btx.Bucket(name) == nil {
				return fmt.Errorf("%w: no %s", errDamaged, name)
			}
		}
		s, err = readState(btx)
		return err
	})
	if err == nil && empty {
		err = db.Update(createBuckets)
	}
	if err != nil {
		return nil, s, errors.Join(fmt.Errorf("%s: %w", path, err), db.Close())
	}
	return db, s, nil
}

func createBuckets(btx *bbolt.Tx) error {
	for _, name := range append(bucketNames[:], bucketState) {
		if _, err := btx.CreateBucket(name); err != nil {
			return err
		}
	}
	return btx.Bucket(bucketState).Put(keyState, new(state).encode())
}

// Close makes everything durable and waits for snapshots and reads to end.
func (s *Store) Close() error {
	err := s.Defer(false)
	s.mu.Lock()
	db := s.db
	s.mu.Unlock()
	err = errors.Join(err, db.Close())
	s.closing.Wait()
	return err
}

// Update implements replication.TxStorage.
func (s *Store) Update(fn func(replication.Tx) error) error {
	return s.update(func(t *tx) error { return fn(t) })
}

func (s *Store) update(fn func(*tx) error) error {
	flush, err := s.change(fn)
	if err == nil && flush {
		err = s.Flush()
	}
	return err
}

// change makes a transaction in memory, and says whether it has to be flushed
// now: the store does not defer, or the flusher does not keep up.
func (s *Store) change(fn func(*tx) error) (flush bool, err error) {
	s.writer.Lock()
	defer s.writer.Unlock()
	t, before, err := s.begin(true)
	if err != nil {
		return false, err
	}
	defer func() { _ = t.btx.Rollback() }() // it only reads the file
	if err := fn(t); err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latest = t.table(before)
	if s.deferred == nil {
		return true, nil
	}
	if s.latest.bytes >= s.limits.bytes {
		s.deferred.rouse()
	}
	return s.latest.bytes >= 2*s.limits.bytes, nil
}

// begin makes a transaction. After a failed flush there are no more writes;
// what readers see is whole.
func (s *Store) begin(write bool) (*tx, *table, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil && (write || errors.Is(s.failed, replication.ErrRestoreIncomplete)) {
		return nil, nil, s.failed
	}
	btx, err := s.db.Begin(false)
	if err != nil {
		return nil, nil, err
	}
	return newTx(btx, s.frozen, s.latest), s.latest, nil
}

// View implements replication.TxStorage.
func (s *Store) View(fn func(replication.Meta) error) error {
	return s.view(func(t *tx) error { return fn(t) })
}

func (s *Store) view(fn func(*tx) error) error {
	t, _, err := s.begin(false)
	if err != nil {
		return err
	}
	defer func() { _ = t.btx.Rollback() }() // a read has nothing to lose
	return fn(t)
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
		index, decode := t.out(), edgeFromOutKey
		if dir == In {
			index, decode = t.in(), edgeFromInKey
		}
		return index.scan(joinKey(string(id)), func(k, _ []byte) error {
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
	err := t.nodeRows().scan(nil, func(k, v []byte) error {
		n, err := decodeNode(replication.NodeID(k), v)
		if err != nil {
			return err
		}
		return node(n)
	})
	if err != nil {
		return err
	}
	return t.out().scan(nil, func(k, v []byte) error {
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
