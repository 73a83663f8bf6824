package conflict

import (
	"errors"

	"github.com/nornicdb/replication"
)

// changes are the Storage operations of one entry, in the order of the fields.
type changes struct {
	deleteEdges []edgeKey
	deleteNodes []string
	createNodes []*replication.Node
	updateNodes []*replication.Node
	setProps    []propChange
	createEdges []*replication.Edge
	updateEdges []*replication.Edge
}

type propChange struct {
	node  string
	key   string
	value any
}

// materialise makes the Storage show what the registers say: Storage =
// f(registers). Only what the entry touched is looked at. All is read before
// anything is written.
func (c *Core) materialise() error {
	var ch changes
	for _, n := range c.sortedNodes() {
		if c.shown(n) == n.inStorage {
			continue
		}
		n.dirty = true
		if _, err := c.loadEdges(n); err != nil {
			return err
		}
	}
	for _, e := range c.sortedEdges() {
		if err := c.edgeChange(&ch, e); err != nil {
			return err
		}
	}
	for _, n := range c.sortedNodes() {
		if n.dirty {
			if err := c.nodeChange(&ch, n); err != nil {
				return err
			}
		}
	}
	return ch.execute(c.store)
}

func (c *Core) nodeChange(ch *changes, n *node) error {
	shown := c.shown(n)
	switch {
	case !shown && n.inStorage:
		ch.deleteNodes = append(ch.deleteNodes, n.id)
		return c.unstore(n)
	case !shown:
		return nil
	case n.inStorage && !n.whole:
		return c.propChanges(ch, n)
	}
	full, err := c.full(n)
	if err != nil {
		return err
	}
	if n.inStorage {
		ch.updateNodes = append(ch.updateNodes, full)
	} else {
		ch.createNodes = append(ch.createNodes, full)
	}
	return nil
}

func (c *Core) propChanges(ch *changes, n *node) error {
	for i, name := range n.written {
		if i > 0 && n.written[i-1] == name {
			continue
		}
		v, err := decodeStored(c.property(n, name))
		if err != nil {
			return err
		}
		ch.setProps = append(ch.setProps, propChange{n.id, name, v})
	}
	return nil
}

// property is the value shown of a property that was written.
func (c *Core) property(n *node, name string) string {
	if r := n.property(name); r != nil {
		return r.winner(c.head.settings.Strategy)
	}
	return ""
}

func decodeStored(value string) (any, error) {
	if value == "" {
		return nil, nil
	}
	if v, ok := plainValue(value); ok {
		return v, nil
	}
	v, err := replication.DecodeValue([]byte(value))
	if err != nil {
		return nil, errors.Join(ErrDamagedRow, err)
	}
	return v, nil
}

// full is the node as it is to be shown.
func (c *Core) full(n *node) (*replication.Node, error) {
	if n.given != nil {
		return n.given, nil
	}
	out := &replication.Node{ID: replication.NodeID(n.id), Properties: make(map[string]any, len(n.props))}
	if n.labels.stored || n.fill.stored {
		stored, err := c.storedNode(n.id)
		if err != nil {
			return nil, err
		}
		out.Labels = stored.Labels
		if n.fill.stored {
			out.Properties = stored.Properties
		}
	}
	if !n.labels.stored {
		labels, err := decodeLabels(n.labels.winner(c.head.settings.Strategy))
		if err != nil {
			return nil, errors.Join(ErrDamagedRow, err)
		}
		out.Labels = labels
	}
	for i := range n.props {
		p := &n.props[i]
		v, err := decodeStored(p.winner(c.head.settings.Strategy))
		if err != nil {
			return nil, err
		}
		if v == nil {
			delete(out.Properties, p.name)
		} else {
			out.Properties[p.name] = v
		}
	}
	return out, nil
}

// storedNode reads a node that the rows say is there; the copy is the caller's.
func (c *Core) storedNode(id string) (*replication.Node, error) {
	n, err := c.store.GetNode(replication.NodeID(id))
	if err != nil {
		return nil, err
	}
	if n == nil {
		return nil, ErrMismatch
	}
	props := make(map[string]any, len(n.Properties))
	for k, v := range n.Properties {
		props[k] = v
	}
	return &replication.Node{ID: n.ID, Labels: n.Labels, Properties: props}, nil
}

// unstore copies what only the Storage holds of a node into the registers,
// before the node goes: the delete may yet lose.
func (c *Core) unstore(n *node) error {
	if err := n.fetch(c.store); err != nil {
		return err
	}
	if n.life.stored {
		n.life = settledRegister(exists)
	}
	if !n.labels.stored && !n.fill.stored {
		return nil
	}
	stored, err := c.storedNode(n.id)
	if err != nil {
		return err
	}
	if n.labels.stored {
		n.labels = settledRegister(canonicalLabels(stored.Labels))
	}
	if !n.fill.stored {
		return nil
	}
	n.fill = settledRegister("")
	for name, value := range stored.Properties {
		if n.property(name) != nil || mutants.valueNotKept {
			continue
		}
		v, err := canonical(value)
		if err != nil {
			return err
		}
		n.setProperty(name, settledRegister(v))
	}
	return nil
}

func settledRegister(value string) register { return register{versions: []version{{value: value}}} }

func (c *Core) edgeChange(ch *changes, e *edge) error {
	shown, err := c.edgeShown(e)
	if err != nil {
		return err
	}
	if shown != e.inStorage {
		e.dirty = true
	}
	switch {
	case !shown && e.inStorage:
		ch.deleteEdges = append(ch.deleteEdges, e.id)
		return c.unstoreEdge(e)
	case !shown || e.inStorage && !e.written:
		return nil
	}
	props, err := decodeMap(e.reg.winner(c.head.settings.Strategy))
	if err != nil {
		return errors.Join(ErrDamagedRow, err)
	}
	out := &replication.Edge{StartNode: replication.NodeID(e.id.from), EndNode: replication.NodeID(e.id.to),
		Type: e.id.relType, Properties: props}
	if e.inStorage {
		ch.updateEdges = append(ch.updateEdges, out)
	} else {
		ch.createEdges = append(ch.createEdges, out)
	}
	return nil
}

func (c *Core) unstoreEdge(e *edge) error {
	if !e.reg.stored {
		return nil
	}
	stored, err := c.storedEdge(e.id)
	if err != nil {
		return err
	}
	if stored == nil {
		return ErrMismatch
	}
	props, err := canonicalMap(stored.Properties)
	if err != nil {
		return err
	}
	e.reg = settledRegister(props)
	return nil
}

// execute writes: edges go before nodes, nodes come before edges.
func (ch *changes) execute(s Store) error {
	for _, k := range ch.deleteEdges {
		if err := s.DeleteEdge(replication.NodeID(k.from), replication.NodeID(k.to), k.relType); err != nil {
			return err
		}
	}
	for _, id := range ch.deleteNodes {
		if err := s.DeleteNode(replication.NodeID(id)); err != nil {
			return err
		}
	}
	for _, n := range ch.createNodes {
		if err := s.CreateNode(n); err != nil {
			return err
		}
	}
	for _, n := range ch.updateNodes {
		if err := s.UpdateNode(n); err != nil {
			return err
		}
	}
	for _, p := range ch.setProps {
		if err := s.SetProperty(replication.NodeID(p.node), p.key, p.value); err != nil {
			return err
		}
	}
	for _, e := range ch.createEdges {
		if err := s.CreateEdge(e); err != nil {
			return err
		}
	}
	for _, e := range ch.updateEdges {
		if err := updateEdge(s, e); err != nil {
			return err
		}
	}
	return nil
}

func updateEdge(s Store, e *replication.Edge) error {
	if es, ok := s.(replication.EdgeStorage); ok {
		return es.UpdateEdge(e)
	}
	if err := s.DeleteEdge(e.StartNode, e.EndNode, e.Type); err != nil {
		return err
	}
	return s.CreateEdge(e)
}
