package region

import (
	"errors"
	"syscall"

	"github.com/nornicdb/replication"
)

// errLarge ends a transaction that runs again as a large one, with the same
// outcome: where a Storage has them.
var errLarge = errors.New("much is going to change")

// largeBytes is what may change, about, before a transaction has to be a large
// one. A variable only for tests.
var largeBytes uint64 = 8 << 20

// atMost ends the transaction if bytes are too much for it.
func (t *txn) atMost(bytes uint64) error {
	if t.mayBeLarge && bytes > largeBytes {
		return errLarge
	}
	return nil
}

// errAgain ends a transaction that runs again without a command.
var errAgain = errors.New("a command is left out")

// Update implements replication.TxStorage. A command that the Storage refuses
// when part of it is done is left out in another run, which all nodes do alike.
func (m *machine) Update(fn func(replication.Tx) error) error {
	rejected := make(map[int]error)
	update := m.TxStorage.Update
	large, canLarge := m.TxStorage.(replication.LargeTxStorage)
	inLarge, ahead := false, false
	for {
		t, err := m.transact(update, fn, rejected, canLarge)
		tooLarge := errors.Is(err, replication.ErrTxTooLarge)
		switch {
		case errors.Is(err, errLarge), tooLarge && canLarge:
			update, canLarge, inLarge = large.UpdateLarge, false, true
		case inLarge && errors.Is(err, syscall.ENOSPC): // no room for a copy; there may be enough memory
			update, inLarge = m.TxStorage.Update, false
		case tooLarge && !ahead && t.calls == 1 && t.entries != nil && len(t.entries.entries) > 1:
			if err := m.mergeAhead(t.entries); err != nil {
				return err
			}
			ahead = true
		case errors.Is(err, errAgain):
		default:
			return err
		}
	}
}

// transact runs one transaction and shows readers what it did.
func (m *machine) transact(update func(func(replication.Tx) error) error, fn func(replication.Tx) error, rejected map[int]error, mayBeLarge bool) (t *txn, err error) {
	t = new(txn)
	err = update(func(tx replication.Tx) error {
		v, err := readView(tx)
		if err != nil {
			return err
		}
		*t = txn{Tx: tx, view: v, rejected: rejected, mayBeLarge: mayBeLarge}
		if err := fn(t); err != nil {
			return err
		}
		return t.finish()
	})
	if err == nil && t.resettled {
		err = m.flush()
	}
	if err == nil && t.changed {
		before, _ := m.now()
		m.publish(t.view)
		if m.committed != nil {
			m.committed(&before, &t.view, t.core.Counts())
		}
	}
	return t, err
}

// mergeAhead brings entries of another region's stream to the graph ahead of the
// log's entry that has them, which is too large for one transaction: it finds
// duplicates then, and so does a node that applies it again after a crash.
func (m *machine) mergeAhead(c *logCommand) error {
	half := len(c.entries) / 2
	for _, part := range []*logCommand{
		{kind: kindRemote, wallMS: c.wallMS, entries: c.entries[:half], encoded: c.encoded[:half]},
		{kind: kindRemote, wallMS: c.wallMS, entries: c.entries[half:], encoded: c.encoded[half:]},
	} {
		err := m.mergePart(part)
		if errors.Is(err, replication.ErrTxTooLarge) && len(part.entries) > 1 {
			err = m.mergeAhead(part)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mergePart merges entries in a transaction that leaves the position.
func (m *machine) mergePart(c *logCommand) error {
	_, err := m.transact(m.TxStorage.Update, func(tx replication.Tx) error {
		t := tx.(*txn)
		if err := t.load(); err != nil {
			return err
		}
		t.changed = true
		err := asAnswer(t.remote(c))
		if _, verdict := replication.Verdict(err); verdict { // which the log's entry gets, too
			return nil
		}
		return err
	}, nil, false)
	return err
}

// flush makes durable what was done. Settings are, as soon as they are applied:
// the next start compares them with the environment.
func (m *machine) flush() error {
	if d, ok := m.TxStorage.(deferrer); ok {
		return d.Flush()
	}
	return nil
}
