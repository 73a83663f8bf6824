package conflict

import (
	"maps"
	"slices"

	"github.com/nornicdb/replication"
)

// node is what is known of a node, as long as one entry is being applied.
type node struct {
	id string
	// life: exists or deleted. labels. fill: the whole-node writes, each
	// "unset", for all names that are not in props. Where fill is stored,
	// names that are not in props are as the Storage has them.
	life, labels, fill register
	props              map[string]*register
	birth              birth

	rowState
	whole       bool // labels or fill were written
	written     []string
	edgesLoaded bool
}

// edge is an edge's register in the same sense.
type edge struct {
	key edgeKey
	reg register
	rowState
	written bool
}

// rowState is what is in the Store.
type rowState struct {
	inStorage   bool // shown before this entry
	hasRow      bool
	hasConflict bool // a conflict row
	dirty       bool // the row must be written
}

func newNode(id string) *node { return &node{id: id, props: make(map[string]*register)} }

func (s *rowState) flags(f byte) {
	s.hasRow, s.inStorage, s.hasConflict = true, f&flagShown != 0, f&flagConflict != 0
}

// registers calls fn for each register of the node that is kept.
func (n *node) registers(fn func(*register)) {
	fn(&n.life)
	fn(&n.labels)
	fn(&n.fill)
	for _, r := range n.props {
		fn(r)
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
	from, err := c.node(e.key.from)
	if err != nil || !c.shown(from) {
		return false, err
	}
	to, err := c.node(e.key.to)
	return err == nil && c.shown(to), err
}

// node loads a node: from its row, else from the Storage, where all that has
// no row is settled, else a blank one.
func (c *Core) node(id string) (*node, error) {
	if n, ok := c.nodes[id]; ok {
		return n, nil
	}
	row, err := c.store.GetMeta(nodeRow(id))
	if err != nil {
		return nil, err
	}
	n := newNode(id)
	if row != nil {
		n, err = decodeNode(id, row)
	} else if n.inStorage, err = c.store.HasNode(replication.NodeID(id)); n.inStorage {
		n.life.stored, n.labels.stored, n.fill.stored = true, true, true
	}
	if err != nil {
		return nil, err
	}
	c.nodes[id] = n
	return n, nil
}

// edge loads an edge. One that nothing is known of starts with what the
// re-creations of its ends have replaced.
func (c *Core) edge(k edgeKey) (*edge, error) {
	if e, ok := c.edges[k]; ok {
		return e, nil
	}
	row, err := c.store.GetMeta(k.row())
	if err != nil {
		return nil, err
	}
	e := &edge{key: k}
	if row != nil {
		e, err = decodeEdge(k, row)
	} else {
		err = c.newEdge(e)
	}
	if err != nil {
		return nil, err
	}
	c.edges[k] = e
	return e, nil
}

func (c *Core) newEdge(e *edge) error {
	from, err := c.node(e.key.from)
	if err != nil {
		return err
	}
	to, err := c.node(e.key.to)
	if err != nil {
		return err
	}
	if from.inStorage && to.inStorage {
		stored, err := c.storedEdge(e.key)
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
	var at []*edge
	for k, e := range c.edges {
		if k.from == n.id || k.to == n.id {
			at = append(at, e)
		}
	}
	slices.SortFunc(at, func(a, b *edge) int { return a.key.compare(b.key) })
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

func (c *Core) sortedNodes() []*node {
	return slices.SortedFunc(maps.Values(c.nodes), func(a, b *node) int {
		switch {
		case a.id < b.id:
			return -1
		case a.id > b.id:
			return 1
		default:
			return 0
		}
	})
}

func (c *Core) sortedEdges() []*edge {
	return slices.SortedFunc(maps.Values(c.edges), func(a, b *edge) int { return a.key.compare(b.key) })
}
