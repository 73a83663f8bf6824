package conflict

import (
	"cmp"
	"encoding/binary"
	"fmt"
)

// Metadata rows. Parts of a key have their length before them, so that any ID
// is a key and all edges that start at a node are one prefix.
//
//	h                    header
//	n <node>             node
//	e <from><type><to>   edge
//	i <to><from><type>   index of the edge rows by their end, empty
//	q <region><pos>      what to look at when the write is stable
//	c <kind><…>          manual: the node or edge has a conflict, empty
const (
	// RowPrefix begins the keys of all rows of this package.
	RowPrefix   = "replication/conflict/"
	rowPrefix   = RowPrefix
	rowHeader   = rowPrefix + "h"
	rowNode     = rowPrefix + "n"
	rowEdge     = rowPrefix + "e"
	rowIn       = rowPrefix + "i"
	rowQueue    = rowPrefix + "q"
	rowConflict = rowPrefix + "c"
)

const rowVersion = 1

// flags of node and edge rows
const (
	flagShown    = 1 // the Storage has it
	flagConflict = 2 // there is a conflict row
)

// present is the value of rows that only have a key.
var present = []byte{1}

type edgeKey struct{ from, relType, to string }

func (k edgeKey) compare(o edgeKey) int {
	return cmp.Or(cmp.Compare(k.from, o.from), cmp.Compare(k.relType, o.relType), cmp.Compare(k.to, o.to))
}

func joinKey(prefix string, parts ...string) []byte {
	size := len(prefix)
	for _, p := range parts {
		size += len(p) + 3
	}
	w := make(writer, 0, size)
	w = append(w, prefix...)
	for _, p := range parts {
		w.string(p)
	}
	return w
}

func nodeRow(id string) []byte      { return joinKey(rowNode, id) }
func (k edgeKey) row() []byte       { return joinKey(rowEdge, k.from, k.relType, k.to) }
func (k edgeKey) inRow() []byte     { return joinKey(rowIn, k.to, k.from, k.relType) }
func conflictRow(row []byte) []byte { return append([]byte(rowConflict), row[len(rowPrefix):]...) }

func queueRow(d Dot) []byte {
	key := append(make([]byte, 0, len(rowQueue)+9), rowQueue...)
	return binary.BigEndian.AppendUint64(append(key, d.Region), d.Pos)
}

// splitRow reads the parts of a node, edge or index key.
func splitRow(key []byte) (kind byte, parts []string, err error) {
	r := &reader{b: key[min(len(key), len(rowPrefix)):]}
	kind = r.byte()
	for len(r.b) > 0 {
		parts = append(parts, r.string())
	}
	want := 3
	if kind == rowNode[len(rowPrefix)] {
		want = 1
	}
	if r.done() != nil || len(parts) != want {
		return 0, nil, fmt.Errorf("%w: key %q", ErrDamagedRow, key)
	}
	return kind, parts, nil
}

// header is the state of the region as a whole.
type header struct {
	settings Settings
	self     uint8
	// applied[r]: entries of r that are applied. applied ⊇ cut.
	applied Vector
	// seen[r]: what region r is known to have applied, from its own entries.
	seen [MaxRegions]Vector
	// lastTime ≥ the time of every own write.
	lastTime uint64
	// collected is the cut up to which the queues were worked off.
	collected Vector
	// unmarked: entries with effects were applied since the last own entry.
	unmarked bool
	// rows and bytes of nodes and edges; conflict rows.
	rows, bytes, conflicts uint64
}

func (h *header) encode() []byte {
	w := make(writer, 0, 256)
	w.byte(rowVersion)
	w.byte(byte(len(h.settings.Regions)))
	for _, r := range h.settings.Regions {
		w.string(r)
	}
	w.string(string(h.settings.Strategy))
	w.uint(h.settings.MaxClockOffsetMS)
	w.byte(h.self)
	w.vector(&h.applied)
	for i := range h.settings.Regions {
		w.vector(&h.seen[i])
	}
	w.uint(h.lastTime)
	w.vector(&h.collected)
	w.uint(h.rows)
	w.uint(h.bytes)
	w.uint(h.conflicts)
	if h.unmarked {
		w.byte(1)
	} else {
		w.byte(0)
	}
	return w
}

func decodeHeader(b []byte) (h header, err error) {
	r := &reader{b: b}
	if r.byte() != rowVersion {
		r.fail()
	}
	n := int(r.byte())
	for i := 0; i < n && r.err == nil; i++ {
		h.settings.Regions = append(h.settings.Regions, r.string())
	}
	h.settings.Strategy = Strategy(r.string())
	h.settings.MaxClockOffsetMS = r.uint()
	h.self = r.byte()
	h.applied = r.vector()
	for i := 0; i < min(n, MaxRegions); i++ {
		h.seen[i] = r.vector()
	}
	h.lastTime = r.uint()
	h.collected = r.vector()
	h.rows, h.bytes, h.conflicts = r.uint(), r.uint(), r.uint()
	switch r.byte() {
	case 0:
	case 1:
		h.unmarked = true
	default:
		r.fail()
	}
	if err := r.done(); err != nil {
		return h, fmt.Errorf("%w: header: %v", ErrDamagedRow, err)
	}
	if err := h.settings.Validate(); err != nil || int(h.self) >= n {
		return h, fmt.Errorf("%w: header: %v", ErrDamagedRow, err)
	}
	return h, nil
}

func (n *node) encode(flags byte) []byte {
	w := make(writer, 0, 64)
	w.byte(rowVersion)
	w.byte(flags)
	w.register(&n.life)
	w.register(&n.labels)
	w.register(&n.fill)
	w.birth(&n.birth)
	w.uint(uint64(len(n.props)))
	for i := range n.props {
		w.string(n.props[i].name)
		w.register(&n.props[i].register)
	}
	return w
}

func decodeNode(id string, b []byte) (*node, error) {
	n := &node{id: id}
	return n, n.decode(b)
}

// decode fills a blank node.
func (n *node) decode(b []byte) error {
	r := &reader{b: b}
	if r.byte() != rowVersion {
		r.fail()
	}
	n.flags(r.byte())
	n.life, n.labels, n.fill = r.register(), r.register(), r.register()
	n.birth = r.birth()
	for i, count := 0, r.count(3); i < count && r.err == nil; i++ {
		n.props = append(n.props, property{name: r.string(), register: r.register()})
		if i > 0 && n.props[i].name <= n.props[i-1].name {
			r.fail()
		}
	}
	stored := n.life.stored || n.labels.stored || n.fill.stored
	if err := r.done(); err != nil || stored && !n.inStorage {
		return fmt.Errorf("%w: node %q", ErrDamagedRow, n.id)
	}
	return nil
}

func (e *edge) encode(flags byte) []byte {
	w := make(writer, 0, 64)
	w.byte(rowVersion)
	w.byte(flags)
	w.register(&e.reg)
	return w
}

func decodeEdge(k edgeKey, b []byte) (*edge, error) {
	r := &reader{b: b}
	if r.byte() != rowVersion {
		r.fail()
	}
	e := &edge{id: k}
	e.flags(r.byte())
	e.reg = r.register()
	if err := r.done(); err != nil || e.reg.stored {
		return nil, fmt.Errorf("%w: edge %q", ErrDamagedRow, k)
	}
	return e, nil
}

// encodeQueue encodes row keys without their common prefix.
func encodeQueue(keys []string) []byte {
	w := make(writer, 0, 64)
	for _, k := range keys {
		w.string(k)
	}
	return w
}

func decodeQueue(b []byte) (keys []string, err error) {
	r := &reader{b: b}
	for len(r.b) > 0 {
		keys = append(keys, r.string())
	}
	if r.done() != nil {
		return nil, fmt.Errorf("%w: queue", ErrDamagedRow)
	}
	return keys, nil
}
