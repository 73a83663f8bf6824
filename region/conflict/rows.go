package conflict

import (
	"bytes"
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
//	q <region><block>    what to look at when writes are stable (queue.go)
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

// Versions of rows. A node that is shown, all of whose labels and properties have
// one version of one write, has a row of its own kind, which leaves their values
// to the Storage: nearly every row is of that kind.
const (
	headerVersion = 3
	rowVersion    = 1
	rowShownWrite = 3
)

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

// nodeOfRow is the ID in the key of a node's row; not ok: it is another key.
func nodeOfRow(key []byte) (id []byte, ok bool) {
	if !bytes.HasPrefix(key, []byte(rowNode)) {
		return nil, false
	}
	rest := key[len(rowNode):]
	size, n := binary.Uvarint(rest)
	return rest[max(n, 0):], n > 0 && size == uint64(len(rest)-n)
}

// splitRow reads the parts of a node, edge or index key.
func splitRow(key []byte) (kind byte, parts []string, err error) {
	r := newReader(key[min(len(key), len(rowPrefix)):])
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
	// rows and bytes of nodes and edges; conflict rows; those of the rows that
	// are edges'.
	rows, bytes, conflicts, edgeRows uint64
}

func (h *header) encode() []byte {
	w := make(writer, 0, 256)
	w.byte(headerVersion)
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
	w.uint(h.edgeRows)
	if h.unmarked {
		w.byte(1)
	} else {
		w.byte(0)
	}
	return w
}

func decodeHeader(b []byte) (h header, err error) {
	r := newReader(b)
	if v := r.byte(); v != headerVersion {
		return h, fmt.Errorf("%w: header of format version %d, this program knows %d", ErrDamagedRow, v, headerVersion)
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
	h.rows, h.bytes, h.conflicts, h.edgeRows = r.uint(), r.uint(), r.uint(), r.uint()
	if h.edgeRows > h.rows {
		r.fail()
	}
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

// appendRow appends the node's row.
func (n *node) appendRow(w *writer, flags byte) {
	if v, ok := n.wholeWrite(); ok && flags&flagShown != 0 {
		w.byte(rowShownWrite)
		w.byte(flags)
		w.dot(v.dot)
		w.uint(v.time)
		w.vector(&n.labels.pending)
		w.birth(&n.birth)
		if n.bornBy(v) {
			w.byte(1)
			return
		}
		w.byte(0)
		w.register(&n.life)
		return
	}
	n.appendRegisters(w, flags)
}

// appendRegisters appends a row that has all values.
func (n *node) appendRegisters(w *writer, flags byte) {
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
}

// wholeWrite says whether all labels and properties are of one write of the whole
// node that is not settled, and returns it.
func (n *node) wholeWrite() (v *version, ok bool) {
	if len(n.labels.versions) != 1 || n.labels.versions[0].dot == (Dot{}) {
		return nil, false
	}
	v = &n.labels.versions[0]
	if !n.fill.isPartOf(&n.labels) || n.fill.versions[0].value != "" {
		return nil, false
	}
	for i := range n.props {
		if !n.props[i].isPartOf(&n.labels) {
			return nil, false
		}
	}
	return v, true
}

// bornBy says whether the write of all labels and properties is all that is known
// of the node's life, too.
func (n *node) bornBy(v *version) bool {
	return n.life.isPartOf(&n.labels) && n.life.versions[0].value == exists
}

// isPartOf says whether both registers have one version, of the same write.
func (r *register) isPartOf(o *register) bool {
	return len(r.versions) == 1 && len(o.versions) == 1 && r.versions[0].dot == o.versions[0].dot &&
		r.versions[0].time == o.versions[0].time && r.pending == o.pending
}

func decodeNode(id string, b []byte) (*node, error) {
	n := &node{id: id}
	return n, n.decode(b)
}

// decode fills a blank node.
func (n *node) decode(b []byte) error {
	r := newReader(b)
	switch r.byte() {
	case rowVersion:
		n.readRegisters(r)
	case rowShownWrite:
		n.readShownWrite(r)
	default:
		r.fail()
	}
	stored := n.life.stored || n.labels.stored || n.fill.stored
	if err := r.done(); err != nil || stored && !n.inStorage {
		return fmt.Errorf("%w: node %q", ErrDamagedRow, n.id)
	}
	return nil
}

func (n *node) readRegisters(r *reader) {
	n.flags(r.byte())
	n.life, n.labels, n.fill = r.register(), r.register(), r.register()
	n.birth = r.birth()
	for i, count := 0, n.makeProps(r); i < count && r.err == nil; i++ {
		n.props = append(n.props, property{name: r.string(), register: r.register()})
		n.checkOrder(r)
	}
}

// readShownWrite reads a row that leaves values to the Storage; see fetch.
func (n *node) readShownWrite(r *reader) {
	n.flags(r.byte())
	v := version{dot: r.dot(), time: r.uint()}
	pending := r.vector()
	n.birth = r.birth()
	one := func(value string) register {
		versions := r.room(1)
		versions[0] = version{v.dot, v.time, value}
		return register{versions: versions, pending: pending}
	}
	n.labels, n.fill, n.bare = one(""), one(""), true
	switch r.byte() {
	case 1:
		n.life = one(exists)
	case 0:
		if n.life = r.register(); n.bornBy(&v) { // has the other form
			r.fail()
		}
	default:
		r.fail()
	}
	if v.dot == (Dot{}) || !n.inStorage {
		r.fail()
	}
}

// makeProps reads how many properties follow, and makes room for as many as the
// input backs.
func (n *node) makeProps(r *reader) int {
	count := r.count(2)
	if size := min(count, 16); size > cap(n.props) {
		n.props = make([]property, 0, size)
	}
	return count
}

// checkOrder: the property that was read last sorts behind the one before.
func (n *node) checkOrder(r *reader) {
	if i := len(n.props) - 1; i > 0 && n.props[i].name <= n.props[i-1].name {
		r.fail()
	}
}

// rowHead is how the row of a shown write begins.
type rowHead struct {
	flags   byte
	dot     Dot
	pending Vector
	birth   birth
}

// peekShownWrite reads a node's row of which one write is all that is known; not
// ok: it is of another kind.
func peekShownWrite(row []byte) (h rowHead, ok bool) {
	r := &reader{b: row}
	if r.byte() != rowShownWrite {
		return h, false
	}
	h.flags = r.byte()
	h.dot = r.dot()
	r.uint()
	h.pending, h.birth = r.vector(), r.birth()
	return h, r.byte() == 1 && r.done() == nil
}

// appendRow appends the edge's row.
func (e *edge) appendRow(w *writer, flags byte) {
	w.byte(rowVersion)
	w.byte(flags)
	w.register(&e.reg)
}

func decodeEdge(k edgeKey, b []byte) (*edge, error) {
	r := newReader(b)
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
