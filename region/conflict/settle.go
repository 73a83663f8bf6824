package conflict

import "slices"

// saveTouched writes the rows of everything the entry touched, and returns
// the keys of those that are left with one.
func (c *Core) saveTouched() (keys [][]byte, err error) {
	for _, n := range c.sortedNodes() {
		n.inStorage = c.shown(n)
		if !n.dirty {
			continue
		}
		row, err := c.saveNode(n)
		if err != nil {
			return nil, err
		}
		if row != nil {
			keys = append(keys, row[len(rowPrefix):])
		}
	}
	for _, e := range c.sortedEdges() {
		shown, err := c.edgeShown(e)
		if err != nil {
			return nil, err
		}
		e.inStorage = shown
		if !e.dirty {
			continue
		}
		row, err := c.saveEdge(e)
		if err != nil {
			return nil, err
		}
		if row != nil {
			keys = append(keys, row[len(rowPrefix):])
		}
	}
	return keys, nil
}

// saveNode writes the node's row, if it needs one, and returns its key then.
// What is settled and shown is left to the Storage.
func (c *Core) saveNode(n *node) ([]byte, error) {
	n.registers(func(r *register) { r.trim(&c.head.applied) })
	n.dropCopies()
	if n.inStorage {
		n.leaveToStorage(c.head.settings.Strategy)
	}
	key := n.key
	if n.bare && !n.inStorage {
		return nil, ErrMismatch
	}
	if n.needless() {
		return nil, c.setRow(key, nil, &n.rowState, false)
	}
	conflict := false
	if c.head.settings.Strategy == Manual {
		n.registers(func(r *register) { conflict = conflict || r.conflicting() })
	}
	return key, c.setRow(key, n.appendRow, &n.rowState, conflict)
}

// leaveToStorage: the node is shown, what is settled needs no row.
func (n *node) leaveToStorage(s Strategy) {
	if n.life.settled() && n.life.has(s) {
		n.life = register{stored: true}
	}
	if n.labels.settled() {
		n.labels = register{stored: true}
	}
	if !n.fill.settled() {
		return
	}
	n.fill, n.bare = register{stored: true}, false // labels and fill of one write settle together
	n.props = slices.DeleteFunc(n.props, func(p property) bool { return p.settled() })
}

// needless: the row would say nothing.
func (n *node) needless() bool {
	if len(n.props) > 0 || n.birth.known() {
		return false
	}
	if n.inStorage {
		return n.life.stored && n.labels.stored && n.fill.stored
	}
	return n.life.blank() && n.labels.blank() && n.fill.blank()
}

func (c *Core) saveEdge(e *edge) ([]byte, error) {
	e.reg.trim(&c.head.applied)
	if e.inStorage && e.reg.settled() {
		e.reg = register{stored: true}
	}
	key := e.key
	had := e.hasRow
	if e.reg.stored || e.reg.blank() {
		if had {
			c.head.edgeRows--
			if err := c.store.SetMeta(e.id.inRow(), nil); err != nil {
				return nil, err
			}
		}
		return nil, c.setRow(key, nil, &e.rowState, false)
	}
	conflict := c.head.settings.Strategy == Manual && e.reg.conflicting()
	if !had {
		c.head.edgeRows++
		if err := c.store.SetMeta(e.id.inRow(), present); err != nil {
			return nil, err
		}
	}
	return key, c.setRow(key, e.appendRow, &e.rowState, conflict)
}

// settleTouched does for an entry that is in the cut when it is applied, as in
// the second of two regions every entry is, what saveTouched, enqueue and collect
// do one after the other, without writing rows that go again at once.
func (c *Core) settleTouched(cut *Vector) error {
	var later waiting
	edges := c.sortedEdges()
	for _, e := range edges { // first, as the deletion of a node looks for their rows
		shown, err := c.edgeShown(e)
		if err != nil {
			return err
		}
		if e.inStorage = shown; !e.dirty {
			continue
		}
		if _, err := c.saveEdge(e); err != nil {
			return err
		}
	}
	for _, n := range c.sortedNodes() {
		if n.inStorage = c.shown(n); !n.dirty {
			continue
		}
		n.registers(func(r *register) { r.trim(&c.head.applied) })
		n.dropCopies()
		wait, err := c.examineNode(n, cut)
		if err != nil {
			return err
		}
		if n.hasRow && wait != (Dot{}) {
			later.add(wait, n.key[len(rowPrefix):])
		}
	}
	for _, e := range edges {
		if !e.dirty || !e.hasRow {
			continue
		}
		wait, err := c.examineEdge(e, cut)
		if err != nil {
			return err
		}
		if e.hasRow && wait != (Dot{}) {
			later.add(wait, e.key[len(rowPrefix):])
		}
	}
	return c.enqueueLater(&later)
}

// setRow writes or deletes a row and its conflict row. write nil: deletes.
func (c *Core) setRow(key []byte, write func(w *writer, flags byte), s *rowState, conflict bool) error {
	var flags byte
	if conflict {
		flags |= flagConflict
	}
	if s.inStorage {
		flags |= flagShown
	}
	if conflict != s.hasConflict {
		value := present
		if conflict {
			c.head.conflicts++
		} else {
			c.head.conflicts--
			value = nil
		}
		if err := c.store.SetMeta(conflictRow(key), value); err != nil {
			return err
		}
		s.hasConflict = conflict
	}
	if s.hasRow {
		c.head.rows--
		c.head.bytes -= uint64(s.size)
	}
	had := s.hasRow
	s.hasRow, s.size = write != nil, 0
	if !s.hasRow {
		if !had {
			return nil
		}
		return c.store.SetMeta(key, nil)
	}
	row := c.row[:0]
	write(&row, flags)
	c.row = row
	s.size = len(key) + len(row)
	c.head.rows++
	c.head.bytes += uint64(s.size)
	return c.store.SetMeta(key, row)
}

// collectKeys bounds how many rows an entry looks at beside its own. A write
// leaves few, so what a region that was silent for long brings into the cut is
// settled over some entries, and none of them grows with it.
const collectKeys = 64

// collect settles what has become stable since the last time, as far as budget
// reaches.
func (c *Core) collect(budget int) error {
	if mutants.collectNothing {
		return nil
	}
	cut := c.head.cut()
	before := c.head.collected
	if before == cut {
		return nil
	}
	var later waiting
	for region := range c.head.settings.Regions {
		for pos := before[region] + 1; pos <= cut[region] && budget > 0; pos++ {
			n, err := c.stable(Dot{uint8(region), pos}, &cut, &later)
			if err != nil {
				return err
			}
			budget -= max(n, 1)
			c.head.collected[region] = pos
		}
	}
	if err := c.enqueueLater(&later); err != nil {
		return err
	}
	return c.dropBlocks(&before)
}

// dropBlocks drops the blocks that were looked at since before, but for those in
// which something waits.
func (c *Core) dropBlocks(before *Vector) error {
	for region, to := range c.head.collected {
		from := before[region] + 1
		if to < from {
			continue
		}
		for number := from / queueSpan; number <= to/queueSpan; number++ {
			b, err := c.block(blockID{uint8(region), number})
			if err != nil {
				return err
			}
			b.drop(to)
		}
	}
	return nil
}

// stable looks at everything that waited for the write d to be in the cut, and
// returns how much that was.
func (c *Core) stable(d Dot, cut *Vector, later *waiting) (n int, err error) {
	b, err := c.block(blockOf(d))
	if err != nil {
		return 0, err
	}
	place := uint8(d.Pos % queueSpan)
	for _, r := range b.records {
		if r.place != place {
			continue
		}
		n++
		wait, err := c.examine(b.key(r), cut)
		if err != nil {
			return 0, err
		}
		if wait != (Dot{}) && !mutants.queueForgotten {
			later.add(wait, b.key(r))
		}
	}
	return n, nil
}

// examine settles what can be settled of a row, and returns the write that the
// rest waits for.
func (c *Core) examine(key []byte, cut *Vector) (Dot, error) {
	c.key = append(append(c.key[:0], rowPrefix...), key...)
	if done, err := c.settleShownWrite(c.key, cut); done || err != nil {
		return Dot{}, err
	}
	kind, parts, err := splitRow(c.key)
	if err != nil {
		return Dot{}, err
	}
	if kind == rowNode[len(rowPrefix)] {
		n, err := c.node(parts[0])
		if err != nil || !n.hasRow {
			return Dot{}, err
		}
		return c.examineNode(n, cut)
	}
	e, err := c.edge(edgeKey{from: parts[0], relType: parts[1], to: parts[2]})
	if err != nil || !e.hasRow {
		return Dot{}, err
	}
	return c.examineEdge(e, cut)
}

// settleShownWrite settles a node of which one write is all that is known, and
// which is shown: what examineNode comes to then, without decoding the row. Not
// done: it is another node.
func (c *Core) settleShownWrite(key []byte, cut *Vector) (done bool, err error) {
	id, is := nodeOfRow(key)
	if !is {
		return false, nil
	}
	if _, loaded := c.nodes[string(id)]; loaded { // and may have changed
		return false, nil
	}
	row, err := c.store.GetMeta(key)
	if err != nil || row == nil {
		return row == nil, err
	}
	h, ok := peekShownWrite(row)
	if !ok || h.flags != flagShown || !cut.Covers(h.dot) || !c.head.applied.Contains(&h.pending) ||
		!c.head.applied.Contains(&h.birth.past) || !cut.Contains(&h.birth.dots) {
		return false, nil
	}
	c.head.rows--
	c.head.bytes -= uint64(len(key) + len(row))
	return true, c.store.SetMeta(key, nil)
}

// examineNode settles the registers that wait for nothing, and drops the node
// if it is deleted and nothing of it waits.
func (c *Core) examineNode(n *node, cut *Vector) (wait Dot, err error) {
	if missing := n.birth.past.missing(&c.head.applied); missing != (Dot{}) {
		wait = missing
	} else if missing := n.birth.dots.missing(cut); missing != (Dot{}) {
		wait = missing
	} else {
		n.birth = birth{}
	}
	ready := func(r *register) {
		if d := r.waits(cut, &c.head.applied); d != (Dot{}) {
			wait = d
		} else {
			r.settle(c.head.settings.Strategy)
		}
	}
	ready(&n.life)
	ready(&n.labels)
	ready(&n.fill)
	for i := range n.props {
		ready(&n.props[i].register)
	}
	if wait == (Dot{}) && n.life.settled() && !n.life.has(c.head.settings.Strategy) {
		if wait, err = c.drop(n, cut); err != nil {
			return wait, err
		}
	}
	_, err = c.saveNode(n)
	return wait, err
}

// drop forgets a deleted node with its edges, unless one of them waits.
func (c *Core) drop(n *node, cut *Vector) (wait Dot, err error) {
	var keys []edgeKey
	err = c.edgeRows(n.id, func(k edgeKey) (bool, error) {
		e, err := c.edge(k)
		if err != nil {
			return false, err
		}
		keys = append(keys, k)
		wait = e.reg.waits(cut, &c.head.applied)
		return wait == (Dot{}), nil
	})
	if mutants.dropWithoutEdges {
		wait = Dot{}
	}
	if err != nil || wait != (Dot{}) {
		return wait, err
	}
	for _, k := range keys {
		e := c.edges[k]
		e.reg = register{}
		if _, err := c.saveEdge(e); err != nil {
			return Dot{}, err
		}
	}
	n.life, n.labels, n.fill, n.props = register{}, register{}, register{}, nil
	return Dot{}, nil
}

func (c *Core) examineEdge(e *edge, cut *Vector) (wait Dot, err error) {
	wait = e.reg.waits(cut, &c.head.applied)
	if wait == (Dot{}) {
		e.reg.settle(c.head.settings.Strategy)
		if e.reg.settled() && !e.reg.has(c.head.settings.Strategy) {
			e.reg = register{} // deleted
		}
	}
	_, err = c.saveEdge(e)
	return wait, err
}
