package standby_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/standby"
	"github.com/stretchr/testify/require"
)

var syncModes = []replication.SyncMode{replication.SyncAsync, replication.SyncSemi, replication.SyncFull}

func TestPairWritesReadsAndFailsOver(t *testing.T) {
	for _, mode := range syncModes {
		t.Run(string(mode), func(t *testing.T) {
			inBubble(t, func(c *replication.Config) { c.HA.SyncMode = mode }, func(t *testing.T, p *pair) {
				p.start(p.b, p.a)
				p.admitted(p.a)
				p.write(p.a, "n1", "n2")
				p.write(p.b, "n3") // forwarded
				position, err := p.b.repl.(replication.ConsistentReader).ReadBarrier(t.Context(), replication.ConsistencyQuorum)
				require.NoError(t, err)
				require.Positive(t, position)
				require.True(t, p.has(p.b, "n3"), "a linearizable read on the standby")
				require.Equal(t, "a", p.b.repl.LeaderID())
				require.ErrorIs(t, p.a.repl.Apply(putNode(t, "x", 1), 0), replication.ErrInvalidTimeout)
				p.same()

				p.net.isolate(p.a.addr, true)
				took := p.until("failover", p.b.repl.IsLeader)
				require.GreaterOrEqual(t, took, failover-2*heartbeat)
				require.Less(t, took, failover+3*heartbeat)
				if mode == replication.SyncFull {
					err := p.b.repl.Apply(putNode(t, "n4", 1), 5*time.Second)
					require.ErrorIs(t, err, standby.ErrUnconfirmed, "sync acknowledges nothing alone")
				} else {
					p.write(p.b, "n4")
				}
				p.net.isolate(p.a.addr, false)
				p.admitted(p.b)
				p.write(p.a, "n5")
				p.same()
				for _, id := range []string{"n1", "n2", "n3", "n4", "n5"} {
					require.True(t, p.has(p.a, id), id)
				}
			})
		})
	}
}

// What the standby answers to a batch is all that a write waits for, not a heartbeat.
func TestWriteWaitsForNoHeartbeat(t *testing.T) {
	for _, mode := range []replication.SyncMode{replication.SyncSemi, replication.SyncFull} {
		t.Run(string(mode), func(t *testing.T) {
			inBubble(t, func(c *replication.Config) { c.HA.SyncMode = mode }, func(t *testing.T, p *pair) {
				p.start(p.a, p.b)
				p.admitted(p.a)
				p.write(p.a, "n0") // the stream runs
				start := time.Now()
				for i := range 20 {
					p.write(p.a, fmt.Sprint("n", i))
				}
				require.Zero(t, time.Since(start))
			})
		})
	}
}

func TestPlannedSwitchLosesNothing(t *testing.T) {
	inBubble(t, func(c *replication.Config) { c.HA.SyncMode = replication.SyncAsync }, func(t *testing.T, p *pair) {
		p.start(p.a, p.b)
		p.admitted(p.a)
		for i := range 50 {
			p.write(p.a, fmt.Sprint("n", i))
		}
		start := time.Now()
		require.NoError(t, p.b.repl.(replication.Promoter).Promote(t.Context(), false))
		require.Less(t, time.Since(start), failover, "a planned switch waits for no timeout")
		require.True(t, p.b.repl.IsLeader())
		require.False(t, p.a.repl.IsLeader())
		p.admitted(p.b)
		p.same()
		for i := range 50 {
			require.True(t, p.has(p.b, fmt.Sprint("n", i)), i)
		}
		require.NoError(t, p.b.repl.(replication.Promoter).Promote(t.Context(), false), "it is primary already")

		// And back, by the primary's own word.
		members := p.b.repl.(replication.Membership)
		require.NoError(t, members.TransferLeadership(t.Context(), "a"))
		require.True(t, p.a.repl.IsLeader())
		p.admitted(p.a)
		status, err := members.ClusterStatus(t.Context())
		require.NoError(t, err)
		require.Equal(t, "a", status.Source)
		require.Len(t, status.Members, 2)
		require.ErrorIs(t, members.AddMember(t.Context(), "c", "x:1", true), replication.ErrUnsupported)
	})
}

// Under consistency an isolated primary stops before the standby takes over: at
// no moment do both accept.
func TestLeaseEndsBeforeTheOtherBegins(t *testing.T) {
	inBubble(t, func(c *replication.Config) { c.HA.PartitionPolicy = "consistency" }, func(t *testing.T, p *pair) {
		p.start(p.a, p.b)
		p.admitted(p.a)
		p.write(p.a, "n1")
		p.net.isolate(p.a.addr, true)
		stopped := time.Duration(0)
		start := time.Now()
		p.until("failover", func() bool {
			require.False(t, p.a.repl.IsLeader() && p.b.repl.IsLeader())
			if stopped == 0 && !p.a.repl.IsLeader() {
				stopped = time.Since(start)
			}
			return p.b.repl.IsLeader()
		})
		require.Less(t, stopped, failover)
		err := p.a.repl.Apply(putNode(t, "n2", 1), time.Second)
		require.ErrorIs(t, err, standby.ErrNoLease)
		require.NotErrorIs(t, err, replication.ErrUnknownOutcome)
		p.write(p.b, "n3")
		p.net.isolate(p.a.addr, false)
		p.admitted(p.b)
		p.same()
		require.False(t, p.has(p.a, "n2"))
	})
}

// Under availability both sides of a partition write; what the loser had is put
// aside in a file, and it becomes the other's copy.
func TestDivergedTailIsKept(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, p *pair) {
		p.start(p.a, p.b)
		p.admitted(p.a)
		p.write(p.a, "n1")
		p.net.isolate(p.a.addr, true)
		p.until("failover", p.b.repl.IsLeader)
		p.until("degraded", func() bool { return p.a.repl.Apply(putNode(t, "lost", 1), time.Second) == nil })
		p.write(p.b, "kept", "kept2")
		p.net.isolate(p.a.addr, false)
		winner := p.a
		p.until("one primary", func() bool {
			if p.b.repl.IsLeader() {
				winner = p.b
			}
			return p.a.repl.IsLeader() != p.b.repl.IsLeader()
		})
		p.admitted(winner)
		p.same()
		files, err := filepath.Glob(filepath.Join(p.other(winner).cfg.DataDir, "diverged", "*.jsonl"))
		require.NoError(t, err)
		require.NotEmpty(t, files)
		data, err := os.ReadFile(files[0])
		require.NoError(t, err)
		require.Contains(t, string(data), `"Position"`)
		require.NotEqual(t, p.has(p.a, "lost"), p.has(p.a, "kept"), "one side's writes, not both")
		loser := p.other(winner)
		reasons := fmt.Sprint(loser.repl.Health().Reasons)
		require.Contains(t, reasons, "diverged entries were put aside")
		p.stop(loser)
		p.start(loser)
		p.until("standby again", func() bool { return loser.repl.Health().Role == "standby" })
		require.Equal(t, reasons, fmt.Sprint(loser.repl.Health().Reasons), "until somebody has taken the file away")
	})
}

// Without its standby sync confirms nothing: the caller learns where the write
// stands, and a retry is applied once.
func TestUnconfirmedWriteAndRetry(t *testing.T) {
	inBubble(t, func(c *replication.Config) { c.HA.SyncMode, c.HA.MaxUnconfirmed = replication.SyncFull, 2 }, func(t *testing.T, p *pair) {
		p.start(p.a, p.b)
		p.admitted(p.a)
		p.stop(p.b)
		cmd, err := replication.NewNodeCommand(replication.CmdCreateNode, &replication.Node{ID: "n1", Labels: []string{"T"}})
		require.NoError(t, err)
		cmd.RequestID = "once"
		err = p.a.repl.Apply(cmd, time.Second)
		require.ErrorIs(t, err, standby.ErrUnconfirmed)
		require.ErrorIs(t, err, replication.ErrUnknownOutcome)
		var unconfirmed *standby.UnconfirmedError
		require.ErrorAs(t, err, &unconfirmed)
		require.Positive(t, unconfirmed.Position)
		require.False(t, p.has(p.a, "n1"), "no reader sees what could still be lost")
		require.ErrorIs(t, p.a.repl.Apply(cmd, time.Second), standby.ErrUnconfirmed)
		require.ErrorIs(t, p.a.repl.Apply(cmd, time.Second), replication.ErrOverloaded)
		p.start(p.b)
		p.until("confirmed", func() bool { return p.has(p.a, "n1") })
		require.NoError(t, p.a.repl.Apply(cmd, time.Minute), "the first outcome, not ErrExists")
		p.same()
	})
}

func TestSemiSyncDegradesAndRecovers(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, p *pair) {
		p.start(p.a, p.b)
		p.admitted(p.a)
		events, cancel := p.a.repl.(replication.Subscriber).Subscribe(100)
		defer cancel()
		p.stop(p.b)
		require.ErrorIs(t, p.a.repl.Apply(putNode(t, "n1", 1), time.Second), standby.ErrUnconfirmed, "not before the failover timeout")
		p.write(p.a, "waits for it")
		p.until("degraded", func() bool { return p.a.repl.Health().State == "degraded" })
		p.write(p.a, "n2")
		p.start(p.b)
		p.admitted(p.a)
		p.same()
		require.Equal(t, "healthy", p.a.repl.Health().State)
		var degraded, restored int
		for len(events) > 0 {
			switch (<-events).Type {
			case replication.EventDegraded:
				degraded++
			case replication.EventRestored:
				restored++
			}
		}
		require.Equal(t, 1, degraded)
		require.Equal(t, 1, restored)
	})
}

// A primary that comes back before the timeout is primary again, in a new epoch;
// one whose standby took over meanwhile becomes standby.
func TestRestarts(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, p *pair) {
		p.start(p.a, p.b)
		p.admitted(p.a)
		p.write(p.a, "n1")
		term := p.a.repl.Health().Term
		p.stop(p.a)
		p.start(p.a)
		p.admitted(p.a)
		require.Greater(t, p.a.repl.Health().Term, term)
		p.write(p.b, "n2")
		p.stop(p.a)
		p.until("failover", p.b.repl.IsLeader)
		p.write(p.b, "n3")
		p.start(p.a)
		p.admitted(p.b)
		p.same()
		p.stop(p.a)
		p.stop(p.b)
		p.start(p.b, p.a)
		p.admitted(p.b)
		p.write(p.a, "n4")
		p.same()
		require.Zero(t, len(p.a.repl.Health().Reasons), describe(p.a))
	})
}

// A history founded over data is copied by a snapshot; a node with data of its
// own is refused.
func TestFoundingOverDataAndForeignData(t *testing.T) {
	fill := func(p *pair, n *node, id string) {
		store, err := boltgraph.Open(filepath.Join(n.dir, "graph.db"), boltgraph.WithNoSync())
		require.NoError(p.t, err)
		defer store.Close()
		alone, err := replication.New(&replication.Config{Mode: replication.ModeStandalone, BindAddr: "127.0.0.1:7688", MaxFrameSize: 64 << 20,
			LogStore: "bolt", DataDir: n.dir, ReadConsistency: replication.ConsistencyOne}, store, nil, replication.WithLogger(quietLogger()))
		require.NoError(p.t, err)
		require.NoError(p.t, alone.Start(context.Background()))
		for range 5 {
			require.NoError(p.t, alone.Apply(putNode(p.t, id, 1), time.Minute))
		}
		require.NoError(p.t, alone.Shutdown())
	}
	inBubble(t, nil, func(t *testing.T, p *pair) {
		fill(p, p.a, "old")
		p.start(p.a, p.b)
		p.admitted(p.a)
		p.write(p.a, "new")
		p.same()
		require.True(t, p.has(p.b, "old"))
		require.GreaterOrEqual(t, p.b.repl.Health().AppliedIndex, uint64(6), "positions go on")
	})
	inBubble(t, nil, func(t *testing.T, p *pair) {
		fill(p, p.b, "mine")
		p.start(p.a, p.b)
		p.until("refused", func() bool {
			h := p.b.repl.Health()
			return !h.Healthy && len(h.Reasons) > 0 && fmt.Sprint(h.Reasons) != "" && p.a.repl.IsLeader()
		})
		<-time.After(time.Minute)
		require.Contains(t, fmt.Sprint(p.b.repl.Health().Reasons), "foreign history")
		require.True(t, p.has(p.b, "mine"), "nothing is overwritten")
	})
}

func TestSoloFoundsAndConfirmsAlone(t *testing.T) {
	inBubble(t, func(c *replication.Config) { c.HA.SyncMode = replication.SyncFull }, func(t *testing.T, p *pair) {
		p.start(p.a)
		<-time.After(time.Minute)
		require.False(t, p.a.repl.IsLeader(), "the peer is silent: it waits")
		require.NotEmpty(t, p.a.repl.Health().Reasons)
		require.NoError(t, p.a.repl.(replication.Soloer).Solo(t.Context()))
		p.write(p.a, "n1")
		p.start(p.b)
		p.admitted(p.a)
		p.same()
		p.stop(p.b)
		require.ErrorIs(t, p.a.repl.Apply(putNode(t, "n2", 1), time.Second), standby.ErrUnconfirmed, "with a standby admitted solo is over")
		require.NoError(t, p.a.repl.(replication.Soloer).Solo(t.Context()))
		p.write(p.a, "n3")
	})
}

func TestDifferentSettingsAreRefused(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, p *pair) {
		p.b.cfg.HA.SyncMode = replication.SyncAsync
		p.start(p.a, p.b)
		<-time.After(time.Minute)
		for _, n := range []*node{p.a, p.b} {
			require.False(t, n.repl.IsLeader())
			require.Contains(t, fmt.Sprint(n.repl.Health().Reasons), "settings")
		}
	})
}

// A primary whose disk fails says so and ends its part; the standby takes over,
// and nothing that was acknowledged is missing.
func TestFailedAndHungDisk(t *testing.T) {
	for _, hang := range []bool{false, true} {
		inBubble(t, nil, func(t *testing.T, p *pair) {
			p.start(p.a, p.b)
			p.admitted(p.a)
			p.write(p.a, "n1")
			gate := make(chan struct{})
			if hang {
				p.a.disk.set(nil, gate)
			} else {
				p.a.disk.set(fmt.Errorf("no space left"), nil)
			}
			require.ErrorIs(t, p.a.repl.Apply(putNode(t, "n2", 1), time.Second), replication.ErrUnknownOutcome)
			p.until("failover", p.b.repl.IsLeader)
			require.False(t, p.a.repl.IsLeader())
			require.False(t, p.a.repl.Health().Healthy)
			p.write(p.b, "n3")
			p.a.disk.set(nil, nil)
			close(gate)
			p.stop(p.a)
			p.start(p.a)
			p.admitted(p.b)
			p.same()
			require.True(t, p.has(p.a, "n1") && p.has(p.a, "n3"))
		})
	}
}

// A primary whose writes wait for its standby says so: where that is silent, and where
// it answers and cannot follow any more.
func TestPrimarySaysThatWritesWaitForItsStandby(t *testing.T) {
	const waits = "the standby does not follow: in mode sync no write is acknowledged until it does"
	inBubble(t, func(c *replication.Config) { c.HA.SyncMode = replication.SyncFull }, func(t *testing.T, p *pair) {
		p.start(p.a, p.b)
		p.admitted(p.a)
		p.write(p.a, "n1")
		require.Empty(t, p.a.repl.Health().Reasons)
		p.b.disk.set(fmt.Errorf("no space left"), nil)
		require.ErrorIs(t, p.a.repl.Apply(putNode(t, "n2", 1), failover/2), standby.ErrUnconfirmed)
		h := p.a.repl.Health()
		require.Contains(t, h.Reasons, waits)
		require.Equal(t, "degraded", h.State)
		require.Equal(t, "fenced", h.Peers[0].State)
		p.b.disk.set(nil, nil)
		p.stop(p.b)
		p.start(p.b)
		p.admitted(p.a)
		require.NotContains(t, p.a.repl.Health().Reasons, waits)
		p.stop(p.b)
		p.until("said", func() bool { return slices.Contains(p.a.repl.Health().Reasons, waits) })
	})
}
