package conflict

import (
	"fmt"
	"strings"

	"github.com/nornicdb/replication"
)

// ExportState calls fn for each row that another region needs to catch up by
// MergeState: everything that is not settled. It is meant for a snapshot, so
// that the rows belong together. k and v are valid only during the call.
func ExportState(m replication.Meta, fn func(k, v []byte) error) error {
	for _, prefix := range []string{rowHeader, rowNode, rowEdge} {
		if err := m.ScanMeta([]byte(prefix), fn); err != nil {
			return err
		}
	}
	return nil
}

// transfer is the merge of another region's state.
type transfer struct {
	c    *Core
	rows replication.Meta // the sender's
	head header           // the sender's
	cut  Vector           // the sender's
	// what was applied here, and the cut, before
	mine, myCut Vector
}

// MergeState brings the region up to what another one has applied: a region
// that the other one's outbox no longer reaches back to. rows are the rows of
// the other's ExportState, complete, under the same keys. Idempotent. wallMS is
// the proposing leader's wall reading. The rows may be hostile and are checked
// before anything is changed: ErrInvalidEntry; ErrSettings where the other
// region has other settings; ErrAhead where it knows writes that this one has
// lost, which then needs a copy of the graph, not a merge.
func (c *Core) MergeState(wallMS uint64, rows replication.Meta) error {
	if c.failed != nil {
		return c.failed
	}
	t := &transfer{c: c, rows: rows, mine: c.head.applied, myCut: c.head.cut()}
	nodes, edges, err := t.check()
	if err != nil {
		return err
	}
	if t.mine.Contains(&t.head.applied) {
		return nil // nothing new
	}
	c.w = write{dot: Dot{Region: t.head.self}}
	if err := t.merge(nodes, edges); err != nil {
		return c.fail(err)
	}
	c.head.lastTime, _ = observe(c.head.lastTime, t.head.lastTime, wallMS, c.head.settings.MaxClockOffsetMS)
	c.head.applied.Join(&t.head.applied)
	for i := range c.head.seen {
		c.head.seen[i].Join(&t.head.seen[i])
	}
	c.head.seen[t.head.self].Join(&t.head.applied)
	c.head.unmarked = true
	return c.finishTransfer()
}

// check reads all of the sender's rows and returns their nodes and edges.
func (t *transfer) check() (nodes []string, edges []edgeKey, err error) {
	row, err := t.rows.GetMeta([]byte(rowHeader))
	if err != nil {
		return nil, nil, err
	}
	if t.head, err = decodeHeader(row); err != nil {
		return nil, nil, fmt.Errorf("%w: %v", ErrInvalidEntry, err)
	}
	h := &t.c.head
	switch {
	case !t.head.settings.equal(&h.settings):
		return nil, nil, fmt.Errorf("%w: here %+v, the state has %+v", ErrSettings, h.settings, t.head.settings)
	case t.head.self == h.self:
		return nil, nil, fmt.Errorf("%w: the state is of this region", ErrInvalidEntry)
	case t.head.lastTime >= maxTime:
		return nil, nil, fmt.Errorf("%w: time %d", ErrInvalidEntry, t.head.lastTime)
	}
	if err := t.c.acceptVector(&t.head.applied); err != nil {
		return nil, nil, err
	}
	if t.cut = t.head.cut(); !h.applied.Contains(&t.cut) {
		return nil, nil, fmt.Errorf("%w: all have %v, here are %v", ErrAhead, t.cut, h.applied)
	}
	err = eachRow(t.rows, func(id string) error {
		n, err := t.node(id)
		if err == nil {
			err = t.checkNode(n)
		}
		nodes = append(nodes, id)
		return err
	}, func(k edgeKey) error {
		e, err := t.edge(k)
		if err == nil {
			err = t.checkRegister(&e.reg, op{kind: opFixEdge, node: k.from, to: k.to, relType: k.relType})
		}
		edges = append(edges, k)
		return err
	})
	if err != nil {
		err = fmt.Errorf("%w: %v", ErrInvalidEntry, err)
	}
	return nodes, edges, err
}

func (t *transfer) checkNode(n *node) error {
	for i := range n.life.versions {
		if v := n.life.versions[i].value; v != "" && v != exists {
			return fmt.Errorf("%w: life %.40q", ErrInvalidEntry, v)
		}
	}
	if n.fill.any() && !n.fill.stored {
		return fmt.Errorf("%w: a value for names that are left out", ErrInvalidEntry)
	}
	if err := t.checkRegister(&n.life, op{kind: opFixProperty, node: n.id}); err != nil {
		return err
	}
	if err := t.checkRegister(&n.labels, op{kind: opFixLabels, node: n.id}); err != nil {
		return err
	}
	if err := t.checkRegister(&n.fill, op{kind: opFixProperty, node: n.id}); err != nil {
		return err
	}
	for i := range n.props {
		if err := t.checkRegister(&n.props[i].register, op{kind: opFixProperty, node: n.id}); err != nil {
			return err
		}
	}
	if err := t.c.acceptVector(&n.birth.past); err != nil {
		return err
	}
	return t.c.acceptVector(&n.birth.dots)
}

// checkRegister verifies that the versions are writes that the sender has
// applied, with values that the effect could have.
func (t *transfer) checkRegister(r *register, o op) error {
	for i := range r.versions {
		v := &r.versions[i]
		if o.value = v.value; v.value != "" {
			if err := o.check(); err != nil {
				return err
			}
		}
		if v.time >= maxTime || !t.head.applied.Covers(v.dot) || v.dot == (Dot{}) && len(r.versions) > 1 {
			return fmt.Errorf("%w: version %+v", ErrInvalidEntry, v)
		}
	}
	return t.c.acceptVector(&r.pending)
}

// eachRow calls the functions for the node and edge rows, in order.
func eachRow(m replication.Meta, node func(string) error, edge func(edgeKey) error) error {
	for _, prefix := range []string{rowNode, rowEdge} {
		err := m.ScanMeta([]byte(prefix), func(k, _ []byte) error {
			_, p, err := splitRow(k)
			switch {
			case err != nil:
				return err
			case prefix == rowNode:
				return node(strings.Clone(p[0]))
			default:
				return edge(edgeKey{p[0], p[1], p[2]})
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// node reads the sender's row; nil where it has none.
func (t *transfer) node(id string) (*node, error) {
	row, err := t.rows.GetMeta(nodeRow(id))
	if err != nil || row == nil {
		return nil, err
	}
	return decodeNode(id, row)
}

func (t *transfer) edge(k edgeKey) (*edge, error) {
	row, err := t.rows.GetMeta(k.row())
	if err != nil || row == nil {
		return nil, err
	}
	return decodeEdge(k, row)
}

// merge joins every register for which one of the two has a row: where neither
// has, both have the same settled value, or none.
func (t *transfer) merge(nodes []string, edges []edgeKey) error {
	err := eachRow(t.c.store, func(id string) error {
		nodes = append(nodes, id)
		return nil
	}, func(k edgeKey) error {
		edges = append(edges, k)
		return nil
	})
	if err != nil {
		return err
	}
	for _, id := range nodes {
		if err := t.mergeNode(id); err != nil {
			return err
		}
	}
	for _, k := range edges {
		if _, err := t.c.edge(k); err != nil {
			return err
		}
	}
	for _, e := range t.c.sortedEdges() {
		if err := t.mergeEdge(e); err != nil {
			return err
		}
	}
	return nil
}

func (t *transfer) mergeNode(id string) error {
	n, err := t.c.node(id)
	if err != nil || n.dirty {
		return err // in both lists
	}
	if err := t.c.unstore(n); err != nil {
		return err
	}
	theirs, err := t.node(id)
	if err != nil {
		return err
	}
	if theirs == nil {
		theirs = &node{life: register{stored: true}, labels: register{stored: true}, fill: register{stored: true}}
	}
	n.dirty, n.whole = true, true
	for i := range theirs.props {
		if name := theirs.props[i].name; n.property(name) == nil {
			n.setProperty(name, n.fill.clone())
		}
	}
	for i := range n.props {
		their := theirs.property(n.props[i].name)
		if their == nil {
			their = &theirs.fill // stands for it; settled where that is
		}
		t.join(&n.props[i].register, their, &Vector{})
	}
	t.join(&n.life, &theirs.life, &Vector{})
	t.join(&n.labels, &theirs.labels, &Vector{})
	t.join(&n.fill, &theirs.fill, &Vector{})
	if t.mine.Contains(&theirs.birth.dots) {
		return nil
	}
	n.birth.join(&theirs.birth)
	_, err = t.c.loadEdges(n) // any of them may be replaced
	return err
}

func (t *transfer) mergeEdge(e *edge) error {
	if e.inStorage {
		if err := t.c.unstoreEdge(e); err != nil {
			return err
		}
	}
	e.dirty, e.written = true, true
	theirs, err := t.edge(e.id)
	if err != nil {
		return err
	}
	if theirs != nil {
		t.join(&e.reg, &theirs.reg, &Vector{})
		return nil
	}
	var gone Vector // what re-creations that are new here have replaced
	for _, id := range []string{e.id.from, e.id.to} {
		n, err := t.node(id)
		if err != nil {
			return err
		}
		if n != nil && !t.mine.Contains(&n.birth.dots) {
			gone.Join(&n.birth.past)
		}
	}
	t.join(&e.reg, &register{stored: true}, &gone)
	return nil
}

// join makes r, which is explicit, what it would be had both regions' writes
// been applied here. s is stored where the sender has no row: what it had is
// settled, or gone where its births say so.
func (t *transfer) join(r, s *register, gone *Vector) {
	settledThere := s.settled()
	lost := func(v *version) bool { // here, known there, and not kept there
		if gone.Covers(v.dot) && *gone != (Vector{}) || s.pending.Covers(v.dot) && v.dot != (Dot{}) {
			return true
		}
		if v.dot == (Dot{}) {
			return !settledThere && !s.holdsWithin(&t.myCut)
		}
		if mutants.stateKeepsRemoved || settledThere && t.cut.Covers(v.dot) && !mutants.stateLosesSettled {
			return false
		}
		return t.head.applied.Covers(v.dot) && !s.holds(v.dot)
	}
	kept := register{pending: r.pending}
	for i := range r.versions {
		if v := r.versions[i]; !lost(&v) {
			kept.versions = append(kept.versions, v)
		}
	}
	if settledThere && len(kept.versions) > 0 && t.cut.Covers(kept.versions[0].dot) {
		kept.settle(t.c.head.settings.Strategy)
	}
	for _, v := range s.versions {
		if v.dot == (Dot{}) || r.holds(v.dot) || t.mine.Covers(v.dot) || r.pending.Covers(v.dot) {
			continue
		}
		kept.insert(v)
	}
	kept.pending.Join(&s.pending)
	kept.pending.Join(gone)
	*r = kept
}

// finishTransfer is finish for a merge that has no name.
func (c *Core) finishTransfer() error {
	return c.finished(func() error {
		keys, err := c.saveTouched()
		if err != nil {
			return err
		}
		cut := c.head.cut()
		var later waiting
		for _, k := range keys {
			wait, err := c.examine(k, &cut)
			if err != nil {
				return err
			}
			if wait != (Dot{}) {
				later.add(wait, k)
			}
		}
		return c.enqueueLater(&later)
	})
}
