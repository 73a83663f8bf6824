package boltgraph

import (
	"bytes"
	"slices"
)

// A layer is a sorted map in memory: changes that the file does not have yet. It
// is a B-tree that is copied where it is written, so that who holds a root sees
// what was there when it took it. Nothing is ever removed from a layer: a key
// that was deleted has the value nil. A nil root is an empty layer.
type layerNode struct {
	owner    *owner // who may write to it in place
	items    []item // sorted; at most maxItems but while one is put
	children []*layerNode
}

// len(children) == 0, or len(items)+1

type item struct{ key, value []byte }

const (
	maxItems  = 32
	itemBytes = 96 // what an item takes beside its key and value, about
)

// find returns where key is, or belongs.
func (n *layerNode) find(key []byte) (int, bool) {
	low, high := 0, len(n.items)
	for low < high {
		middle := (low + high) / 2
		switch c := bytes.Compare(n.items[middle].key, key); {
		case c == 0:
			return middle, true
		case c < 0:
			low = middle + 1
		default:
			high = middle
		}
	}
	return low, false
}

// get returns the value of a key; known says whether the layer has one, nil for
// a key that was deleted.
func (n *layerNode) get(key []byte) (value []byte, known bool) {
	for n != nil {
		i, found := n.find(key)
		if found {
			return n.items[i].value, true
		}
		if len(n.children) == 0 {
			return nil, false
		}
		n = n.children[i]
	}
	return nil, false
}

// owner is an edit between two looks at its layer. Nodes keep it, so it holds
// on to nothing, least of all to the layers that the edit was made over.
type owner struct{ _ byte }

// layerEdit is a layer being written by one transaction. It is done with when
// its root is handed to readers.
type layerEdit struct {
	root  *layerNode
	bytes int    // what the items added take
	owner *owner // nil: nothing was written, or not since a view that is in use
	views int    // in use
	seen  bool   // one of them may show what owner owns; only while views > 0
}

// view is the layer as it is now: what is put before done is called does not
// change it. A transaction looks for edges far more often than it finds one, so
// a view that is done with costs what is put afterwards no copy.
func (e *layerEdit) view() *layerNode {
	e.views++
	e.seen = true
	return e.root
}

// done ends a view.
func (e *layerEdit) done() {
	e.views--
	e.seen = e.seen && e.views > 0
}

// put sets a key. It keeps both slices.
func (e *layerEdit) put(key, value []byte) {
	if e.owner == nil || e.seen {
		e.owner, e.seen = new(owner), false
	}
	if e.root == nil {
		e.root = &layerNode{owner: e.owner}
	}
	e.root = e.own(e.root)
	e.insert(e.root, key, value)
	if len(e.root.items) > maxItems {
		middle, right := e.split(e.root)
		e.root = &layerNode{owner: e.owner, items: []item{middle}, children: []*layerNode{e.root, right}}
	}
}

// own returns n, or a copy of it, that e may write to.
func (e *layerEdit) own(n *layerNode) *layerNode {
	if n.owner == e.owner {
		return n
	}
	return &layerNode{owner: e.owner, items: append(make([]item, 0, len(n.items)+4), n.items...), children: slices.Clone(n.children)}
}

func (e *layerEdit) insert(n *layerNode, key, value []byte) {
	i, found := n.find(key)
	if found {
		e.bytes += len(value) - len(n.items[i].value)
		n.items[i].value = value
		return
	}
	if len(n.children) == 0 {
		e.bytes += len(key) + len(value) + itemBytes
		n.items = slices.Insert(n.items, i, item{key, value})
		return
	}
	child := e.own(n.children[i])
	n.children[i] = child
	e.insert(child, key, value)
	if len(child.items) > maxItems {
		middle, right := e.split(child)
		n.items = slices.Insert(n.items, i, middle)
		n.children = slices.Insert(n.children, i+1, right)
	}
}

// split cuts n, which e owns, at its middle.
func (e *layerEdit) split(n *layerNode) (middle item, right *layerNode) {
	m := len(n.items) / 2
	middle = n.items[m]
	right = &layerNode{owner: e.owner, items: slices.Clone(n.items[m+1:])}
	clear(n.items[m:])
	n.items = n.items[:m]
	if len(n.children) > 0 {
		right.children = slices.Clone(n.children[m+1:])
		clear(n.children[m+1:])
		n.children = n.children[:m+1]
	}
	return middle, right
}

// layerCursor walks a layer in key order.
type layerCursor struct {
	stack []layerFrame // the next item is at the top
}

type layerFrame struct {
	node *layerNode
	next int // index of its next item, < len(node.items)
}

// seek returns a cursor before the first key that is not below from.
func (n *layerNode) seek(from []byte) *layerCursor {
	c := new(layerCursor)
	for n != nil {
		i, found := n.find(from)
		if i < len(n.items) {
			c.stack = append(c.stack, layerFrame{n, i})
		}
		if found || len(n.children) == 0 {
			break
		}
		n = n.children[i]
	}
	return c
}

// item is the one that the cursor stands before; a nil key: there is none.
func (c *layerCursor) item() (k, v []byte) {
	if len(c.stack) == 0 {
		return nil, nil
	}
	top := c.stack[len(c.stack)-1]
	it := top.node.items[top.next]
	return it.key, it.value
}

// advance passes the item.
func (c *layerCursor) advance() {
	top := &c.stack[len(c.stack)-1]
	node, after := top.node, top.next+1
	top.next = after
	if after == len(node.items) {
		c.stack = c.stack[:len(c.stack)-1]
	}
	if len(node.children) == 0 {
		return
	}
	for n := node.children[after]; ; n = n.children[0] {
		if len(n.items) > 0 {
			c.stack = append(c.stack, layerFrame{n, 0})
		}
		if len(n.children) == 0 {
			return
		}
	}
}
