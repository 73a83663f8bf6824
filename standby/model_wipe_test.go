package standby

import "slices"

// spare: the other node has all that was acknowledged, durably or in a file, and
// every epoch that node i has promised.
func (w *world) spare(i int) bool {
	n, o := &w.nodes[i], &w.nodes[1-i]
	for _, e := range w.acked {
		if !slices.Contains(o.wal[:o.durable], e) && !slices.Contains(o.tail, e) {
			return false
		}
	}
	return o.stored.History != "" && !o.stored.Rebuilding && o.stored.Epoch.Compare(n.stored.Epoch) >= 0
}

// wipe takes a node's disk away. By the time it has another, nothing that it said
// is on its way any more.
func (w *world) wipe(i int) {
	w.crash(i, 0)
	w.wipes++
	n := &w.nodes[i]
	n.lost = n.wal[:n.durable]
	n.stored, n.wal, n.durable, n.storage, n.tail = Stored{}, nil, 0, nil, nil
	w.msgs = slices.DeleteFunc(slices.Clone(w.msgs), func(m *message) bool { return m.from == i })
}

// copy makes the network deliver a message twice: a question, a batch, a heartbeat,
// or what any of these is answered that says how a node stands. An answer that is
// waited for comes once: it is matched to its question, which then is over.
func (w *world) copy(k int) {
	w.copies++
	m := *w.msgs[k]
	w.msgs = append(w.msgs[:len(w.msgs):len(w.msgs)], &m)
}

func (m *message) once() bool {
	return m.kind == stateKind || m.kind == fetchedKind || m.kind == snapshotKind
}
