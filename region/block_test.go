package region

import (
	"bytes"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestBlocks: whatever the sizes of the entries and the transactions, the outbox
// has what was added and not dropped, and no row is left without an entry.
func TestBlocks(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		store := testharness.NewMemStore()
		model := make(map[uint64][]byte)
		first, last := uint64(1), uint64(0)
		for range rapid.IntRange(1, 12).Draw(rt, "transactions") {
			require.NoError(t, store.Update(func(tx replication.Tx) error {
				var o blocks
				for range rapid.IntRange(0, 6).Draw(rt, "steps") {
					for range rapid.IntRange(0, 50).Draw(rt, "added") {
						last++
						size := rapid.SampledFrom([]int{1, 20, 300, maxInBlock, maxInBlock + 1}).Draw(rt, "size")
						model[last] = bytes.Repeat([]byte{byte(last)}, size)
						require.NoError(t, o.add(tx, last, model[last]))
					}
					for range rapid.IntRange(0, 60).Draw(rt, "dropped") {
						if first > last {
							break
						}
						row, err := o.drop(tx, first)
						require.NoError(t, err)
						require.Equal(t, model[first], row)
						delete(model, first)
						first++
					}
				}
				return o.tail.save(tx)
			}))
			require.NoError(t, store.View(func(m replication.Meta) error {
				r := blockReader{m: m}
				for pos := first; pos <= last; pos++ {
					data, err := r.entry(pos)
					require.NoError(t, err)
					require.Equal(t, model[pos], data)
				}
				_, err := r.entry(last + 1)
				require.Error(t, err)
				return nil
			}))
		}
		require.NoError(t, store.View(func(m replication.Meta) error {
			rows := 0
			count := func(_, _ []byte) error { rows++; return nil }
			require.NoError(t, m.ScanMeta([]byte(rowOutbox), count))
			want := 0
			if first <= last {
				want = int(last/blockSpan - first/blockSpan + 1)
			}
			require.Equal(t, want, rows)
			rows = 0
			require.NoError(t, m.ScanMeta([]byte(rowLarge), count))
			large := 0
			for _, data := range model {
				if len(data) > maxInBlock {
					large++
				}
			}
			require.Equal(t, large, rows)
			return nil
		}))
	})
}

// TestDamagedBlock: an error, not an entry of other bytes.
func TestDamagedBlock(t *testing.T) {
	for name, row := range map[string][]byte{
		"cut short": {0, 5, 'a'}, "no length": {0, 0x80}, "too many": append([]byte{0}, bytes.Repeat([]byte{1, 'a'}, blockSpan+1)...),
		"behind its end": {60, 1, 'a', 1, 'b', 1, 'c', 1, 'd', 1, 'e'},
	} {
		store := testharness.NewMemStore()
		require.NoError(t, store.Update(func(tx replication.Tx) error { return tx.SetMeta(blockRow(3), row) }))
		require.NoError(t, store.View(func(m replication.Meta) error {
			_, err := readBlock(m, 3)
			require.ErrorContains(t, err, "damaged", name)
			return nil
		}))
	}
}
