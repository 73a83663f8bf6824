package boltgraph

import (
	"bytes"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"weak"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"
	"pgregory.net/rapid"
)

func contentOf(n *layerNode, from []byte) (all []string) {
	for c := n.seek(from); ; c.advance() {
		k, v := c.item()
		if k == nil {
			return all
		}
		all = append(all, fmt.Sprintf("%s=%s", k, v))
	}
}

// TestLayerIsASortedMapOfWhichOldRootsStayAsTheyWere against a Go map.
func TestLayerIsASortedMapOfWhichOldRootsStayAsTheyWere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		model := map[string]string{}
		want := func(from string) (all []string) {
			for k, v := range model {
				if k >= from {
					all = append(all, k+"="+v)
				}
			}
			slices.Sort(all)
			return all
		}
		type version struct {
			root    *layerNode
			content []string
		}
		var versions []version
		var root *layerNode
		for range rapid.IntRange(1, 8).Draw(t, "transactions") {
			e := &layerEdit{root: root}
			for range rapid.IntRange(0, 120).Draw(t, "puts") {
				k, v := fmt.Sprintf("%03d", rapid.IntRange(0, 400).Draw(t, "key")), rapid.StringN(0, 3, 3).Draw(t, "value")
				e.put([]byte(k), []byte(v))
				model[k] = v
			}
			root = e.root
			versions = append(versions, version{root, want("")})
		}
		for _, v := range versions {
			require.Equal(t, v.content, contentOf(v.root, nil))
		}
		for k, v := range model {
			got, known := root.get([]byte(k))
			require.True(t, known)
			require.Equal(t, v, string(got))
		}
		_, known := root.get([]byte("x"))
		require.False(t, known)
		from := fmt.Sprintf("%03d", rapid.IntRange(0, 401).Draw(t, "from"))
		require.Equal(t, want(from), contentOf(root, []byte(from)))
	})
}

// TestViewShowsWhatWasThere while it is in use, whatever is put, and whichever
// view ends first; afterwards nothing is copied for its sake.
func TestViewShowsWhatWasThere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type view struct {
			root    *layerNode
			content []string
		}
		var open []view
		e := new(layerEdit)
		end := func(i int) {
			require.Equal(t, open[i].content, contentOf(open[i].root, nil))
			open = slices.Delete(open, i, i+1)
			e.done()
		}
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0:
				root := e.view()
				open = append(open, view{root, contentOf(root, nil)})
			case 1:
				if len(open) > 0 {
					end(rapid.IntRange(0, len(open)-1).Draw(t, "view"))
				}
			default:
				e.put(fmt.Appendf(nil, "%02d", rapid.IntRange(0, 90).Draw(t, "key")), []byte(rapid.StringN(0, 3, 3).Draw(t, "value")))
			}
		}
		for len(open) > 0 {
			end(len(open) - 1)
		}
		e.put([]byte("x"), nil)
		root := e.root
		e.view()
		e.done()
		e.put([]byte("x"), []byte("y"))
		require.Same(t, root, e.root)
	})
}

// TestBucketShowsTheNewestOfThreeLayers: what was deleted above is not there,
// whatever is below.
func TestBucketShowsTheNewestOfThreeLayers(t *testing.T) {
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "b.db"), 0o600, nil)
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	rapid.Check(t, func(t *rapid.T) {
		btx, err := db.Begin(true)
		require.NoError(t, err)
		defer func() { require.NoError(t, btx.Rollback()) }()
		base, err := btx.CreateBucket([]byte("b"))
		require.NoError(t, err)
		model := map[string]string{}
		keys := rapid.SliceOfN(rapid.StringMatching("[ab]{1,4}"), 0, 20)
		for _, k := range keys.Draw(t, "file") {
			require.NoError(t, base.Put([]byte(k), []byte("file")))
			model[k] = "file"
		}
		layer := func(name string) *layerNode {
			e := new(layerEdit)
			for _, k := range keys.Draw(t, name) {
				if rapid.Bool().Draw(t, "delete") {
					e.put([]byte(k), nil)
					delete(model, k)
				} else {
					e.put([]byte(k), []byte(name))
					model[k] = name
				}
			}
			return e.root
		}
		b := &bucket{base: base, frozen: layer("frozen")}
		b.latest.root = layer("latest")
		prefix := rapid.StringMatching("[ab]{0,2}").Draw(t, "prefix")
		var want, got []string
		for k, v := range model {
			require.Equal(t, v, string(b.get([]byte(k))))
			if bytes.HasPrefix([]byte(k), []byte(prefix)) {
				want = append(want, k+"="+v)
			}
		}
		slices.Sort(want)
		require.NoError(t, b.scan([]byte(prefix), func(k, v []byte) error {
			got = append(got, fmt.Sprintf("%s=%s", k, v))
			return nil
		}))
		require.Equal(t, want, got)
	})
}

// TestFlushedLayers: a file has what the layers that were written to it say, one
// after the other, whatever was there of what they delete.
func TestFlushedLayers(t *testing.T) {
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "b.db"), 0o600, &bbolt.Options{NoSync: true})
	require.NoError(t, err)
	defer func() { require.NoError(t, db.Close()) }()
	rapid.Check(t, func(t *rapid.T) {
		btx, err := db.Begin(true)
		require.NoError(t, err)
		defer func() { require.NoError(t, btx.Rollback()) }()
		require.NoError(t, createBuckets(btx))
		model := map[string]string{}
		for i := range rapid.IntRange(1, 4).Draw(t, "layers") {
			e := new(layerEdit)
			for range rapid.IntRange(0, 200).Draw(t, "puts") {
				k, v := fmt.Sprintf("%03d", rapid.IntRange(0, 300).Draw(t, "key")), fmt.Sprint(i)
				if rapid.IntRange(0, 3).Draw(t, "delete") > 0 {
					e.put([]byte(k), nil)
					delete(model, k)
				} else {
					e.put([]byte(k), []byte(v))
					model[k] = v
				}
			}
			layers := new(table)
			layers.roots[rowsBucket] = e.root
			require.NoError(t, layers.write(btx))
		}
		got := map[string]string{}
		require.NoError(t, btx.Bucket(bucketNames[rowsBucket]).ForEach(func(k, v []byte) error {
			got[string(k)] = string(v)
			return nil
		}))
		require.Equal(t, model, got)
	})
}

func TestSortedLabels(t *testing.T) {
	for want, lists := range map[bool][][]string{
		true:  {nil, {"A"}, {""}, {"A", "B"}, {"A", "AB", "B"}},
		false: {{"B", "A"}, {"A", "A"}, {"A", "C", "B"}, {"\n"}, {"A", `"`}},
	} {
		for _, labels := range lists {
			data, err := (&replication.Node{ID: "x", Labels: labels, Properties: map[string]any{"labels": []any{"b", "a"}}}).MarshalJSON()
			require.NoError(t, err)
			require.Equal(t, want, sortedLabels(data), "%q", labels)
			for cut := range data { // damaged files do not make it panic
				_ = sortedLabels(data[:cut])
			}
		}
	}
	require.False(t, sortedLabels([]byte(`{"id":"a\"b","labels":[]`)))
}

// TestLayerHoldsOnToNoOlderLayer: under a steady load there is always a
// transaction that began while a layer was being written. What it leaves must
// not keep that layer in memory, or memory grows as long as the load lasts.
func TestLayerHoldsOnToNoOlderLayer(t *testing.T) {
	s := temp(t)
	frozen := &table{}
	for i := range frozen.roots {
		e := new(layerEdit)
		e.put([]byte("k"), []byte("old"))
		frozen.roots[i] = e.root
	}
	old := weak.Make(frozen.roots[rowsBucket])
	var after *table
	require.NoError(t, s.db.View(func(btx *bbolt.Tx) error {
		x := newTx(btx, frozen, &table{})
		err := x.SetMeta([]byte("k"), []byte("new"))
		after = x.table(&table{})
		return err
	}))
	frozen = nil
	runtime.GC()
	require.Nil(t, old.Value())
	require.Positive(t, after.bytes)
}

// TestScanDoesNotMindWrites: a scan shows what was there when it began.
func TestScanDoesNotMindWrites(t *testing.T) {
	s := temp(t)
	require.NoError(t, s.Update(func(x replication.Tx) error {
		for i := range 500 {
			require.NoError(t, x.SetMeta(fmt.Appendf(nil, "%03d", i), []byte("v")))
		}
		n := 0
		require.NoError(t, x.ScanMeta(nil, func(k, v []byte) error {
			require.Equal(t, fmt.Sprintf("%03d=v", n), string(k)+"="+string(v))
			n++
			require.NoError(t, x.SetMeta(k, nil))
			return x.SetMeta(fmt.Appendf(nil, "%03d+", n), []byte("w"))
		}))
		require.Equal(t, 500, n)
		n = 0
		require.NoError(t, x.ScanMeta(nil, func(k, v []byte) error { n++; require.Equal(t, "w", string(v)); return nil }))
		require.Equal(t, 500, n)
		return nil
	}))
}
