package conflict

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func exportState(t *testing.T, from *memStore) *memStore {
	rows := newStore()
	require.NoError(t, ExportState(from, rows.SetMeta))
	return rows
}

// TestMergeState: a region that lacks writes of two others gets them from one,
// and keeps what it wrote itself.
func TestMergeState(t *testing.T) {
	p := newPair(t, regions(LastWriteWins, 3))
	create := p.local(0, 1, createNode("x"), createNode("y"))
	p.send(1, create)
	p.send(2, create)
	p.send(1, p.local(0, 2, setProp("x", "k", "a"), setProp("y", "k", "a")))
	p.local(1, 3, setProp("y", "k", "b"))
	mine := p.local(2, 4, setProp("x", "k", "mine"))
	require.NoError(t, p.cores[2].MergeState(1, exportState(t, p.store[1])))
	require.Equal(t, Vector{2, 1, 1}, p.cores[2].Status().Applied)
	require.Equal(t, "mine", p.value(2, "x", "k"))
	require.Equal(t, "b", p.value(2, "y", "k"))
	require.True(t, p.cores[2].Status().NeedsMark)
	p.send(1, mine)
	require.Equal(t, p.store[1].graph(), p.store[2].graph())
	before := p.store[2].clone()
	require.NoError(t, p.cores[2].MergeState(1, exportState(t, p.store[0])))
	require.True(t, p.store[2].equal(before), "there was nothing new")
}

func TestMergeStateRefuses(t *testing.T) {
	p := newPair(t, regions(LastWriteWins, 3))
	p.send(1, p.local(0, 1, createNode("x")))
	p.send(1, p.local(2, 1, createNode("y")))
	before := p.store[0].clone()
	refuse := func(want error, change func(rows *memStore)) {
		t.Helper()
		rows := exportState(t, p.store[1])
		change(rows)
		require.ErrorIs(t, p.cores[0].MergeState(1, rows), want)
		require.True(t, p.store[0].equal(before))
	}
	head := func(change func(h *header)) func(*memStore) {
		return func(rows *memStore) {
			h, err := decodeHeader(rows.rows[rowHeader])
			require.NoError(t, err)
			change(&h)
			rows.rows[rowHeader] = h.encode()
		}
	}
	refuse(ErrInvalidEntry, func(rows *memStore) { delete(rows.rows, rowHeader) })
	refuse(ErrInvalidEntry, head(func(h *header) { h.self = 0 }))
	refuse(ErrInvalidEntry, head(func(h *header) { h.lastTime = maxTime }))
	refuse(ErrInvalidEntry, head(func(h *header) { h.applied[4] = 1 }))
	refuse(ErrSettings, head(func(h *header) { h.settings.Strategy = Manual }))
	refuse(ErrAhead, head(func(h *header) { h.applied[0] = 2 }))
	refuse(ErrAhead, head(func(h *header) { h.seen[0], h.seen[2] = Vector{1, 0, 1}, Vector{0, 0, 1} }))
	row := string(nodeRow("y"))
	refuse(ErrInvalidEntry, func(rows *memStore) { rows.rows[row] = rows.rows[row][1:] })
	for _, r := range []register{
		{versions: []version{{dot: Dot{2, 2}, time: 1, value: "1"}}},
		{versions: []version{{dot: Dot{2, 1}, time: maxTime, value: "1"}}},
		{versions: []version{{dot: Dot{2, 1}, time: 1, value: "[ ]"}}},
		{versions: []version{{value: "1"}, {dot: Dot{2, 1}, time: 1, value: "2"}}},
		{pending: Vector{4: 1}},
	} {
		refuse(ErrInvalidEntry, func(rows *memStore) {
			n := &node{id: "y"}
			n.setProperty("p", r)
			rows.rows[row] = rowOf(n.appendRow, 0)
		})
	}
	refuse(ErrInvalidEntry, func(rows *memStore) { // values left to a Storage that is not this one
		write := func(value string) register {
			return register{versions: []version{{dot: Dot{2, 1}, time: 1, value: value}}}
		}
		n := &node{id: "y", life: write(exists), labels: write(`["L"]`), fill: write("")}
		rows.rows[row] = rowOf(n.appendRow, flagShown)
		require.EqualValues(t, rowShownWrite, rows.rows[row][0])
	})
	five := register{versions: []version{{dot: Dot{2, 1}, time: 1, value: "5"}}}
	refuse(ErrInvalidEntry, func(rows *memStore) { rows.rows[row] = rowOf((&node{id: "y", life: five}).appendRow, 0) })
	refuse(ErrInvalidEntry, func(rows *memStore) { rows.rows[row] = rowOf((&node{id: "y", fill: five}).appendRow, 0) })
	refuse(ErrInvalidEntry, func(rows *memStore) { rows.rows[row] = rowOf((&node{id: "y", labels: five}).appendRow, 0) })
	require.NoError(t, p.cores[0].MergeState(1, exportState(t, p.store[1])))
	require.NotNil(t, p.store[0].nodes["y"])
}
