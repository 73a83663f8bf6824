package walstream

import (
	"errors"
	"fmt"

	"github.com/nornicdb/replication"
)

var (
	// ErrStaleEpoch: the batch is not of the epoch this node follows.
	ErrStaleEpoch = errors.New("not the epoch that is followed here")
	// ErrDiverged: this node has another entry at a position than its peer.
	ErrDiverged = errors.New("the logs have diverged")
)

// Received is a batch as it came.
type Received struct {
	// Epoch of the sender; zero from a peer that has none.
	Epoch replication.Epoch
	// Prev is the epoch of the entry before the first; nil where the sender
	// gave none.
	Prev    *replication.Epoch
	Entries []*WireEntry
}

// following is what a receiver stands on.
type following struct {
	history string
	epoch   replication.Epoch // of the primary it follows; zero: a plain one
	last    Mark              // of its log
}

type verdict int

const (
	verdictTake      verdict = iota // entries from fresh on are new
	verdictDuplicate                // nothing is new
	verdictGap                      // entries before the first are missing
)

// judge decides what becomes of a batch. known gives the epoch of an entry of the
// receiver's log; ErrCompacted for one that it no longer has, which then is
// below everything that can still differ. fresh is how many entries it has
// already. An error says that the batch changes nothing.
func (f following) judge(b Received, known func(uint64) (replication.Epoch, error)) (v verdict, fresh int, err error) {
	if b.Epoch != f.epoch {
		return 0, 0, fmt.Errorf("%w: %s, not %s", ErrStaleEpoch, b.Epoch, f.epoch)
	}
	if len(b.Entries) == 0 {
		return verdictDuplicate, 0, nil
	}
	if err := f.checkForm(b); err != nil {
		return 0, 0, err
	}
	first := b.Entries[0].Position
	if first > f.last.Position+1 {
		return verdictGap, 0, nil
	}
	if b.Prev != nil {
		if err := same(Mark{first - 1, *b.Prev}, known); err != nil {
			return 0, 0, err
		}
	}
	for fresh < len(b.Entries) && b.Entries[fresh].Position <= f.last.Position {
		if err := same(b.Entries[fresh].mark(), known); err != nil {
			return 0, 0, err
		}
		fresh++
	}
	if fresh == len(b.Entries) {
		return verdictDuplicate, fresh, nil
	}
	return verdictTake, fresh, nil
}

// checkForm checks what a batch must be whatever the receiver has.
func (f following) checkForm(b Received) error {
	first := b.Entries[0]
	if !f.epoch.IsZero() && (first.History != f.history || b.Prev == nil) {
		return fmt.Errorf("%w: batch of history %q, this is %q", replication.ErrForeignHistory, first.History, f.history)
	}
	if first.Position == 0 {
		return fmt.Errorf("%w: position 0", ErrCorrupt)
	}
	at := Mark{first.Position - 1, replication.Epoch{}}
	if b.Prev != nil {
		at.Epoch = *b.Prev
	}
	for _, e := range b.Entries {
		m := e.mark()
		if m.Position != at.Position+1 || m.Epoch.Compare(at.Epoch) < 0 || m.Epoch.Compare(f.epoch) > 0 {
			return fmt.Errorf("%w: entry %s after %s in a batch of epoch %s", ErrCorrupt, m, at, f.epoch)
		}
		at = m
	}
	return nil
}

// same checks that the receiver has this very entry: same position, same epoch.
func same(m Mark, known func(uint64) (replication.Epoch, error)) error {
	have, err := known(m.Position)
	switch {
	case errors.Is(err, ErrCompacted):
		return nil
	case err != nil:
		return err
	case have != m.Epoch:
		return fmt.Errorf("%w: entry %s, here it is of epoch %s", ErrDiverged, m, have)
	}
	return nil
}

func (w *WireEntry) mark() Mark {
	m := Mark{Position: w.Position}
	if w.Epoch != nil {
		m.Epoch = *w.Epoch
	}
	return m
}
