package conflict

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
)

// The oracle says what a set of writes amounts to, by brute force over all
// writes that were ever made, from the definition alone: a version of a thing
// is alive in a set if no write of the thing in the set had it in its context,
// and no re-creation of the node that anybody in the set knew of had. It knows
// no register, no pending, no collection, and does not look at the births that
// entries carry. A set is a bit mask; a history has at most 64 writes.
type oracle struct {
	strategy Strategy
	writes   []oracleWrite
	index    map[Dot]int
}

type oracleWrite struct {
	dot    Dot
	time   uint64
	past   uint64            // the writes that its origin had applied
	covers map[string]bool   // things whose earlier writes it replaces
	values map[string]string // things it gives a value
	fresh  map[string]bool   // nodes it creates afresh
	births map[string]uint64 // re-creations known to it, by node it says exists
}

var (
	oracleNodes = []string{"a", "b", "c"}
	oracleProps = []string{"k", "l"}
)

func oracleEdges() (all [][2]string) {
	for _, from := range oracleNodes {
		for _, to := range oracleNodes {
			all = append(all, [2]string{from, to})
		}
	}
	return all
}

// add takes in a write; ctx tells what its origin had.
func (o *oracle) add(e *Entry) {
	if e.Mark() {
		return
	}
	w := oracleWrite{dot: e.Dot, time: e.Time, past: o.set(e.Context), covers: map[string]bool{},
		values: map[string]string{}, fresh: map[string]bool{}, births: map[string]uint64{}}
	put := func(thing, value string) { w.covers[thing], w.values[thing] = true, value }
	exist := func(node string) {
		put("n "+node, exists)
		w.births[node] |= o.births(w.past, node)
	}
	for i := range e.ops {
		p := &e.ops[i]
		edge := fmt.Sprintf("e %s %s", p.node, p.to)
		switch p.kind {
		case opCreateNode, opUpdateNode:
			exist(p.node)
			put("l "+p.node, p.value)
			for _, name := range oracleProps {
				put("p "+p.node+" "+name, propValue(p.props, name))
			}
			if p.kind == opCreateNode {
				w.fresh[p.node] = true
				for _, other := range oracleNodes { // what the batch made before
					delete(w.values, "e "+p.node+" "+other)
					delete(w.values, "e "+other+" "+p.node)
				}
			}
		case opDeleteNode:
			put("n "+p.node, "")
		case opSetProperty:
			exist(p.node)
			put("p "+p.node+" "+p.key, p.value)
		case opPutEdge:
			exist(p.node)
			exist(p.to)
			put(edge, p.value)
		case opDeleteEdge, opFixEdge:
			put(edge, p.value)
		case opFixLife:
			exist(p.node)
		case opFixLabels:
			put("l "+p.node, p.value)
		case opFixProperty:
			put("p "+p.node+" "+p.key, p.value)
		}
	}
	o.index[e.Dot] = len(o.writes)
	o.writes = append(o.writes, w)
}

func propValue(props []prop, name string) string {
	for _, p := range props {
		if p.name == name {
			return p.value
		}
	}
	return ""
}

// set is the writes that a vector covers.
func (o *oracle) set(v Vector) (s uint64) {
	for i := range o.writes {
		if v.Covers(o.writes[i].dot) {
			s |= 1 << i
		}
	}
	return s
}

func (o *oracle) each(set uint64, fn func(i int, w *oracleWrite)) {
	for ; set != 0; set &= set - 1 {
		i := bits.TrailingZeros64(set)
		fn(i, &o.writes[i])
	}
}

// births are the re-creations of the node that are in the set, or known to a
// write of the set that says the node exists.
func (o *oracle) births(set uint64, node string) (known uint64) {
	o.each(set, func(i int, w *oracleWrite) {
		known |= w.births[node]
		if w.fresh[node] {
			known |= 1 << i
		}
	})
	return known
}

// alive are the versions of a thing, given the nodes on whose re-creations it
// depends.
func (o *oracle) alive(set uint64, thing string, nodes ...string) (alive uint64) {
	var dead uint64
	o.each(set, func(i int, w *oracleWrite) {
		if w.covers[thing] {
			dead |= w.past
		}
		if _, ok := w.values[thing]; ok {
			alive |= 1 << i
		}
	})
	for _, n := range nodes {
		o.each(o.births(set, n), func(_ int, w *oracleWrite) { dead |= w.past })
	}
	return alive &^ dead
}

func (o *oracle) winner(alive uint64, thing string) (value string, ok bool) {
	best := -1
	o.each(alive, func(i int, w *oracleWrite) {
		if best >= 0 {
			b := &o.writes[best]
			later := w.time > b.time || w.time == b.time && (w.dot.Region > b.dot.Region ||
				w.dot.Region == b.dot.Region && w.dot.Pos > b.dot.Pos)
			if later == (o.strategy == FirstWriteWins) {
				return
			}
		}
		best = i
	})
	if best < 0 {
		return "", false
	}
	return o.writes[best].values[thing], true
}

// nodeExists: the life winner says so, whether or not the node is shown.
func (o *oracle) nodeExists(set uint64, node string) bool {
	v, _ := o.winner(o.alive(set, "n "+node), "n "+node)
	return v == exists
}

func (o *oracle) nodeShown(set uint64, node string) bool {
	return o.nodeExists(set, node) && o.alive(set, "l "+node, node) != 0
}

func (o *oracle) edgeShown(set uint64, from, to string) bool {
	thing := "e " + from + " " + to
	v, _ := o.winner(o.alive(set, thing, from, to), thing)
	return v != "" && o.nodeShown(set, from) && o.nodeShown(set, to)
}

// graph is what a region that has applied the set shows.
func (o *oracle) graph(set uint64) string {
	var lines []string
	for _, n := range oracleNodes {
		if !o.nodeShown(set, n) {
			continue
		}
		labels, _ := o.winner(o.alive(set, "l "+n, n), "l "+n)
		var props []string
		for _, p := range oracleProps {
			thing := "p " + n + " " + p
			if v, _ := o.winner(o.alive(set, thing, n), thing); v != "" {
				props = append(props, fmt.Sprintf("%q:%s", p, v))
			}
		}
		lines = append(lines, fmt.Sprintf(`{"id":%q,"labels":%s,"properties":{%s}}`, n, labels, strings.Join(props, ",")))
	}
	for _, e := range oracleEdges() {
		if o.edgeShown(set, e[0], e[1]) {
			thing := "e " + e[0] + " " + e[1]
			v, _ := o.winner(o.alive(set, thing, e[0], e[1]), thing)
			lines = append(lines, fmt.Sprintf(`{"startNode":%q,"endNode":%q,"type":"T","properties":%s}`, e[0], e[1], v))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// anyAlive: some version says that the node exists.
func (o *oracle) anyAlive(set uint64, node string) (any bool) {
	o.each(o.alive(set, "n "+node), func(_ int, w *oracleWrite) { any = any || w.values["n "+node] == exists })
	return any
}

// conflicts are the open conflicts, each as a text with its versions.
func (o *oracle) conflicts(set uint64) (all []string) {
	add := func(k Key, thing string, nodes ...string) {
		alive := o.alive(set, thing, nodes...)
		values := make(map[string]bool)
		var versions []string
		o.each(alive, func(_ int, w *oracleWrite) {
			values[w.values[thing]] = true
			versions = append(versions, fmt.Sprintf("%d/%d=%s", w.dot.Region, w.dot.Pos, w.values[thing]))
		})
		if len(values) > 1 {
			slices.Sort(versions)
			all = append(all, fmt.Sprintf("%v %v", k, versions))
		}
	}
	for _, n := range oracleNodes {
		if !o.anyAlive(set, n) {
			continue
		}
		add(Key{Field: FieldNode, Node: n}, "n "+n)
		add(Key{Field: FieldLabels, Node: n}, "l "+n, n)
		for _, p := range oracleProps {
			add(Key{Field: FieldProperty, Node: n, Property: p}, "p "+n+" "+p, n)
		}
	}
	for _, e := range oracleEdges() {
		if o.anyAlive(set, e[0]) && o.anyAlive(set, e[1]) {
			add(Key{Field: FieldEdge, Node: e[0], Type: "T", To: e[1]}, "e "+e[0]+" "+e[1], e[0], e[1])
		}
	}
	slices.Sort(all)
	return all
}
