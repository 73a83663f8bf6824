package testharness

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"maps"
	"slices"

	"github.com/nornicdb/replication"
)

// brokenStores are stores with one fault each, and the check that finds it.
var brokenStores = []struct {
	check, fault string
	open         func() Opened
}{
	{"Nodes", "creating replaces", with(brokenTx{createNode: func(t *memTx, n *replication.Node) error { return t.putNode(n) }})},
	{"Nodes", "the verdict is a plain error", with(brokenTx{createNode: func(t *memTx, n *replication.Node) error {
		if err := t.CreateNode(n); err != nil {
			return errors.New(err.Error())
		}
		return nil
	}})},
	{"Nodes", "updating merges", with(brokenTx{updateNode: func(t *memTx, n *replication.Node) error {
		old, err := t.node(n.ID)
		if err != nil {
			return err
		}
		props := maps.Clone(old.Properties)
		maps.Copy(props, n.Properties)
		return t.UpdateNode(&replication.Node{ID: n.ID, Labels: n.Labels, Properties: props})
	}})},
	{"Nodes", "setting a property makes the node", with(brokenTx{setProperty: func(t *memTx, id replication.NodeID, key string, v any) error {
		if !t.nodes.has(id) {
			_ = t.CreateNode(&replication.Node{ID: id})
		}
		return t.SetProperty(id, key, v)
	}})},
	{"Edges", "a node leaves the edges that end at it", with(brokenTx{deleteNode: func(t *memTx, id replication.NodeID) error {
		keep := t.in
		out := t.out
		err := t.DeleteNode(id)
		for k, e := range keep.from(edgeKey{near: id}) {
			if k.near == id && out.has(outKey(&e.Edge)) && e.StartNode != id {
				t.out = t.out.set(outKey(&e.Edge), e)
			}
		}
		return err
	}})},
	{"Edges", "ends need not be there", with(brokenTx{createEdge: func(t *memTx, e *replication.Edge) error {
		if t.out.has(outKey(e)) {
			return replication.ErrExists
		}
		return t.putEdge(e)
	}})},
	{"Edges", "the direction does not count", with(brokenTx{deleteEdge: func(t *memTx, from, to replication.NodeID, kind string) error {
		if err := t.DeleteEdge(from, to, kind); err == nil {
			return nil
		}
		return t.DeleteEdge(to, from, kind)
	}})},
	{"EdgeIDs", "an ID may be used twice", with(brokenTx{createEdge: func(t *memTx, e *replication.Edge) error {
		if e.ID != "" && !t.out.has(outKey(e)) {
			return t.putEdge(e)
		}
		return t.CreateEdge(e)
	}})},
	{"Commands", "an unknown command is a failure", with(brokenTx{apply: func(t edgeTx, cmd *replication.Command) error {
		if cmd.Type == 0 {
			return errors.New("unknown command")
		}
		return replication.Dispatch(t, cmd)
	}})},
	{"Commands", "a malformed command is passed over", with(brokenTx{apply: func(t edgeTx, cmd *replication.Command) error {
		if err := replication.Dispatch(t, cmd); !errors.Is(err, replication.ErrInvalidCommand) {
			return err
		}
		return nil
	}})},
	{"VerdictsChangeNothing", "the old node is deleted first", with(brokenTx{updateNode: func(t *memTx, n *replication.Node) error {
		if err := t.DeleteNode(n.ID); err != nil {
			return err
		}
		return nilOnVerdict(t.CreateNode(n))
	}})},
	{"VerdictsChangeNothing", "the position counts calls", func() Opened {
		calls := 0
		o := openedBroken(brokenStore{position: func(*MemStore) (uint64, error) { return uint64(calls), nil },
			wrap: func(t *memTx) edgeTx { calls++; return t }})
		return o
	}},
	{"Values", "integers become floats", with(brokenTx{createNode: func(t *memTx, n *replication.Node) error {
		return t.CreateNode(&replication.Node{ID: n.ID, Labels: n.Labels, Properties: floats(n.Properties).(map[string]any)})
	}})},
	{"Values", "integers become floats in one property", with(brokenTx{setProperty: func(t *memTx, id replication.NodeID, key string, v any) error {
		return t.SetProperty(id, key, floats(v))
	}})},
	{"NullProperties", "nulls are kept", with(brokenTx{createNode: func(t *memTx, n *replication.Node) error {
		if err := t.CreateNode(n); err != nil {
			return err
		}
		t.nodes = t.nodes.set(n.ID, &memNode{Node: replication.Node{ID: n.ID, Labels: n.Labels, Properties: maps.Clone(n.Properties)}})
		return nil
	}})},
	{"ArgumentsStayTheCallers", "the node is kept as it came", with(brokenTx{createNode: func(t *memTx, n *replication.Node) error {
		t.nodes = t.nodes.set(n.ID, &memNode{Node: *n})
		return nil
	}})},
	{"ArgumentsStayTheCallers", "the row is kept as it came", with(brokenTx{setMeta: func(t *memTx, key, value []byte) error {
		t.rows = t.rows.set(string(key), value)
		return nil
	}})},
	{"Position", "only 53 bits are kept", with(brokenTx{setPosition: func(t *memTx, pos uint64) error { return t.SetWALPosition(uint64(float64(pos))) }})},
	{"Position", "it never goes back", with(brokenTx{setPosition: func(t *memTx, pos uint64) error { return t.SetWALPosition(max(pos, t.position)) }})},
	{"Determinism", "each store adds something of its own", nondeterministic},
	{"Determinism", "a verdict depends on when it is asked", func() Opened {
		calls := storeNumber.Add(1) % 2
		return with(brokenTx{createEdge: func(t *memTx, e *replication.Edge) error {
			calls++
			if calls%10 == 0 {
				return replication.ErrInvalidCommand
			}
			return t.CreateEdge(e)
		}})()
	}},
	{"CallsAreDurable", "the last call is lost", openedLastLost},
	{"Reopen", "closing loses the rows", func() Opened {
		return openedBroken(brokenStore{reopened: func(s *MemStore) *MemStore {
			return without(s, func(st *memState) { st.rows = emptyMemState().rows })
		}})
	}},
	{"TransactionRollsBack", "calls take effect at once", func() Opened { return openedBroken(brokenStore{update: directUpdate}) }},
	{"TransactionRollsBack", "a panic commits", func() Opened { return openedBroken(brokenStore{update: updateThatCommitsOnPanic}) }},
	{"TransactionRollsBack", "the error is lost", func() Opened {
		return openedBroken(brokenStore{update: func(s *MemStore, fn func(replication.Tx) error) error { _ = s.Update(fn); return nil }})
	}},
	{"TransactionCrash", "calls take effect at once", func() Opened { return openedBroken(brokenStore{update: directUpdate}) }},
	{"TransactionCrash", "the position is not in the transaction", func() Opened { return openedBroken(brokenStore{update: eagerUpdate}) }},
	{"ExactlyOnce", "a crash loses the rows", func() Opened {
		return openedBroken(brokenStore{crashed: func(s *MemStore) *MemStore {
			return without(s, func(st *memState) { st.rows = emptyMemState().rows })
		}})
	}},
	{"ExactlyOnce", "a crash loses the position", func() Opened {
		return openedBroken(brokenStore{crashed: func(s *MemStore) *MemStore { return without(s, func(st *memState) { st.position-- }) }})
	}},
	{"PositionAfterEachCommand", "the last command is lost", openedLastLost},
	{"Metadata", "rows come unsorted", withScan(func(rows [][2]string) { slices.Reverse(rows) }, nil)},
	{"Metadata", "the prefix is a lower bound", func() Opened {
		return openedBroken(brokenStore{view: func(s *MemStore, fn func(replication.Meta) error) error {
			return fn(metaHook{live{s}, func(prefix []byte, fn func(k, v []byte) error) error {
				for k, v := range s.state.Load().rows.from(string(prefix)) {
					if err := fn([]byte(k), v); err != nil {
						return err
					}
				}
				return nil
			}})
		}})
	}},
	{"Metadata", "an error does not end the scan", withScan(func([][2]string) {}, func(error) error { return nil })},
	{"Metadata", "nil is kept as an empty row", with(brokenTx{setMeta: func(t *memTx, key, value []byte) error {
		return t.SetMeta(key, append([]byte{}, value...))
	}})},
	{"Metadata", "an empty row is none", with(brokenTx{setMeta: func(t *memTx, key, value []byte) error {
		if len(value) == 0 {
			value = nil
		}
		return t.SetMeta(key, value)
	}})},
	{"Views", "a view shows what is committed later", func() Opened {
		return openedBroken(brokenStore{view: func(s *MemStore, fn func(replication.Meta) error) error { return fn(live{s}) }})
	}},
	{"Views", "one view at a time", func() Opened {
		slot := make(chan struct{}, 1)
		return openedBroken(brokenStore{view: func(s *MemStore, fn func(replication.Meta) error) error {
			slot <- struct{}{}
			defer func() { <-slot }()
			return s.View(fn)
		}})
	}},
	{"SnapshotUnderLoad", "it sees later writes", func() Opened {
		return openedBroken(brokenStore{snapshot: func(s *MemStore) (replication.StorageSnapshot, error) {
			pos, err := s.GetWALPosition()
			return &oddSnapshot{position: pos, content: s.Clone}, err
		}})
	}},
	{"SnapshotUnderLoad", "it has another position than it says", func() Opened {
		return openedBroken(brokenStore{snapshot: func(s *MemStore) (replication.StorageSnapshot, error) {
			pinned := s.Clone()
			pos, err := s.GetWALPosition()
			return &oddSnapshot{position: pos, content: func() *MemStore { return without(pinned, func(st *memState) { st.position++ }) }}, err
		}})
	}},
	{"SnapshotUnderLoad", "it lacks the rows", func() Opened {
		return openedBroken(brokenStore{snapshot: func(s *MemStore) (replication.StorageSnapshot, error) {
			return without(s, func(st *memState) { st.rows = emptyMemState().rows }).Snapshot()
		}})
	}},
	{"SnapshotDoesNotHoldWritesUp", "writes wait for its release", func() Opened {
		return openedBroken(brokenStore{snapshot: lockedSnapshot})
	}},
	{"Restore", "what was there stays", func() Opened {
		return openedBroken(brokenStore{restore: func(s *MemStore, r io.Reader) error {
			old := s.state.Load().rows
			err := s.Restore(r)
			merged := without(s, func(st *memState) {
				for k, v := range old.all() {
					if !st.rows.has(k) {
						st.rows = st.rows.set(k, v)
					}
				}
			})
			s.state.Store(merged.state.Load())
			return err
		}})
	}},
	{"Restore", "the end is not read", func() Opened {
		return openedBroken(brokenStore{restore: func(s *MemStore, r io.Reader) error {
			data, err := readUpToEnd(r)
			if err != nil {
				return err
			}
			return s.Restore(bytes.NewReader(data))
		}})
	}},
	{"RestoreAllOrNothing", "the old state goes first", func() Opened { return openedBroken(brokenStore{restore: emptyFirst}) }},
	{"RestoreAllOrNothing", "the reader's last error is passed over", func() Opened {
		return openedBroken(brokenStore{restore: func(s *MemStore, r io.Reader) error {
			data, _ := io.ReadAll(r)
			return s.Restore(bytes.NewReader(data))
		}})
	}},
	{"RestoreAllOrNothing", "what came is kept", func() Opened { return openedBroken(brokenStore{restore: halfRestore}) }},
	{"RestoreCrash", "the old state goes first", func() Opened { return openedBroken(brokenStore{restore: emptyFirst}) }},
	{"RestoreCrash", "records take effect as they come", func() Opened { return openedBroken(brokenStore{restore: halfRestore}) }},
	{"Effects", "recording executes", func() Opened {
		o := openedWrapped(func(s *MemStore) replication.Storage { return effectStoreThatExecutes{s} })
		o.Opaque = &replication.Command{Type: replication.CmdCypher}
		return o
	}},
}

func nilOnVerdict(err error) error {
	if errors.Is(err, replication.ErrInvalidCommand) {
		return nil
	}
	return err
}

// metaHook is a Meta with another scan.
type metaHook struct {
	live
	scan func(prefix []byte, fn func(k, v []byte) error) error
}

func (m metaHook) ScanMeta(prefix []byte, fn func(k, v []byte) error) error {
	return m.scan(prefix, fn)
}

// withScan changes the order of rows, or the error, of a transaction's scan.
func withScan(order func([][2]string), fail func(error) error) func() Opened {
	return with(brokenTx{scanMeta: func(t *memTx, prefix []byte, fn func(k, v []byte) error) error {
		var rows [][2]string
		if err := t.ScanMeta(prefix, func(k, v []byte) error {
			rows = append(rows, [2]string{string(k), string(v)})
			return nil
		}); err != nil {
			return err
		}
		order(rows)
		for _, row := range rows {
			if err := fn([]byte(row[0]), []byte(row[1])); err != nil {
				if fail != nil {
					return fail(err)
				}
				return err
			}
		}
		return nil
	}})
}

// readUpToEnd reads a snapshot's bytes and not the end of the stream.
func readUpToEnd(r io.Reader) ([]byte, error) {
	s, ok := r.(*scriptReader)
	if !ok {
		return io.ReadAll(r)
	}
	data := make([]byte, len(s.data))
	_, err := io.ReadFull(r, data)
	return data, err
}

// emptyFirst makes room before it knows that something will come.
func emptyFirst(s *MemStore, r io.Reader) error {
	s.state.Store(emptyMemState())
	return s.Restore(r)
}

// halfRestore lets each record take effect as it comes.
func halfRestore(s *MemStore, r io.Reader) error {
	rr := &recordReader{r: bufio.NewReaderSize(r, 16), sum: sha256.New()}
	t := &memTx{memState: emptyMemState()}
	magic := make([]byte, len(memMagic))
	if _, err := io.ReadFull(rr.r, magic); err != nil {
		return err
	}
	rr.sum.Write(magic)
	for {
		st := *t.memState
		s.state.Store(&st)
		kind, err := rr.r.ReadByte()
		if err != nil {
			return err
		}
		if kind == 's' {
			err := t.fillEnd(rr)
			st := *t.memState
			s.state.Store(&st)
			return err
		}
		rr.sum.Write([]byte{kind})
		if err := t.fillRecord(kind, rr); err != nil {
			return err
		}
	}
}
