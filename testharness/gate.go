package testharness

import (
	"sync"

	"github.com/nornicdb/replication"
)

// Gate holds up the transactions of a storage while it is shut: a storage that
// hangs, on a disk that works. The zero Gate is open. Safe for concurrent use.
type Gate struct {
	mu   sync.Mutex
	open chan struct{} // closed when it is lifted; nil: it is open
}

// Shut makes transactions that begin from now on wait.
func (g *Gate) Shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open == nil {
		g.open = make(chan struct{})
	}
}

// Lift lets them go on.
func (g *Gate) Lift() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open != nil {
		close(g.open)
		g.open = nil
	}
}

// Guard is the storage behind the gate, without its optional abilities but
// snapshots, which it must have.
func (g *Gate) Guard(s replication.TxStorage) replication.Storage {
	return guarded{s, s.(replication.StorageSnapshotter), g}
}

type guarded struct {
	replication.TxStorage
	replication.StorageSnapshotter
	gate *Gate
}

// Update implements replication.TxStorage.
func (s guarded) Update(fn func(replication.Tx) error) error {
	s.gate.mu.Lock()
	open := s.gate.open
	s.gate.mu.Unlock()
	if open != nil {
		<-open
	}
	return s.TxStorage.Update(fn)
}
