package conflict

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// pair is a federation under a test's direct control.
type pair struct {
	t     *testing.T
	cores []*Core
	store []*memStore
}

func newPair(t *testing.T, settings Settings) *pair {
	p := &pair{t: t}
	for _, r := range settings.Regions {
		s := newStore()
		c, err := Load(s, r, settings)
		require.NoError(t, err)
		p.cores, p.store = append(p.cores, c), append(p.store, s)
	}
	return p
}

func regions(strategy Strategy, n int) Settings {
	return Settings{Regions: simRegionNames[:n], Strategy: strategy}
}

func (p *pair) local(r int, wallMS uint64, cmds ...*replication.Command) *Entry {
	p.t.Helper()
	e, err := p.cores[r].Local(wallMS, cmds...)
	require.NoError(p.t, err)
	return e
}

func (p *pair) send(to int, entries ...*Entry) {
	p.t.Helper()
	for _, e := range entries {
		fresh, err := p.cores[to].Remote(1000, e)
		require.NoError(p.t, err)
		require.True(p.t, fresh)
	}
}

func (p *pair) value(r int, id, key string) any { return p.store[r].nodes[id].Properties[key] }

func nodeCmd(t replication.CommandType, id string, props map[string]any, labels ...string) *replication.Command {
	cmd, err := replication.NewNodeCommand(t, &replication.Node{ID: replication.NodeID(id), Labels: labels, Properties: props})
	if err != nil {
		panic(err)
	}
	return cmd
}

func createNode(id string) *replication.Command {
	return nodeCmd(replication.CmdCreateNode, id, map[string]any{"k": int64(0)})
}

func setProp(id, key string, value any) *replication.Command {
	cmd, err := replication.NewSetProperty(replication.NodeID(id), key, value)
	if err != nil {
		panic(err)
	}
	return cmd
}

func edgeCmd(t replication.CommandType, from, to string, props map[string]any) *replication.Command {
	cmd, err := replication.NewEdgeCommand(t, &replication.Edge{StartNode: replication.NodeID(from), EndNode: replication.NodeID(to),
		Type: "T", Properties: props})
	if err != nil {
		panic(err)
	}
	return cmd
}

// TestTwoHistories are the two of the spec.
func TestTwoHistories(t *testing.T) {
	for _, tc := range []struct {
		strategy Strategy
		shown    string
		open     int
	}{{LastWriteWins, "a", 0}, {FirstWriteWins, "b", 0}, {Manual, "a", 1}} {
		t.Run(string(tc.strategy), func(t *testing.T) {
			p := newPair(t, regions(tc.strategy, 2))
			p.send(1, p.local(0, 1, createNode("x")))
			a, b := p.local(0, 203, setProp("x", "k", "a")), p.local(1, 201, setProp("x", "k", "b"))
			p.send(0, b)
			p.send(1, a)
			for r := range p.cores {
				require.Equal(t, tc.shown, p.value(r, "x", "k"))
				open, err := Conflicts(p.store[r], Filter{})
				require.NoError(t, err)
				require.Len(t, open, tc.open)
				require.Equal(t, map[Field]uint64{FieldProperty: 1}, p.cores[r].Counts().Conflicts)
				if tc.open > 0 {
					require.Equal(t, Key{Field: FieldProperty, Node: "x", Property: "k"}, open[0].Key)
					require.Equal(t, []Version{
						{VersionID: VersionID{"asia", 2}, WallMS: 203, Value: []byte(`"a"`), Shown: true},
						{VersionID: VersionID{"eu", 1}, WallMS: 201, Value: []byte(`"b"`)}}, open[0].Versions)
				}
			}
			// A write that knew the other one replaces it, whatever the clocks say.
			p = newPair(t, regions(tc.strategy, 2))
			p.send(1, p.local(0, 1, createNode("x")))
			p.send(1, p.local(0, 6000, setProp("x", "k", "a")))
			p.send(0, p.local(1, 1000, setProp("x", "k", "b")))
			for r := range p.cores {
				require.Equal(t, "b", p.value(r, "x", "k"))
				open, err := Conflicts(p.store[r], Filter{})
				require.NoError(t, err)
				require.Empty(t, open)
				require.Empty(t, p.cores[r].Counts().Conflicts)
			}
		})
	}
}

// TestBatchWinsAsAWhole: of two concurrent batches the same one wins every
// thing they share.
func TestBatchWinsAsAWhole(t *testing.T) {
	p := newPair(t, regions(LastWriteWins, 2))
	p.send(1, p.local(0, 1, createNode("x"), createNode("y")))
	a := p.local(0, 5, setProp("x", "k", "a"), setProp("y", "k", "a"))
	b := p.local(1, 5, setProp("y", "k", "b"), setProp("x", "k", "b"))
	p.send(0, b)
	p.send(1, a)
	for r := range p.cores {
		require.Equal(t, "b", p.value(r, "x", "k"), "equal times: the later region")
		require.Equal(t, "b", p.value(r, "y", "k"))
	}
}

// TestGraphFromBefore: what is in the Storage when the federation is founded
// counts as settled, and a delete that loses brings all of it back.
func TestGraphFromBefore(t *testing.T) {
	settings := regions(LastWriteWins, 2)
	p := newPair(t, settings)
	for _, s := range p.store {
		require.NoError(t, s.CreateNode(&replication.Node{ID: "x", Labels: []string{"B", "A"}, Properties: map[string]any{"k": 1.5, "l": "<>"}}))
		require.NoError(t, s.CreateNode(&replication.Node{ID: "y"}))
		require.NoError(t, s.CreateEdge(&replication.Edge{StartNode: "x", EndNode: "y", Type: "T", Properties: map[string]any{"w": int64(3)}}))
	}
	_, err := p.cores[0].Local(1, createNode("x"))
	require.ErrorIs(t, err, replication.ErrExists)
	gone := p.local(0, 5, replication.NewDeleteNode("x"))
	require.Empty(t, p.store[0].edges)
	kept := p.local(1, 9, setProp("x", "m", true))
	p.send(0, kept)
	p.send(1, gone)
	for _, s := range p.store {
		require.Equal(t, `{"id":"x","labels":["A","B"],"properties":{"k":1.5,"l":"\u003c\u003e","m":true}}
{"id":"y","labels":[],"properties":{}}
{"startNode":"x","endNode":"y","type":"T","properties":{"w":3}}`, (&memStore{nodes: normalLabels(s), edges: s.edges}).graph())
	}
	mark, err := p.cores[1].Mark(1)
	require.NoError(t, err)
	p.send(0, mark)
	require.Len(t, p.store[0].rows, 1, "%q", p.store[0].rows)
}

// normalLabels: labels are a set; those from before keep the order they had.
func normalLabels(s *memStore) map[string]*replication.Node {
	nodes := make(map[string]*replication.Node)
	for id, n := range s.nodes {
		labels, err := decodeLabels(canonicalLabels(n.Labels))
		if err != nil {
			panic(err)
		}
		nodes[id] = &replication.Node{ID: n.ID, Labels: labels, Properties: n.Properties}
	}
	return nodes
}

func TestLoadRefuses(t *testing.T) {
	s := newStore()
	settings := regions(LastWriteWins, 2)
	c, err := Load(s, "asia", settings)
	require.NoError(t, err)
	_, err = c.Local(1, createNode("x"))
	require.NoError(t, err)
	for name, change := range map[string]func(*Settings) string{
		"strategy":   func(s *Settings) string { s.Strategy = Manual; return "asia" },
		"unknown":    func(s *Settings) string { s.Strategy = "coin"; return "asia" },
		"bound":      func(s *Settings) string { s.MaxClockOffsetMS = 1; return "asia" },
		"regions":    func(s *Settings) string { s.Regions = simRegionNames[:3]; return "asia" },
		"self":       func(*Settings) string { return "eu" },
		"not listed": func(*Settings) string { return "mars" },
		"unsorted":   func(s *Settings) string { s.Regions = []string{"eu", "asia"}; return "asia" },
		"twice":      func(s *Settings) string { s.Regions = []string{"asia", "asia"}; return "asia" },
		"none":       func(s *Settings) string { s.Regions = nil; return "asia" },
		"too many":   func(s *Settings) string { s.Regions = []string{"a", "b", "c", "d", "e", "f"}; return "a" },
	} {
		changed := settings
		_, err := Load(s, change(&changed), changed)
		require.ErrorIs(t, err, ErrSettings, name)
	}
	s.rows[rowHeader] = s.rows[rowHeader][1:]
	_, err = Load(s, "asia", settings)
	require.ErrorIs(t, err, ErrDamagedRow)
}

func TestLocalRefuses(t *testing.T) {
	p := newPair(t, regions(LastWriteWins, 2))
	p.local(0, 1, createNode("x"), createNode("y"), edgeCmd(replication.CmdCreateEdge, "x", "y", nil))
	withID, err := replication.NewEdgeCommand(replication.CmdPutEdge, &replication.Edge{ID: "e", StartNode: "x", EndNode: "y", Type: "T"})
	require.NoError(t, err)
	byID, err := replication.NewDeleteEdgeByID("e")
	require.NoError(t, err)
	before := p.store[0].clone()
	for _, tc := range []struct {
		cmd  *replication.Command
		want error
	}{
		{&replication.Command{Type: replication.CmdCypher, Data: []byte(`{"query":"q"}`)}, replication.ErrOpaqueWrite},
		{&replication.Command{Type: replication.CmdEmbedder}, replication.ErrOpaqueWrite},
		{&replication.Command{Type: CmdEffects}, replication.ErrInvalidCommand},
		{&replication.Command{Type: replication.CmdCreateNode, Data: []byte(`{`)}, replication.ErrInvalidCommand},
		{withID, replication.ErrInvalidCommand},
		{byID, replication.ErrInvalidCommand},
		{edgeCmd(replication.CmdCreateEdge, "x", "y", nil), replication.ErrExists},
		{edgeCmd(replication.CmdCreateEdge, "x", "z", nil), replication.ErrMissingEnd},
		{edgeCmd(replication.CmdUpdateEdge, "y", "x", nil), replication.ErrNotFound},
		{setProp("z", "k", 1), replication.ErrNotFound},
		{nodeCmd(replication.CmdUpdateNode, "z", nil), replication.ErrNotFound},
		{replication.NewDeleteNode("z"), replication.ErrNotFound},
	} {
		e, err := p.cores[0].Local(2, setProp("x", "k", "not applied"), tc.cmd)
		require.ErrorIs(t, err, tc.want)
		require.Nil(t, e)
		require.True(t, p.store[0].equal(before), "%v left traces", tc.want)
	}
	for _, cmd := range []*replication.Command{createNode(strings.Repeat("x", MaxIDBytes+1)),
		replication.NewDeleteNode(replication.NodeID(strings.Repeat("x", MaxIDBytes+1)))} {
		_, err = p.cores[0].Local(2, cmd)
		require.Error(t, err)
		require.True(t, p.store[0].equal(before))
	}
	empty, err := replication.NewBatchWrite(nil)
	require.NoError(t, err)
	e, err := p.cores[0].Local(2, empty)
	require.NoError(t, err)
	require.Nil(t, e, "nothing to do takes no position")
	require.Equal(t, uint64(1), p.cores[0].Status().Applied[0])
}

func TestRemoteRefuses(t *testing.T) {
	settings := regions(LastWriteWins, 3)
	p := newPair(t, settings)
	first := p.local(1, 1, createNode("x"))
	p.send(0, first)
	p.send(0, p.local(1, 2, setProp("x", "k", 1)))
	before := p.store[0].clone()
	good := Entry{Dot: Dot{1, 3}, Time: 1 << 30, Context: Vector{0, 2}, ops: []op{{kind: opDeleteNode, node: "x"}}}
	refuse := func(want error, change func(e *Entry)) {
		t.Helper()
		e := good
		change(&e)
		fresh, err := p.cores[0].Remote(1, &e)
		require.ErrorIs(t, err, want)
		require.False(t, fresh)
		require.True(t, p.store[0].equal(before))
	}
	refuse(ErrInvalidEntry, func(e *Entry) { e.Dot.Pos = 0 })
	refuse(ErrInvalidEntry, func(e *Entry) { e.Dot = Dot{0, 1}; e.Context = Vector{} })
	refuse(ErrInvalidEntry, func(e *Entry) { e.Dot = Dot{3, 1}; e.Context = Vector{} })
	refuse(ErrInvalidEntry, func(e *Entry) { e.Context[1] = 1 })
	refuse(ErrInvalidEntry, func(e *Entry) { e.Context[4] = 1 })
	refuse(ErrInvalidEntry, func(e *Entry) { e.Time = 0 })
	refuse(ErrInvalidEntry, func(e *Entry) { e.Time = maxTime })
	refuse(ErrAhead, func(e *Entry) { e.Context[0] = 1 })
	refuse(ErrAhead, func(e *Entry) {
		e.ops = []op{{kind: opSetProperty, node: "x", key: "k", births: [2]birth{{dots: Vector{1}}}}}
	})
	refuse(ErrInvalidEntry, func(e *Entry) {
		e.ops = []op{{kind: opSetProperty, node: "x", key: "k", births: [2]birth{{dots: Vector{0, 1}, past: Vector{4: 1}}}}}
	})
	refuse(ErrGap, func(e *Entry) { e.Dot.Pos = 4; e.Context[1] = 3 })
	var gap *GapError
	_, err := p.cores[0].Remote(1, &Entry{Dot: Dot{1, 7}, Time: 1, Context: Vector{0, 6}})
	require.ErrorAs(t, err, &gap)
	require.Equal(t, GapError{Want: 3, Got: 7}, *gap)
	// A context may not go back.
	told := good
	told.Context[2] = 5
	p.send(0, &told)
	back := Entry{Dot: Dot{1, 4}, Time: 1 << 31, Context: Vector{0, 3, 4}}
	_, err = p.cores[0].Remote(1, &back)
	require.ErrorIs(t, err, ErrInvalidEntry)
	fresh, err := p.cores[0].Remote(1, first)
	require.NoError(t, err)
	require.False(t, fresh)
	counts := p.cores[0].Counts()
	require.Equal(t, uint64(1), counts.Duplicate)
	require.Equal(t, uint64(2), counts.Gaps)
	require.Equal(t, uint64(3), counts.Merged)
}

// TestWireRefuses: what does not come from this package is not an entry.
func TestWireRefuses(t *testing.T) {
	settings := regions(LastWriteWins, 2)
	p := newPair(t, settings)
	e := p.local(0, 1, createNode("x"))
	for name, change := range map[string]func(w *replication.WALEntry){
		"no command": func(w *replication.WALEntry) { w.Command = nil },
		"type":       func(w *replication.WALEntry) { w.Command.Type = replication.CmdCreateNode },
		"origin":     func(w *replication.WALEntry) { w.Origin = "mars" },
		"context":    func(w *replication.WALEntry) { w.Context["mars"] = 1 },
		"version":    func(w *replication.WALEntry) { w.Command.Data[0]++ },
		"cut":        func(w *replication.WALEntry) { w.Command.Data = w.Command.Data[:len(w.Command.Data)-1] },
		"longer":     func(w *replication.WALEntry) { w.Command.Data = append(w.Command.Data, 0) },
		"position":   func(w *replication.WALEntry) { w.Position = 2 },
	} {
		w := settings.ToWAL(e)
		change(w)
		_, err := settings.FromWAL(w)
		require.ErrorIs(t, err, ErrInvalidEntry, name)
	}
	_, err := settings.FromWAL(nil)
	require.ErrorIs(t, err, ErrInvalidEntry)
	for _, o := range []op{
		{kind: opSetProperty, node: "x", key: "k", value: `1.50`},
		{kind: opSetProperty, node: "x", key: "k", value: `{"b":1,"a":2}`},
		{kind: opSetProperty, key: "k", value: `1`},
		{kind: opFixLabels, node: "x", value: `["b","a"]`},
		{kind: opFixLabels, node: "x", value: `{}`},
		{kind: opPutEdge, node: "x", relType: "T", value: `{}`},
		{kind: opPutEdge, node: "x", relType: "T", to: "y", value: `[]`},
		{kind: opUpdateNode, node: "x", value: `[]`, props: []prop{{"b", "1"}, {"a", "1"}}},
		{kind: 77, node: "x"},
	} {
		_, err := DecodeEntry((&Entry{Dot: Dot{0, 1}, Time: 1, ops: []op{o}}).Encode())
		require.ErrorIs(t, err, ErrInvalidEntry, "%+v", o)
	}
}

// TestClockBound: a write from far ahead is merged, the clock does not follow.
func TestClockBound(t *testing.T) {
	settings := regions(LastWriteWins, 2)
	settings.MaxClockOffsetMS = 500
	p := newPair(t, settings)
	p.send(1, p.local(0, 1400, createNode("x"))) // wall 1000 at the receiver
	require.Equal(t, uint64(1400), WallMS(p.cores[1].Status().Clock))
	p.send(1, p.local(0, 99_000, setProp("x", "k", "far")))
	require.Equal(t, uint64(1400), WallMS(p.cores[1].Status().Clock))
	require.Equal(t, uint64(1), p.cores[1].Counts().ClockAhead)
	require.Equal(t, "far", p.value(1, "x", "k"))
	e := p.local(1, 1000, setProp("x", "k", "mine"))
	require.Equal(t, uint64(1400), WallMS(e.Time))
	p.send(0, e)
	require.Equal(t, "mine", p.value(0, "x", "k"), "clocks do not matter for a write that knew the other")
}

// TestMarks: entries with effects call for marks, marks do not.
func TestMarks(t *testing.T) {
	p := newPair(t, regions(LastWriteWins, 3))
	p.send(1, p.local(0, 1, createNode("x")))
	require.False(t, p.cores[0].Status().NeedsMark)
	require.True(t, p.cores[1].Status().NeedsMark)
	mark, err := p.cores[1].Mark(1)
	require.NoError(t, err)
	require.True(t, mark.Mark())
	require.False(t, p.cores[1].Status().NeedsMark)
	p.send(0, mark)
	require.False(t, p.cores[0].Status().NeedsMark)
	p.send(0, p.local(1, 2, setProp("x", "k", 1)))
	require.True(t, p.cores[0].Status().NeedsMark)
	p.local(0, 3, setProp("x", "k", 2)) // tells as well
	require.False(t, p.cores[0].Status().NeedsMark)
	status, err := ReadStatus(p.store[0])
	require.NoError(t, err)
	require.Equal(t, p.cores[0].Status(), status)
	require.Equal(t, Vector{0, 0, 0}, status.Cut, "nobody has heard of the third region")
	require.Equal(t, uint64(1), status.Rows)
}

// TestLargeBatch: one entry may touch a great many things.
func TestLargeBatch(t *testing.T) {
	p := newPair(t, regions(LastWriteWins, 2))
	var cmds []*replication.Command
	for i := range 2000 {
		id := fmt.Sprint(i)
		cmds = append(cmds, createNode(id), edgeCmd(replication.CmdCreateEdge, id, "0", nil))
	}
	e := p.local(0, 1, cmds...)
	p.send(1, e)
	require.Len(t, p.store[1].edges, 2000)
	p.send(0, p.local(1, 2, replication.NewDeleteNode("0")))
	require.Empty(t, p.store[0].edges)
	p.send(1, p.local(0, 3, setProp("1", "k", 1)))
	require.Len(t, p.store[1].rows, 1, "the deleted node is gone with its edges")
	require.Equal(t, p.store[0].graph(), p.store[1].graph())
}
