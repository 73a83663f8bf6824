package testharness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/nornicdb/replication"
)

// The errors of the checks: a history or an observation breaks what was
// promised. They are wrapped with what broke it.
var (
	// ErrNotLinearizable: no order of the operations explains what was read.
	ErrNotLinearizable = errors.New("the history is not linearizable")
	// ErrUndecided: the check was given up; this says nothing of the history.
	ErrUndecided = errors.New("linearizability was not decided in time")
	// ErrOrder: positions contradict the order in which operations returned.
	ErrOrder = errors.New("positions contradict real time")
)

// linearizabilityTimeout bounds the search for an order, which can take time
// exponential in the number of operations that run at once.
const linearizabilityTimeout = time.Minute

// register names a register.
type register struct {
	id  replication.NodeID
	key string
}

// CheckLinearizable looks for an order of the sets and gets of each register,
// in keeping with real time, in which every get at a linearizable level reads
// what was set last. A failed set is in no such order; one of unknown outcome
// may stand anywhere after its call, or nowhere. Where there is none it writes
// a picture of the history into dir, which is made if need be, and returns
// ErrNotLinearizable with its path.
func CheckLinearizable(ops []Operation, dir string) error {
	byRegister := make(map[register][]Operation)
	for _, op := range ops {
		if op.Kind == KindSet || op.Kind == KindGet && linearizable(op.Level) {
			r := register{op.NodeID, op.Key}
			byRegister[r] = append(byRegister[r], op)
		}
	}
	var errs []error
	for r, ops := range byRegister {
		history := registerHistory(ops)
		switch porcupine.CheckOperationsTimeout(registerModel, history, linearizabilityTimeout) {
		case porcupine.Ok:
		case porcupine.Unknown:
			errs = append(errs, fmt.Errorf("%w: %s.%s, %d operations", ErrUndecided, r.id, r.key, len(history)))
		default:
			path, err := drawHistory(history, dir)
			errs = append(errs, fmt.Errorf("%w: %s.%s, %d operations; see %s", ErrNotLinearizable, r.id, r.key, len(history), path), err)
		}
	}
	return errors.Join(errs...)
}

// registerInput is one operation on a register; a get's value is what it read.
type registerInput struct {
	get   bool
	value string
	op    *Operation
}

// registerModel is a register: its state is the canonical JSON of its value.
var registerModel = porcupine.Model{
	Init: func() any { return "null" },
	Step: func(state, input, _ any) (bool, any) {
		in := input.(registerInput)
		if in.get {
			return state.(string) == in.value, state
		}
		return true, in.value
	},
	DescribeOperation: func(input, _ any) string {
		in := input.(registerInput)
		if in.get {
			return fmt.Sprintf("get %s on %s", in.value, in.op.Node)
		}
		return fmt.Sprintf("set %s on %s: %s at %d", in.value, in.op.Node, in.op.Outcome, in.op.Position)
	},
	DescribeState: func(state any) string { return state.(string) },
}

// registerHistory is the history of one register as the checker takes it. A
// set of unknown outcome whose value nobody read is left out: it can always
// stand at the end.
func registerHistory(ops []Operation) []porcupine.Operation {
	read := make(map[string]bool)
	end := 0 // greater than every call and return
	for _, op := range ops {
		end = max(end, op.Call+1, op.Return+1)
		if op.Kind == KindGet && op.Outcome == OutcomeDone {
			read[op.Value] = true
		}
	}
	var history []porcupine.Operation
	for i := range ops {
		op := &ops[i]
		ends := int64(op.Return)
		switch op.Outcome {
		case OutcomeFailed:
			continue
		case OutcomeUnknown:
			if op.Kind == KindGet || !read[op.Value] {
				continue
			}
			ends = int64(end)
		}
		history = append(history, porcupine.Operation{ClientId: op.Client - 1, Call: int64(op.Call), Return: ends,
			Input: registerInput{get: op.Kind == KindGet, value: op.Value, op: op}})
	}
	return history
}

// drawHistory writes the picture.
func drawHistory(history []porcupine.Operation, dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "no picture", err
	}
	f, err := os.CreateTemp(dir, "history-*.html")
	if err != nil {
		return "no picture", err
	}
	_, info := porcupine.CheckOperationsVerbose(registerModel, history, linearizabilityTimeout)
	path, err := filepath.Abs(f.Name())
	return path, errors.Join(err, porcupine.Visualize(registerModel, info, f), f.Close())
}

// CheckOrder compares positions with real time, which costs little where a
// search for an order costs too much: a write that was called after another
// had returned has a greater position, and a linearizable read that was waits
// for at least that one. Operations without position are passed over, and those
// of KindOther: they may repeat a request, which is answered with the position
// of the first.
func CheckOrder(ops []Operation) error {
	type event struct {
		at     int
		op     *Operation
		called bool
	}
	var events []event
	for i := range ops {
		op := &ops[i]
		if op.Outcome != OutcomeDone || op.Position == 0 || op.Kind == KindOther || op.Kind == KindGet && !linearizable(op.Level) {
			continue
		}
		events = append(events, event{op.Call, op, true}, event{op.Return, op, false})
	}
	slices.SortFunc(events, func(a, b event) int { return a.at - b.at })
	floor := make(map[*Operation]*Operation) // the greatest write that had returned at the call
	var last *Operation
	for _, e := range events {
		switch {
		case e.called:
			floor[e.op] = last
		case e.op.Kind != KindGet && (last == nil || e.op.Position > last.Position):
			last = e.op
		}
		if before := floor[e.op]; !e.called && before != nil {
			if e.op.Position < before.Position || e.op.Position == before.Position && e.op.Kind != KindGet {
				return fmt.Errorf("%w:\n%s\nhad returned before\n%s", ErrOrder, before, e.op)
			}
		}
	}
	return nil
}
