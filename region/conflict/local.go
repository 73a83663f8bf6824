package conflict

import (
	"fmt"

	"github.com/nornicdb/replication"
)

// local is the Storage to which a client's commands are dispatched: it checks
// each operation against what the region shows, batch so far included, turns
// it into an effect and merges that.
type local struct {
	c    *Core
	e    *Entry
	mark bool // an entry without effects is wanted
}

var (
	_ replication.Storage     = (*local)(nil)
	_ replication.EdgeStorage = (*local)(nil)
)

// errEdgeIDs: the thing that regions merge is the edge of a type between two
// nodes. Two regions could give one ID, unique in the graph, to two edges.
var errEdgeIDs = fmt.Errorf("%w: edge IDs are not supported in multi-region mode", replication.ErrInvalidCommand)

func (l *local) do(o op) error {
	if o.tooLong() {
		return fmt.Errorf("%w: an ID of more than %d bytes", replication.ErrInvalidCommand, MaxIDBytes)
	}
	l.e.ops = append(l.e.ops, o)
	return l.c.merge(&l.e.ops[len(l.e.ops)-1])
}

func (l *local) ApplyCommand(cmd *replication.Command) error { return replication.Dispatch(l, cmd) }
func (l *local) GetWALPosition() (uint64, error)             { return 0, replication.ErrUnsupported }
func (l *local) SetWALPosition(uint64) error                 { return replication.ErrUnsupported }

// node returns the node, and whether it is shown.
func (l *local) node(id replication.NodeID) (*node, bool, error) {
	n, err := l.c.node(string(id))
	if err != nil {
		return nil, false, err
	}
	return n, l.c.shown(n), nil
}

// existing returns a shown node.
func (l *local) existing(id replication.NodeID) (*node, error) {
	n, shown, err := l.node(id)
	if err == nil && !shown {
		err = &missingNode{id}
	}
	return n, err
}

// missingNode is ErrNotFound of a node. Its text is made when it is asked for: a
// PutNode finds out by it that it is to create the node.
type missingNode struct{ id replication.NodeID }

func (m *missingNode) Error() string {
	return fmt.Sprintf("node %q: %v", m.id, replication.ErrNotFound)
}

// Unwrap makes errors.Is(err, replication.ErrNotFound) true.
func (m *missingNode) Unwrap() error { return replication.ErrNotFound }

func (l *local) CreateNode(node *replication.Node) error {
	n, shown, err := l.node(node.ID)
	if err != nil {
		return err
	}
	if shown {
		return fmt.Errorf("node %q: %w", node.ID, replication.ErrExists)
	}
	// Where somebody uses a node that has not arrived, its edges are to stay.
	fresh := n.life.winner(l.c.head.settings.Strategy) != exists
	if mutants.freshFromTombstone {
		fresh = len(n.life.versions) > 0
	}
	kind := opUpdateNode
	if fresh {
		kind = opCreateNode
	}
	return l.whole(kind, node, n)
}

func (l *local) UpdateNode(node *replication.Node) error {
	n, err := l.existing(node.ID)
	if err != nil {
		return err
	}
	return l.whole(opUpdateNode, node, n)
}

func (l *local) whole(kind opKind, node *replication.Node, n *node) (err error) {
	set := labelSet(node.Labels)
	o := op{kind: kind, node: string(node.ID), births: [2]birth{l.birth(n)}}
	if o.value, o.props, l.c.room, err = canonicalNode(l.c.room, set, node.Properties); err != nil {
		return err
	}
	if len(o.props) == len(node.Properties) { // nothing is null
		l.c.given = &replication.Node{ID: node.ID, Labels: set, Properties: node.Properties}
		defer func() { l.c.given = nil }()
	}
	return l.do(o)
}

// birth is what a write that says "the node exists" carries: nothing where
// every region that gets the write has the re-creations before it, because
// all have them, or because they are earlier in this stream.
func (l *local) birth(n *node) birth {
	known := l.c.head.cut()
	known[l.e.Dot.Region] = l.e.Dot.Pos
	if mutants.birthNotCarried || known.Contains(&n.birth.dots) {
		return birth{}
	}
	return n.birth
}

func (l *local) DeleteNode(id replication.NodeID) error {
	if _, err := l.existing(id); err != nil {
		return err
	}
	return l.do(op{kind: opDeleteNode, node: string(id)})
}

func (l *local) SetProperty(id replication.NodeID, key string, value interface{}) error {
	n, err := l.existing(id)
	if err != nil {
		return err
	}
	v, err := canonical(value)
	if err != nil {
		return err
	}
	return l.do(op{kind: opSetProperty, node: string(id), key: key, value: v, births: [2]birth{l.birth(n)}})
}

// edge returns the edge, and whether it is shown.
func (l *local) edge(from, to replication.NodeID, relType string) (*edge, bool, error) {
	e, err := l.c.edge(edgeKey{from: string(from), relType: relType, to: string(to)})
	if err != nil {
		return nil, false, err
	}
	shown, err := l.c.edgeShown(e)
	return e, shown, err
}

func (l *local) CreateEdge(e *replication.Edge) error {
	if e.ID != "" {
		return errEdgeIDs
	}
	for _, end := range []replication.NodeID{e.StartNode, e.EndNode} {
		if _, shown, err := l.node(end); err != nil {
			return err
		} else if !shown {
			return fmt.Errorf("node %q: %w", end, replication.ErrMissingEnd)
		}
	}
	_, shown, err := l.edge(e.StartNode, e.EndNode, e.Type)
	if err != nil {
		return err
	}
	if shown {
		return fmt.Errorf("edge %q-%q->%q: %w", e.StartNode, e.Type, e.EndNode, replication.ErrExists)
	}
	return l.putEdge(e)
}

// UpdateEdge replaces the properties of an edge.
func (l *local) UpdateEdge(e *replication.Edge) error {
	if e.ID != "" {
		return errEdgeIDs
	}
	if err := l.existingEdge(e.StartNode, e.EndNode, e.Type); err != nil {
		return err
	}
	return l.putEdge(e)
}

func (l *local) existingEdge(from, to replication.NodeID, relType string) error {
	_, shown, err := l.edge(from, to, relType)
	if err == nil && !shown {
		err = fmt.Errorf("edge %q-%q->%q: %w", from, relType, to, replication.ErrNotFound)
	}
	return err
}

func (l *local) putEdge(e *replication.Edge) error {
	props, err := canonicalMap(e.Properties)
	if err != nil {
		return err
	}
	o := op{kind: opPutEdge, node: string(e.StartNode), to: string(e.EndNode), relType: e.Type, value: props}
	for i, id := range []replication.NodeID{e.StartNode, e.EndNode} {
		n, err := l.c.node(string(id))
		if err != nil {
			return err
		}
		o.births[i] = l.birth(n)
	}
	return l.do(o)
}

func (l *local) DeleteEdge(from, to replication.NodeID, relType string) error {
	if err := l.existingEdge(from, to, relType); err != nil {
		return err
	}
	return l.do(op{kind: opDeleteEdge, node: string(from), to: string(to), relType: relType})
}

// DeleteEdgeByID is refused: edges have no IDs here.
func (l *local) DeleteEdgeByID(replication.EdgeID) error { return errEdgeIDs }
