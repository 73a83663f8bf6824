package testharness

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

var errOnPurpose = errors.New("on purpose")

// txCalls are calls of a transaction, each of which changes something.
func txCalls() []func(replication.Tx) error {
	return []func(replication.Tx) error{
		func(tx replication.Tx) error { return tx.CreateNode(&replication.Node{ID: universeNode(3)}) },
		func(tx replication.Tx) error {
			return tx.ApplyCommand(&replication.Command{Type: replication.CmdPutNode, Data: []byte(`{"id":"node/0","properties":{"tx":1}}`)})
		},
		func(tx replication.Tx) error { return tx.CreateEdge(testEdge(3, 0, 0)) },
		func(tx replication.Tx) error { return tx.SetMeta([]byte("new"), []byte("row")) },
		func(tx replication.Tx) error { return tx.SetMeta([]byte("old"), nil) },
		func(tx replication.Tx) error { return tx.SetProperty(universeNode(0), "p", 1.5) },
		func(tx replication.Tx) error { return tx.DeleteNode(universeNode(1)) },
		func(tx replication.Tx) error { return tx.SetWALPosition(8) },
	}
}

// prepared fills the store so that every one of txCalls succeeds.
func (c *suite) prepared() (before string) {
	c.Helper()
	c.someGraph(c.Storage, 2)
	require.NoError(c, c.tx().Update(func(tx replication.Tx) error {
		return errors.Join(tx.SetMeta([]byte("old"), []byte("row")), tx.SetWALPosition(7))
	}))
	return c.observe(c.Storage)
}

// checkRollback: a transaction that ends in an error or a panic leaves nothing,
// after however many calls; one that succeeds sees its own writes.
func checkRollback(c *suite) {
	before := c.prepared()
	calls := txCalls()
	for n := range len(calls) + 1 {
		for _, panics := range []bool{false, true} {
			err := c.endUpdate(func(tx replication.Tx) error {
				for _, call := range calls[:n] {
					if err := call(tx); err != nil {
						return err
					}
				}
				if panics {
					panic(errOnPurpose)
				}
				return fmt.Errorf("wrapped: %w", errOnPurpose)
			})
			require.ErrorIs(c, err, errOnPurpose, "Update returns the error of its function")
			require.Equal(c, before, c.observe(c.Storage), "left by a transaction that ended after %d calls, panic: %v", n, panics)
		}
	}
	// A verdict within a transaction does not end it, and changes nothing.
	require.NoError(c, c.endUpdate(func(tx replication.Tx) error {
		c.verdict(replication.ErrExists, tx.CreateNode(&replication.Node{ID: universeNode(0)}), "within a transaction")
		c.verdict(replication.ErrMissingEnd, tx.CreateEdge(testEdge(0, 4, 0)), "within a transaction")
		return nil
	}))
	require.Equal(c, before, c.observe(c.Storage))
	require.NoError(c, c.endUpdate(func(tx replication.Tx) error {
		for i, call := range calls {
			require.NoError(c, call(tx), "call %d", i)
		}
		c.ownWrites(tx)
		return nil
	}))
	require.NotEqual(c, before, c.observe(c.Storage))
	c.node(c.Storage, 0, nil, map[string]any{"tx": int64(1), "p": 1.5})
}

// ownWrites looks at the effects of txCalls from within the transaction.
func (c *suite) ownWrites(tx replication.Tx) {
	c.Helper()
	pos, err := tx.GetWALPosition()
	require.NoError(c, err)
	require.Equal(c, uint64(8), pos)
	row, err := tx.GetMeta([]byte("new"))
	require.NoError(c, err)
	require.Equal(c, "row", string(row))
	row, err = tx.GetMeta([]byte("old"))
	require.NoError(c, err)
	require.Nil(c, row)
	c.verdict(replication.ErrExists, tx.CreateEdge(testEdge(3, 0, 0)), "made in the same transaction")
	c.verdict(replication.ErrNotFound, tx.DeleteNode(universeNode(1)), "deleted in the same transaction")
}

// endUpdate runs a transaction to its end, however it ends. The function runs
// in a goroutine of its own only for its time limit; it ends before endUpdate.
func (c *suite) endUpdate(fn func(replication.Tx) error) error {
	c.Helper()
	done := make(chan error, 1)
	go func() {
		err := errGone
		defer func() {
			if r := recover(); r != nil {
				err, _ = r.(error)
			}
			done <- err
		}()
		err = c.tx().Update(fn)
	}()
	timer := time.NewTimer(c.patience)
	defer timer.Stop()
	select {
	case err := <-done:
		if errors.Is(err, errGone) {
			c.FailNow() // a requirement within fn failed
		}
		return err
	case <-timer.C:
		c.Errorf("Update has not returned within %s", c.patience)
		c.FailNow()
		return nil
	}
}

var errGone = errors.New("the goroutine ended in the transaction")

// checkTransactionCrash: a process that dies between any two calls of a
// transaction leaves the state before it; one that dies when Update has
// returned leaves the state after it, position and graph in step.
func checkTransactionCrash(c *suite) {
	before := c.prepared()
	require.Equal(c, before, c.observe(c.crash()))
	require.NoError(c, c.tx().Update(func(tx replication.Tx) error {
		for i, call := range txCalls() {
			if err := call(tx); err != nil {
				return err
			}
			require.Equal(c, before, c.observe(c.crash()), "the process died after call %d of a transaction", i)
		}
		return nil
	}))
	after := c.observe(c.Storage)
	require.NotEqual(c, before, after)
	require.Equal(c, after, c.observe(c.crash()), "the process died after the transaction")
}

// checkExactlyOnce: after a crash between any two writes the applier stands
// where the graph does, and knows what it has applied.
func checkExactlyOnce(c *suite) {
	live, err := replication.NewStorageApplier(c.Storage)
	require.NoError(c, err)
	require.NoError(c, live.Found(replication.Identity{History: "h", Base: 1}))
	for i := range universeNodes {
		cmd, err := replication.NewNodeCommand(replication.CmdCreateNode, &replication.Node{ID: universeNode(i)})
		require.NoError(c, err)
		cmd.RequestID = fmt.Sprint("request ", i)
		position := uint64(2 + i)
		group := []replication.Group{replication.NewGroup(cmd)}
		_, err = live.Apply([]replication.Entry{{Position: position, Groups: group}})
		require.NoError(c, err)

		crashed := c.crash()
		again, err := replication.NewStorageApplier(crashed)
		require.NoError(c, err)
		require.Equal(c, position, again.Position())
		require.Equal(c, live.Identity(), again.Identity())
		want := c.content(crashed)
		results, err := again.Apply([]replication.Entry{{Position: position + 1, Groups: group}})
		require.NoError(c, err)
		require.NoError(c, results[0][0].Err, "a retry after the crash gets the first outcome, not the verdict of a second try")
		require.Equal(c, position, results[0][0].Position)
		require.Equal(c, want, c.content(crashed), "a retry after the crash changed something")
	}
}

// checkPlainPosition: without transactions the position follows each command,
// so that a crash repeats one command at most.
func checkPlainPosition(c *suite) {
	var beforePosition func()
	live, err := replication.NewStorageApplier(&positionHook{Storage: c.Storage, before: func() { beforePosition() }})
	require.NoError(c, err)
	for i := range universeNodes {
		cmd, err := replication.NewNodeCommand(replication.CmdCreateNode, &replication.Node{ID: universeNode(i)})
		require.NoError(c, err)
		requireAt := func(s replication.Storage, want uint64) {
			pos, err := s.GetWALPosition()
			require.NoError(c, err)
			require.Equal(c, want, pos)
			c.verdict(replication.ErrExists, s.CreateNode(&replication.Node{ID: universeNode(i)}), "the command before the crash")
		}
		beforePosition = func() { requireAt(c.crash(), uint64(i)) }
		_, err = live.Apply([]replication.Entry{{Position: uint64(i + 1), Groups: []replication.Group{replication.NewGroup(cmd)}}})
		require.NoError(c, err)
		requireAt(c.crash(), uint64(i+1))
	}
}

type positionHook struct {
	replication.Storage
	before func()
}

func (h *positionHook) SetWALPosition(pos uint64) error {
	h.before()
	return h.Storage.SetWALPosition(pos)
}

func checkMetadata(c *suite) {
	rows := map[string]string{"a": "1", "a\x00": "2", "a\x00\xff": "3", "ab": "", "b": "5", "\xff": "6", "\xff\xff": "7",
		"big": string(bytes.Repeat([]byte("x"), 100<<10))}
	set := func(tx replication.Tx) error {
		for k, v := range rows {
			if err := tx.SetMeta([]byte(k), []byte(v)); err != nil {
				return err
			}
		}
		return errors.Join(tx.SetMeta([]byte("gone"), []byte("x")), tx.SetMeta([]byte("gone"), nil), tx.SetMeta([]byte("never"), nil),
			tx.SetMeta([]byte("a"), []byte("0")), tx.SetMeta([]byte("a"), []byte("1")))
	}
	look := func(m replication.Meta) {
		for k, want := range rows {
			v, err := m.GetMeta([]byte(k))
			require.NoError(c, err)
			require.NotNil(c, v, "row %q", k)
			require.True(c, want == string(v), "row %q is %.20q", k, v)
		}
		for _, k := range []string{"gone", "never", "aa"} {
			v, err := m.GetMeta([]byte(k))
			require.NoError(c, err)
			require.Nil(c, v, "row %q", k)
		}
		for _, prefix := range []string{"", "a", "a\x00", "ab", "\xff", "nothing"} {
			c.scan(m, prefix, rows)
		}
		calls := 0
		err := m.ScanMeta(nil, func(_, _ []byte) error { calls++; return errOnPurpose })
		require.ErrorIs(c, err, errOnPurpose)
		require.Equal(c, 1, calls, "an error ends the scan")
	}
	require.NoError(c, c.tx().Update(func(tx replication.Tx) error {
		err := set(tx)
		look(tx)
		return err
	}))
	view := func(s replication.Storage) {
		require.NoError(c, s.(replication.TxStorage).View(func(m replication.Meta) error { look(m); return nil }))
	}
	view(c.Storage)
	c.steps(createNode(0, nil), deleteNode(0, nil)) // the graph and the rows do not meet
	view(c.Storage)
	if c.offers(abilityCrash) {
		view(c.crash())
	}
}

// scan requires the rows with a prefix, in key order.
func (c *suite) scan(m replication.Meta, prefix string, rows map[string]string) {
	c.Helper()
	var want, got []string
	for _, k := range slices.Sorted(maps.Keys(rows)) {
		if strings.HasPrefix(k, prefix) {
			want = append(want, fmt.Sprintf("%q=%.20q", k, rows[k]))
		}
	}
	require.NoError(c, m.ScanMeta([]byte(prefix), func(k, v []byte) error {
		got = append(got, fmt.Sprintf("%q=%.20q", k, v))
		return nil
	}))
	require.Equal(c, want, got, "rows with prefix %q", prefix)
}

// checkViews: a view shows one state, however many there are and whatever is
// written meanwhile; the writer may have to wait for it.
func checkViews(c *suite) {
	write := func(value string) error {
		return c.tx().Update(func(tx replication.Tx) error {
			return errors.Join(tx.SetMeta([]byte("first"), []byte(value)), tx.SetMeta([]byte("second"), []byte(value)))
		})
	}
	require.NoError(c, write("old"))
	written := make(chan error, 1)
	require.NoError(c, c.tx().View(func(m replication.Meta) error {
		c.within("a second view", func() error {
			return c.tx().View(func(other replication.Meta) error { _, err := other.GetMeta([]byte("first")); return err })
		})
		first, err := m.GetMeta([]byte("first"))
		require.NoError(c, err)
		go func() { written <- write("new") }()
		select { // the write is over, or waits for this view
		case err := <-written:
			written <- err
		case <-time.After(20 * time.Millisecond):
		}
		second, err := m.GetMeta([]byte("second"))
		require.NoError(c, err)
		require.Equal(c, string(first), string(second), "one view shows two states")
		return nil
	}))
	c.within("a write after the view", func() error { return <-written })
	// A view in a transaction's midst does not see it.
	require.NoError(c, c.endUpdate(func(tx replication.Tx) error {
		return tx.SetMeta([]byte("first"), []byte("newest"))
	}))
	require.NoError(c, c.tx().View(func(m replication.Meta) error {
		v, err := m.GetMeta([]byte("first"))
		require.Equal(c, "newest", string(v))
		return err
	}))
}
