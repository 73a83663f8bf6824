package replication

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// Group is commands that take effect together or not at all.
type Group struct {
	Commands []*Command
	// RequestID of the group; empty: not deduplicated.
	RequestID string
	// Hash of what the client sent. Zero: that of Commands; set where Commands
	// are recorded effects, which differ from try to try.
	Hash [16]byte
	// Conditional: the group is valid only if ValidAt is the position of the
	// state it meets; otherwise it is answered ErrStaleEffects.
	Conditional bool
	ValidAt     uint64
}

// NewGroup makes a group of commands; its request ID is the first command's.
func NewGroup(cmds ...*Command) Group {
	g := Group{Commands: cmds}
	if len(cmds) > 0 {
		g.RequestID = cmds[0].RequestID
	}
	return g
}

func (g *Group) hash() [16]byte {
	if g.Hash != ([16]byte{}) {
		return g.Hash
	}
	return CommandHash(g.Commands)
}

// Entry is what stands at one position of a log: groups, applied in order.
type Entry struct {
	Position uint64
	Groups   []Group
}

// Result is the outcome of a group. Err is nil or a verdict,
// ErrRequestIDReused or ErrStaleEffects. For a request ID that was applied
// before, Position and Err are those of the first time.
type Result struct {
	Position uint64
	Err      error
}

// Identity says to which log a Storage belongs. Positions mean something only
// within a History and above its Base (architecture, "Identity").
type Identity struct {
	History string
	Base    uint64
}

// StorageApplier turns ordered entries into Storage transactions: position,
// request outcomes, verdicts, all or none. It is the only writer of its
// Storage; every mode stands on it. Methods are safe for concurrent use; Apply
// calls take effect in the order in which they are made, so one goroutine
// should make them.
//
// After a storage failure it applies nothing more: what the Storage then
// holds is unknown until it is opened again.
type StorageApplier struct {
	storage Storage
	tx      TxStorage // nil where the storage has no transactions

	progress *progress
	steps    atomic.Uint64
	wishes   wishHolder // written under mu

	// mu serializes writers of the storage and guards the fields below.
	mu    sync.Mutex
	begun begun

	// state guards the fields below beside mu: they are written under both, so
	// that nobody who asks for them waits for a transaction.
	state    sync.Mutex
	outcomes *outcomeTable
	identity Identity
	failed   error
}

// NewStorageApplier reads position, identity and request outcomes from the
// storage. One that defers no longer does, so what is read is durable; a mode
// that can do without asks for it later. It returns ErrRestoreIncomplete, with an applier that has failed,
// where a restore has to be run again first (see Reload).
func NewStorageApplier(storage Storage) (*StorageApplier, error) {
	a := &StorageApplier{storage: storage, progress: newProgress(), outcomes: newOutcomeTable()}
	a.tx, _ = storage.(TxStorage)
	if d, ok := storage.(DeferringStorage); ok {
		if err := d.Defer(false); err != nil && !errors.Is(err, ErrRestoreIncomplete) {
			return nil, fmt.Errorf("flushing the storage: %w", err)
		}
	}
	if err := a.Reload(); err != nil {
		if errors.Is(err, ErrRestoreIncomplete) {
			return a, err
		}
		return nil, err
	}
	return a, nil
}

// Reload reads everything anew, after the storage was restored. It ends the
// state of failure.
func (a *StorageApplier) Reload() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	pos, err := a.storage.GetWALPosition()
	if errors.Is(err, ErrRestoreIncomplete) { // nothing may make it seem whole
		a.setFailed(fmt.Errorf("%w: %w", ErrStorageFailed, err))
	}
	if err != nil {
		return fmt.Errorf("reading the position: %w", err)
	}
	if a.tx != nil {
		outcomes := newOutcomeTable()
		var id Identity
		var wishes wishTable
		var part begun
		err := a.tx.View(func(m Meta) error {
			var err error
			if part, err = readBegun(m); err != nil {
				return err
			}
			if id, err = readIdentity(m); err != nil {
				return err
			}
			if wishes, err = loadWishes(m); err != nil {
				return err
			}
			return outcomes.load(m)
		})
		if err != nil {
			return fmt.Errorf("reading the metadata: %w", err)
		}
		a.setOutcomes(outcomes)
		a.setIdentity(id)
		a.wishes.set(wishes)
		a.begun = part
	}
	a.setFailed(nil)
	a.progress.reset(pos)
	return nil
}

// Atomic says whether the storage has transactions, so that batches of several
// commands can be applied.
func (a *StorageApplier) Atomic() bool { return a.tx != nil }

// Position is the position of the last applied entry.
func (a *StorageApplier) Position() uint64 { return a.progress.position() }

// Steps grows with whatever Apply gets done: with each transaction, or each entry
// where the storage has none. A large entry takes many, and moves the position once.
func (a *StorageApplier) Steps() uint64 { return a.steps.Load() }

// Identity of the storage's history; zero where it belongs to none.
func (a *StorageApplier) Identity() Identity {
	a.state.Lock()
	defer a.state.Unlock()
	return a.identity
}

// Outcome is the first outcome of a request, where it is remembered. Another
// hash than the first time's makes it ErrRequestIDReused.
func (a *StorageApplier) Outcome(requestID string, hash [16]byte) (Result, bool) {
	a.state.Lock()
	defer a.state.Unlock()
	first, known := newOutcomeRun(a.outcomes, nil).lookup(requestID)
	if !known {
		return Result{}, false
	}
	return first.result(hash, a.Position()), true
}

// The four below are called with a.mu held.

func (a *StorageApplier) commit(run *outcomeRun) {
	a.state.Lock()
	defer a.state.Unlock()
	run.commit()
}

func (a *StorageApplier) setOutcomes(t *outcomeTable) {
	a.state.Lock()
	defer a.state.Unlock()
	a.outcomes = t
}

func (a *StorageApplier) setIdentity(id Identity) {
	a.state.Lock()
	defer a.state.Unlock()
	a.identity = id
}

func (a *StorageApplier) setFailed(err error) {
	a.state.Lock()
	defer a.state.Unlock()
	a.failed = err
}

// Failure is the error that stopped the applier; nil while it works.
func (a *StorageApplier) Failure() error {
	a.state.Lock()
	defer a.state.Unlock()
	return a.failed
}

// WaitApplied waits until the position is applied. ErrTimeout when ctx ends
// first, ErrStorageFailed or ErrClosed when it will not be.
func (a *StorageApplier) WaitApplied(ctx context.Context, position uint64) error {
	return a.progress.wait(ctx, position)
}

// Close fails all waiters. It does not close the storage.
func (a *StorageApplier) Close() { a.progress.stop(ErrClosed) }

// Found makes the storage part of a history, at its present position but no
// less than 1: a log over a new storage begins with its founding.
func (a *StorageApplier) Found(id Identity) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failed != nil {
		return a.failed
	}
	if a.tx != nil {
		err := a.tx.Update(func(tx Tx) error {
			if err := a.belong(tx, id); err != nil {
				return err
			}
			return tx.SetWALPosition(id.Base)
		})
		if err != nil {
			return fmt.Errorf("founding: %w", err)
		}
	} else if err := a.storage.SetWALPosition(id.Base); err != nil {
		return fmt.Errorf("founding: %w", err)
	}
	a.begun = begun{}
	a.setIdentity(id)
	a.progress.advance(id.Base)
	return nil
}

// belong writes another identity. An entry that was begun is one of the old log.
func (a *StorageApplier) belong(tx Tx, id Identity) error {
	if a.begun.entry != 0 {
		if err := tx.SetMeta(metaBegun, nil); err != nil {
			return err
		}
	}
	return writeIdentity(tx, id)
}

// Adopt sets the identity without writing it: for a storage without metadata
// rows, whose owner keeps the identity elsewhere.
func (a *StorageApplier) Adopt(id Identity) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.setIdentity(id)
}

// Leave takes the storage out of its history, so that what is now written to
// it alone cannot be taken for part of that history later.
func (a *StorageApplier) Leave() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.identity == (Identity{}) {
		return nil
	}
	if a.tx != nil {
		if err := a.tx.Update(func(tx Tx) error { return a.belong(tx, Identity{}) }); err != nil {
			return fmt.Errorf("leaving the history: %w", err)
		}
		a.begun = begun{}
	}
	a.setIdentity(Identity{})
	return nil
}

// Apply applies entries, whose positions ascend and lie above Position. It
// returns the results of each group of each entry that was applied and is, as
// far as the storage promises, durable. A non-nil error is a storage failure:
// the outcome of the entries without results is unknown, and every later call
// fails the same way.
func (a *StorageApplier) Apply(entries []Entry) ([][]Result, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failed != nil {
		return nil, a.failed
	}
	last := a.Position()
	for _, e := range entries {
		if e.Position <= last {
			return nil, a.fail(fmt.Errorf("entry %d after %d", e.Position, last))
		}
		last = e.Position
	}
	results := make([][]Result, 0, len(entries))
	var err error
	if a.tx != nil {
		results, err = a.applyTx(entries, results)
	} else {
		results, err = a.applyPlain(entries, results)
	}
	if err != nil {
		return results, a.fail(err)
	}
	return results, nil
}

// Remember notes the request IDs and the settings of entries that the storage had
// applied before a restart, for a storage without metadata rows; the requests'
// outcomes are then ErrUnknownOutcome. With metadata rows it does nothing.
func (a *StorageApplier) Remember(entries []Entry) {
	if a.tx != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	run := newOutcomeRun(a.outcomes, nil)
	for _, e := range entries {
		for i := range e.Groups {
			g := &e.Groups[i]
			a.rememberSettings(g)
			if _, known := run.lookup(g.RequestID); !known {
				_ = run.add(g, Result{Position: e.Position, Err: ErrUnknownOutcome})
			}
		}
	}
	a.commit(run)
}

// Fail stops the applier for a reason of its owner's, a log entry that cannot
// be read, say, and returns what every later Apply will return.
func (a *StorageApplier) Fail(err error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failed != nil {
		return a.failed
	}
	return a.fail(err)
}

// fail records a storage failure. a.mu is held.
func (a *StorageApplier) fail(err error) error {
	a.setFailed(fmt.Errorf("%w: %w", ErrStorageFailed, err))
	a.progress.stop(a.failed)
	return a.failed
}

// applyPlain serves a storage without transactions: the position is set after
// each entry, so a crash can replay one entry.
func (a *StorageApplier) applyPlain(entries []Entry, results [][]Result) ([][]Result, error) {
	for _, e := range entries {
		run := newOutcomeRun(a.outcomes, nil)
		entryResults := make([]Result, len(e.Groups))
		for i := range e.Groups {
			g := &e.Groups[i]
			res, done := a.precheck(run, g, i, a.Position(), e.Position)
			if !done {
				err := a.plainGroup(g)
				if _, isVerdict := Verdict(err); err != nil && !isVerdict {
					return results, err
				}
				res = Result{Position: e.Position, Err: err}
				if err := run.add(g, res); err != nil {
					return results, err
				}
			}
			entryResults[i] = res
		}
		if err := a.storage.SetWALPosition(e.Position); err != nil {
			return results, err
		}
		a.commit(run)
		a.steps.Add(1)
		a.progress.advance(e.Position)
		results = append(results, entryResults)
	}
	return results, nil
}

func (a *StorageApplier) plainGroup(g *Group) error {
	if len(g.Commands) != 1 || g.Commands[0].Type == CmdBatchWrite {
		return fmt.Errorf("%w: this storage has no transactions", ErrInvalidCommand)
	}
	if g.Commands[0].Type == CmdSettings {
		s, err := decodeSettings(g.Commands[0].Data)
		switch {
		case err != nil:
			return err
		case s.Member != nil:
			a.wishes.take(s.Member)
		case a.identity == (Identity{}):
			a.setIdentity(Identity{History: s.History})
		}
		return nil
	}
	return a.storage.ApplyCommand(g.Commands[0])
}

// precheck answers groups that are not to be executed: repeated requests,
// reused IDs, effects recorded against another state.
func (a *StorageApplier) precheck(run *outcomeRun, g *Group, index int, before, position uint64) (Result, bool) {
	if first, known := run.lookup(g.RequestID); known {
		return first.result(g.hash(), position), true
	}
	if g.Conditional && (index > 0 || g.ValidAt != before) {
		return Result{Position: position, Err: ErrStaleEffects}, true
	}
	return Result{}, false
}
