package standby_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// A standby that was away while its primary began more epochs than a list holds
// goes on where it stood, if nobody wrote in them; otherwise both have forgotten what
// they have in common, and it is rebuilt. Nothing is lost either way.
func TestStandbyThatWasAwayForManyEpochs(t *testing.T) {
	for _, wrote := range []bool{false, true} {
		t.Run(fmt.Sprint("wrote=", wrote), func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, p *pair) {
				p.start(p.a, p.b)
				p.admitted(p.a)
				p.write(p.a, "before")
				p.same()
				p.stop(p.b)
				for i := range 200 {
					require.NoError(t, p.a.repl.(replication.Soloer).Solo(t.Context()))
					if wrote {
						p.write(p.a, fmt.Sprint("n", i))
					}
				}
				p.write(p.a, "after")
				events, cancel := p.a.repl.(replication.Subscriber).Subscribe(1000)
				defer cancel()
				p.start(p.b)
				p.until("the standby follows", func() bool { return p.b.repl.Health().Role == "standby" })
				p.admitted(p.a)
				p.same()
				require.True(t, p.has(p.b, "before") && p.has(p.b, "after"))
				rebuilt := false
				for len(events) > 0 {
					e := <-events
					rebuilt = rebuilt || e.Type == replication.EventSnapshotTaken
				}
				require.Equal(t, wrote, rebuilt)
				tails, err := filepath.Glob(filepath.Join(p.b.cfg.DataDir, "diverged", "*"))
				require.NoError(t, err)
				require.Equal(t, wrote, len(tails) > 0, "what it had may be nowhere else, as far as it knows")
			})
		})
	}
}

// A node whose log lost its end, or all of it, beside a storage that got further is
// refused: it does not start, whatever it was, and the other goes on.
func TestStorageAheadOfTheLog(t *testing.T) {
	for _, mode := range syncModes {
		for _, all := range []bool{true, false} {
			for _, primary := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/all=%t/primary=%t", mode, all, primary), func(t *testing.T) {
					inBubble(t, func(c *replication.Config) { c.HA.SyncMode = mode }, func(t *testing.T, p *pair) {
						p.start(p.a, p.b)
						p.admitted(p.a)
						p.write(p.a, "n1", "n2", "n3", "n4", "n5")
						p.same()
						n := p.b
						if primary {
							n = p.a
						}
						p.stop(p.a)
						p.stop(p.b)
						n.cut(t, all)
						require.ErrorIs(t, p.tryStart(n), replication.ErrForeignHistory)
						require.ErrorContains(t, n.repl.Apply(putNode(t, "x", 1), time.Second), "closed")
						require.False(t, n.repl.IsLeader())

						o := p.other(n)
						p.start(o)
						if !primary || mode != replication.SyncFull {
							p.until("the other goes on", o.repl.IsLeader)
						} else {
							<-time.After(3 * failover)
						}
						require.True(t, p.has(o, "n5"))
						p.stop(n)
						p.wipe(n) // as the message says, and the storage with it
						p.start(n)
						p.until("it is rebuilt", func() bool { return n.repl.Health().Role == "standby" })
						p.same()
					})
				})
			}
		}
	}
}

// cut takes the last entries of a node's log, or all.
func (n *node) cut(t *testing.T, all bool) {
	t.Helper()
	store, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(n.cfg.DataDir, "wal.db"), NoSync: true})
	require.NoError(t, err)
	first, err := store.FirstIndex()
	require.NoError(t, err)
	last, err := store.LastIndex()
	require.NoError(t, err)
	if !all {
		first = last
	}
	require.NoError(t, store.DeleteRange(first, last))
	require.NoError(t, store.Close())
}
