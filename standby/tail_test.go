package standby_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/stretchr/testify/require"
)

// A primary that goes on alone for longer than its log is kept, and loses against a
// standby that was promoted meanwhile, puts aside everything it acknowledged: what
// its log no longer has is in a snapshot of its storage.
func TestDivergedTailLongerThanTheLogIsKept(t *testing.T) {
	inBubble(t, func(c *replication.Config) {
		c.HA.SyncMode, c.HA.WALRetain = replication.SyncAsync, 10
	}, func(t *testing.T, p *pair) {
		p.start(p.a, p.b)
		p.admitted(p.a)
		p.write(p.a, "before")
		p.same()
		p.net.isolate(p.b.addr, true)
		for i := range 50 {
			p.write(p.a, fmt.Sprint("alone", i))
		}
		<-time.After(time.Minute) // the log is compacted, and the standby promotes itself
		require.True(t, p.b.repl.IsLeader())
		p.write(p.b, "other")
		p.net.isolate(p.b.addr, false)
		p.admitted(p.b)
		p.same()
		require.False(t, p.has(p.a, "alone0"))

		files, err := filepath.Glob(filepath.Join(p.a.cfg.DataDir, "diverged", "*"))
		require.NoError(t, err)
		require.Len(t, files, 2)
		require.Equal(t, "1-a.entries-3-to-42.snapshot", filepath.Base(files[0]))
		text, err := os.ReadFile(files[1])
		require.NoError(t, err)
		kept := snapshotOf(t, files[0])
		for i := range 50 {
			_, err := kept.Node(replication.NodeID(fmt.Sprint("alone", i)))
			require.NoError(t, err, "what was acknowledged is in no file: alone%d", i)
		}
		require.Contains(t, string(text), `"Position":43,`)
		require.Contains(t, string(text), `"Position":52,`)
		for range 2 { // it says so until somebody has taken them away
			require.Contains(t, fmt.Sprint(p.a.repl.Health().Reasons), files[0])
			p.stop(p.a)
			p.start(p.a)
			p.until("it is back", func() bool { return p.a.repl.Health().Role == "standby" })
		}
	})
}

// snapshotOf is the graph in a snapshot file.
func snapshotOf(t *testing.T, path string) *boltgraph.Store {
	t.Helper()
	store, err := boltgraph.Open(filepath.Join(t.TempDir(), "graph.db"), boltgraph.WithNoSync())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	_, body, err := fsm.ReadHeader(f)
	require.NoError(t, err)
	require.NoError(t, store.Restore(body))
	return store
}
