package testharness

import "iter"

// tree is an immutable sorted map: set and remove return a new tree that
// shares all but one path with the old one, so that a snapshot, a transaction
// and a roll-back are each a copy of the root. It is a weight-balanced tree
// (Adams, "Implementing Sets Efficiently in a Functional Language", 1992; the
// balance parameters of Hirai and Yamamoto, 2011).
type tree[K, V any] struct {
	compare func(a, b K) int
	root    *branch[K, V]
}

type branch[K, V any] struct {
	key         K
	val         V
	size        int // of the whole branch
	left, right *branch[K, V]
}

// A side may be balanceDelta times as heavy as the other; balanceGamma decides
// between a single and a double rotation.
const (
	balanceDelta = 3
	balanceGamma = 2
)

func (b *branch[K, V]) len() int {
	if b == nil {
		return 0
	}
	return b.size
}

func (t tree[K, V]) len() int { return t.root.len() }

func (t tree[K, V]) get(key K) (val V, ok bool) {
	for b := t.root; b != nil; {
		switch c := t.compare(key, b.key); {
		case c < 0:
			b = b.left
		case c > 0:
			b = b.right
		default:
			return b.val, true
		}
	}
	return val, false
}

func (t tree[K, V]) has(key K) bool {
	_, ok := t.get(key)
	return ok
}

func (t tree[K, V]) set(key K, val V) tree[K, V] {
	root, _ := t.insert(t.root, key, val)
	return tree[K, V]{t.compare, root}
}

// insert is b with a key; grew: it did not have it.
func (t tree[K, V]) insert(b *branch[K, V], key K, val V) (with *branch[K, V], grew bool) {
	if b == nil {
		return &branch[K, V]{key: key, val: val, size: 1}, true
	}
	left, right := b.left, b.right
	switch c := t.compare(key, b.key); {
	case c < 0:
		left, grew = t.insert(b.left, key, val)
	case c > 0:
		right, grew = t.insert(b.right, key, val)
	default:
		return &branch[K, V]{key: key, val: val, size: b.size, left: left, right: right}, false
	}
	if grew {
		return balanced(b, left, right), true
	}
	return &branch[K, V]{key: b.key, val: b.val, size: b.size, left: left, right: right}, false // no weight has changed
}

func (t tree[K, V]) remove(key K) tree[K, V] {
	if !t.has(key) {
		return t
	}
	return tree[K, V]{t.compare, t.without(t.root, key)}
}

// without is b less the key, which it has.
func (t tree[K, V]) without(b *branch[K, V], key K) *branch[K, V] {
	switch c := t.compare(key, b.key); {
	case c < 0:
		return balanced(b, t.without(b.left, key), b.right)
	case c > 0:
		return balanced(b, b.left, t.without(b.right, key))
	case b.left == nil:
		return b.right
	case b.right == nil:
		return b.left
	default:
		first, rest := cutFirst(b.right)
		return balanced(first, b.left, rest)
	}
}

// cutFirst takes the least key out of a branch.
func cutFirst[K, V any](b *branch[K, V]) (first, rest *branch[K, V]) {
	if b.left == nil {
		return b, b.right
	}
	first, rest = cutFirst(b.left)
	return first, balanced(b, rest, b.right)
}

// joined is the content of b between two branches, whose weights fit.
func joined[K, V any](b, left, right *branch[K, V]) *branch[K, V] {
	return &branch[K, V]{key: b.key, val: b.val, size: 1 + left.len() + right.len(), left: left, right: right}
}

// balanced is joined where one of the two branches may be one key too heavy or
// too light.
func balanced[K, V any](b, left, right *branch[K, V]) *branch[K, V] {
	l, r := left.len(), right.len()
	switch {
	case l+r < 2:
		return joined(b, left, right)
	case r > balanceDelta*l:
		if right.left.len() < balanceGamma*right.right.len() {
			return joined(right, joined(b, left, right.left), right.right)
		}
		mid := right.left
		return joined(mid, joined(b, left, mid.left), joined(right, mid.right, right.right))
	case l > balanceDelta*r:
		if left.right.len() < balanceGamma*left.left.len() {
			return joined(left, left.left, joined(b, left.right, right))
		}
		mid := left.right
		return joined(mid, joined(left, left.left, mid.left), joined(b, mid.right, right))
	default:
		return joined(b, left, right)
	}
}

// all iterates in key order.
func (t tree[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) { t.root.walk(nil, yield) }
}

// from iterates in key order over the keys that are not less than key.
func (t tree[K, V]) from(key K) iter.Seq2[K, V] {
	less := func(k K) bool { return t.compare(k, key) < 0 }
	return func(yield func(K, V) bool) { t.root.walk(less, yield) }
}

// walk passes over the keys for which skip holds; it holds for none above one
// for which it does not.
func (b *branch[K, V]) walk(skip func(K) bool, yield func(K, V) bool) bool {
	if b == nil {
		return true
	}
	if skip != nil && skip(b.key) {
		return b.right.walk(skip, yield)
	}
	return b.left.walk(skip, yield) && yield(b.key, b.val) && b.right.walk(nil, yield)
}
