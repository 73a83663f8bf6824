package replication

import (
	"errors"
)

// maxRerunsBeforeSplit bounds how often a transaction is run again because a
// group failed past its first command, before it is halved instead.
const maxRerunsBeforeSplit = 4

// errRollback ends a transaction that has to run again without a group.
var errRollback = errors.New("group rolled back")

// txRun is one try at applying entries in one transaction.
type txRun struct {
	a        *StorageApplier
	entries  []Entry
	only     *int               // the one group of the one entry that it applies; nil: all
	rejected map[groupKey]error // groups that are left out, and why
	outcomes *outcomeRun
	identity Identity
	wishes   wishTable
	results  [][]Result
}

type groupKey struct{ entry, group int }

// applyTx applies entries in as few transactions as it can. a.mu is held.
func (a *StorageApplier) applyTx(entries []Entry, results [][]Result) ([][]Result, error) {
	if len(entries) > 0 && a.begun.entry != 0 { // by a process that ended within it
		first, err := a.applyParts(entries[0])
		if err != nil {
			return results, err
		}
		entries, results = entries[1:], append(results, first)
	}
	if len(entries) == 0 {
		return results, nil
	}
	rejected := make(map[groupKey]error)
	for {
		run := &txRun{a: a, entries: entries, rejected: rejected}
		err := a.transact(run, a.tx.Update)
		if err == nil {
			return append(results, run.results...), nil
		}
		tooLarge := errors.Is(err, ErrTxTooLarge)
		rolledBack := errors.Is(err, errRollback)
		if !tooLarge && !rolledBack {
			return results, err
		}
		if len(entries) > 1 && (tooLarge || len(rejected) > maxRerunsBeforeSplit) {
			half := len(entries) / 2
			if results, err = a.applyTx(entries[:half], results); err != nil {
				return results, err
			}
			return a.applyTx(entries[half:], results)
		}
		if tooLarge {
			parts, err := a.applyParts(entries[0])
			if err != nil {
				return results, err
			}
			return append(results, parts), nil
		}
	}
}

// transact runs a transaction and takes over what it did.
func (a *StorageApplier) transact(run *txRun, update func(func(Tx) error) error) error {
	if err := update(run.do); err != nil {
		return err
	}
	a.steps.Add(1)
	a.commit(run.outcomes)
	a.setIdentity(run.identity)
	a.wishes.set(run.wishes)
	if last := run.entries[len(run.entries)-1]; run.completes(&last) {
		a.progress.advance(last.Position)
	}
	return nil
}

// completes says whether the entry is done with this transaction.
func (r *txRun) completes(e *Entry) bool { return r.only == nil || *r.only >= len(e.Groups)-1 }

func (r *txRun) do(tx Tx) error {
	r.outcomes = newOutcomeRun(r.a.outcomes, tx)
	r.identity = r.a.identity
	r.wishes = r.a.wishes.get()
	r.results = make([][]Result, len(r.entries))
	groups := 0
	for i := range r.entries {
		groups += len(r.entries[i].Groups)
	}
	all := make([]Result, groups)
	before := r.a.Position()
	for ei, e := range r.entries {
		n := len(e.Groups)
		r.results[ei], all = all[:n:n], all[n:]
		for gi := range e.Groups {
			if r.only != nil && *r.only != gi {
				continue
			}
			res, err := r.group(tx, groupKey{ei, gi}, before)
			if err != nil {
				return err
			}
			r.results[ei][gi] = res
		}
		before = e.Position
	}
	if r.only != nil {
		if done, err := r.part(tx); !done || err != nil {
			return err
		}
	}
	return tx.SetWALPosition(before)
}

// group applies one group. An error ends the transaction; a verdict is in the
// result.
func (r *txRun) group(tx Tx, key groupKey, before uint64) (Result, error) {
	e := &r.entries[key.entry]
	g := &e.Groups[key.group]
	res, answered := r.a.precheck(r.outcomes, g, key.group, before, e.Position)
	if answered && res.Err == nil {
		return res, nil
	}
	elsewhere, err := answeredElsewhere(tx, g)
	if err != nil {
		return Result{}, err
	}
	if answered { // a refusal has changed nothing; what another log did has
		if elsewhere != nil && elsewhere.Code == "" && elsewhere.Hash == g.hash() {
			res = Result{Position: e.Position}
		}
		return res, nil
	}
	if elsewhere != nil {
		res := Result{Position: e.Position, Err: elsewhere.Answer(g.hash())}
		if errors.Is(res.Err, ErrRequestIDReused) {
			return res, nil
		}
		return res, r.outcomes.add(g, res)
	}
	res = Result{Position: e.Position, Err: r.rejected[key]}
	if res.Err == nil {
		for i, cmd := range g.Commands {
			err := r.command(tx, cmd)
			if err == nil {
				continue
			}
			if _, ok := Verdict(err); !ok {
				return res, err
			}
			if i > 0 || compound(cmd) {
				r.rejected[key] = err
				return res, errRollback
			}
			res.Err = err
			break
		}
	}
	return res, r.outcomes.add(g, res)
}

// answeredElsewhere is what became of a group's request elsewhere; nil: nothing.
func answeredElsewhere(tx Tx, g *Group) (*RequestOutcome, error) {
	t, ok := tx.(RequestTx)
	if !ok || g.RequestID == "" {
		return nil, nil
	}
	return t.Request(g.RequestID)
}

// compound: the command may have changed something before its verdict.
func compound(cmd *Command) bool {
	switch cmd.Type {
	case CmdBatchWrite, CmdPutEdge, CmdUpdateEdge:
		return true
	default:
		return false
	}
}

func (r *txRun) command(tx Tx, cmd *Command) error {
	if cmd.Type != CmdSettings {
		return tx.ApplyCommand(cmd)
	}
	s, err := decodeSettings(cmd.Data)
	switch {
	case err != nil:
		return err
	case s.Member != nil:
		return r.wish(tx, s.Member)
	case r.identity != (Identity{}):
		return nil
	}
	r.identity = Identity{History: s.History}
	return writeIdentity(tx, r.identity)
}

// wish records a wish in the transaction; the table that others see is replaced
// when it is committed.
func (r *txRun) wish(tx Tx, w *MemberWish) error {
	next, changed := r.wishes.with(w)
	if !changed {
		return nil
	}
	r.wishes = next
	return next.write(tx, w.NodeID)
}
