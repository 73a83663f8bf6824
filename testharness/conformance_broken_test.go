package testharness

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/nornicdb/replication"
)

// brokenStore is a MemStore all of whose writes go through hooks. Without any
// it is whole.
type brokenStore struct {
	*MemStore
	// wrap, if not nil, puts a broken transaction around a whole one.
	wrap func(*memTx) edgeTx
	// update, if not nil, stands for Update.
	update func(*MemStore, func(replication.Tx) error) error
	// position, view, snapshot, restore, likewise.
	position func(*MemStore) (uint64, error)
	view     func(*MemStore, func(replication.Meta) error) error
	snapshot func(*MemStore) (replication.StorageSnapshot, error)
	restore  func(*MemStore, io.Reader) error
	// crashed makes what a crash leaves, reopened what closing leaves.
	crashed, reopened func(*MemStore) *MemStore
}

type edgeTx interface {
	replication.Tx
	replication.EdgeStorage
}

func openedBroken(b brokenStore) Opened {
	b.MemStore = NewMemStore()
	again := func(make func(*MemStore) *MemStore) func() (replication.Storage, error) {
		return func() (replication.Storage, error) {
			c := b
			c.MemStore = b.Clone()
			if make != nil {
				c.MemStore = make(b.MemStore)
			}
			return &c, nil
		}
	}
	return Opened{Storage: &b, Crash: again(b.crashed), Reopen: again(b.reopened)}
}

func (b *brokenStore) Update(fn func(replication.Tx) error) error {
	if b.update != nil {
		return b.update(b.MemStore, fn)
	}
	return b.MemStore.Update(func(tx replication.Tx) error { return fn(b.wrapped(tx)) })
}

func (b *brokenStore) wrapped(tx replication.Tx) edgeTx {
	if b.wrap != nil {
		return b.wrap(tx.(*memTx))
	}
	return tx.(*memTx)
}

func (b *brokenStore) View(fn func(replication.Meta) error) error {
	if b.view != nil {
		return b.view(b.MemStore, fn)
	}
	return b.MemStore.View(fn)
}

func (b *brokenStore) GetWALPosition() (uint64, error) {
	if b.position != nil {
		return b.position(b.MemStore)
	}
	return b.MemStore.GetWALPosition()
}

func (b *brokenStore) Snapshot() (replication.StorageSnapshot, error) {
	if b.snapshot != nil {
		return b.snapshot(b.MemStore)
	}
	return b.MemStore.Snapshot()
}

func (b *brokenStore) Restore(r io.Reader) error {
	if b.restore != nil {
		return b.restore(b.MemStore, r)
	}
	return b.MemStore.Restore(r)
}

func (b *brokenStore) do(fn func(edgeTx) error) error {
	return b.Update(func(tx replication.Tx) error { return fn(tx.(edgeTx)) })
}

func (b *brokenStore) ApplyCommand(cmd *replication.Command) error {
	return b.do(func(t edgeTx) error { return t.ApplyCommand(cmd) })
}
func (b *brokenStore) SetWALPosition(pos uint64) error {
	return b.do(func(t edgeTx) error { return t.SetWALPosition(pos) })
}
func (b *brokenStore) CreateNode(n *replication.Node) error {
	return b.do(func(t edgeTx) error { return t.CreateNode(n) })
}
func (b *brokenStore) UpdateNode(n *replication.Node) error {
	return b.do(func(t edgeTx) error { return t.UpdateNode(n) })
}
func (b *brokenStore) DeleteNode(id replication.NodeID) error {
	return b.do(func(t edgeTx) error { return t.DeleteNode(id) })
}
func (b *brokenStore) CreateEdge(e *replication.Edge) error {
	return b.do(func(t edgeTx) error { return t.CreateEdge(e) })
}
func (b *brokenStore) UpdateEdge(e *replication.Edge) error {
	return b.do(func(t edgeTx) error { return t.UpdateEdge(e) })
}
func (b *brokenStore) DeleteEdge(from, to replication.NodeID, relType string) error {
	return b.do(func(t edgeTx) error { return t.DeleteEdge(from, to, relType) })
}
func (b *brokenStore) DeleteEdgeByID(id replication.EdgeID) error {
	return b.do(func(t edgeTx) error { return t.DeleteEdgeByID(id) })
}
func (b *brokenStore) SetProperty(id replication.NodeID, key string, value interface{}) error {
	return b.do(func(t edgeTx) error { return t.SetProperty(id, key, value) })
}

// brokenTx is a transaction with hooks in place of operations.
type brokenTx struct {
	*memTx
	createNode  func(*memTx, *replication.Node) error
	updateNode  func(*memTx, *replication.Node) error
	deleteNode  func(*memTx, replication.NodeID) error
	createEdge  func(*memTx, *replication.Edge) error
	deleteEdge  func(t *memTx, from, to replication.NodeID, relType string) error
	setProperty func(t *memTx, id replication.NodeID, key string, value any) error
	setMeta     func(t *memTx, key, value []byte) error
	setPosition func(t *memTx, pos uint64) error
	scanMeta    func(t *memTx, prefix []byte, fn func(k, v []byte) error) error
	apply       func(t edgeTx, cmd *replication.Command) error
}

// with makes a brokenStore of one broken transaction.
func with(hooks brokenTx) func() Opened {
	return func() Opened {
		return openedBroken(brokenStore{wrap: func(t *memTx) edgeTx { h := hooks; h.memTx = t; return &h }})
	}
}

func (t *brokenTx) ApplyCommand(cmd *replication.Command) error {
	if t.apply != nil {
		return t.apply(t, cmd)
	}
	return replication.Dispatch(t, cmd)
}

func (t *brokenTx) CreateNode(n *replication.Node) error {
	if t.createNode != nil {
		return t.createNode(t.memTx, n)
	}
	return t.memTx.CreateNode(n)
}

func (t *brokenTx) UpdateNode(n *replication.Node) error {
	if t.updateNode != nil {
		return t.updateNode(t.memTx, n)
	}
	return t.memTx.UpdateNode(n)
}

func (t *brokenTx) DeleteNode(id replication.NodeID) error {
	if t.deleteNode != nil {
		return t.deleteNode(t.memTx, id)
	}
	return t.memTx.DeleteNode(id)
}

func (t *brokenTx) CreateEdge(e *replication.Edge) error {
	if t.createEdge != nil {
		return t.createEdge(t.memTx, e)
	}
	return t.memTx.CreateEdge(e)
}

func (t *brokenTx) DeleteEdge(from, to replication.NodeID, relType string) error {
	if t.deleteEdge != nil {
		return t.deleteEdge(t.memTx, from, to, relType)
	}
	return t.memTx.DeleteEdge(from, to, relType)
}

func (t *brokenTx) SetProperty(id replication.NodeID, key string, value interface{}) error {
	if t.setProperty != nil {
		return t.setProperty(t.memTx, id, key, value)
	}
	return t.memTx.SetProperty(id, key, value)
}

func (t *brokenTx) SetMeta(key, value []byte) error {
	if t.setMeta != nil {
		return t.setMeta(t.memTx, key, value)
	}
	return t.memTx.SetMeta(key, value)
}

func (t *brokenTx) SetWALPosition(pos uint64) error {
	if t.setPosition != nil {
		return t.setPosition(t.memTx, pos)
	}
	return t.memTx.SetWALPosition(pos)
}

func (t *brokenTx) ScanMeta(prefix []byte, fn func(k, v []byte) error) error {
	if t.scanMeta != nil {
		return t.scanMeta(t.memTx, prefix, fn)
	}
	return t.memTx.ScanMeta(prefix, fn)
}

// floats turns every integer into a float, as JSON without care does.
func floats(v any) any {
	switch x := v.(type) {
	case int64:
		return float64(x)
	case int:
		return float64(x)
	case []any:
		list := make([]any, len(x))
		for i := range x {
			list[i] = floats(x[i])
		}
		return list
	case map[string]any:
		m := maps.Clone(x)
		for k := range m {
			m[k] = floats(m[k])
		}
		return m
	default:
		return v
	}
}

// without makes a copy of a store without what edit takes out of it.
func without(s *MemStore, edit func(*memState)) *MemStore {
	c := s.Clone()
	st := *c.state.Load()
	edit(&st)
	c.state.Store(&st)
	return c
}

// live is a Meta, and a snapshot, that shows what is committed when it is asked.
type live struct{ s *MemStore }

func (l live) GetMeta(key []byte) ([]byte, error) { return l.s.state.Load().GetMeta(key) }
func (l live) ScanMeta(prefix []byte, fn func(k, v []byte) error) error {
	return l.s.state.Load().ScanMeta(prefix, fn)
}

// oddSnapshot is a snapshot with another position, or other content.
type oddSnapshot struct {
	position uint64
	content  func() *MemStore
	release  func()
}

func (o *oddSnapshot) Position() uint64 { return o.position }
func (o *oddSnapshot) WriteTo(w io.Writer) (int64, error) {
	snap, _ := o.content().Snapshot()
	return snap.WriteTo(w)
}
func (o *oddSnapshot) Release() {
	if o.release != nil {
		o.release()
	}
}

// lockedSnapshot lets writes wait until it is released.
func lockedSnapshot(s *MemStore) (replication.StorageSnapshot, error) {
	s.writer.Lock()
	pos, err := s.GetWALPosition()
	return &oddSnapshot{position: pos, content: s.Clone, release: sync.OnceFunc(s.writer.Unlock)}, err
}

// directUpdate runs fn on the store itself: each call takes effect at once.
func directUpdate(s *MemStore, fn func(replication.Tx) error) error {
	return fn(&directTx{s})
}

type directTx struct{ *MemStore }

func (d *directTx) GetMeta(key []byte) ([]byte, error) { return live{d.MemStore}.GetMeta(key) }
func (d *directTx) ScanMeta(prefix []byte, fn func(k, v []byte) error) error {
	return live{d.MemStore}.ScanMeta(prefix, fn)
}
func (d *directTx) SetMeta(key, value []byte) error {
	return d.Update(func(tx replication.Tx) error { return tx.SetMeta(key, value) })
}

// eagerUpdate moves the position outside of the transaction.
func eagerUpdate(s *MemStore, fn func(replication.Tx) error) error {
	return s.Update(func(tx replication.Tx) error {
		return fn(&brokenTx{memTx: tx.(*memTx), setPosition: func(t *memTx, pos uint64) error {
			st := *s.state.Load()
			st.position = pos
			s.state.Store(&st)
			return t.SetWALPosition(pos)
		}})
	})
}

// updateThatCommitsOnPanic forgets that a function can end that way.
func updateThatCommitsOnPanic(s *MemStore, fn func(replication.Tx) error) error {
	var result error
	return errors.Join(s.Update(func(tx replication.Tx) error {
		defer func() {
			if p := recover(); p != nil {
				result = p.(error)
			}
		}()
		return fn(tx)
	}), result)
}

// lastLost is a store as it was before its last transaction: writes are
// acknowledged before they are durable.
type lastLost struct {
	*MemStore
	before atomic.Pointer[MemStore]
}

func openedLastLost() Opened {
	l := &lastLost{MemStore: NewMemStore()}
	l.before.Store(NewMemStore())
	crash := func() (replication.Storage, error) {
		return struct {
			plainStore
			GraphReader
		}{plainStore{l.before.Load()}, l.before.Load()}, nil
	}
	return Opened{Storage: struct {
		plainStore
		GraphReader
	}{plainStore{l}, l}, Crash: crash}
}

func (l *lastLost) ApplyCommand(cmd *replication.Command) error {
	l.before.Store(l.Clone())
	return l.MemStore.ApplyCommand(cmd)
}
func (l *lastLost) CreateNode(n *replication.Node) error {
	l.before.Store(l.Clone())
	return l.MemStore.CreateNode(n)
}

// effectStoreThatExecutes changes the store when it is to record.
type effectStoreThatExecutes struct{ *MemStore }

func (s effectStoreThatExecutes) RecordEffects(*replication.Command) ([]*replication.Command, uint64, error) {
	effects, err := touch(s, nil)
	if err == nil {
		err = s.ApplyCommand(effects[0])
	}
	pos, _ := s.GetWALPosition()
	return effects, pos, err
}

var storeNumber atomic.Int64

// nondeterministic gives every store another content.
func nondeterministic() Opened {
	suffix := fmt.Sprint(storeNumber.Add(1))
	return with(brokenTx{setProperty: func(t *memTx, id replication.NodeID, key string, value any) error {
		if text, ok := value.(string); ok {
			value = text + suffix
		}
		return t.SetProperty(id, key, value)
	}})()
}
