package replication_test

import (
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/stretchr/testify/require"
)

// hangingStore is a store whose next transaction, once armed, waits for release.
type hangingStore struct {
	*boltgraph.Store
	armed   atomic.Bool
	entered chan struct{}
	release chan struct{}
}

func newHangingStore(t *testing.T) *hangingStore {
	return &hangingStore{Store: openStore(t), entered: make(chan struct{}), release: make(chan struct{})}
}

func (s *hangingStore) Update(fn func(replication.Tx) error) error {
	if s.armed.CompareAndSwap(true, false) {
		close(s.entered)
		<-s.release
	}
	return s.Store.Update(fn)
}

// TestQuestionsDoNotWaitForATransaction: a storage that hangs must not take
// health and role with it, or nobody learns that it hangs.
func TestQuestionsDoNotWaitForATransaction(t *testing.T) {
	s := newHangingStore(t)
	a := newApplier(t, s)
	s.armed.Store(true)
	applied, answered := make(chan error, 1), make(chan struct{})
	go func() {
		_, err := a.Apply([]replication.Entry{{Position: 1, Groups: []replication.Group{replication.NewGroup(node(t, replication.CmdCreateNode, "a", ""))}}})
		applied <- err
	}()
	<-s.entered
	go func() {
		_, _ = a.Failure(), a.Identity()
		close(answered)
	}()
	select {
	case <-answered:
	case <-time.After(10 * time.Second):
		t.Error("Failure or Identity waited for a transaction")
	}
	close(s.release)
	require.NoError(t, <-applied)
	<-answered
}

// TestStandaloneKeepsDeadlinesWhileAWriteHangs: the second write must fail at
// its deadline, and both questions of a health check must be answered.
func TestStandaloneKeepsDeadlinesWhileAWriteHangs(t *testing.T) {
	s := newHangingStore(t)
	r := startStandalone(t, s)
	s.armed.Store(true)
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- r.Apply(node(t, replication.CmdCreateNode, "a", ""), time.Minute) }()
	<-s.entered
	go func() {
		_, _ = r.Health(), r.IsLeader()
		second <- r.Apply(node(t, replication.CmdCreateNode, "b", ""), 10*time.Millisecond)
	}()
	select {
	case err := <-second:
		require.ErrorIs(t, err, replication.ErrTimeout)
		require.NotErrorIs(t, err, replication.ErrUnknownOutcome)
	case <-time.After(10 * time.Second):
		t.Error("a write of 10 ms waits for another's transaction")
	}
	close(s.release)
	require.NoError(t, <-first)
}

// halfRestored is a storage of which a restore left a half, as Storage allows.
type halfRestored struct {
	*boltgraph.Store
	half atomic.Bool
}

func (h *halfRestored) GetWALPosition() (uint64, error) {
	if h.half.Load() {
		return 0, replication.ErrRestoreIncomplete
	}
	return h.Store.GetWALPosition()
}

func (h *halfRestored) Restore(r io.Reader) error {
	err := h.Store.Restore(r)
	h.half.Store(err != nil)
	return err
}

// TestNothingIsAppliedToAHalfRestoredStorage: nor is it made the beginning of a
// new history. Its next restore makes it whole.
func TestNothingIsAppliedToAHalfRestoredStorage(t *testing.T) {
	s := &halfRestored{Store: openStore(t)}
	s.half.Store(true)
	a, err := replication.NewStorageApplier(s)
	require.ErrorIs(t, err, replication.ErrRestoreIncomplete)
	_, err = a.Apply([]replication.Entry{{Position: 7, Groups: []replication.Group{replication.NewGroup(node(t, replication.CmdCreateNode, "a", ""))}}})
	require.Error(t, err)
	require.Error(t, a.Found(replication.Identity{History: "h", Base: 1}))
	position, err := s.Store.GetWALPosition()
	require.NoError(t, err)
	require.Zero(t, position, "it would pass for whole now")

	s.half.Store(false)
	require.NoError(t, a.Reload())
	require.NoError(t, a.Failure())
	require.NoError(t, a.Found(replication.Identity{History: "h", Base: 1}))
}

// TestRequestIDsSurviveTheWire: a forwarded write goes through JSON, which has
// one replacement for everything that is not UTF-8. Two requests would become
// one, and a retry through another node would be a new one.
func TestRequestIDsSurviveTheWire(t *testing.T) {
	for _, id := range []string{"\xff", "a\xed\xa0\x80"} {
		require.ErrorIs(t, node(t, replication.CmdCreateNode, "a", id).Validate(), replication.ErrInvalidCommand, "%q", id)
	}
	require.NoError(t, node(t, replication.CmdCreateNode, "a", "über \x00").Validate())
}

// TestTimestampsSurviveTheLog: the log has nanoseconds since 1970 in 64 bits,
// JSON has years of four digits.
func TestTimestampsSurviveTheLog(t *testing.T) {
	cmd := node(t, replication.CmdCreateNode, "a", "")
	for _, year := range []int{-1, 1600, 2300, 10000} {
		cmd.Timestamp = time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)
		require.ErrorIs(t, cmd.Validate(), replication.ErrInvalidCommand, "%d", year)
	}
	cmd.Timestamp = time.Time{}
	require.NoError(t, cmd.Validate())
}
