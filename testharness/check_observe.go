package testharness

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nornicdb/replication"
)

// The errors of the checks on what was observed.
var (
	// ErrDiverged: two nodes hold different graphs at the same position.
	ErrDiverged = errors.New("two graphs at one position")
	// ErrTwoLeaders: two nodes led in one term.
	ErrTwoLeaders = errors.New("two leaders in one term")
	// ErrWentBack: a node's position went back.
	ErrWentBack = errors.New("a position went back")
)

// Observations collects what nodes show from outside and keeps what breaks a
// promise. The zero value is ready. Safe for concurrent use.
type Observations struct {
	// mu guards the fields below.
	mu        sync.Mutex
	digests   map[uint64]digestAt
	leaders   map[uint64]string // term → leader
	positions map[string]uint64 // node → greatest position so far
	errs      []error
}

type digestAt struct{ node, digest string }

// maxObservedErrors bounds what is kept: the first says most.
const maxObservedErrors = 20

func (o *Observations) fail(err error) {
	if len(o.errs) < maxObservedErrors {
		o.errs = append(o.errs, err)
	}
}

// Err is what was found so far; nil if nothing was.
func (o *Observations) Err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return errors.Join(o.errs...)
}

// State notes the digest of a node's graph and the position that it is of, both
// read at once (MemStore.Stats, boltgraph.Store.Stats).
func (o *Observations) State(node string, position uint64, digest string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.digests == nil {
		o.digests = make(map[uint64]digestAt)
	}
	if first, ok := o.digests[position]; !ok {
		o.digests[position] = digestAt{node, digest}
	} else if first.digest != digest {
		o.fail(fmt.Errorf("%w: at %d %s has %s and %s has %s", ErrDiverged, position, first.node, first.digest, node, digest))
	}
}

// Position notes a node's position. Calls for one node must be made in the
// order in which the positions were read. A node that was given a new, empty
// storage needs a new name.
func (o *Observations) Position(node string, position uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.positions == nil {
		o.positions = make(map[string]uint64)
	}
	if last := o.positions[node]; position < last {
		o.fail(fmt.Errorf("%w: %s stood at %d and then at %d", ErrWentBack, node, last, position))
	}
	o.positions[node] = position
}

// Forget forgets where a node stood: it was given a new, empty storage.
func (o *Observations) Forget(node string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.positions, node)
}

// Leader notes that a node led in a term, or that an epoch was its.
func (o *Observations) Leader(term uint64, leader string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.leaders == nil {
		o.leaders = make(map[uint64]string)
	}
	if first, ok := o.leaders[term]; !ok {
		o.leaders[term] = leader
	} else if first != leader {
		o.fail(fmt.Errorf("%w: %s and %s in term %d", ErrTwoLeaders, first, leader, term))
	}
}

// Terms is in how many terms a leader was seen.
func (o *Observations) Terms() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.leaders)
}

// Health asks a node for its health and notes position and leadership. The
// fields of a HealthStatus are read one after the other, so leadership counts
// only if two answers in a row name the same term: then the node, whose term
// does not go back, led in that one. What a node says of other leaders is not
// noted, and an event's Term neither: both can be of another moment. For one
// node it must not be called twice at a time.
func (o *Observations) Health(r replication.Replicator) *replication.HealthStatus {
	first := r.Health()
	if first.State == "closed" || first.State == "starting" { // it does not say where it stands
		return first
	}
	o.Position(first.NodeID, first.AppliedIndex)
	if !first.IsLeader || first.Term == 0 {
		return first
	}
	second := r.Health()
	if second.IsLeader && second.Term == first.Term {
		o.Leader(first.Term, first.NodeID)
	}
	return second
}

// Watch asks a node for its health until stop is called, which waits for the
// goroutine that does it.
func (o *Observations) Watch(r replication.Replicator, every time.Duration) (stop func()) {
	return o.every(every, func() { o.Health(r) })
}

// WatchStore likewise notes the states of a node's storage.
func (o *Observations) WatchStore(node string, s *MemStore, every time.Duration) (stop func()) {
	return o.every(every, func() {
		st := s.Stats()
		o.Position(node, st.Position)
		o.State(node, st.Position, st.Digest)
	})
}

func (o *Observations) every(every time.Duration, look func()) (stop func()) {
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			look()
			select {
			case <-ticker.C:
			case <-done:
				look()
				return
			}
		}
	})
	return sync.OnceFunc(func() { close(done); wg.Wait() })
}
