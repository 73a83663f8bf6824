package testharness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	"github.com/stretchr/testify/require"
)

func TestOutcomesAreComparedWithTheStorage(t *testing.T) {
	s := NewMemStore()
	require.NoError(t, s.CreateNode(&replication.Node{ID: "there"}))
	created := func(id replication.NodeID, o Outcome) []Operation {
		return []Operation{{Kind: KindCreate, NodeID: id, Outcome: o}, {Kind: KindSet, NodeID: "nobody's", Outcome: OutcomeDone}}
	}
	for _, id := range []replication.NodeID{"there", "gone"} {
		require.NoError(t, CheckOutcomes(created(id, OutcomeUnknown), Has(s)))
	}
	require.NoError(t, CheckOutcomes(created("there", OutcomeDone), Has(s)))
	require.NoError(t, CheckOutcomes(created("gone", OutcomeFailed), Has(s)))
	require.ErrorIs(t, CheckOutcomes(created("gone", OutcomeDone), Has(s)), ErrLost)
	require.ErrorIs(t, CheckOutcomes(created("there", OutcomeFailed), Has(s)), ErrFailedButThere)
	broken := func(replication.NodeID) (bool, error) { return false, errOnPurpose }
	require.ErrorIs(t, CheckOutcomes(created("there", OutcomeDone), broken), errOnPurpose)
}

func requestCommand(id replication.NodeID, request string) *replication.Command {
	cmd, err := replication.NewNodeCommand(replication.CmdPutNode, &replication.Node{ID: id})
	if err != nil {
		panic(err)
	}
	cmd.RequestID = request
	return cmd
}

func TestApplicationsCountWhatTheStorageExecutes(t *testing.T) {
	var a Applications
	s := NewMemStore()
	a.Watch("n1", s)
	applier, err := replication.NewStorageApplier(s)
	require.NoError(t, err)
	for pos := range uint64(3) { // a retry is answered, not executed
		_, err := applier.Apply([]replication.Entry{{Position: pos + 1, Groups: []replication.Group{replication.NewGroup(requestCommand("a", "r"))}}})
		require.NoError(t, err)
	}
	require.NoError(t, s.ApplyCommand(requestCommand("a", "")), "without request ID there is nothing to count")
	require.Equal(t, 1, a.Count("n1", "r"))
	other := NewMemStore()
	a.Watch("n2", other)
	require.NoError(t, other.ApplyCommand(requestCommand("a", "r")), "another node executes it too")
	require.NoError(t, a.Check())

	again := s.Clone() // the node comes back and has forgotten
	a.Watch("n1", again)
	require.NoError(t, again.ApplyCommand(requestCommand("a", "r")))
	require.ErrorIs(t, a.Check(), ErrAppliedTwice)
}

func TestObservationsRejectTwoGraphsAtOnePosition(t *testing.T) {
	var o Observations
	o.State("n1", 5, "x")
	o.State("n2", 5, "x")
	o.State("n2", 6, "y")
	require.NoError(t, o.Err())
	o.State("n1", 6, "z")
	require.ErrorIs(t, o.Err(), ErrDiverged)
}

func TestObservationsRejectTwoLeadersInOneTerm(t *testing.T) {
	var o Observations
	o.Leader(1, "n1")
	o.Leader(2, "n2")
	o.Leader(3, "n1")
	o.Leader(2, "n2")
	require.NoError(t, o.Err())
	require.Equal(t, 3, o.Terms())
	o.Leader(2, "n1")
	require.ErrorIs(t, o.Err(), ErrTwoLeaders)
}

func TestObservationsRejectAPositionThatGoesBack(t *testing.T) {
	var o Observations
	o.Position("n1", 5)
	o.Position("n2", 4)
	o.Position("n1", 5)
	o.Position("n1", 7)
	require.NoError(t, o.Err())
	o.Position("n1", 6)
	require.ErrorIs(t, o.Err(), ErrWentBack)
	for range 100 {
		o.Position("n1", 7)
		o.Position("n1", 6)
	}
	require.Len(t, o.errs, maxObservedErrors)
}

// fakeReplicator answers as it is told.
type fakeReplicator struct {
	replication.Replicator
	id     string
	health func() *replication.HealthStatus
	apply  func(*replication.Command) (uint64, error)
	read   func(replication.Consistency) (uint64, error)
}

func (f *fakeReplicator) NodeID() string                    { return f.id }
func (f *fakeReplicator) Health() *replication.HealthStatus { return f.health() }
func (f *fakeReplicator) ApplyBatch(_ context.Context, cmds []*replication.Command) (uint64, error) {
	return f.apply(cmds[0])
}
func (f *fakeReplicator) ReadBarrier(_ context.Context, level replication.Consistency) (uint64, error) {
	return f.read(level)
}
func (f *fakeReplicator) WaitApplied(context.Context, uint64) error { return nil }

// TestLeadershipCountsOnlyWithinOneTerm: a node that is asked while it steps
// down says that it leads, and then names the next term.
func TestLeadershipCountsOnlyWithinOneTerm(t *testing.T) {
	answers := func(hs ...replication.HealthStatus) *fakeReplicator {
		return &fakeReplicator{id: "n1", health: func() *replication.HealthStatus {
			h := hs[0]
			hs = hs[1:]
			h.NodeID = "n1"
			return &h
		}}
	}
	var o Observations
	o.Leader(6, "n2")
	o.Health(answers(replication.HealthStatus{IsLeader: true, Term: 6}, replication.HealthStatus{Term: 6}))
	o.Health(answers(replication.HealthStatus{IsLeader: true, Term: 5}, replication.HealthStatus{IsLeader: true, Term: 6}))
	o.Health(answers(replication.HealthStatus{AppliedIndex: 9, Term: 6, LeaderID: "n3"}))
	o.Health(answers(replication.HealthStatus{State: "closed"}))
	require.NoError(t, o.Err(), "position 0 of a closed node is no position")
	o.Health(answers(replication.HealthStatus{IsLeader: true, Term: 6, AppliedIndex: 9}, replication.HealthStatus{IsLeader: true, Term: 6}))
	require.ErrorIs(t, o.Err(), ErrTwoLeaders)
	require.NotErrorIs(t, o.Err(), ErrWentBack)
	o.Health(answers(replication.HealthStatus{AppliedIndex: 8}))
	require.ErrorIs(t, o.Err(), ErrWentBack)
}

func TestWatchingSeesWhatHappensMeanwhile(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var o Observations
		var position atomic.Uint64
		position.Store(5)
		r := &fakeReplicator{id: "n1", health: func() *replication.HealthStatus {
			return &replication.HealthStatus{NodeID: "n1", AppliedIndex: position.Load()}
		}}
		stop := o.Watch(r, time.Second)
		synctest.Wait()
		position.Store(4) // only for a moment
		time.Sleep(time.Second)
		synctest.Wait()
		position.Store(6)
		stop()
		stop()
		require.ErrorIs(t, o.Err(), ErrWentBack)

		var states Observations
		a, b := NewMemStore(), NewMemStore()
		stopA, stopB := states.WatchStore("a", a, time.Second), states.WatchStore("b", b, time.Second)
		require.NoError(t, a.CreateNode(&replication.Node{ID: "only here"}))
		stopA()
		stopB()
		require.ErrorIs(t, states.Err(), ErrDiverged)
	})
}

func TestProgressIsMeasuredAgainstItsBound(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		healed := time.Now().Add(3 * time.Second)
		try := func(context.Context) error {
			if time.Now().Before(healed) {
				return errOnPurpose
			}
			return nil
		}
		took, err := CheckProgress(10*time.Second, try)
		require.NoError(t, err)
		require.InDelta(t, 3, took.Seconds(), 0.1)
		healed = time.Now().Add(11 * time.Second)
		_, err = CheckProgress(10*time.Second, try)
		require.ErrorIs(t, err, ErrNoProgress)
		require.ErrorIs(t, err, errOnPurpose, "the last error says why")
		_, err = CheckProgress(time.Second, func(context.Context) error { time.Sleep(2 * time.Second); return nil })
		require.ErrorIs(t, err, ErrNoProgress, "success that comes late is none")
	})
}

func TestLeftOpenFilesAreFound(t *testing.T) {
	before, err := openFiles()
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("no /proc/self/fd")
	}
	require.NoError(t, err)
	require.NoError(t, leftOpen(before))
	path := filepath.Join(t.TempDir(), "left")
	f, err := os.Create(path)
	require.NoError(t, err)
	require.ErrorIs(t, leftOpen(before), ErrLeftOpen)
	require.ErrorContains(t, leftOpen(before), path)
	require.NoError(t, f.Close())
	require.NoError(t, leftOpen(before))
}

// leakRecorder is a testing.TB that runs its clean-ups when told.
type leakRecorder struct {
	testing.TB
	cleanups []func()
	errs     []string
}

func (r *leakRecorder) Helper()             {}
func (r *leakRecorder) Cleanup(fn func())   { r.cleanups = append(r.cleanups, fn) }
func (r *leakRecorder) Error(args ...any)   { r.errs = append(r.errs, fmt.Sprint(args...)) }
func (r *leakRecorder) Logf(string, ...any) {}

func TestALeftGoroutineIsFound(t *testing.T) {
	r := &leakRecorder{TB: t}
	CheckLeaks(r)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { <-stop; close(stopped) }()
	for _, fn := range r.cleanups {
		fn()
	}
	close(stop)
	<-stopped
	require.Len(t, r.errs, 1)
	require.Contains(t, r.errs[0], "TestALeftGoroutineIsFound")
	clean := &leakRecorder{TB: t}
	CheckLeaks(clean)
	for _, fn := range clean.cleanups {
		fn()
	}
	require.Empty(t, clean.errs)
}
