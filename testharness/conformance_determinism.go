package testharness

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

type seededChooser struct{ r *rand.Rand }

func (c seededChooser) choose(n int) int { return c.r.IntN(n) }

// checkDeterminism runs the same random entries through two stores and through
// a MemStore: equal outcomes, equal content.
func checkDeterminism(c *suite) {
	other := c.open()
	model := like(c.Opened)
	stores := []replication.Storage{model, c.Storage, other.Storage}
	appliers := make([]*replication.StorageApplier, len(stores))
	for i, s := range stores {
		a, err := replication.NewStorageApplier(s)
		require.NoError(c, err)
		appliers[i] = a
	}
	choices := seededChooser{rand.New(rand.NewPCG(7, 688))}
	position := uint64(0)
	for batch := range 80 {
		entries := c.randomEntries(choices, &position)
		var want string
		for i, a := range appliers {
			results, err := a.Apply(entries)
			require.NoError(c, err, "batch %d", batch)
			got := outcomesText(results)
			if i == 0 {
				want = got
			}
			require.Equal(c, want, got, "outcomes of batch %d: the model's and the storage's", batch)
		}
		c.sameContent(model, other.Storage, batch)
	}
}

// sameContent compares two stores with each other and with the model.
func (c *suite) sameContent(model, other replication.Storage, batch int) {
	c.Helper()
	require.Equal(c, c.observe(c.Storage), c.observe(other), "two stores after the same commands, batch %d", batch)
	if r, ok := c.Storage.(GraphReader); ok {
		var want, got strings.Builder
		c.list(&want, model.(GraphReader), c.offers(abilityEdgeIDs))
		c.list(&got, r, c.offers(abilityEdgeIDs))
		require.Equal(c, want.String(), got.String(), "the content of the model and of the storage after batch %d", batch)
	}
}

// randomEntries are of the kind that a storage with or without transactions takes.
func (c *suite) randomEntries(choices chooser, position *uint64) []replication.Entry {
	entries := make([]replication.Entry, 1+choices.choose(4))
	for i := range entries {
		*position += 1 + uint64(choices.choose(2))
		entries[i].Position = *position
		groups, commands := 1, 1
		if c.offers(abilityTx) {
			groups, commands = 1+choices.choose(3), 1+choices.choose(3)
		}
		for range groups {
			cmds := make([]*replication.Command, commands)
			for k := range cmds {
				cmds[k] = randomCommand(choices, c.offers(abilityEdgeIDs))
			}
			if choices.choose(3) == 0 {
				cmds[0].RequestID = fmt.Sprint("request ", choices.choose(100))
			}
			entries[i].Groups = append(entries[i].Groups, replication.NewGroup(cmds...))
		}
	}
	return entries
}

func outcomesText(results [][]replication.Result) string {
	var b strings.Builder
	for _, entry := range results {
		for _, r := range entry {
			fmt.Fprintf(&b, "%d %s\n", r.Position, replication.ErrorCode(r.Err))
		}
	}
	return b.String()
}

// like is a MemStore with the abilities of a store.
func like(o Opened) replication.Storage {
	mem := NewMemStore()
	switch {
	case o.offers(abilityTx):
		return mem
	case o.offers(abilityEdgeIDs):
		return struct {
			replication.Storage
			replication.EdgeStorage
			GraphReader
		}{mem, mem, mem}
	default:
		return struct {
			replication.Storage
			GraphReader
		}{mem, mem}
	}
}

// checkCallsAreDurable: each call of the storage itself takes effect as a whole
// and is there after a crash.
func checkCallsAreDurable(c *suite) {
	for i, s := range []operationStep{
		createNode(0, nil), createNode(1, nil), createEdge(0, 1, 0, nil), createEdge(1, 0, 0, nil), setProperty(0, "k", int64(1), nil),
		updateNode(1, nil), {"SetWALPosition", func(s replication.Storage) error { return s.SetWALPosition(9) }, nil},
		deleteEdge(1, 0, 0, nil), createEdge(0, 0, 0, nil), deleteNode(0, nil), createNode(0, nil),
	} {
		c.verdict(s.want, s.call(c.Storage), "step %d, %s", i, s.what)
		require.Equal(c, c.observe(c.Storage), c.observe(c.crash()), "the process died after %s", s.what)
	}
}

// checkReopen: all is there after closing in good order, and writes go on.
func checkReopen(c *suite) {
	c.someGraph(c.Storage, 3)
	require.NoError(c, c.Storage.SetWALPosition(4))
	if c.offers(abilityTx) {
		require.NoError(c, c.tx().Update(func(tx replication.Tx) error { return tx.SetMeta([]byte("k"), []byte("v")) }))
	}
	before := c.observe(c.Storage)
	s, err := c.Reopen()
	require.NoError(c, err)
	require.Equal(c, before, c.observe(s))
	c.Storage = s
	c.steps(createNode(2, replication.ErrExists), createNode(3, nil), createEdge(3, 2, 0, nil))
}

// checkEffects: recording changes nothing, names the position that it saw, and
// gives commands that a state machine can run.
func checkEffects(c *suite) {
	require.NoError(c, c.Storage.SetWALPosition(5))
	before := c.observe(c.Storage)
	effects, at, err := c.Storage.(replication.EffectRecorder).RecordEffects(c.Opaque)
	require.NoError(c, err)
	require.Equal(c, uint64(5), at)
	require.Equal(c, before, c.observe(c.Storage), "recording changed something")
	require.NotEmpty(c, effects)
	for i, cmd := range effects {
		require.NoError(c, cmd.Validate(), "effect %d", i)
		require.NotEqual(c, replication.CmdCypher, cmd.Type, "effect %d is opaque itself", i)
		require.Less(c, cmd.Type, replication.CmdEmbedder, "effect %d is opaque itself", i)
		require.NoError(c, c.Storage.ApplyCommand(cmd), "effect %d", i)
	}
	require.NotEqual(c, before, c.observe(c.Storage), "the effects are none")
}
