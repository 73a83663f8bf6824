package conflict

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestQueueBlocks: a record is there once, in the order in which it came, also
// when the block was written and read in between, and until all of the block was
// looked at.
func TestQueueBlocks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := newStore()
		c := &Core{store: store}
		type record struct {
			dot Dot
			key string
		}
		var model []record
		keys := rapid.SampledFrom([]int{3, 400}).Draw(t, "keys") // with many a block is large
		for range rapid.IntRange(0, 400).Draw(t, "records") {
			r := record{Dot{uint8(rapid.IntRange(0, 1).Draw(t, "region")), rapid.Uint64Range(1, 3*queueSpan).Draw(t, "pos")},
				fmt.Sprint("k", rapid.IntRange(0, keys).Draw(t, "key"))}
			if !slices.Contains(model, r) {
				model = append(model, r)
			}
			require.NoError(t, c.enqueue(r.dot, []byte(r.key)))
			if rapid.IntRange(0, 20).Draw(t, "save") == 0 {
				require.NoError(t, c.saveBlocks())
				c = &Core{store: store}
			}
		}
		collected := rapid.Uint64Range(0, 3*queueSpan).Draw(t, "collected")
		kept := make(map[blockID]uint64) // the last one of each block
		for _, r := range model {
			kept[blockOf(r.dot)] = max(kept[blockOf(r.dot)], r.dot.Pos)
		}
		for id := range kept {
			b, err := c.block(id)
			require.NoError(t, err)
			b.drop(collected)
		}
		require.NoError(t, c.saveBlocks())
		maps.DeleteFunc(kept, func(_ blockID, last uint64) bool { return last <= collected })
		require.Len(t, store.rows, len(kept))
		for id := range kept {
			b, err := decodeBlock(store.rows[string(id.row())])
			require.NoError(t, err)
			var want, got []record
			for _, r := range model {
				if blockOf(r.dot) == id {
					want = append(want, r)
				}
			}
			for _, r := range b.records {
				got = append(got, record{Dot{id.region, id.number*queueSpan + uint64(r.place)}, string(b.key(r))})
			}
			require.Equal(t, want, got)
		}
	})
}

// TestSettleWholeWrite: a row of one write of the whole node comes back as it
// was, and settling it undecoded comes to what settling it does.
func TestSettleWholeWrite(t *testing.T) {
	done := 0
	rapid.Check(t, func(t *rapid.T) {
		vector := rapid.Custom(func(t *rapid.T) (v Vector) {
			for i := range 3 {
				v[i] = rapid.Uint64Range(0, 3).Draw(t, "u")
			}
			return v
		})
		strategy := rapid.SampledFrom([]Strategy{LastWriteWins, FirstWriteWins, Manual}).Draw(t, "strategy")
		dot := Dot{uint8(rapid.IntRange(0, 2).Draw(t, "region")), rapid.Uint64Range(1, 3).Draw(t, "pos")}
		one := func(value string) register { return register{versions: []version{{dot, 7, value}}} }
		n := &node{id: "x", life: one(exists), labels: one(`["L"]`), fill: one("")}
		n.setProperty("k", one("1"))
		pending := vector.Draw(t, "pending")
		n.registers(func(r *register) { r.pending = pending })
		if n.birth.dots = vector.Draw(t, "dots"); n.birth.known() {
			n.birth.past = vector.Draw(t, "past")
		}
		row := rowOf(n.appendRow, flagShown)
		require.EqualValues(t, rowShownWrite, row[0])
		n.flags(flagShown)
		back, err := decodeNode("x", row)
		require.NoError(t, err)
		graph := newStore()
		graph.nodes["x"] = &replication.Node{ID: "x", Labels: []string{"L"}, Properties: map[string]any{"k": int64(1)}}
		require.NoError(t, back.fetch(graph))
		require.Equal(t, n, back)

		head := header{settings: regions(strategy, 3), rows: 1, bytes: uint64(len(nodeRow("x")) + len(row))}
		for i := range head.seen {
			head.seen[i] = vector.Draw(t, "seen")
		}
		if head.applied = vector.Draw(t, "applied"); rapid.Bool().Draw(t, "in step") {
			head.applied = Vector{3, 3, 3}
			head.seen = [MaxRegions]Vector{head.applied, head.applied, head.applied}
		}
		cut := head.cut()
		settle := func(load bool) (*memStore, header, Dot, bool) {
			store := newStore()
			store.rows[string(nodeRow("x"))] = row
			store.nodes["x"] = &replication.Node{ID: "x", Labels: []string{"L"}, Properties: map[string]any{"k": int64(1)}}
			c := &Core{store: store, head: head, nodes: make(map[string]*node), edges: make(map[edgeKey]*edge), at: make(map[string][]*edge)}
			if load {
				_, err := c.node("x")
				require.NoError(t, err)
			}
			wait, err := c.examine(nodeRow("x")[len(rowPrefix):], &cut)
			require.NoError(t, err)
			_, decoded := c.nodes["x"]
			return store, c.head, wait, decoded
		}
		fast, fastHead, fastWait, decoded := settle(false)
		slow, slowHead, slowWait, _ := settle(true)
		require.True(t, fast.equal(slow), "%q\n%q", fast.rows, slow.rows)
		require.Equal(t, slowHead, fastHead)
		require.Equal(t, slowWait, fastWait)
		if !decoded {
			done++
			require.Empty(t, fast.rows)
		} else {
			require.NotEmpty(t, fast.rows, "this could have been settled undecoded")
		}
	})
	require.Positive(t, done)
}

// TestHoldPutsOffWhatIsOfTheTransaction: rows of nodes are written at once, the
// header and the queues by Save.
func TestHoldPutsOffWhatIsOfTheTransaction(t *testing.T) {
	store := newStore()
	c, err := Load(store, "asia", regions(LastWriteWins, 2))
	require.NoError(t, err)
	c.Hold()
	_, err = c.Local(1, createNode("x"))
	require.NoError(t, err)
	_, err = c.Local(1, createNode("y"))
	require.NoError(t, err)
	kinds := func() (all string) {
		for _, k := range slices.Sorted(maps.Keys(store.rows)) {
			all += strings.TrimPrefix(k, rowPrefix)[:1]
		}
		return all
	}
	require.Equal(t, "nn", kinds())
	require.NoError(t, c.Save())
	require.Equal(t, "hnnq", kinds())
	before := store.clone()
	require.NoError(t, c.Save())
	require.True(t, store.equal(before))
}
