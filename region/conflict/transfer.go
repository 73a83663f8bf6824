package conflict

import (
	"fmt"

	"github.com/nornicdb/replication"
)

// ExportState calls fn for each row that another region needs to catch up by
// MergeState: everything that is not settled. It is meant for a snapshot, so
// that the rows belong together. k and v are valid only during the call.
func ExportState(m ReadStore, fn func(k, v []byte) error) error {
	if err := m.ScanMeta([]byte(rowHeader), fn); err != nil {
		return err
	}
	err := m.ScanMeta([]byte(rowNode), func(k, v []byte) error {
		v, err := wholeRow(m, k, v)
		if err != nil {
			return err
		}
		return fn(k, v)
	})
	if err != nil {
		return err
	}
	return m.ScanMeta([]byte(rowEdge), fn)
}

// wholeRow is a node's row with the values that it leaves to the Storage.
func wholeRow(from NodeReader, key, row []byte) ([]byte, error) {
	if len(row) == 0 || row[0] != rowShownWrite {
		return row, nil
	}
	_, parts, err := splitRow(key)
	if err != nil {
		return nil, err
	}
	n, err := decodeNode(parts[0], row)
	if err == nil {
		err = n.fetch(from)
	}
	if err != nil {
		return nil, err
	}
	var w writer
	n.appendRegisters(&w, row[1])
	return w, nil
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
//
// It goes over the rows in steps, and of each has no more in memory than the
// step; the steps are one change, as they are in one transaction.
func (c *Core) MergeState(wallMS uint64, rows replication.Meta) error {
	if c.failed != nil {
		return c.failed
	}
	t := &transfer{c: c, rows: rows, mine: c.head.applied, myCut: c.head.cut()}
	if err := t.check(); err != nil {
		return err
	}
	if t.mine.Contains(&t.head.applied) {
		return nil // nothing new
	}
	c.w = write{dot: Dot{Region: t.head.self}}
	if err := t.merge(); err != nil {
		return c.fail(err)
	}
	c.head.lastTime, _ = observe(c.head.lastTime, t.head.lastTime, wallMS, c.head.settings.MaxClockOffsetMS)
	c.head.applied.Join(&t.head.applied)
	for i := range c.head.seen {
		c.head.seen[i].Join(&t.head.seen[i])
	}
	c.head.seen[t.head.self].Join(&t.head.applied)
	c.head.unmarked = true
	if err := c.examineAll(); err != nil {
		return c.fail(err)
	}
	return c.finished(func() error { return nil })
}

// check reads all of the sender's rows.
func (t *transfer) check() error {
	row, err := t.rows.GetMeta([]byte(rowHeader))
	if err != nil {
		return err
	}
	if t.head, err = decodeHeader(row); err != nil {
		return fmt.Errorf("%w: %v", ErrInvalidEntry, err)
	}
	h := &t.c.head
	switch {
	case !t.head.settings.equal(&h.settings):
		return fmt.Errorf("%w: here %+v, the state has %+v", ErrSettings, h.settings, t.head.settings)
	case t.head.self == h.self:
		return fmt.Errorf("%w: the state is of this region", ErrInvalidEntry)
	case t.head.lastTime >= maxTime:
		return fmt.Errorf("%w: time %d", ErrInvalidEntry, t.head.lastTime)
	}
	if err := t.c.acceptVector(&t.head.applied); err != nil {
		return err
	}
	if t.cut = t.head.cut(); !h.applied.Contains(&t.cut) {
		return fmt.Errorf("%w: all have %v, here are %v", ErrAhead, t.cut, h.applied)
	}
	var bad error // an answer to the sender; what else ends a scan is the Storage's failure
	for _, prefix := range []string{rowNode, rowEdge} {
		err := t.rows.ScanMeta([]byte(prefix), func(key, row []byte) error {
			bad = t.checkRow(key, row)
			return bad
		})
		if bad != nil {
			return fmt.Errorf("%w: %v", ErrInvalidEntry, bad)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkRow checks the row of a node or an edge.
func (t *transfer) checkRow(key, row []byte) error {
	kind, parts, err := splitRow(key)
	if err != nil {
		return err
	}
	if kind == rowNode[len(rowPrefix)] {
		n, err := decodeNode(parts[0], row)
		if err != nil {
			return err
		}
		if n.bare {
			return fmt.Errorf("%w: node %q without values", ErrInvalidEntry, n.id)
		}
		return t.checkNode(n)
	}
	k := edgeKey{parts[0], parts[1], parts[2]}
	e, err := decodeEdge(k, row)
	if err != nil {
		return err
	}
	return t.checkRegister(&e.reg, op{kind: opFixEdge, node: k.from, to: k.to, relType: k.relType})
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
// has, both have the same settled value, or none. Until it is done the region
// counts as having applied what it had before: what is not merged yet is as it
// was, and an edge that is merged twice is as if once.
func (t *transfer) merge() error {
	nodes := newUnion(rowNode, t.c.store, t.rows)
	err := t.c.inSteps(nodes.next, func(key string) (int, error) { return t.mergeNode(key) }, t.saveStep)
	if err != nil {
		return err
	}
	edges := newUnion(rowEdge, t.c.store, t.rows)
	return t.c.inSteps(edges.next, func(key string) (int, error) {
		_, p, err := splitRow([]byte(key))
		if err != nil {
			return 0, err
		}
		e, err := t.c.edge(edgeKey{p[0], p[1], p[2]})
		if err != nil {
			return 0, err
		}
		return e.reg.bytes(), t.mergeEdge(e)
	}, t.saveStep)
}

// saveStep brings Storage and rows in line with what a step has merged.
func (t *transfer) saveStep() error {
	if err := t.c.show(); err != nil {
		return err
	}
	_, err := t.c.saveTouched()
	return err
}

// mergeNode joins a node's registers, and returns about what it takes.
func (t *transfer) mergeNode(key string) (size int, err error) {
	_, p, err := splitRow([]byte(key))
	if err != nil {
		return 0, err
	}
	id := p[0]
	n, err := t.c.node(id)
	if err != nil {
		return 0, err
	}
	if err := t.c.unstore(n); err != nil {
		return 0, err
	}
	theirs, err := t.node(id)
	if err != nil {
		return 0, err
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
	n.registers(func(r *register) { size += r.bytes() })
	if t.mine.Contains(&theirs.birth.dots) {
		return size, nil
	}
	n.birth.join(&theirs.birth)
	edges, err := t.c.loadEdges(n)
	for _, e := range edges { // any of them may be replaced, also those without a row
		if err == nil {
			err = t.mergeEdge(e)
		}
	}
	return size, err
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
// settled, or gone where its births say so. Nothing is settled yet, as a settled
// version does not say any more what it was: joined once more it could be lost.
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
