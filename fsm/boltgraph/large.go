package boltgraph

import (
	"errors"
	"fmt"
	"os"

	"github.com/nornicdb/replication"
	"go.etcd.io/bbolt"
)

// UpdateLarge implements replication.LargeTxStorage: it changes a copy of the
// file, a few MiB at a time, and puts it in the place of the file with a rename,
// as Restore does.
func (s *Store) UpdateLarge(fn func(replication.Tx) error) error {
	s.flushing.Lock()
	defer s.flushing.Unlock()
	if err := s.flush(); err != nil {
		return err
	}
	s.writer.Lock()
	defer s.writer.Unlock()
	s.mu.Lock()
	db, clean, failed := s.db, s.latest.clean(), s.failed
	s.mu.Unlock()
	switch {
	case failed != nil:
		return failed
	case !clean:
		return fmt.Errorf("boltgraph: %s was written by two at once", s.path)
	}
	temp := s.path + restoreSuffix
	whole := false
	defer func() { // also where fn panics
		if !whole {
			_ = os.Remove(temp) // the next one, or the next Open, removes it
		}
	}()
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := db.View(func(btx *bbolt.Tx) error { return btx.CopyFile(temp, 0o600) }); err != nil {
		return err
	}
	if err := s.changeCopy(temp, fn); err != nil {
		return err
	}
	whole = true
	return s.replaceBy(temp)
}

// changeCopy runs fn over the file at path, syncs and closes it.
func (s *Store) changeCopy(path string, fn func(replication.Tx) error) (err error) {
	options := *s.options
	options.NoSync = true // one sync at the end
	copied, err := openStore(path, &options)
	if err != nil {
		return err
	}
	copied.limits = s.limits
	defer func() { err = errors.Join(err, copied.db.Close()) }()
	l := &largeTx{store: copied}
	if err := l.begin(); err != nil {
		return err
	}
	defer func() {
		if l.tx != nil {
			_ = l.btx.Rollback() // it only reads the file
		}
	}()
	if err := fn(l); err != nil {
		return err
	}
	if err := l.spill(); err != nil {
		return err
	}
	return copied.db.Sync()
}

// largeTx is a transaction that writes what it has changed to its file, which is
// nobody else's, whenever that is much. No scan is under way then: its cursors
// would be those of a file that has changed.
type largeTx struct {
	*tx
	before *table
	store  *Store
	scans  int
}

var (
	_ replication.Tx          = (*largeTx)(nil)
	_ replication.MetaSeeker  = (*largeTx)(nil)
	_ replication.EdgeStorage = (*largeTx)(nil)
)

func (l *largeTx) begin() (err error) {
	l.tx, l.before, err = l.store.begin(true)
	return err
}

// spill writes the changes to the file; the transaction goes on over it.
func (l *largeTx) spill() error {
	l.store.latest = l.table(l.before)
	err := l.btx.Rollback()
	l.tx = nil
	if err == nil {
		err = l.store.Flush()
	}
	if err == nil {
		err = l.begin()
	}
	return err
}

// wrote is called after every change.
func (l *largeTx) wrote(err error) error {
	if err != nil || l.scans > 0 {
		return err
	}
	size := 0
	for i := range l.buckets {
		size += l.buckets[i].latest.bytes
	}
	if size < l.store.limits.large {
		return nil
	}
	return l.spill()
}

func (l *largeTx) scan(fn func() error) error {
	l.scans++
	defer func() { l.scans-- }()
	return fn()
}

func (l *largeTx) ScanMeta(prefix []byte, fn func(k, v []byte) error) error {
	return l.scan(func() error { return l.tx.ScanMeta(prefix, fn) })
}

func (l *largeTx) ScanMetaFrom(prefix, from []byte, fn func(k, v []byte) error) error {
	return l.scan(func() error { return l.tx.ScanMetaFrom(prefix, from, fn) })
}

func (l *largeTx) ScanEdges(id replication.NodeID, fn func(*replication.Edge) error) error {
	return l.scan(func() error { return l.tx.ScanEdges(id, fn) })
}

func (l *largeTx) ApplyCommand(cmd *replication.Command) error { return replication.Dispatch(l, cmd) }

func (l *largeTx) SetMeta(key, value []byte) error { return l.wrote(l.tx.SetMeta(key, value)) }

func (l *largeTx) CreateNode(n *replication.Node) error { return l.wrote(l.tx.CreateNode(n)) }

func (l *largeTx) UpdateNode(n *replication.Node) error { return l.wrote(l.tx.UpdateNode(n)) }

func (l *largeTx) DeleteNode(id replication.NodeID) error { return l.wrote(l.tx.DeleteNode(id)) }

func (l *largeTx) CreateEdge(e *replication.Edge) error { return l.wrote(l.tx.CreateEdge(e)) }

func (l *largeTx) UpdateEdge(e *replication.Edge) error { return l.wrote(l.tx.UpdateEdge(e)) }

func (l *largeTx) DeleteEdge(from, to replication.NodeID, relType string) error {
	return l.wrote(l.tx.DeleteEdge(from, to, relType))
}

func (l *largeTx) DeleteEdgeByID(id replication.EdgeID) error {
	return l.wrote(l.tx.DeleteEdgeByID(id))
}

func (l *largeTx) SetProperty(id replication.NodeID, key string, value interface{}) error {
	return l.wrote(l.tx.SetProperty(id, key, value))
}
