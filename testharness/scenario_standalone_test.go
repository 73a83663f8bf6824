package testharness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/internal/bubble"
	"github.com/stretchr/testify/require"
)

func scenarioLogger() replication.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// startStandalone starts a standalone node, which the test's end shuts down.
func startStandalone(t *testing.T, s replication.Storage) replication.Replicator {
	t.Helper()
	r, err := replication.New(replication.DefaultConfig(), s, nil, replication.WithLogger(scenarioLogger()))
	require.NoError(t, err)
	require.NoError(t, r.Start(context.Background()))
	t.Cleanup(func() { require.NoError(t, r.Shutdown()) })
	return r
}

// propertyOf reads registers from a GraphReader.
func propertyOf(r GraphReader) func(replication.NodeID, string) (any, error) {
	return func(id replication.NodeID, key string) (any, error) {
		n, err := r.Node(id)
		if err != nil {
			return nil, err
		}
		return n.Properties[key], nil
	}
}

func makeRegisters(t *testing.T, s replication.Storage, n int) {
	t.Helper()
	for i := range n {
		require.NoError(t, s.CreateNode(&replication.Node{ID: registerID(i)}))
	}
}

func registerID(i int) replication.NodeID { return replication.NodeID(fmt.Sprint("register/", i)) }

// runClients lets clients write, read and create for a number of rounds.
func runClients(h *History, target Target, clients, rounds int) {
	var wg sync.WaitGroup
	for c := range clients {
		client := h.Client(target)
		wg.Go(func() {
			for i := range rounds {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				id := registerID((c + i) % 2)
				client.Set(ctx, id, "k", fmt.Sprintf("%d/%d", c, i))
				client.Get(ctx, replication.ConsistencyQuorum, id, "k")
				client.Create(ctx)
				cancel()
			}
		})
	}
	wg.Wait()
}

// checkHistory makes every check of a history at once.
func checkHistory(t *testing.T, h *History, r GraphReader) {
	t.Helper()
	ops := h.Operations()
	require.NoError(t, CheckLinearizable(ops, filepath.Join(os.TempDir(), "replication-histories")))
	require.NoError(t, CheckOrder(ops))
	require.NoError(t, CheckOutcomes(ops, Has(r)))
}

func countOutcomes(ops []Operation) map[Outcome]int {
	n := make(map[Outcome]int)
	for _, op := range ops {
		n[op.Outcome]++
	}
	return n
}

func TestScenario_Standalone_Basic(t *testing.T) {
	t.Run("MemStore", func(t *testing.T) {
		CheckLeaks(t)
		s := NewMemStore()
		basicScenario(t, s, func() replication.Storage { return s.Clone() })
	})
	t.Run("boltgraph", func(t *testing.T) {
		CheckLeaks(t)
		path := filepath.Join(t.TempDir(), "g.db")
		s, err := boltgraph.Open(path, boltgraph.WithNoSync())
		require.NoError(t, err)
		basicScenario(t, s, func() replication.Storage {
			require.NoError(t, s.Close())
			s, err := boltgraph.Open(path, boltgraph.WithNoSync())
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, s.Close()) })
			return s
		})
	})
}

// basicScenario: concurrent clients, a restart, the same clients' retries.
func basicScenario(t *testing.T, s replication.Storage, reopen func() replication.Storage) {
	makeRegisters(t, s, 2)
	var apps Applications
	var seen Observations
	if mem, ok := s.(*MemStore); ok {
		apps.Watch("n", mem)
	}
	r := startStandalone(t, s)
	stop := seen.Watch(r, time.Millisecond)
	h := NewHistory("basic")
	runClients(h, Target{r, propertyOf(s.(GraphReader))}, 6, 30)
	stop()
	checkHistory(t, h, s.(GraphReader))
	require.Equal(t, 6*30*3, countOutcomes(h.Operations())[OutcomeDone])
	require.Equal(t, uint64(6*30*2), r.Health().AppliedIndex)
	require.NoError(t, r.Shutdown())
	require.ErrorIs(t, r.Apply(requestCommand("late", ""), time.Second), replication.ErrClosed)

	s = reopen()
	if mem, ok := s.(*MemStore); ok {
		apps.Watch("n", mem)
	}
	r = startStandalone(t, s)
	seen.Health(r)
	require.Equal(t, uint64(6*30*2), r.Health().AppliedIndex, "the position outlives a restart")
	for _, op := range h.Operations() {
		if op.Kind != KindCreate {
			continue
		}
		cmd, err := replication.NewNodeCommand(replication.CmdCreateNode, &replication.Node{ID: op.NodeID})
		require.NoError(t, err)
		cmd.RequestID = op.RequestID
		pos, err := r.(replication.BatchApplier).ApplyBatch(context.Background(), []*replication.Command{cmd})
		require.NoError(t, err, "a retry after the restart gets the first outcome")
		require.Equal(t, op.Position, pos)
	}
	other := requestCommand("other content", h.Operations()[0].RequestID)
	require.ErrorIs(t, r.Apply(other, time.Second), replication.ErrRequestIDReused)
	runClients(h, Target{r, propertyOf(s.(GraphReader))}, 2, 10)
	checkHistory(t, h, s.(GraphReader))
	require.NoError(t, apps.Check())
	seen.Health(r)
	require.NoError(t, seen.Err())
}

// TestScenario_Standalone_Replication: what a standalone node does of what the
// other modes do: atomic batches, waiting for positions, events, and data that
// goes on in another node by way of a snapshot.
func TestScenario_Standalone_Replication(t *testing.T) {
	CheckLeaks(t)
	s := NewMemStore()
	r := startStandalone(t, s)
	events, cancel := r.(replication.Subscriber).Subscribe(10)
	defer cancel()
	require.NoError(t, r.WaitForLeader(time.Second))
	require.Equal(t, r.NodeID(), r.LeaderID())
	allOrNone(t, r, s)
	heir := NewMemStore()
	copyStore(t, s, heir)
	second := startStandalone(t, heir)
	var seen Observations
	var apps Applications
	apps.Watch("heir", heir)
	for i := range 20 {
		cmd := requestCommand(replication.NodeID(fmt.Sprint(i%7)), fmt.Sprint(i))
		require.NoError(t, r.Apply(cmd, time.Second))
		require.NoError(t, second.Apply(cmd, time.Second))
		for node, s := range map[string]*MemStore{"first": s, "heir": heir} {
			st := s.Stats()
			seen.State(node, st.Position, st.Digest)
			seen.Position(node, st.Position)
		}
	}
	require.ErrorIs(t, second.Apply(requestCommand("z", "both"), time.Second), replication.ErrRequestIDReused, "request IDs are in the snapshot")
	require.Zero(t, apps.Count("heir", "both"))
	require.NoError(t, errors.Join(seen.Err(), apps.Check()))
	require.NoError(t, r.Shutdown())
	var last replication.Event
	for e := range events {
		last = e
	}
	require.Equal(t, replication.EventStopped, last.Type)
}

// allOrNone makes a batch that gets a verdict and one that does not.
func allOrNone(t *testing.T, r replication.Replicator, s *MemStore) {
	t.Helper()
	batch := r.(replication.BatchApplier)
	edge, err := replication.NewEdgeCommand(replication.CmdCreateEdge, &replication.Edge{StartNode: "a", EndNode: "nowhere", Type: "R"})
	require.NoError(t, err)
	_, err = batch.ApplyBatch(context.Background(), []*replication.Command{requestCommand("a", "all or none"), edge})
	require.ErrorIs(t, err, replication.ErrMissingEnd)
	require.Zero(t, s.Stats().Nodes, "all or none")
	waited := make(chan error, 1)
	go func() { waited <- r.(replication.ConsistentReader).WaitApplied(context.Background(), 2) }()
	pos, err := batch.ApplyBatch(context.Background(), []*replication.Command{requestCommand("a", "both"), requestCommand("b", "")})
	require.NoError(t, err)
	require.Equal(t, uint64(2), pos, "the verdict took a position too")
	require.NoError(t, <-waited)
	plain := startStandalone(t, plainStore{NewMemStore()})
	_, err = plain.(replication.BatchApplier).ApplyBatch(context.Background(), []*replication.Command{requestCommand("a", ""), requestCommand("b", "")})
	require.ErrorIs(t, err, replication.ErrUnsupported)
}

func copyStore(t *testing.T, from, to *MemStore) {
	t.Helper()
	snap, err := from.Snapshot()
	require.NoError(t, err)
	defer snap.Release()
	var data bytes.Buffer
	_, err = snap.WriteTo(&data)
	require.NoError(t, err)
	require.NoError(t, to.Restore(&data))
}

// faultyStore is a MemStore whose transactions can fail and take their time.
type faultyStore struct {
	*MemStore
	// fail, if set, stands for Update.
	fail atomic.Pointer[func(commit func() error) error]
}

var errDisk = errors.New("the disk is gone")

func (f *faultyStore) Update(fn func(replication.Tx) error) error {
	commit := func() error { return f.MemStore.Update(fn) }
	if fail := f.fail.Load(); fail != nil {
		return (*fail)(commit)
	}
	return commit()
}

// diskFaults are the places at which a transaction's disk can fail: nobody can
// tell them apart from outside.
var diskFaults = map[string]func(commit func() error) error{
	"before the transaction": func(func() error) error { return errDisk },
	"after the commit":       func(commit func() error) error { return errors.Join(commit(), errDisk) },
}

func TestScenario_Standalone_Failure(t *testing.T) {
	for name, fault := range diskFaults {
		t.Run(name, func(t *testing.T) {
			CheckLeaks(t)
			s := &faultyStore{MemStore: NewMemStore()}
			makeRegisters(t, s, 2)
			var apps Applications
			apps.Watch("n", s.MemStore)
			r := startStandalone(t, s)
			events, cancel := r.(replication.Subscriber).Subscribe(10)
			defer cancel()
			h := NewHistory("failure")
			target := Target{r, s.Property}
			runClients(h, target, 4, 5)

			s.fail.Store(&fault)
			runClients(h, target, 4, 5)
			s.fail.Store(nil) // the disk is back: the node does not trust it
			after := h.Client(target).Create(context.Background())
			require.ErrorIs(t, after.Err, replication.ErrStorageFailed)
			require.Equal(t, OutcomeFailed, after.Outcome)
			requireStopped(t, r, events)
			require.NotZero(t, countOutcomes(h.Operations())[OutcomeUnknown], "the writes in the transaction that failed")
			require.NoError(t, r.Shutdown())

			restarted := s.Clone()
			apps.Watch("n", restarted)
			again := startStandalone(t, restarted)
			took, err := CheckProgress(time.Minute, func(ctx context.Context) error {
				return h.Client(Target{again, restarted.Property}).Create(ctx).Err
			})
			require.NoError(t, err, "after %s", took)
			retryUnknown(t, h, again)
			runClients(h, Target{again, restarted.Property}, 2, 5)
			checkHistory(t, h, restarted)
			require.NoError(t, apps.Check())
		})
	}
}

// requireStopped: the node says in every way that it applies nothing more.
func requireStopped(t *testing.T, r replication.Replicator, events <-chan replication.Event) {
	t.Helper()
	require.False(t, r.IsLeader())
	require.Empty(t, r.LeaderID())
	require.ErrorIs(t, r.WaitForLeader(time.Second), replication.ErrNoLeader)
	health := r.Health()
	require.False(t, health.Healthy)
	require.Equal(t, "storage_failed", health.State)
	_, err := r.(replication.ConsistentReader).ReadBarrier(context.Background(), replication.ConsistencyQuorum)
	require.ErrorIs(t, err, replication.ErrStorageFailed)
	require.ErrorIs(t, r.(replication.ConsistentReader).WaitApplied(context.Background(), health.AppliedIndex+1), replication.ErrStorageFailed)
	require.Equal(t, replication.EventStorageFailed, (<-events).Type)
}

// retryUnknown tries the creations of unknown outcome again: each has one
// outcome now, and was executed at most once.
func retryUnknown(t *testing.T, h *History, r replication.Replicator) {
	t.Helper()
	for _, op := range h.Operations() {
		if op.Kind != KindCreate || op.Outcome != OutcomeUnknown {
			continue
		}
		cmd, err := replication.NewNodeCommand(replication.CmdCreateNode, &replication.Node{ID: op.NodeID})
		require.NoError(t, err)
		cmd.RequestID = op.RequestID
		require.NoError(t, r.Apply(cmd, time.Second))
	}
}

// slow makes every transaction take a second.
func slow(commit func() error) error {
	time.Sleep(time.Second)
	return commit()
}

// TestScenario_Standalone_Latency: a storage that takes a second for each
// transaction, in virtual time.
func TestScenario_Standalone_Latency(t *testing.T) {
	t.Run("Deadlines", func(t *testing.T) { bubble.Test(t, deadlinesWhileSlow) })
	t.Run("Shutdown", func(t *testing.T) { bubble.Test(t, shutdownWhileSlow) })
}

func deadlinesWhileSlow(t *testing.T) {
	s := &faultyStore{MemStore: NewMemStore()}
	makeRegisters(t, s, 1)
	r := startStandalone(t, s)
	slowly := slow
	s.fail.Store(&slowly)
	h := NewHistory("latency")
	start := time.Now()
	var wg sync.WaitGroup
	// at makes a write at a time, with a deadline, and says how and when it ended.
	at := func(when, timeout time.Duration, check func(op Operation, ended time.Duration)) {
		client := h.Client(Target{r, s.Property})
		wg.Go(func() {
			time.Sleep(when - time.Since(start))
			ctx, cancel := context.WithTimeout(context.Background(), timeout)
			defer cancel()
			op := client.Create(ctx)
			check(op, time.Since(start))
		})
	}
	ms := time.Millisecond
	at(0, 5*time.Second, func(op Operation, ended time.Duration) {
		require.NoError(t, op.Err)
		require.Equal(t, time.Second, ended)
	})
	at(100*ms, 200*ms, func(op Operation, ended time.Duration) { // waits, and is withdrawn
		require.ErrorIs(t, op.Err, replication.ErrTimeout)
		require.Equal(t, OutcomeFailed, op.Outcome)
		require.Equal(t, 300*ms, ended)
	})
	at(110*ms, 5*time.Second, func(op Operation, ended time.Duration) { // applies what waits
		require.NoError(t, op.Err)
		require.Equal(t, 2*time.Second, ended)
	})
	at(120*ms, 1500*ms, func(op Operation, ended time.Duration) { // is applied with it, too late
		require.ErrorIs(t, op.Err, replication.ErrUnknownOutcome)
		require.Equal(t, OutcomeUnknown, op.Outcome)
		require.Equal(t, 1620*ms, ended)
	})
	at(500*ms, time.Second, func(op Operation, ended time.Duration) {
		require.Equal(t, OutcomeUnknown, op.Outcome)
		require.Equal(t, 1500*ms, ended)
	})
	readsDoNotWait(t, r, 600*ms)
	wg.Wait()
	require.NoError(t, r.Shutdown())
	checkHistory(t, h, s)
	present := 0
	for _, op := range h.Operations() {
		if _, err := s.Node(op.NodeID); err == nil {
			present++
		}
	}
	require.Equal(t, 4, present, "all but the one that was withdrawn")
}

// readsDoNotWait: while a transaction takes its time, health and reads answer
// at once, and a wait keeps to its deadline.
func readsDoNotWait(t *testing.T, r replication.Replicator, when time.Duration) {
	t.Helper()
	time.Sleep(when)
	before := time.Now()
	require.True(t, r.Health().Healthy)
	pos, err := r.(replication.ConsistentReader).ReadBarrier(context.Background(), replication.ConsistencyQuorum)
	require.NoError(t, err)
	require.Zero(t, pos)
	require.Zero(t, time.Since(before))
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, r.(replication.ConsistentReader).WaitApplied(ctx, 1), replication.ErrTimeout)
	require.Equal(t, 50*time.Millisecond, time.Since(before))
}

// shutdownWhileSlow: Shutdown lets nobody wait for an outcome that never comes,
// and says of none that it is unknown.
func shutdownWhileSlow(t *testing.T) {
	s := &faultyStore{MemStore: NewMemStore()}
	r := startStandalone(t, s)
	slowly := slow
	s.fail.Store(&slowly)
	h := NewHistory("shutdown")
	var wg sync.WaitGroup
	for range 3 { // one is applied, two wait
		client := h.Client(Target{r, s.Property})
		wg.Go(func() { client.Create(context.Background()) })
		synctest.Wait()
	}
	require.NoError(t, r.Shutdown())
	wg.Wait()
	require.Equal(t, OutcomeFailed, h.Client(Target{r, s.Property}).Create(context.Background()).Outcome)
	require.Zero(t, countOutcomes(h.Operations())[OutcomeUnknown])
	checkHistory(t, h, s)
}
