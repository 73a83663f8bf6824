package testharness

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nornicdb/replication"
)

// Outcome is how an operation ended, as its client knows it.
type Outcome string

// The outcomes.
const (
	// OutcomeUnknown: it may have taken effect, or may yet.
	OutcomeUnknown Outcome = "unknown"
	// OutcomeDone: it took effect between call and return.
	OutcomeDone Outcome = "done"
	// OutcomeFailed: it did not take effect and will not. A write that got a
	// verdict is one of these.
	OutcomeFailed Outcome = "failed"
)

// OperationKind is what an operation does.
type OperationKind string

// The kinds.
const (
	// KindSet writes a register: one property of one node.
	KindSet OperationKind = "set"
	// KindGet reads a register.
	KindGet OperationKind = "get"
	// KindCreate makes a node that nobody else makes.
	KindCreate OperationKind = "create"
	// KindOther is any other command.
	KindOther OperationKind = "other"
)

// Operation is one thing that a client did.
type Operation struct {
	Client int
	Kind   OperationKind
	// Call and Return order operations: one whose Return is less than another's
	// Call had returned before the other was called. They are numbers and not
	// times because in virtual time much happens at one instant. Return is 0
	// for an operation that has not returned.
	Call, Return int
	// Called and Returned say when, for people.
	Called, Returned time.Time
	// Node is the ID of the node that was asked last.
	Node string

	NodeID replication.NodeID // of a set, get or create
	Key    string             // of a set or get
	// Value is the canonical JSON of what was written or read; "null" where
	// there was nothing.
	Value     string
	Level     replication.Consistency // of a get
	RequestID string                  // of a write

	Outcome Outcome
	// Position of the write, or the one that a read waited for; 0 where the
	// replicator does not tell.
	Position uint64
	Err      error
	Tries    int
}

func (o Operation) String() string {
	return fmt.Sprintf("%d..%d client %d on %s: %s %s.%s=%s %s position %d %s %v",
		o.Call, o.Return, o.Client, o.Node, o.Kind, o.NodeID, o.Key, o.Value, o.RequestID, o.Position, o.Outcome, o.Err)
}

// linearizable says whether a level promises to see every write that was
// acknowledged before.
func linearizable(level replication.Consistency) bool {
	return level != replication.ConsistencyOne && level != replication.ConsistencyLocalOne
}

// Target is a node that clients ask.
type Target struct {
	Replicator replication.Replicator
	// Property reads a property from the node's own storage, nil where there is
	// none: MemStore.Property, say. replication.ErrNotFound reads as nil.
	Property func(id replication.NodeID, key string) (any, error)
}

// History records what clients did, for the checks in this package. Safe for
// concurrent use, also in a synctest bubble.
type History struct {
	name string // prefix of request IDs and node IDs

	// mu guards the fields below.
	mu      sync.Mutex
	ops     []Operation
	clock   int // of Call and Return
	clients int
}

// NewHistory makes an empty history. name begins all request IDs, so that two
// histories over one storage need two names.
func NewHistory(name string) *History { return &History{name: name} }

// Operations returns a copy of what was recorded, in the order of the calls.
// One that still runs is of unknown outcome.
func (h *History) Operations() []Operation {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ops)
}

// begin records a call; from here on it may take effect.
func (h *History) begin(op Operation) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	op.Call, op.Called, op.Outcome = h.clock, time.Now(), OutcomeUnknown
	h.ops = append(h.ops, op)
	return len(h.ops) - 1
}

// end records how a call returned.
func (h *History) end(index int, result Operation) Operation {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	op := &h.ops[index]
	op.Return, op.Returned = h.clock, time.Now()
	op.Outcome, op.Err, op.Position = result.Outcome, result.Err, result.Position
	op.Node, op.Tries = result.Node, result.Tries
	if op.Kind == KindGet {
		op.Value = result.Value
	}
	return *op
}

// Client does one operation after the other and records them. It is for one
// goroutine.
type Client struct {
	h       *History
	id      int
	next    int // number of the next request
	targets []Target
}

// retryPause is what a client waits for between two tries.
const retryPause = 10 * time.Millisecond

// Client makes a client. With one target it asks once. With several it asks the
// first, and while the outcome is not decided and ctx has not ended it tries
// the next, in turn, with the same request ID.
func (h *History) Client(targets ...Target) *Client {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clients++
	return &Client{h: h, id: h.clients, targets: targets}
}

// Use replaces the targets.
func (c *Client) Use(targets ...Target) { c.targets = targets }

// requestID makes one that is not used again.
func (c *Client) requestID() string {
	c.next++
	return fmt.Sprintf("%s/%d/%d", c.h.name, c.id, c.next)
}

// Set writes a register: a property of a node that is there and is changed by
// Set alone.
func (c *Client) Set(ctx context.Context, id replication.NodeID, key string, value any) Operation {
	cmd, err := replication.NewSetProperty(id, key, value)
	if err != nil {
		panic(err) // the test's mistake
	}
	text, _ := replication.AppendValue(nil, value) // has no error: the command was made
	return c.write(ctx, cmd, Operation{Kind: KindSet, NodeID: id, Key: key, Value: string(text)})
}

// Create makes a node whose ID nobody else uses, and which stays.
func (c *Client) Create(ctx context.Context) Operation {
	request := c.requestID()
	id := replication.NodeID("created/" + request)
	cmd, err := replication.NewNodeCommand(replication.CmdCreateNode, &replication.Node{ID: id})
	if err != nil {
		panic(err)
	}
	cmd.RequestID = request
	return c.write(ctx, cmd, Operation{Kind: KindCreate, NodeID: id})
}

// Do applies any command. It gets a request ID if it has none.
func (c *Client) Do(ctx context.Context, cmd *replication.Command) Operation {
	return c.write(ctx, cmd, Operation{Kind: KindOther})
}

func (c *Client) write(ctx context.Context, cmd *replication.Command, op Operation) Operation {
	own := *cmd
	if own.RequestID == "" {
		own.RequestID = c.requestID()
	}
	op.Client, op.RequestID = c.id, own.RequestID
	index := c.h.begin(op)
	return c.h.end(index, c.tries(ctx, func(t Target) (uint64, error) { return applyTo(ctx, t.Replicator, &own) }))
}

// tries asks until the outcome is decided. What one try left open, another's
// failure to be proposed does not close; a verdict or success does, as all
// tries are one request.
func (c *Client) tries(ctx context.Context, ask func(Target) (uint64, error)) (result Operation) {
	open := false // an earlier try may have taken effect
	for {
		t := c.targets[result.Tries%len(c.targets)]
		result.Tries++
		result.Node = t.Replicator.NodeID()
		result.Position, result.Err = ask(t)
		result.Outcome = outcomeOf(result.Err)
		if result.Outcome == OutcomeDone {
			return result
		}
		if _, verdict := replication.Verdict(result.Err); verdict && result.Outcome == OutcomeFailed {
			return result
		}
		open = open || result.Outcome == OutcomeUnknown
		if open {
			result.Outcome = OutcomeUnknown
		}
		if len(c.targets) == 1 || !pauseFor(ctx, retryPause) {
			return result
		}
	}
}

// pauseFor waits, unless ctx ends first.
func pauseFor(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// outcomeOf reads an error of a write as package replication defines it.
func outcomeOf(err error) Outcome {
	switch {
	case err == nil:
		return OutcomeDone
	case errors.Is(err, replication.ErrUnknownOutcome):
		return OutcomeUnknown
	default:
		return OutcomeFailed
	}
}

// defaultOperationTimeout is for a ctx without deadline.
const defaultOperationTimeout = 10 * time.Second

func applyTo(ctx context.Context, r replication.Replicator, cmd *replication.Command) (uint64, error) {
	if b, ok := r.(replication.BatchApplier); ok {
		return b.ApplyBatch(ctx, []*replication.Command{cmd})
	}
	timeout := defaultOperationTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = time.Until(deadline)
	}
	if timeout <= 0 {
		return 0, fmt.Errorf("%w: %w", replication.ErrTimeout, context.DeadlineExceeded)
	}
	return 0, r.Apply(cmd, timeout)
}

// Get reads a register at a level, on the node's own storage. A target that is
// no replication.ConsistentReader is read as it is, which is level ONE.
func (c *Client) Get(ctx context.Context, level replication.Consistency, id replication.NodeID, key string) Operation {
	if _, ok := c.targets[0].Replicator.(replication.ConsistentReader); !ok {
		level = replication.ConsistencyOne
	}
	index := c.h.begin(Operation{Client: c.id, Kind: KindGet, NodeID: id, Key: key, Level: level})
	var value any
	result := c.tries(ctx, func(t Target) (position uint64, err error) {
		if r, ok := t.Replicator.(replication.ConsistentReader); ok {
			if position, err = r.ReadBarrier(ctx, level); err != nil {
				return 0, err
			}
		}
		value, err = t.Property(id, key)
		if errors.Is(err, replication.ErrNotFound) {
			value, err = nil, nil
		}
		return position, err
	})
	if result.Outcome != OutcomeDone {
		result.Outcome = OutcomeFailed // a read that returns nothing changes nothing
		return c.h.end(index, result)
	}
	text, err := replication.AppendValue(nil, value)
	if err != nil {
		result.Outcome, result.Err = OutcomeFailed, err
	}
	result.Value = string(text)
	return c.h.end(index, result)
}
