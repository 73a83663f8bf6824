package testharness

import (
	"errors"
	"fmt"
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
	mu    sync.Mutex
	count map[string]map[string]int // node → request ID → executions
}

// Watch counts what the store commits from now on. It takes the store's
// OnCommit. A node that is restarted with what it had keeps its name; one that
// begins with an empty or an older storage, and executes its log anew, needs
// another name.
func (a *Applications) Watch(node string, s *MemStore) {
	s.OnCommit(func(c Commit) { a.commit(node, c) })
}

func (a *Applications) commit(node string, c Commit) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range c.Executed {
		if e.Command.RequestID == "" {
			continue
		}
		if a.count == nil {
			a.count = make(map[string]map[string]int)
		}
		if a.count[node] == nil {
			a.count[node] = make(map[string]int)
		}
		a.count[node][e.Command.RequestID]++
	}
}

// Count is how often a node executed a request.
func (a *Applications) Count(node, requestID string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.count[node][requestID]
}

// Check says ErrAppliedTwice if a node executed a request more than once.
func (a *Applications) Check() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var errs []error
	for node, counts := range a.count {
		for id, n := range counts {
			if n > 1 {
				errs = append(errs, fmt.Errorf("%w: %s executed %s %d times", ErrAppliedTwice, node, id, n))
			}
		}
	}
	return errors.Join(errs...)
}
