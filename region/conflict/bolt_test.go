package conflict

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/stretchr/testify/require"
)

// TestOnBoltgraph runs histories on the embedded graph store: transactions
// that are rolled back included.
func TestOnBoltgraph(t *testing.T) {
	for seed := range uint64(6) {
		h := makeHistory(seed, 60)
		h.nodes, h.regions, h.budget = 3, 2, 0
		s := newSim(h)
		for i := range h.steps {
			require.NoError(t, s.step(&h.steps[i]))
		}
		for r, region := range s.regions {
			store, err := boltgraph.Open(filepath.Join(t.TempDir(), "graph.db"), boltgraph.WithNoSync())
			require.NoError(t, err)
			replay(t, store, s, r)
			require.Equal(t, region.store.graph(), content(t, store))
			require.NoError(t, store.Close())
		}
	}
}

// replay runs the region's log, every third command in a transaction that is
// rolled back before it runs in one that is not.
func replay(t *testing.T, store *boltgraph.Store, s *sim, r int) {
	rollback := fmt.Errorf("rolled back")
	for i, cmd := range s.regions[r].log {
		run := func(tx replication.Tx) error {
			c, err := Load(tx.(Store), s.settings.Regions[r], s.settings)
			if err != nil {
				return err
			}
			return cmd(c)
		}
		if i%3 == 0 {
			require.ErrorIs(t, store.Update(func(tx replication.Tx) error {
				if err := run(tx); err != nil {
					return err
				}
				return rollback
			}), rollback)
		}
		require.NoError(t, store.Update(run))
	}
	require.NoError(t, store.View(func(m replication.Meta) error {
		got := newStore()
		require.NoError(t, ExportState(m.(ReadStore), got.SetMeta))
		want := newStore()
		require.NoError(t, ExportState(s.regions[r].store, want.SetMeta))
		require.Equal(t, len(want.rows), len(got.rows))
		return nil
	}))
}

func content(t *testing.T, store *boltgraph.Store) string {
	got := newStore()
	_, err := store.Walk(func(n *replication.Node) error {
		got.nodes[string(n.ID)] = n
		return nil
	}, func(e *replication.Edge) error {
		got.edges[edgeKey{string(e.StartNode), e.Type, string(e.EndNode)}] = e
		return nil
	})
	require.NoError(t, err)
	return strings.TrimSpace(got.graph())
}
