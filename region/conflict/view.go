package conflict

import (
	"slices"
	"strings"

	"github.com/nornicdb/replication"
)

// node is what is known of a node, as long as one entry is being applied.
type node struct {
	id string
	// life: exists or deleted. labels. fill: the whole-node writes, each
	// "unset", for all names that are not in props. Where fill is stored,
	// names that are not in props are as the Storage has them.
	life, labels, fill register
	props              []property // by name
	birth              birth

	rowState
	bare        bool              // values of labels and properties are where the row left them; see fetch
	whole       bool              // labels or fill were written
	given       *replication.Node // what the registers come to, as the client sent it; nil: to be made
	written     []string
	edgesLoaded bool
}

// edge is an edge's register in the same sense.
type edge struct {
	id  edgeKey
	reg register
	rowState
	written bool
}

// rowState is what is in the Store.
type rowState struct {
	key         []byte // of the row
	inStorage   bool   // shown before this entry
	hasRow      bool
	size        int  // of key and row
	hasConflict bool // a conflict row
	dirty       bool // the row must be written
}

type property struct {
	name string
	register
}

func comparePropertyName(p property, name string) int { return strings.Compare(p.name, name) }

// property returns the register of a name, nil where fill stands for it. It is
// valid until another name is set.
func (n *node) property(name string) *register {
	if i, ok := slices.BinarySearchFunc(n.props, name, comparePropertyName); ok {
		return &n.props[i].register
	}
	return nil
}

func (n *node) setProperty(name string, r register) *register {
	i, _ := slices.BinarySearchFunc(n.props, name, comparePropertyName)
	n.props = slices.Insert(n.props, i, property{name, r})
	return &n.props[i].register
}

// dropCopies drops the properties that say no more than fill.
func (n *node) dropCopies() {
	n.props = slices.DeleteFunc(n.props, func(p property) bool { return p.equal(&n.fill) })
}

func (s *rowState) flags(f byte) {
	s.hasRow, s.inStorage, s.hasConflict = true, f&flagShown != 0, f&flagConflict != 0
}

// registers calls fn for each register of the node that is kept.
func (n *node) registers(fn func(*register)) {
	fn(&n.life)
	fn(&n.labels)
	fn(&n.fill)
	for i := range n.props {
		fn(&n.props[i].register)
	}
}

// shown: it exists, and who created it has arrived.
func (c *Core) shown(n *node) bool {
	return n.life.has(c.head.settings.Strategy) && (n.labels.stored || len(n.labels.versions) > 0)
}

func (c *Core) edgeShown(e *edge) (bool, error) {
	if !e.reg.has(c.head.settings.Strategy) {
		return false, nil
	}
	from, err := c.node(e.id.from)
	if err != nil || !c.shown(from) {
		return false, err
	}
	to, err := c.node(e.id.to)
	return err == nil && c.shown(to), err
}

// node loads a node: from its row, else from the Storage, where all that has
// no row is settled, else a blank one.
func (c *Core) node(id string) (*node, error) {
	if n, ok := c.nodes[id]; ok {
		return n, nil
	}
	key := nodeRow(id)
	row, err := c.store.GetMeta(key)
	if err != nil {
		return nil, err
	}
	n := c.blankNode(id)
	if row != nil {
		err = n.decode(row)
	} else if n.inStorage, err = c.store.HasNode(replication.NodeID(id)); n.inStorage {
		n.life.stored, n.labels.stored, n.fill.stored = true, true, true
	}
	if err != nil {
		return nil, err
	}
	n.key, n.size = key, len(key)+len(row)
	c.nodes[id] = n
	c.nodeList = append(c.nodeList, n)
	return n, nil
}

// fetch loads the values that the node's row leaves to the Storage. It must come
// before the Storage changes, and before a register other than the life does.
func (n *node) fetch(from NodeReader) error {
	if !n.bare {
		return nil
	}
	stored, err := from.GetNode(replication.NodeID(n.id))
	if err != nil {
		return err
	}
	if stored == nil {
		return ErrMismatch
	}
	v := n.labels.versions[0]
	one := func(value string) register {
		return register{versions: []version{{v.dot, v.time, value}}, pending: n.fill.pending}
	}
	for name, value := range stored.Properties {
		text, err := canonical(value)
		if err != nil {
			return err
		}
		n.setProperty(name, one(text))
	}
	n.labels, n.bare = one(canonicalLabels(stored.Labels)), false
	return nil
}

// blankNode takes a node that an earlier entry has used, if there is one.
func (c *Core) blankNode(id string) *node {
	if len(c.spare) == 0 {
		return &node{id: id}
	}
	n := c.spare[len(c.spare)-1]
	c.spare = c.spare[:len(c.spare)-1]
	*n = node{id: id, props: n.props[:0], written: n.written[:0]}
	return n
}

// edge loads an edge. One that nothing is known of starts with what the
// re-creations of its ends have replaced.
func (c *Core) edge(k edgeKey) (*edge, error) {
	if e, ok := c.edges[k]; ok {
		return e, nil
	}
	key := k.row()
	row, err := c.store.GetMeta(key)
	if err != nil {
		return nil, err
	}
	e := &edge{id: k}
	if row != nil {
		e, err = decodeEdge(k, row)
	} else {
		err = c.newEdge(e)
	}
	if err != nil {
		return nil, err
	}
	e.key, e.size = key, len(key)+len(row)
	c.edges[k] = e
	c.edgeList = append(c.edgeList, e)
	c.at[k.from] = append(c.at[k.from], e)
	if k.to != k.from {
		c.at[k.to] = append(c.at[k.to], e)
	}
	return e, nil
}

func (c *Core) newEdge(e *edge) error {
	from, err := c.node(e.id.from)
	if err != nil {
		return err
	}
	to, err := c.node(e.id.to)
	if err != nil {
		return err
	}
	if from.inStorage && to.inStorage {
		stored, err := c.storedEdge(e.id)
		if err != nil {
			return err
		}
		if stored != nil {
			e.reg.stored, e.inStorage = true, true
			return nil
		}
	}
	e.reg.pending.Join(&from.birth.past)
	e.reg.pending.Join(&to.birth.past)
	return nil
}

func (c *Core) storedEdge(k edgeKey) (*replication.Edge, error) {
	return c.store.GetEdge(replication.NodeID(k.from), replication.NodeID(k.to), k.relType)
}

// loadEdges loads all edges at the node and returns them in order.
func (c *Core) loadEdges(n *node) ([]*edge, error) {
	if !n.edgesLoaded {
		err := c.edgeRows(n.id, func(k edgeKey) (bool, error) {
			_, err := c.edge(k)
			return true, err
		})
		if err != nil {
			return nil, err
		}
		if n.inStorage {
			if err := c.loadStoredEdges(n); err != nil {
				return nil, err
			}
		}
		n.edgesLoaded = true
	}
	at := slices.Clone(c.at[n.id])
	slices.SortFunc(at, func(a, b *edge) int { return a.id.compare(b.id) })
	return at, nil
}

func (c *Core) loadStoredEdges(n *node) error {
	keys := make(map[edgeKey]struct{})
	err := c.store.ScanEdges(replication.NodeID(n.id), func(e *replication.Edge) error {
		keys[edgeKey{string(e.StartNode), e.Type, string(e.EndNode)}] = struct{}{}
		return nil
	})
	if err != nil {
		return err
	}
	for k := range keys {
		if _, err := c.edge(k); err != nil {
			return err
		}
	}
	return nil
}

// edgeRows calls fn for the key of each edge row at the node, until it
// returns false. A self-loop comes twice.
func (c *Core) edgeRows(id string, fn func(edgeKey) (bool, error)) error {
	if c.head.edgeRows == 0 {
		return nil
	}
	var keys []edgeKey
	for _, prefix := range [][]byte{joinKey(rowEdge, id), joinKey(rowIn, id)} {
		err := c.store.ScanMeta(prefix, func(k, _ []byte) error {
			kind, p, err := splitRow(k)
			if err != nil {
				return err
			}
			if kind == rowEdge[len(rowPrefix)] {
				keys = append(keys, edgeKey{from: p[0], relType: p[1], to: p[2]})
			} else {
				keys = append(keys, edgeKey{to: p[0], from: p[1], relType: p[2]})
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, k := range keys {
		if more, err := fn(k); err != nil || !more {
			return err
		}
	}
	return nil
}

// sortedNodes are the nodes loaded so far, in order.
func (c *Core) sortedNodes() []*node {
	slices.SortFunc(c.nodeList, func(a, b *node) int { return strings.Compare(a.id, b.id) })
	return c.nodeList
}

// sortedEdges are the edges loaded so far, in order.
func (c *Core) sortedEdges() []*edge {
	slices.SortFunc(c.edgeList, func(a, b *edge) int { return a.id.compare(b.id) })
	return c.edgeList
}
