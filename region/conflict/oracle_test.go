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
}

type oracleWrite struct {
	dot    Dot
	time   uint64
	past   uint64     // the writes that its origin had applied
	covers uint32     // things whose earlier writes it replaces
	sets   uint32     // things it gives a value
	values [21]string // by thing
	fresh  [3]bool    // nodes it creates afresh
	births [3]uint64  // re-creations known to it, of nodes it says exist
}

// A thing is a small number.
func nodeThing(n int) int        { return n }
func labelsThing(n int) int      { return 3 + n }
func propThing(n, p int) int     { return 6 + 2*n + p }
func edgeThing(from, to int) int { return 12 + 3*from + to }

func nodeIndex(id string) int   { return slices.Index(oracleNodes, id) }
func propIndex(name string) int { return slices.Index(oracleProps, name) }

var (
	oracleNodes = []string{"a", "b", "c"}
	oracleProps = []string{"k", "l"}
)

// add takes in a write; ctx tells what its origin had.
func (o *oracle) add(e *Entry) {
	if e.Mark() {
		return
	}
	w := oracleWrite{dot: e.Dot, time: e.Time, past: o.set(e.Context)}
	put := func(thing int, value string) {
		w.covers |= 1 << thing
		w.sets |= 1 << thing
		w.values[thing] = value
	}
	exist := func(n int) {
		put(nodeThing(n), exists)
		w.births[n] |= o.births(w.past, n)
	}
	for i := range e.ops {
		p := &e.ops[i]
		n, to := nodeIndex(p.node), nodeIndex(p.to)
		switch p.kind {
		case opCreateNode, opUpdateNode:
			exist(n)
			put(labelsThing(n), p.value)
			for k, name := range oracleProps {
				put(propThing(n, k), propValue(p.props, name))
			}
			if p.kind == opCreateNode {
				w.fresh[n] = true
				for other := range oracleNodes { // what the batch made before
					w.sets &^= 1<<edgeThing(n, other) | 1<<edgeThing(other, n)
				}
			}
		case opDeleteNode:
			put(nodeThing(n), "")
		case opSetProperty:
			exist(n)
			put(propThing(n, propIndex(p.key)), p.value)
		case opPutEdge:
			exist(n)
			exist(to)
			put(edgeThing(n, to), p.value)
		case opDeleteEdge, opFixEdge:
			put(edgeThing(n, to), p.value)
		case opFixLife:
			exist(n)
		case opFixLabels:
			put(labelsThing(n), p.value)
		case opFixProperty:
			put(propThing(n, propIndex(p.key)), p.value)
		}
	}
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
func (o *oracle) births(set uint64, node int) (known uint64) {
	for ; set != 0; set &= set - 1 {
		i := bits.TrailingZeros64(set)
		known |= o.writes[i].births[node]
		if o.writes[i].fresh[node] {
			known |= 1 << i
		}
	}
	return known
}

// alive are the versions of a thing, given the nodes on whose re-creations it
// depends.
func (o *oracle) alive(set uint64, thing int, nodes ...int) (alive uint64) {
	var dead uint64
	for rest := set; rest != 0; rest &= rest - 1 {
		i := bits.TrailingZeros64(rest)
		w := &o.writes[i]
		if w.covers&(1<<thing) != 0 {
			dead |= w.past
		}
		if w.sets&(1<<thing) != 0 {
			alive |= 1 << i
		}
	}
	for _, n := range nodes {
		o.each(o.births(set, n), func(_ int, w *oracleWrite) { dead |= w.past })
	}
	return alive &^ dead
}

func (o *oracle) winner(alive uint64, thing int) (value string) {
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
		return ""
	}
	return o.writes[best].values[thing]
}

// nodeExists: the life winner says so, whether or not the node is shown.
func (o *oracle) nodeExists(set uint64, n int) bool {
	return o.winner(o.alive(set, nodeThing(n)), nodeThing(n)) == exists
}

func (o *oracle) nodeShown(set uint64, n int) bool {
	return o.nodeExists(set, n) && o.alive(set, labelsThing(n), n) != 0
}

func (o *oracle) edgeShown(set uint64, from, to int) bool {
	thing := edgeThing(from, to)
	return o.winner(o.alive(set, thing, from, to), thing) != "" && o.nodeShown(set, from) && o.nodeShown(set, to)
}

// graph is what a region that has applied the set shows.
func (o *oracle) graph(set uint64) string {
	var lines []string
	for n, id := range oracleNodes {
		if !o.nodeShown(set, n) {
			continue
		}
		labels := o.winner(o.alive(set, labelsThing(n), n), labelsThing(n))
		var props []string
		for p, name := range oracleProps {
			thing := propThing(n, p)
			if v := o.winner(o.alive(set, thing, n), thing); v != "" {
				props = append(props, fmt.Sprintf("%q:%s", name, v))
			}
		}
		lines = append(lines, fmt.Sprintf(`{"id":%q,"labels":%s,"properties":{%s}}`, id, labels, strings.Join(props, ",")))
		for to, end := range oracleNodes {
			if o.edgeShown(set, n, to) {
				v := o.winner(o.alive(set, edgeThing(n, to), n, to), edgeThing(n, to))
				lines = append(lines, fmt.Sprintf(`{"startNode":%q,"endNode":%q,"type":"T","properties":%s}`, id, end, v))
			}
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// anyAlive: some version says that the node exists.
func (o *oracle) anyAlive(set uint64, n int) (any bool) {
	o.each(o.alive(set, nodeThing(n)), func(_ int, w *oracleWrite) { any = any || w.values[nodeThing(n)] == exists })
	return any
}

// conflicts are the open conflicts, each as a text with its versions.
func (o *oracle) conflicts(set uint64) (all []string) {
	add := func(k Key, thing int, nodes ...int) {
		values := make(map[string]bool)
		var versions []string
		o.each(o.alive(set, thing, nodes...), func(_ int, w *oracleWrite) {
			values[w.values[thing]] = true
			versions = append(versions, fmt.Sprintf("%d/%d=%s", w.dot.Region, w.dot.Pos, w.values[thing]))
		})
		if len(values) > 1 {
			slices.Sort(versions)
			all = append(all, fmt.Sprintf("%v %v", k, versions))
		}
	}
	for n, id := range oracleNodes {
		if !o.anyAlive(set, n) {
			continue
		}
		add(Key{Field: FieldNode, Node: id}, nodeThing(n))
		add(Key{Field: FieldLabels, Node: id}, labelsThing(n), n)
		for p, name := range oracleProps {
			add(Key{Field: FieldProperty, Node: id, Property: name}, propThing(n, p), n)
		}
		for to, end := range oracleNodes {
			if o.anyAlive(set, to) {
				add(Key{Field: FieldEdge, Node: id, Type: "T", To: end}, edgeThing(n, to), n, to)
			}
		}
	}
	slices.Sort(all)
	return all
}
