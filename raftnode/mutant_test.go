package raftnode_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	"github.com/nornicdb/replication/raftnode"
	th "github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// quietTB is a test that can fail without failing the test it is part of: a
// mutant is there to be found.
type quietTB struct {
	testing.TB
	mu     sync.Mutex
	errors []string
}

func (q *quietTB) Errorf(format string, args ...any) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.errors = append(q.errors, fmt.Sprintf(format, args...))
}
func (q *quietTB) Logf(string, ...any) {}
func (q *quietTB) Failed() bool        { return false } // its transcript is not kept

// findMutant runs schedules with a mutant until a check finds it, and says which
// errors it may be found by.
func findMutant(t *testing.T, schedules int, x th.Chaos, found ...error) {
	t.Parallel()
	if testing.Short() {
		t.Skip("searches for a mutant")
	}
	for seed := range uint64(schedules) {
		var err error
		bubble.Test(t, func(t *testing.T) {
			x := x
			x.Seed, x.Pictures = seed+1, t.TempDir()
			q := &quietTB{TB: t}
			_, err = x.Run(q)
		})
		for _, f := range found {
			if errors.Is(err, f) {
				t.Logf("found by schedule %d: %.300v", seed+1, err)
				return
			}
		}
		if err != nil {
			t.Logf("schedule %d saw something else: %.300v", seed+1, err)
		}
	}
	t.Errorf("no check found the mutant in %d schedules", schedules)
}

// TestMutant_AcknowledgedBeforeDurable: disks say that they have synced what
// they have not.
func TestMutant_AcknowledgedBeforeDurable(t *testing.T) {
	findMutant(t, 60, th.Chaos{Cluster: th.RaftConfig(0), Faults: []th.FaultKind{th.FaultCrash, th.FaultCrash, th.FaultPartition},
		Recovery: 20 * time.Second,
		Prepare: func(c *th.Cluster) error {
			for _, m := range c.Members {
				if err := m.Disk().Lie(0.02); err != nil {
					return err
				}
			}
			return nil
		}}, th.ErrLost, th.ErrDiverged, th.ErrNotLinearizable, th.ErrOrder, th.ErrWentBack, th.ErrAppliedTwice)
}

func TestMutant_ReadWithoutEntryOfOwnTerm(t *testing.T) {
	findMutant(t, 150, th.Chaos{Cluster: th.RaftConfig(0, raftnode.MutantReadsWithoutOwnTerm), Registers: 1, Clients: 10, Operations: 1500,
		Faults: []th.FaultKind{th.FaultCrash, th.FaultPartition, th.FaultOperator}}, th.ErrNotLinearizable, th.ErrOrder)
}

// wrapTx lets a mutant stand in the way of a storage's transactions.
type wrapTx struct {
	replication.TxStorage
	replication.StorageSnapshotter
	update  func(fn func(replication.Tx) error) error
	restore func(r io.Reader) error
}

func (w *wrapTx) Update(fn func(replication.Tx) error) error {
	if w.update != nil {
		return w.update(fn)
	}
	return w.TxStorage.Update(fn)
}

func (w *wrapTx) Restore(r io.Reader) error {
	if w.restore != nil {
		return w.restore(r)
	}
	return w.StorageSnapshotter.Restore(r)
}

func wrap(s replication.TxStorage) *wrapTx {
	return &wrapTx{TxStorage: s, StorageSnapshotter: s.(replication.StorageSnapshotter)}
}

// wrapCommands stands in the way of each command.
type wrapCommands struct {
	replication.Tx
	apply func(cmd *replication.Command) error
}

func (w wrapCommands) ApplyCommand(cmd *replication.Command) error { return w.apply(cmd) }

// TestMutant_StorageErrorTakenForVerdict: now and then a storage's own failure
// looks like the verdict of all nodes.
func TestMutant_StorageErrorTakenForVerdict(t *testing.T) {
	cfg := th.RaftConfig(0)
	cfg.Wrap = func(m *th.Member, s replication.TxStorage) replication.Storage {
		w, count := wrap(s), 0
		w.update = func(fn func(replication.Tx) error) error {
			return s.Update(func(tx replication.Tx) error {
				return fn(wrapCommands{tx, func(cmd *replication.Command) error {
					if count++; count%100 == 0 && m.ID == "n2" {
						return fmt.Errorf("%w: input/output error", replication.ErrInvalidCommand)
					}
					return tx.ApplyCommand(cmd)
				}})
			})
		}
		return w
	}
	findMutant(t, 5, th.Chaos{Cluster: cfg, Faults: []th.FaultKind{th.FaultPartition}}, th.ErrDiverged, th.ErrLost)
}

// TestMutant_LastBatchAppliedTwiceAfterRestart: what the last transaction did is
// done again when the node starts.
func TestMutant_LastBatchAppliedTwiceAfterRestart(t *testing.T) {
	var mu sync.Mutex
	last := make(map[string][]*replication.Command)
	cfg := th.RaftConfig(0)
	cfg.Wrap = func(m *th.Member, s replication.TxStorage) replication.Storage {
		mu.Lock()
		again := last[m.ID]
		delete(last, m.ID)
		mu.Unlock()
		_ = s.Update(func(tx replication.Tx) error {
			for _, cmd := range again {
				_ = tx.ApplyCommand(cmd)
			}
			return nil
		})
		w := wrap(s)
		w.update = func(fn func(replication.Tx) error) error {
			var batch []*replication.Command
			err := s.Update(func(tx replication.Tx) error {
				return fn(wrapCommands{tx, func(cmd *replication.Command) error {
					batch = append(batch, cmd)
					return tx.ApplyCommand(cmd)
				}})
			})
			if err == nil && len(batch) > 0 {
				mu.Lock()
				last[m.ID] = batch
				mu.Unlock()
			}
			return err
		}
		return w
	}
	findMutant(t, 10, th.Chaos{Cluster: cfg, Faults: []th.FaultKind{th.FaultCrash}}, th.ErrAppliedTwice)
}

// lagBySnapshot makes a cluster compact its log at every turn, so that a node
// that was away comes back by snapshot.
func lagBySnapshot(cfg th.ClusterConfig) th.ClusterConfig {
	cfg.Configure = func(m *th.Member, c *replication.Config) {
		th.ConfigureRaft(m, c)
		c.Raft.SnapshotThreshold, c.Raft.TrailingLogs, c.Raft.SnapshotInterval = 10, 2, 200*time.Millisecond
	}
	return cfg
}

// TestMutant_RequestIDsForgottenOverSnapshot: a restored storage has no request
// outcomes.
func TestMutant_RequestIDsForgottenOverSnapshot(t *testing.T) {
	cfg := lagBySnapshot(th.RaftConfig(0))
	cfg.Wrap = func(m *th.Member, s replication.TxStorage) replication.Storage {
		w := wrap(s)
		w.restore = func(r io.Reader) error {
			if err := w.StorageSnapshotter.Restore(r); err != nil {
				return err
			}
			return s.Update(func(tx replication.Tx) error {
				var rows [][]byte
				err := tx.ScanMeta([]byte("replication/outcome/"), func(k, _ []byte) error {
					rows = append(rows, append([]byte(nil), k...))
					return nil
				})
				for _, k := range rows {
					err = errors.Join(err, tx.SetMeta(k, nil))
				}
				return err
			})
		}
		return w
	}
	findMutant(t, 60, th.Chaos{Cluster: cfg, Faults: []th.FaultKind{th.FaultPartition, th.FaultCrash, th.FaultOperator}},
		th.ErrAppliedTwice, th.ErrDiverged, th.ErrLost)
}

// TestMutant_PositionAdvancedAfterFailedRestore: a restore that failed leaves
// the position as if it had not.
func TestMutant_PositionAdvancedAfterFailedRestore(t *testing.T) {
	cfg := lagBySnapshot(th.RaftConfig(0))
	cfg.Wrap = func(m *th.Member, s replication.TxStorage) replication.Storage {
		w := wrap(s)
		w.restore = func(r io.Reader) error {
			other := th.NewMemStore()
			if err := other.Restore(r); err != nil {
				return err
			}
			at, err := other.GetWALPosition()
			if position, _ := s.GetWALPosition(); err == nil && at > 10 && position < at {
				err = errors.Join(s.SetWALPosition(at), errors.New("the disk is full"))
			}
			if err == nil {
				snap, _ := other.Snapshot() // has no error
				pr, pw := io.Pipe()
				go func() { _, err := snap.WriteTo(pw); pw.CloseWithError(err) }()
				err = w.StorageSnapshotter.Restore(pr)
			}
			return err
		}
		return w
	}
	findMutant(t, 60, th.Chaos{Cluster: cfg, Faults: []th.FaultKind{th.FaultPartition, th.FaultCrash, th.FaultCrash}}, th.ErrDiverged, th.ErrLost)
}

// directed runs a play of its own on clusters without a mutant, where it must
// find nothing, and with it, where one of some runs must find it.
func directed(t *testing.T, mutant raftnode.Option, play func(t *testing.T, c *th.Cluster) error, found ...error) {
	t.Parallel()
	const runs = 10
	run := func(t *testing.T, tb testing.TB, seed uint64, opts ...raftnode.Option) error {
		cfg := th.RaftConfig(seed, opts...)
		cfg.Configure = func(m *th.Member, c *replication.Config) {
			th.ConfigureRaft(m, c)
			c.Raft.LeaderLeaseTimeout = c.Raft.ElectionTimeout // the longest there is
		}
		c := th.NewCluster(tb, cfg)
		c.Net.SetDefaultFaults(th.Faults{Latency: time.Millisecond})
		c.StartAll(t.Context())
		return play(t, c)
	}
	for seed := range uint64(runs) {
		bubble.Test(t, func(t *testing.T) { require.NoError(t, run(t, t, seed), "without the mutant") })
	}
	for seed := range uint64(runs) {
		var err error
		bubble.Test(t, func(t *testing.T) { err = run(t, &quietTB{TB: t}, seed, mutant) })
		for _, f := range found {
			if errors.Is(err, f) {
				t.Logf("found by run %d: %.300v", seed+1, err)
				return
			}
		}
		require.NoError(t, err, "found, but as something else")
	}
	t.Errorf("the mutant was not found in %d runs", runs)
}

func target(m *th.Member) th.Target {
	return th.Target{Replicator: m.Replicator(), Property: m.Store().Property}
}

// TestMutant_OldHeartbeatConfirmsARead: answers that were under way when the
// leader was cut off confirm that it leads, while another already does.
func TestMutant_OldHeartbeatConfirmsARead(t *testing.T) {
	directed(t, raftnode.MutantOldHeartbeats, func(t *testing.T, c *th.Cluster) error {
		h := th.NewHistory("h")
		old := c.WaitLeader(time.Minute)
		writer := h.Client(target(old))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.Equal(t, th.OutcomeDone, h.Client(target(old)).Do(ctx, putNode(t, "r", 0)).Outcome)
		require.Equal(t, th.OutcomeDone, writer.Set(ctx, "r", "v", "old").Outcome)
		// The leader is far from the others, who are near each other.
		far := th.Faults{Latency: 450 * time.Millisecond}
		for _, o := range old.Peers() {
			c.Net.SetFaults(old.ID, o.ID, far)
			c.Net.SetFaults(o.ID, old.ID, far)
		}
		<-time.After(5 * time.Second) // virtual
		// What it sends no longer arrives; what they have sent does.
		for _, o := range old.Peers() {
			c.Net.OneWay(old.ID, o.ID)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			reader := h.Client(target(old))
			for start := time.Now(); time.Since(start) < 4*time.Second; {
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				reader.Get(ctx, replication.ConsistencyQuorum, "r", "v")
				cancel()
				<-time.After(5 * time.Millisecond) // virtual: a read may take no time at all
			}
		})
		next := c.WaitLeader(time.Minute, old)
		h.Client(target(next)).Set(ctx, "r", "v", "new")
		wg.Wait()
		return th.CheckLinearizable(h.Operations(), t.TempDir())
	}, th.ErrNotLinearizable)
}

// TestMutant_WipedVoterVotes: a node that lost its disk elects a leader that
// lacks what was acknowledged.
func TestMutant_WipedVoterVotes(t *testing.T) {
	directed(t, raftnode.MutantWipedVotes, func(t *testing.T, c *th.Cluster) error {
		h := th.NewHistory("h")
		leader := c.WaitLeader(time.Minute)
		wiped, behind := leader.Peers()[0], leader.Peers()[1]
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		client := h.Client(target(leader))
		require.Equal(t, th.OutcomeDone, client.Create(ctx).Outcome)
		c.WaitSame(time.Minute)
		c.Crash(behind)
		for range 5 {
			require.Equal(t, th.OutcomeDone, client.Create(ctx).Outcome)
		}
		c.Crash(wiped)
		c.Wipe(wiped)
		c.Crash(leader)
		started := make(chan error, 3)
		for _, m := range []*th.Member{wiped, behind} {
			go func() { started <- c.Start(ctx, m) }()
		}
		<-time.After(30 * time.Second) // virtual: they are without the leader
		go func() { started <- c.Start(ctx, leader) }()
		for range 3 {
			if err := <-started; err != nil {
				return err
			}
		}
		if _, ok := c.WaitSame(time.Minute); !ok {
			return th.ErrNoProgress
		}
		return th.CheckOutcomes(h.Operations(), th.Has(leader.Store()))
	}, th.ErrLost, th.ErrNoProgress, replication.ErrForeignHistory)
}

// TestMutant_HeartbeatsOverHungDisk: a leader that cannot write keeps the others
// from electing one that can.
func TestMutant_HeartbeatsOverHungDisk(t *testing.T) {
	directed(t, raftnode.MutantHungLeads, func(t *testing.T, c *th.Cluster) error {
		leader := c.WaitLeader(time.Minute)
		leader.Disk().Hang()
		client := th.NewHistory("h").Client(target(leader.Peers()[0]), target(leader.Peers()[1]))
		took, err := th.CheckProgress(10*leader.Config.Raft.ElectionTimeout, func(ctx context.Context) error {
			if op := client.Create(ctx); op.Outcome != th.OutcomeDone {
				return fmt.Errorf("%s", op)
			}
			return nil
		})
		t.Logf("a write took %v, at an election timeout of %v", took, leader.Config.Raft.ElectionTimeout)
		leader.Disk().Release()
		return err
	}, th.ErrNoProgress)
}

// TestChaosPlanIsTheSeeds: the same seed gives the same faults.
func TestChaosPlanIsTheSeeds(t *testing.T) {
	plan := func(seed uint64) string {
		var b strings.Builder
		for _, s := range th.PlanChaos(seed, th.AllFaults, 3, 15*time.Second) {
			fmt.Fprintln(&b, s)
		}
		return b.String()
	}
	require.Equal(t, plan(7), plan(7))
	require.NotEqual(t, plan(7), plan(8))
}
