package replication

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// metaBegun is the row of an entry that is applied in parts, and how many of its
// groups are done. It is there only while the entry is.
var metaBegun = []byte(metaPrefix + "begun")

// begun says how far an entry is that is applied in parts; the zero value: none
// is.
type begun struct {
	entry  uint64 // its position, which is above the storage's
	groups int
}

func (b begun) encode() []byte {
	return binary.AppendUvarint(binary.AppendUvarint(nil, b.entry), uint64(b.groups))
}

func readBegun(m Meta) (b begun, err error) {
	row, err := m.GetMeta(metaBegun)
	if err != nil || row == nil {
		return b, err
	}
	entry, n := binary.Uvarint(row)
	groups, k := binary.Uvarint(row[max(n, 0):])
	if n <= 0 || k <= 0 || n+k != len(row) || entry == 0 {
		return b, fmt.Errorf("metadata row %s is damaged", metaBegun)
	}
	return begun{entry: entry, groups: int(groups)}, nil
}

// applyParts applies an entry that is too large for one transaction: each group
// in one of its own. The groups are writes of their own, so nobody can tell; the
// position moves with the last, and a process that ends in between goes on
// behind those that are done. a.mu is held.
func (a *StorageApplier) applyParts(e Entry) ([]Result, error) {
	done := 0
	if a.begun.entry != 0 {
		if done = a.begun.groups; a.begun.entry != e.Position || done >= len(e.Groups) {
			return nil, fmt.Errorf("entry %d with %d groups, and %d groups of entry %d are done", e.Position, len(e.Groups), done, a.begun.entry)
		}
	}
	results := make([]Result, len(e.Groups))
	for i := range e.Groups {
		if i < done { // nobody waits for the answer any more
			results[i] = Result{Position: e.Position, Err: ErrUnknownOutcome}
			continue
		}
		var err error
		if results[i], err = a.applyAlone(e, i); err != nil {
			return nil, fmt.Errorf("group %d of entry %d alone: %w", i, e.Position, err)
		}
	}
	return results, nil
}

// applyAlone applies one group of an entry in one transaction. That is too large
// for the Storage then because of the group itself, so it is a verdict if the
// Storage says so, see ErrTxTooLarge. Otherwise other nodes may well take the
// group, and to go on without it would make this one differ from them for good.
func (a *StorageApplier) applyAlone(e Entry, group int) (Result, error) {
	rejected := make(map[groupKey]error)
	update := a.tx.Update
	large, canLarge := a.tx.(LargeTxStorage)
	for {
		run := &txRun{a: a, entries: []Entry{e}, only: &group, rejected: rejected}
		err := a.transact(run, update)
		switch key := (groupKey{0, group}); {
		case err == nil:
			if a.begun = (begun{}); !run.completes(&e) {
				a.begun = begun{entry: e.Position, groups: group + 1}
			}
			return run.results[0][group], nil
		case errors.Is(err, errRollback): // it is among the rejected
		case !errors.Is(err, ErrTxTooLarge):
			return Result{}, err
		case canLarge:
			update, canLarge = large.UpdateLarge, false
		case rejected[key] != nil || ownCode(err) == "":
			return Result{}, fmt.Errorf("%w; every node that takes no more stops here: let its storage take more, and start it again", err)
		default:
			rejected[key] = fmt.Errorf("%w: %v", &VerdictError{Code: ownCode(err)}, err)
		}
	}
}

// part notes that a group of the entry is done; done is whether it was the last.
func (r *txRun) part(tx Tx) (done bool, err error) {
	e := &r.entries[0]
	if r.completes(e) {
		if *r.only > 0 {
			err = tx.SetMeta(metaBegun, nil)
		}
		return true, err
	}
	return false, tx.SetMeta(metaBegun, begun{entry: e.Position, groups: *r.only + 1}.encode())
}
