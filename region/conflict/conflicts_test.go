package conflict

import (
	"errors"
	"fmt"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// TestConflictsAndResolve lists conflicts of every kind, in pages too, and
// settles each in another way.
func TestConflictsAndResolve(t *testing.T) {
	p := newPair(t, regions(Manual, 2))
	setup := []*replication.Command{}
	for i := range 5 {
		setup = append(setup, createNode(fmt.Sprintf("n%d", i)))
	}
	setup = append(setup, edgeCmd(replication.CmdCreateEdge, "n0", "n1", nil))
	p.send(1, p.local(0, 1, setup...))
	write := func(r int, v string) *Entry {
		cmds := []*replication.Command{edgeCmd(replication.CmdUpdateEdge, "n0", "n1", map[string]any{"w": v}),
			nodeCmd(replication.CmdUpdateNode, "n1", map[string]any{"p": v, "q": "same"}, "L"+v)}
		for i := 2; i < 4; i++ {
			cmds = append(cmds, setProp(fmt.Sprintf("n%d", i), "k", v))
		}
		if r == 0 {
			return p.local(r, 5, append(cmds, replication.NewDeleteNode("n4"))...)
		}
		return p.local(r, 6, append(cmds, setProp("n4", "k", v))...)
	}
	a, b := write(0, "a"), write(1, "b")
	p.send(0, b)
	p.send(1, a)
	keys := []Key{
		{Field: FieldEdge, Node: "n0", Type: "T", To: "n1"},
		{Field: FieldLabels, Node: "n1"},
		{Field: FieldProperty, Node: "n1", Property: "p"},
		{Field: FieldProperty, Node: "n2", Property: "k"},
		{Field: FieldProperty, Node: "n3", Property: "k"},
		{Field: FieldNode, Node: "n4"},
	}
	list := func(r int, f Filter) (got []Key) {
		open, err := Conflicts(p.store[r], f)
		require.NoError(t, err)
		for _, c := range open {
			got = append(got, c.Key)
		}
		return got
	}
	require.Equal(t, keys, list(0, Filter{}))
	require.Equal(t, keys, list(1, Filter{}))
	require.Equal(t, keys[1:3], list(0, Filter{Node: "n1"}))
	require.Equal(t, keys[5:], list(0, Filter{Field: FieldNode}))
	var paged []Key
	f := Filter{Limit: 1}
	for page := list(0, f); len(page) > 0; page = list(0, f) {
		require.Len(t, page, 1)
		paged = append(paged, page...)
		f.After = &page[0]
	}
	require.Equal(t, keys, paged)
	for _, k := range keys {
		back, err := ParseKey(k.String())
		require.NoError(t, err)
		require.Equal(t, k, back)
	}
	p.resolveAll(keys)
	require.Equal(t, "a", p.value(0, "n2", "k"))
	require.Equal(t, int64(7), p.value(0, "n3", "k"))
	require.Equal(t, []string{"X", "Y"}, p.store[0].nodes["n1"].Labels)
	require.NotContains(t, p.store[0].nodes["n1"].Properties, "p")
	require.Nil(t, p.store[0].nodes["n4"])
	require.Equal(t, map[string]any{"w": int64(1)}, p.store[0].edges[edgeKey{"n0", "T", "n1"}].Properties)
	require.Equal(t, uint64(len(keys)), p.cores[0].Counts().SettledByResolve)
	require.Equal(t, p.store[0].graph(), p.store[1].graph())
	require.Empty(t, list(1, Filter{}))
}

// resolveAll tries what is refused, then settles each key in its own way.
func (p *pair) resolveAll(keys []Key) {
	t := p.t
	va, vb := VersionID{"asia", 2}, VersionID{"eu", 1}
	both := []VersionID{va, vb}
	refuse := func(k Key, want error, res Resolution) {
		t.Helper()
		before := p.store[0].clone()
		_, err := p.cores[0].Resolve(9, k, res)
		require.ErrorIs(t, err, want)
		require.True(t, p.store[0].equal(before))
	}
	refuse(keys[3], ErrVersionsChanged, Resolution{Expect: []VersionID{va}, Keep: &va})
	refuse(keys[3], ErrVersionsChanged, Resolution{Expect: []VersionID{va, va}, Keep: &va})
	refuse(keys[3], ErrVersionsChanged, Resolution{Expect: []VersionID{va, {"eu", 9}}, Keep: &va})
	refuse(keys[3], ErrVersionsChanged, Resolution{Expect: both, Keep: &VersionID{"eu", 9}})
	refuse(keys[3], replication.ErrInvalidCommand, Resolution{Expect: both})
	refuse(keys[3], replication.ErrInvalidCommand, Resolution{Expect: both, Keep: &va, Deleted: true})
	refuse(keys[3], replication.ErrInvalidCommand, Resolution{Expect: both, Value: errors.New("not a value")})
	refuse(keys[1], replication.ErrInvalidCommand, Resolution{Expect: both, Deleted: true})
	refuse(keys[1], replication.ErrInvalidCommand, Resolution{Expect: both, Value: "not labels"})
	refuse(keys[0], replication.ErrInvalidCommand, Resolution{Expect: both, Value: "not properties"})
	refuse(keys[5], replication.ErrInvalidCommand, Resolution{Expect: both, Value: true})
	refuse(Key{Field: FieldProperty, Node: "n2", Property: "q"}, ErrNoConflict, Resolution{Expect: both, Keep: &va})
	refuse(Key{Field: FieldNode, Node: "nowhere"}, ErrNoConflict, Resolution{})
	refuse(Key{Field: FieldEdge, Node: "n0"}, replication.ErrInvalidCommand, Resolution{})
	for i, res := range []Resolution{
		{Value: map[string]any{"w": 1}}, {Value: []string{"Y", "X"}}, {Deleted: true}, {Keep: &va}, {Value: 7}, {Deleted: true},
	} {
		res.Expect = both
		e, err := p.cores[0].Resolve(9, keys[i], res)
		require.NoError(t, err)
		p.send(1, e)
	}
}
