package testharness

import (
	"fmt"
	"sync"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// An operationStep is a call and the verdict that it must get; nil is success.
type operationStep struct {
	what string
	call func(replication.Storage) error
	want error
}

func createNode(i int, want error) operationStep {
	return operationStep{fmt.Sprint("CreateNode ", i), func(s replication.Storage) error {
		return s.CreateNode(&replication.Node{ID: universeNode(i)})
	}, want}
}

func updateNode(i int, want error) operationStep {
	return operationStep{fmt.Sprint("UpdateNode ", i), func(s replication.Storage) error {
		return s.UpdateNode(&replication.Node{ID: universeNode(i), Labels: []string{"New"}, Properties: map[string]any{"b": int64(2)}})
	}, want}
}

func deleteNode(i int, want error) operationStep {
	return operationStep{fmt.Sprint("DeleteNode ", i), func(s replication.Storage) error { return s.DeleteNode(universeNode(i)) }, want}
}

func setProperty(i int, key string, value any, want error) operationStep {
	return operationStep{fmt.Sprint("SetProperty ", i, " ", key), func(s replication.Storage) error {
		return s.SetProperty(universeNode(i), key, value)
	}, want}
}

func testEdge(from, to, id int) *replication.Edge {
	return &replication.Edge{ID: universeEdgeID(id), StartNode: universeNode(from), EndNode: universeNode(to), Type: universeType(0)}
}

func createEdge(from, to, id int, want error) operationStep {
	return operationStep{fmt.Sprint("CreateEdge ", from, to, id), func(s replication.Storage) error { return s.CreateEdge(testEdge(from, to, id)) }, want}
}

func deleteEdge(from, to, kind int, want error) operationStep {
	return operationStep{fmt.Sprint("DeleteEdge ", from, to, kind), func(s replication.Storage) error {
		return s.DeleteEdge(universeNode(from), universeNode(to), universeType(kind))
	}, want}
}

func updateEdge(from, to, id int, props map[string]any, want error) operationStep {
	return operationStep{fmt.Sprint("UpdateEdge ", from, to, id), func(s replication.Storage) error {
		e := testEdge(from, to, id)
		e.Properties = props
		return s.(replication.EdgeStorage).UpdateEdge(e)
	}, want}
}

func deleteEdgeByID(id int, want error) operationStep {
	return operationStep{fmt.Sprint("DeleteEdgeByID ", id), func(s replication.Storage) error {
		return s.(replication.EdgeStorage).DeleteEdgeByID(universeEdgeID(id))
	}, want}
}

// steps makes calls, whose verdicts must be right.
func (c *suite) steps(steps ...operationStep) {
	c.Helper()
	for i, s := range steps {
		c.verdict(s.want, s.call(c.Storage), "step %d, %s", i, s.what)
	}
}

// node requires a node to be there as given, where it can be read.
func (c *suite) node(s replication.Storage, i int, labels []string, props map[string]any) {
	c.Helper()
	r, ok := s.(GraphReader)
	if !ok {
		return
	}
	n, err := r.Node(universeNode(i))
	require.NoError(c, err)
	require.Equal(c, universeNode(i), n.ID)
	require.ElementsMatch(c, labels, n.Labels)
	require.Equal(c, props, n.Properties)
}

func checkNodes(c *suite) {
	c.steps(
		updateNode(0, replication.ErrNotFound), deleteNode(0, replication.ErrNotFound), setProperty(0, "a", 1, replication.ErrNotFound),
		createNode(0, nil), createNode(0, replication.ErrExists), setProperty(0, "a", int64(1), nil))
	c.node(c.Storage, 0, nil, map[string]any{"a": int64(1)})
	c.steps(updateNode(0, nil)) // replaces labels and all properties
	c.node(c.Storage, 0, []string{"New"}, map[string]any{"b": int64(2)})
	c.steps(setProperty(0, "b", nil, nil), setProperty(0, "never", nil, nil))
	c.node(c.Storage, 0, []string{"New"}, map[string]any{})
	c.steps(deleteNode(0, nil), deleteNode(0, replication.ErrNotFound), updateNode(0, replication.ErrNotFound), createNode(0, nil))
	c.node(c.Storage, 0, nil, map[string]any{}) // nothing is left of the old one
}

func checkEdges(c *suite) {
	c.steps(
		createEdge(0, 1, 0, replication.ErrMissingEnd), createNode(0, nil),
		createEdge(0, 1, 0, replication.ErrMissingEnd), createEdge(1, 0, 0, replication.ErrMissingEnd),
		createNode(1, nil), createNode(2, nil),
		createEdge(0, 1, 0, nil), createEdge(0, 1, 0, replication.ErrExists),
		deleteEdge(1, 0, 0, replication.ErrNotFound), // the direction counts
		deleteEdge(0, 1, 1, replication.ErrNotFound), // and the type
		createEdge(1, 0, 0, nil), createEdge(1, 1, 0, nil), createEdge(1, 2, 0, nil), createEdge(2, 0, 0, nil),
		deleteEdge(0, 1, 0, nil), deleteEdge(0, 1, 0, replication.ErrNotFound), createEdge(0, 1, 0, nil),
		// A node takes its edges with it, at either end, and no others.
		deleteNode(1, nil), createNode(1, nil),
		deleteEdge(0, 1, 0, replication.ErrNotFound), deleteEdge(1, 0, 0, replication.ErrNotFound),
		deleteEdge(1, 1, 0, replication.ErrNotFound), deleteEdge(1, 2, 0, replication.ErrNotFound),
		deleteEdge(2, 0, 0, nil))
}

func checkEdgeIDs(c *suite) {
	c.steps(createNode(0, nil), createNode(1, nil),
		createEdge(0, 1, 0, nil), createEdge(0, 1, 1, nil), createEdge(0, 1, 2, nil), // side by side
		createEdge(0, 1, 1, replication.ErrExists),
		createEdge(1, 0, 1, replication.ErrExists), // an edge ID is unique in the whole graph
		updateEdge(0, 1, 1, map[string]any{"k": int64(1)}, nil),
		updateEdge(1, 0, 1, nil, replication.ErrNotFound)) // the ID of an edge between other ends
	if r, ok := c.Storage.(GraphReader); ok {
		for id, want := range []map[string]any{{}, {"k": int64(1)}, {}} {
			e, err := r.Edge(universeNode(0), universeType(0), universeNode(1), universeEdgeID(id))
			require.NoError(c, err)
			require.Equal(c, want, e.Properties, "edge ID %q", universeEdgeID(id))
		}
	}
	c.steps(
		deleteEdge(0, 1, 0, nil), deleteEdge(0, 1, 0, replication.ErrNotFound), // the one with an empty ID only
		deleteEdgeByID(1, nil), deleteEdgeByID(1, replication.ErrNotFound),
		updateEdge(0, 1, 1, nil, replication.ErrNotFound), createEdge(1, 0, 1, nil), // the ID is free again
		deleteNode(0, nil), createNode(0, nil), createEdge(1, 0, 2, nil)) // also by its node's death
}

// checkCommands: ApplyCommand does what the operations do, and what is
// malformed gets the verdict ErrInvalidCommand.
func checkCommands(c *suite) {
	raw := func(t replication.CommandType, data string) *replication.Command {
		return &replication.Command{Type: t, Data: []byte(data)}
	}
	for i, s := range []struct {
		cmd  *replication.Command
		want error
	}{
		{raw(replication.CmdCreateNode, `{"id":"node/0","labels":["A"],"properties":{"k":1}}`), nil},
		{raw(replication.CmdCreateNode, `{"id":"node/0"}`), replication.ErrExists},
		{raw(replication.CmdPutNode, `{"id":"node/1"}`), nil},
		{raw(replication.CmdPutNode, `{"id":"node/1","properties":{"k":2}}`), nil},
		{raw(replication.CmdUpdateNode, `{"id":"node/2"}`), replication.ErrNotFound},
		{raw(replication.CmdSetProperty, `{"node_id":"node/1","key":"p","value":3.0}`), nil},
		{raw(replication.CmdSetProperty, `{"node_id":"node/2","key":"p","value":3}`), replication.ErrNotFound},
		{raw(replication.CmdPutEdge, `{"startNode":"node/0","endNode":"node/1","type":"TYPE_0"}`), nil},
		{raw(replication.CmdPutEdge, `{"startNode":"node/0","endNode":"node/1","type":"TYPE_0","properties":{"k":1}}`), nil},
		{raw(replication.CmdCreateEdge, `{"startNode":"node/0","endNode":"node/1","type":"TYPE_0"}`), replication.ErrExists},
		{raw(replication.CmdUpdateEdge, `{"startNode":"node/1","endNode":"node/0","type":"TYPE_0"}`), replication.ErrNotFound},
		{raw(replication.CmdCreateEdge, `{"startNode":"node/0","endNode":"node/2","type":"TYPE_0"}`), replication.ErrMissingEnd},
		{raw(replication.CmdDeleteEdge, `{"startNode":"node/0","endNode":"node/1","type":"TYPE_0"}`), nil},
		{raw(replication.CmdDeleteNode, `node/0`), nil},
		{raw(replication.CmdDeleteNode, `node/0`), replication.ErrNotFound},
		{raw(replication.CmdCreateNode, `{"id":`), replication.ErrInvalidCommand},
		{raw(replication.CmdCreateNode, `{"id":""}`), replication.ErrInvalidCommand},
		{raw(replication.CmdDeleteNode, ``), replication.ErrInvalidCommand},
		{raw(replication.CmdSetProperty, `{"node_id":"node/1","key":"p","value":9223372036854775808}`), replication.ErrInvalidCommand},
		{raw(replication.CmdDeleteEdge, `{"startNode":"node/1"}`), replication.ErrInvalidCommand},
		{raw(replication.CommandType(0), `{}`), replication.ErrInvalidCommand},
	} {
		c.verdict(s.want, c.Storage.ApplyCommand(s.cmd), "command %d, %s %s", i, s.cmd.Type, s.cmd.Data)
	}
	c.node(c.Storage, 1, nil, map[string]any{"k": int64(2), "p": 3.0})
}

func checkVerdictsChangeNothing(c *suite) {
	c.someGraph(c.Storage, 2)
	require.NoError(c, c.Storage.SetWALPosition(3))
	before := c.observe(c.Storage)
	deep := any("x")
	for range 100 {
		deep = []any{deep}
	}
	refused := []operationStep{
		createNode(0, replication.ErrExists), updateNode(3, replication.ErrNotFound), deleteNode(3, replication.ErrNotFound),
		createEdge(0, 0, 0, replication.ErrExists), createEdge(0, 3, 0, replication.ErrMissingEnd), createEdge(3, 0, 0, replication.ErrMissingEnd),
		deleteEdge(0, 1, 0, replication.ErrNotFound), setProperty(3, "k", 1, replication.ErrNotFound),
		setProperty(0, "k", func() {}, replication.ErrInvalidCommand), setProperty(0, "k", deep, replication.ErrInvalidCommand),
		{"UpdateNode with an impossible value", func(s replication.Storage) error {
			return s.UpdateNode(&replication.Node{ID: universeNode(0), Properties: map[string]any{"a": 1, "b": uint64(1) << 63}})
		}, replication.ErrInvalidCommand},
		{"CreateNode with an impossible value", func(s replication.Storage) error {
			return s.CreateNode(&replication.Node{ID: universeNode(3), Properties: map[string]any{"b": make(chan int)}})
		}, replication.ErrInvalidCommand},
		{"CreateEdge with an impossible value", func(s replication.Storage) error {
			return s.CreateEdge(&replication.Edge{StartNode: universeNode(1), EndNode: universeNode(1), Type: "T", Properties: map[string]any{"b": make(chan int)}})
		}, replication.ErrInvalidCommand},
	}
	if c.offers(abilityEdgeIDs) {
		refused = append(refused, updateEdge(0, 1, 0, nil, replication.ErrNotFound), deleteEdgeByID(1, replication.ErrNotFound))
	}
	for _, s := range refused {
		c.verdict(s.want, s.call(c.Storage), "%s", s.what)
		require.Equal(c, before, c.observe(c.Storage), "%s changed something", s.what)
	}
}

// checkValues: what was set is read back in the types of DecodeValue.
func checkValues(c *suite) {
	props := map[string]any{
		"big": int64(9007199254740993), "min": int64(-1 << 63), "zero": int64(0), // beyond what a float64 holds
		"whole": 3.0, "small": 5e-324, "negative": -0.5, "yes": true, "no": false,
		"text": "<é\x00\u2028\U0001F600>", "empty": "",
		"list": []any{int64(1), 1.0, "x", nil, []any{}}, "map": map[string]any{"k": map[string]any{"i": int64(1), "f": 1.0}},
	}
	require.NoError(c, c.Storage.CreateNode(&replication.Node{ID: universeNode(0), Labels: []string{"A", "B"}, Properties: props}))
	c.node(c.Storage, 0, []string{"A", "B"}, props)
	require.NoError(c, c.Storage.CreateNode(&replication.Node{ID: universeNode(1)}))
	for k, v := range props {
		require.NoError(c, c.Storage.SetProperty(universeNode(1), k, v))
	}
	c.node(c.Storage, 1, nil, props)
	require.NoError(c, c.Storage.CreateEdge(&replication.Edge{StartNode: universeNode(0), EndNode: universeNode(1), Type: "T", Properties: props}))
	e, err := c.Storage.(GraphReader).Edge(universeNode(0), "T", universeNode(1), "")
	require.NoError(c, err)
	require.Equal(c, props, e.Properties)
	for _, v := range []any{int(7), int8(7), int32(7), uint8(7), uint64(7)} {
		require.NoError(c, c.Storage.SetProperty(universeNode(1), "go", v))
		n, err := c.Storage.(GraphReader).Node(universeNode(1))
		require.NoError(c, err)
		require.Equal(c, int64(7), n.Properties["go"], "%T", v)
	}
	if c.offers(abilityCrash) {
		c.node(c.crash(), 0, []string{"A", "B"}, props)
	}
}

// checkNullProperties: a property that is null is not there, so a node set with
// one is the node without it, then and when it is changed later.
func checkNullProperties(c *suite) {
	other := c.open()
	for i, s := range []replication.Storage{c.Storage, other.Storage} {
		props := map[string]any{"k": int64(1)}
		if i == 0 {
			props["null"] = nil
		}
		require.NoError(c, s.CreateNode(&replication.Node{ID: universeNode(0), Properties: props}))
		require.NoError(c, s.CreateEdge(&replication.Edge{StartNode: universeNode(0), EndNode: universeNode(0), Type: universeType(0), Properties: props}))
	}
	require.Equal(c, c.observe(other.Storage), c.observe(c.Storage))
	for _, s := range []replication.Storage{c.Storage, other.Storage} {
		require.NoError(c, s.SetProperty(universeNode(0), "k", int64(2)))
		require.NoError(c, s.DeleteEdge(universeNode(0), universeNode(0), universeType(0)))
	}
	require.Equal(c, c.observe(other.Storage), c.observe(c.Storage))
}

// checkArguments: the caller changes what it passed, and what it got.
func checkArguments(c *suite) {
	r := c.Storage.(GraphReader)
	list := []any{int64(1)}
	n := &replication.Node{ID: universeNode(0), Labels: []string{"A"}, Properties: map[string]any{"list": list}}
	e := &replication.Edge{StartNode: universeNode(0), EndNode: universeNode(0), Type: universeType(0), Properties: map[string]any{"list": list}}
	require.NoError(c, c.Storage.CreateNode(n))
	require.NoError(c, c.Storage.CreateEdge(e))
	require.NoError(c, c.Storage.SetProperty(universeNode(0), "set", list))
	before := c.observe(c.Storage)
	list[0], n.Labels[0], n.Properties["new"], e.Properties["new"] = int64(2), "B", true, true
	require.Equal(c, before, c.observe(c.Storage), "an argument was changed after the call")
	got, err := r.Node(universeNode(0))
	require.NoError(c, err)
	got.Labels[0], got.Properties["new"] = "B", true
	require.Equal(c, before, c.observe(c.Storage), "a result was changed")
	if !c.offers(abilityTx) {
		return
	}
	key, value := []byte("key"), []byte("value")
	require.NoError(c, c.tx().Update(func(tx replication.Tx) error {
		if err := tx.SetMeta(key, value); err != nil {
			return err
		}
		copy(key, "KEY")
		copy(value, "VALUE")
		return nil
	}))
	require.NoError(c, c.tx().View(func(m replication.Meta) error {
		for range 2 {
			v, err := m.GetMeta([]byte("key"))
			require.NoError(c, err)
			require.Equal(c, "value", string(v), "the buffers of SetMeta or GetMeta were used again")
			copy(v, "VALUE")
		}
		return nil
	}))
}

func checkPosition(c *suite) {
	requirePosition := func(s replication.Storage, want uint64) {
		c.Helper()
		pos, err := s.GetWALPosition()
		require.NoError(c, err)
		require.Equal(c, want, pos)
	}
	requirePosition(c.Storage, 0)
	for _, pos := range []uint64{1, 2, 1000, 1<<53 + 1, 1<<64 - 1, 5} {
		require.NoError(c, c.Storage.SetWALPosition(pos))
		requirePosition(c.Storage, pos)
		if c.offers(abilityCrash) {
			requirePosition(c.crash(), pos)
		}
	}
	// It may be asked for at any time, while others write.
	stop, watched := make(chan struct{}), make(chan error, 1)
	go func() { watched <- watchPosition(c.Storage, stop) }()
	finish := sync.OnceFunc(func() { close(stop) })
	defer finish()
	c.within("writing while the position is read", func() error {
		for pos := uint64(6); pos < 60; pos++ {
			if err := c.Storage.SetWALPosition(pos); err != nil {
				return err
			}
		}
		return nil
	})
	finish()
	require.NoError(c, <-watched)
}

// watchPosition looks whether the position, which others raise, goes back.
func watchPosition(s replication.Storage, stop <-chan struct{}) error {
	for last := uint64(0); ; {
		pos, err := s.GetWALPosition()
		if err != nil {
			return err
		}
		if pos < last {
			return fmt.Errorf("position %d after %d", pos, last)
		}
		last = pos
		select {
		case <-stop:
			return nil
		default:
		}
	}
}
