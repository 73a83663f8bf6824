package conflict

import "slices"

// merge applies one effect of the current write to the registers.
func (c *Core) merge(o *op) error {
	if o.kind.isEdge() {
		return c.mergeEdge(o)
	}
	n, err := c.node(o.node)
	if err != nil {
		return err
	}
	n.dirty, n.given = true, nil
	if err := c.adopt(n, &o.births[0]); err != nil {
		return err
	}
	switch o.kind {
	case opCreateNode:
		c.put(&n.life, FieldNode, exists)
		if err := c.putWhole(n, o.value, o.props); err != nil {
			return err
		}
		return c.bear(n)
	case opUpdateNode:
		c.put(&n.life, FieldNode, exists)
		return c.putWhole(n, o.value, o.props)
	case opDeleteNode:
		c.put(&n.life, FieldNode, "")
	case opSetProperty:
		c.put(&n.life, FieldNode, exists)
		return c.putProperty(n, o.key, o.value)
	case opFixLife:
		c.put(&n.life, FieldNode, exists)
	case opFixLabels:
		if err := n.fetch(c.store); err != nil {
			return err
		}
		n.whole = true
		c.put(&n.labels, FieldLabels, o.value)
	case opFixProperty:
		return c.putProperty(n, o.key, o.value)
	}
	return nil
}

func (c *Core) mergeEdge(o *op) error {
	if o.kind == opPutEdge {
		for i, id := range []string{o.node, o.to} {
			n, err := c.node(id)
			if err != nil {
				return err
			}
			n.dirty = true
			if err := c.adopt(n, &o.births[i]); err != nil {
				return err
			}
			c.put(&n.life, FieldNode, exists)
		}
	}
	e, err := c.edge(edgeKey{from: o.node, relType: o.relType, to: o.to})
	if err != nil {
		return err
	}
	e.dirty, e.written = true, true
	c.put(&e.reg, FieldEdge, o.value)
	return nil
}

func (c *Core) put(r *register, f Field, value string) {
	was := len(r.versions) > 1 && r.conflicting()
	r.put(version{dot: c.w.dot, time: c.w.time, value: value}, &c.w.ctx)
	if is := len(r.versions) > 1 && r.conflicting(); was || is {
		c.count(f, was, is)
	}
}

// putProperty writes one property, whose register starts as a copy of fill.
func (c *Core) putProperty(n *node, name, value string) error {
	if err := n.fetch(c.store); err != nil {
		return err
	}
	r := n.property(name)
	if r == nil {
		r = n.setProperty(name, n.fill.clone())
	}
	c.put(r, FieldProperty, value)
	n.written = append(n.written, name)
	return nil
}

// putWhole writes labels and every property, also those that are left out.
func (c *Core) putWhole(n *node, labels string, props []prop) error {
	n.whole = true
	if c.replacesAll(n) {
		c.replaceAll(n, labels, props)
		return nil
	}
	if err := n.fetch(c.store); err != nil {
		return err
	}
	c.put(&n.labels, FieldLabels, labels)
	for _, p := range props {
		if n.property(p.name) == nil {
			n.setProperty(p.name, n.fill.clone())
		}
	}
	for i := range n.props {
		r := &n.props[i]
		value := ""
		if at, ok := slices.BinarySearchFunc(props, r.name, comparePropName); ok {
			value = props[at].value
		}
		c.put(&r.register, FieldProperty, value)
	}
	c.put(&n.fill, FieldProperty, "")
	return nil
}

// replacesAll says whether the current write replaces all labels and properties,
// none of which is in conflict, as most do. No register then has anything that
// fill has not, so the names that the write leaves out need none, and what is
// replaced need not be loaded.
func (c *Core) replacesAll(n *node) bool {
	replaced := func(r *register) bool {
		return len(r.versions) <= 1 && !r.pending.Covers(c.w.dot) &&
			(len(r.versions) == 0 || r.versions[0].dot == c.w.dot || c.w.ctx.Covers(r.versions[0].dot))
	}
	if !replaced(&n.labels) || !replaced(&n.fill) {
		return false
	}
	for i := range n.props {
		if r := &n.props[i].register; !replaced(r) || r.pending != n.fill.pending {
			return false
		}
	}
	return true
}

// replaceAll is putWhole where replacesAll.
func (c *Core) replaceAll(n *node, labels string, props []prop) {
	versions := make([]version, 2+len(props))
	one := func(value string, pending Vector) register {
		v := versions[:1:1]
		versions = versions[1:]
		v[0] = version{c.w.dot, c.w.time, value}
		if !mutants.pendingForgotten {
			pending.Join(&c.w.ctx)
		}
		return register{versions: v, pending: pending}
	}
	n.labels = one(labels, n.labels.pending)
	before := n.fill.pending
	n.fill = one("", before)
	n.props = slices.Grow(n.props[:0], len(props))
	for _, p := range props {
		n.props = append(n.props, property{p.name, one(p.value, before)})
	}
	n.given, n.bare = c.given, false
}

// bear notes that the current write created the node afresh: the edges that
// its region had applied do not belong to it.
func (c *Core) bear(n *node) error {
	edges, err := c.loadEdges(n)
	if err != nil {
		return err
	}
	for _, e := range edges {
		e.reg.forget(c.w.dot, &c.w.ctx)
		e.dirty, e.written = true, true
	}
	b := birth{past: c.w.ctx}
	b.dots[c.w.dot.Region] = c.w.dot.Pos
	n.birth.join(&b)
	return nil
}

// adopt applies what is known from others of the node's re-creations, if one
// of them has not arrived here: what they replaced is gone already.
func (c *Core) adopt(n *node, b *birth) error {
	if !b.known() || c.head.applied.Contains(&b.dots) {
		return nil
	}
	if err := n.fetch(c.store); err != nil {
		return err
	}
	n.whole, n.given = true, nil
	n.labels.forget(Dot{}, &b.past)
	for i := range n.props {
		n.props[i].forget(Dot{}, &b.past)
	}
	n.fill.forget(Dot{}, &b.past)
	edges, err := c.loadEdges(n)
	if err != nil {
		return err
	}
	for _, e := range edges {
		e.reg.forget(Dot{}, &b.past)
		e.dirty, e.written = true, true
	}
	n.birth.join(b)
	return nil
}
