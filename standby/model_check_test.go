package standby

import (
	"slices"

	"github.com/nornicdb/replication"
)

// What must hold in every world of the model.

// checkMatching: where both logs have an entry of the same epoch at a position, they
// are the same up to it.
func (w *world) checkMatching() {
	a, b := w.nodes[0].wal, w.nodes[1].wal
	same := 0
	for p := range min(len(a), len(b)) {
		if a[p] == b[p] && same == p {
			same++
		}
		if a[p].epoch == b[p].epoch && same <= p {
			w.violate("both logs have an entry of epoch %s at position %d and differ at %d", a[p].epoch, p+1, same+1)
		}
	}
}

// checkKept: what was acknowledged is on a disk, in a log or in a file.
func (w *world) checkKept() {
	for _, e := range w.acked {
		kept := false
		for i := range w.nodes {
			n := &w.nodes[i]
			kept = kept || slices.Contains(n.wal[:n.durable], e) || slices.Contains(n.tail, e)
		}
		if !kept {
			w.violate("acknowledged write %d is on no disk", e.id)
		}
	}
}

// checkPrefix: the log of a standby is a prefix of that of whom it follows.
func (w *world) checkPrefix(i int) {
	n, p := &w.nodes[i], &w.nodes[1-i]
	if !p.up || p.m.role != RolePrimary || p.m.stored.Epoch != n.m.stored.Epoch {
		return
	}
	if len(n.wal) > len(p.wal) || !slices.Equal(n.wal, p.wal[:len(n.wal)]) {
		w.violate("the log of %s is not a prefix of its primary's", n.m.self)
	}
}

// cut drops the entries after a position; each must have been put aside.
func (w *world) cut(i int, p uint64) {
	n := &w.nodes[i]
	for _, e := range n.wal[p:] {
		if !slices.Contains(n.tail, e) {
			w.violate("write %d vanished from %s and is in no file", e.id, n.m.self)
		}
	}
	if uint64(len(n.storage)) > p {
		w.violate("%s cuts at %d what its storage has got past", n.m.self, p)
	}
	n.wal = n.wal[:p:p]
	n.durable = min(n.durable, len(n.wal))
}

func (w *world) acknowledge(i int, e modelEntry) {
	n, o := &w.nodes[i], &w.nodes[1-i]
	if n.m.role != RolePrimary || slices.Contains(w.acked, e) {
		return
	}
	if o.up && o.m.accepts(w.instant()) && n.m.consistency && !w.mayFork {
		w.violate("%s acknowledges write %d while %s accepts writes", n.m.self, e.id, o.m.self)
	}
	if n.m.mode == replication.SyncFull && !n.m.alone {
		if !slices.Contains(o.wal[:o.durable], e) && !slices.Contains(o.lost, e) {
			w.violate("write %d is acknowledged under sync and not durable on both", e.id)
		}
	}
	w.acked = append(w.acked, e)
}
