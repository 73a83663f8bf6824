package region

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/internal/testchild"
	"github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// asMerger makes the test binary merge a state of so many nodes of 1 KiB, and
// print the most that the heap had during the merge.
const asMerger = "REGION_TEST_MERGE_NODES"

func openStore(t testing.TB, name string) *boltgraph.Store {
	store, err := boltgraph.Open(filepath.Join(t.TempDir(), name), boltgraph.WithNoSync())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	require.NoError(t, store.Defer(true)) // as the state machine of a region does
	return store
}

// fill writes nodes that stay unsettled, as no other region says that it has them.
func (s *solo) fill(t testing.TB, nodes int, prefix string) {
	value := strings.Repeat("v", 1000)
	for i := 0; i < nodes; {
		c := &logCommand{kind: kindWrite, wallMS: 1000}
		for ; i < nodes && len(c.commands) < 100; i++ {
			cmd, err := replication.NewNodeCommand(replication.CmdPutNode,
				&replication.Node{ID: replication.NodeID(fmt.Sprint(prefix, i)), Labels: []string{"L"}, Properties: map[string]any{"v": value}})
			require.NoError(t, err)
			c.commands = append(c.commands, cmd)
		}
		require.NoError(t, s.do(t, c))
	}
}

// stageAll stages the state of a region, and returns the request to merge it.
func (s *solo) stageAll(t testing.TB, from *solo) *logCommand {
	sp, err := (&Node{cfg: &replication.Config{DataDir: t.TempDir()}, machine: from.machine}).collect()
	require.NoError(t, err)
	defer sp.close()
	v, _ := from.now()
	p := part{Region: v.settings.Self, ID: sp.id}
	for ; p.Number < sp.parts; p.Number++ {
		require.NoError(t, sp.read(&p))
		require.NoError(t, s.do(t, &logCommand{kind: kindStage, body: jsonBody(&p)}))
		p.Rows = nil
	}
	return &logCommand{kind: kindMerge, wallMS: 1000, body: jsonBody(&p)}
}

// TestChildMerger is what TestMergeMemory runs; in a normal run it does nothing.
func TestChildMerger(t *testing.T) {
	nodes, err := strconv.Atoi(os.Getenv(asMerger))
	if err != nil {
		return
	}
	sender := newSoloOver(t, openStore(t, "sender.db"), "eu", 10)
	sender.fill(t, nodes, "n")
	store := openStore(t, "receiver.db")
	receiver := newSoloOver(t, store, "us", 10)
	receiver.fill(t, nodes/2, "n") // of half of them there are two versions
	merge := receiver.stageAll(t, sender)
	require.NoError(t, store.Flush())
	runtime.GC()
	debug.SetGCPercent(20)
	stop, peak := make(chan struct{}), make(chan uint64)
	go func() { peak <- heapPeak(stop) }()
	require.NoError(t, receiver.do(t, merge))
	close(stop)
	most := <-peak
	status, _ := receiver.now()
	require.Empty(t, status.head.Staged)
	stats, err := store.Stats()
	require.NoError(t, err)
	require.EqualValues(t, nodes, stats.Nodes)
	fmt.Println("peak", most)
}

// heapPeak looks at the heap until stop.
func heapPeak(stop <-chan struct{}) (most uint64) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	for {
		metrics.Read(sample)
		most = max(most, sample[0].Value.Uint64())
		select {
		case <-tick.C:
		case <-stop:
			return most
		}
	}
}

// TestMergeMemory: what the merge of a state takes does not grow with the state.
func TestMergeMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("large states")
	}
	peak := func(nodes int) uint64 {
		p := testchild.Start(t, []string{"-test.run", "^TestChildMerger$"}, []string{fmt.Sprint(asMerger, "=", nodes)})
		words := strings.Fields(p.Tell(""))
		require.Len(t, words, 2)
		n, err := strconv.ParseUint(words[1], 10, 64)
		require.NoError(t, err)
		return n
	}
	small, large := peak(6_000), peak(30_000)
	t.Logf("%.1f MiB for 6 MB, %.1f MiB for 30 MB", float64(small)/(1<<20), float64(large)/(1<<20))
	require.Less(t, large, small+16<<20)
}

// largeCounter counts the large transactions of a store.
type largeCounter struct {
	*boltgraph.Store
	count int
	full  bool // there is no room for a copy
}

func (l *largeCounter) UpdateLarge(fn func(replication.Tx) error) error {
	l.count++
	if l.full {
		return fmt.Errorf("copying: %w", &os.PathError{Op: "write", Path: "g.db", Err: syscall.ENOSPC})
	}
	return l.Store.UpdateLarge(fn)
}

// TestLargeMergeIsTheSame: a Storage with large transactions ends where one
// without ends, rows and graph, and one whose disk is too full for them, too.
func TestLargeMergeIsTheSame(t *testing.T) {
	defer func(was uint64) { largeBytes = was }(largeBytes)
	largeBytes = 0
	sender := newSolo(t, "eu", 10)
	sender.fill(t, 600, "n")
	store, mem := &largeCounter{Store: openStore(t, "g.db")}, testharness.NewMemStore()
	full := &largeCounter{Store: openStore(t, "full.db"), full: true}
	var rows []string
	for _, storage := range []replication.Storage{store, mem, full} {
		s := newSoloOver(t, storage, "us", 10)
		s.fill(t, 300, "n")
		merge := s.stageAll(t, sender)
		require.Error(t, s.do(t, &logCommand{kind: kindMerge, body: jsonBody(&part{Region: "eu", ID: "another"})}), "a verdict")
		require.NoError(t, s.do(t, merge))
		v, _ := s.now()
		require.EqualValues(t, 6, v.applied("eu"))
		var all strings.Builder
		require.NoError(t, s.View(func(m replication.Meta) error {
			return m.ScanMeta([]byte("replication/"), func(k, v []byte) error {
				fmt.Fprintf(&all, "%q %q\n", k, v)
				return nil
			})
		}))
		rows = append(rows, all.String())
	}
	require.Equal(t, 1, store.count, "the merge alone")
	require.Equal(t, 1, full.count)
	require.Equal(t, rows[0], rows[1])
	require.Equal(t, rows[0], rows[2])
	for _, s := range []*largeCounter{store, full} {
		stats, err := s.Stats()
		require.NoError(t, err)
		require.Equal(t, mem.Stats().Digest, stats.Digest)
	}
}
