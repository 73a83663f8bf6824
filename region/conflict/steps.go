package conflict

import (
	"bytes"
	"errors"
	"slices"

	"github.com/nornicdb/replication"
)

// A step of what goes over all rows takes this many of them, or as many as have
// values of this many bytes, about. After a state was merged so many keys are put
// into the queues together, which reads and writes the blocks that they belong
// to. Where a step ends depends on replicated state alone; variables only for
// tests.
var (
	stepRows  = 256
	stepBytes = 1 << 20
	laterKeys = 1 << 15
)

// inSteps calls do for each key that next gives, and save and reset after each
// step. do returns about how much it has loaded.
func (c *Core) inSteps(next func() (string, error), do func(key string) (int, error), save func() error) error {
	for {
		rows, size := 0, 0
		for rows < stepRows && size < stepBytes {
			key, err := next()
			if err != nil {
				return err
			}
			if key == "" {
				break
			}
			n, err := do(key)
			if err != nil {
				return err
			}
			rows++
			size += n
		}
		if rows == 0 {
			return nil
		}
		if err := save(); err != nil {
			return err
		}
		c.reset()
	}
}

// examineAll looks at every row, as after a state has brought many writes into
// the cut at once.
func (c *Core) examineAll() error {
	cut := c.head.cut()
	var later waiting
	for _, prefix := range []string{rowNode, rowEdge} {
		own := keyCursor{m: c.store, prefix: prefix}
		err := c.inSteps(own.next, func(text string) (int, error) {
			key := []byte(text)[len(rowPrefix):]
			wait, err := c.examine(key, &cut)
			if err == nil && wait != (Dot{}) {
				later.add(wait, key)
			}
			return len(key), err
		}, func() error {
			if len(later.dots) < laterKeys {
				return nil
			}
			return c.enqueueMany(&later)
		})
		if err != nil {
			return err
		}
	}
	return c.enqueueMany(&later)
}

// enqueueMany is enqueueLater for many keys: it holds few blocks at a time.
func (c *Core) enqueueMany(w *waiting) error {
	order := make([]int, len(w.dots))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int { return blockOf(w.dots[i]).compare(blockOf(w.dots[j])) })
	for n, i := range order {
		if n > 0 && blockOf(w.dots[i]) != blockOf(w.dots[order[n-1]]) {
			if err := c.saveBlocks(); err != nil {
				return err
			}
		}
		if err := c.enqueue(w.dots[i], w.keys[i]); err != nil {
			return err
		}
	}
	*w = waiting{}
	return c.saveBlocks()
}

// bytes is about what the versions take.
func (r *register) bytes() (n int) {
	for i := range r.versions {
		n += len(r.versions[i].value)
	}
	return n
}

// errPage ends the scan of a page.
var errPage = errors.New("the page is full")

// keyCursor goes over the keys of rows in order. Between two keys the rows may
// change; of those changed behind it it sees nothing.
type keyCursor struct {
	m      replication.Meta
	prefix string
	page   []string // not given yet
	from   []byte   // where the next page begins; nil: nothing was read
	over   bool     // there is none
}

// peek is the next key, "" at the end.
func (k *keyCursor) peek() (string, error) {
	if len(k.page) == 0 && !k.over {
		if err := k.read(); err != nil {
			return "", err
		}
	}
	if len(k.page) == 0 {
		return "", nil
	}
	return k.page[0], nil
}

// next gives the next key.
func (k *keyCursor) next() (string, error) {
	key, err := k.peek()
	if key != "" {
		k.page = k.page[1:]
	}
	return key, err
}

// read reads a page; where scans cannot begin in the middle, all of them.
func (k *keyCursor) read() error {
	k.page = nil
	take := func(key, _ []byte) error {
		k.page = append(k.page, string(key))
		return nil
	}
	seeker, ok := k.m.(replication.MetaSeeker)
	if !ok {
		k.over = true
		return k.m.ScanMeta([]byte(k.prefix), take)
	}
	err := seeker.ScanMetaFrom([]byte(k.prefix), k.from, func(key, v []byte) error {
		if len(k.page) == stepRows {
			k.from = bytes.Clone(key)
			return errPage
		}
		return take(key, v)
	})
	if err == errPage {
		return nil
	}
	k.over = true
	return err
}

// union goes over the keys of two sets of rows, each once.
type union [2]keyCursor

func newUnion(prefix string, a, b replication.Meta) *union {
	return &union{{m: a, prefix: prefix}, {m: b, prefix: prefix}}
}

// next is the next key, "" at the end.
func (u *union) next() (string, error) {
	a, err := u[0].peek()
	if err != nil {
		return "", err
	}
	b, err := u[1].peek()
	if err != nil {
		return "", err
	}
	lowest := a
	if a == "" || b != "" && b < a {
		lowest = b
	}
	for i := range u {
		if key, _ := u[i].peek(); key == lowest { // it has been read
			_, _ = u[i].next()
		}
	}
	return lowest, nil
}
