package testharness

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/nornicdb/replication"
)

// The errors of the checks on what became of writes.
var (
	// ErrLost: an acknowledged write is not there.
	ErrLost = errors.New("an acknowledged write is lost")
	// ErrFailedButThere: a write that was reported as failed took effect.
	ErrFailedButThere = errors.New("a failed write took effect")
	// ErrAppliedTwice: a request was executed more than once.
	ErrAppliedTwice = errors.New("a request was applied twice")
)

// CheckOutcomes asks of every node that was created whether it is there, which
// it must be if that was acknowledged and must not be if it failed. has reads a
// storage in which every write that will take effect has done so.
func CheckOutcomes(ops []Operation, has func(replication.NodeID) (bool, error)) error {
	var errs []error
	for i := range ops {
		op := &ops[i]
		if op.Kind != KindCreate {
			continue
		}
		there, err := has(op.NodeID)
		switch {
		case err != nil:
			return err
		case op.Outcome == OutcomeDone && !there:
			errs = append(errs, fmt.Errorf("%w: %s", ErrLost, op))
		case op.Outcome == OutcomeFailed && there:
			errs = append(errs, fmt.Errorf("%w: %s", ErrFailedButThere, op))
		}
	}
	return errors.Join(errs...)
}

// Has makes a GraphReader what CheckOutcomes asks.
func Has(r GraphReader) func(replication.NodeID) (bool, error) {
	return func(id replication.NodeID) (bool, error) {
		_, err := r.Node(id)
		if errors.Is(err, replication.ErrNotFound) {
			return false, nil
		}
		return err == nil, err
	}
}

// Applications counts, for each node, how often its storage executed each
// request ID, over all lives of the node. The zero value is ready. Safe for
// concurrent use.
type Applications struct {
	// mu guards the fields below.
	mu sync.Mutex
	at map[string]map[string][]uint64 // node → request ID → position of each execution
}

// Watch counts what the store commits from now on. It takes the store's
// OnCommit. A node that is restarted with what it had keeps its name; one that
// begins with an empty or an older storage, and executes its log anew, needs
// another name, unless the storage says what was taken back.
func (a *Applications) Watch(node string, s *MemStore) {
	s.OnCommit(func(c Commit) { a.commit(node, c) })
}

func (a *Applications) commit(node string, c Commit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.TakenBack {
		for id, at := range a.at[node] {
			a.at[node][id] = slices.DeleteFunc(at, func(p uint64) bool { return p > c.Position })
		}
	}
	for _, e := range c.Executed {
		if e.Command.RequestID == "" {
			continue
		}
		if a.at == nil {
			a.at = make(map[string]map[string][]uint64)
		}
		if a.at[node] == nil {
			a.at[node] = make(map[string][]uint64)
		}
		id := e.Command.RequestID
		a.at[node][id] = append(a.at[node][id], c.Position)
	}
}

// Count is how often a node executed a request.
func (a *Applications) Count(node, requestID string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.at[node][requestID])
}

// Check says ErrAppliedTwice if a node executed a request more than once.
func (a *Applications) Check() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for node, requests := range a.at {
		for id, at := range requests {
			if len(at) > 1 {
				errs = append(errs, fmt.Errorf("%w: %s executed %s %d times, at %v", ErrAppliedTwice, node, id, len(at), at))
			}
		}
	}
	return errors.Join(errs...)
}
