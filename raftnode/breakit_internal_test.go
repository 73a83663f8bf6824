package raftnode

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/internal/forward"
	"github.com/stretchr/testify/require"
)

// lonely makes a node that is a cluster by itself. change may make it another.
func lonely(t *testing.T, change func(*replication.Config)) (*replication.Config, func() *Node) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	cfg := replication.DefaultConfig()
	cfg.Mode, cfg.NodeID, cfg.BindAddr, cfg.DataDir = replication.ModeRaft, "n1", l.Addr().String(), filepath.Join(t.TempDir(), "r")
	cfg.Secret = "a secret of the tests"
	cfg.Raft.Bootstrap = true
	cfg.Raft.ElectionTimeout, cfg.Raft.HeartbeatTimeout, cfg.Raft.LeaderLeaseTimeout = 200*time.Millisecond, 20*time.Millisecond, 100*time.Millisecond
	require.NoError(t, l.Close())
	if change != nil {
		change(cfg)
	}
	store, err := boltgraph.Open(filepath.Join(t.TempDir(), "g.db"), boltgraph.WithNoSync())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, store.Close()) })
	return cfg, func() *Node {
		r, err := Mode(WithForce())(cfg, store, replication.Runtime{Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Now: time.Now})
		require.NoError(t, err)
		require.NoError(t, r.Start(t.Context()))
		return r.(*Node)
	}
}

func leading(t *testing.T, n *Node) {
	t.Helper()
	require.Eventually(t, n.IsLeader, 20*time.Second, time.Millisecond)
}

// TestNodeThatClosesDoesNotSayThatItHasNoCluster: a founder with an empty disk
// would found another.
func TestNodeThatClosesDoesNotSayThatItHasNoCluster(t *testing.T) {
	_, start := lonely(t, nil)
	n := start()
	require.NoError(t, n.Shutdown())
	_, err := n.handleStatus(t.Context(), nil)
	require.Error(t, err)
}

// TestNodeThatClosesHasCertainlyNotTakenAWrite: what it is sent then did not
// happen, so the sender may send it to the next leader.
func TestNodeThatClosesHasCertainlyNotTakenAWrite(t *testing.T) {
	_, start := lonely(t, nil)
	n := start()
	require.NoError(t, n.Shutdown())
	payload, err := json.Marshal(replication.ApplyRequest{Commands: []*replication.Command{replication.NewDeleteNode("a")}, TimeoutMS: 1000, Hops: 1})
	require.NoError(t, err)
	_, err = n.handleApply(t.Context(), &replication.Request{Payload: payload})
	require.Error(t, err)
	over := replication.ErrorFromCode(replication.ErrorCode(err), err.Error())
	require.True(t, forward.Answered(over), "the sender takes it for an unknown outcome: %v", over)
	require.True(t, forward.Transient(over))
}

// TestRemovedNodeDoesNotComeBackByItself: nothing is left of what one that
// waited for its vote was to become when it was removed.
func TestRemovedNodeDoesNotComeBackByItself(t *testing.T) {
	_, start := lonely(t, nil)
	n := start()
	defer func() { require.NoError(t, n.Shutdown()) }()
	leading(t, n)
	ask := func() error {
		payload, err := json.Marshal(replication.JoinRequest{NodeID: "n2", Address: "127.0.0.1:1", Voter: true})
		require.NoError(t, err)
		_, err = n.handleJoin(t.Context(), &replication.Request{Peer: replication.Peer{NodeID: "n2"}, Payload: payload})
		return err
	}
	require.NoError(t, ask())
	require.NoError(t, ask(), "it is known")
	voter, known := n.applier.MemberWish("n2")
	require.True(t, voter && known)
	require.NoError(t, n.RemoveMember(t.Context(), "n2", false))
	_, known = n.applier.MemberWish("n2")
	require.False(t, known)
	n.promoteCaughtUp()
	_, known = n.server("n2")
	require.False(t, known, "what the operator removed is back")
	require.NoError(t, ask(), "an empty node may join")
}

// TestPromotionWaitsForNoOtherChange: housekeeping has more to do.
func TestPromotionWaitsForNoOtherChange(t *testing.T) {
	_, start := lonely(t, nil)
	n := start()
	defer func() { require.NoError(t, n.Shutdown()) }()
	leading(t, n)
	n.changing <- struct{}{}
	n.promoteCaughtUp() // would wait for ever
	<-n.changing
	n.promoteCaughtUp()
	require.Empty(t, n.changing)
}

// TestClusterThatHasVotedIsNoVirgin: a wiped voter may begin with an empty log
// only if it cannot have voted. An election leaves a term before it leaves an
// entry.
func TestClusterThatHasVotedIsNoVirgin(t *testing.T) {
	_, start := lonely(t, func(cfg *replication.Config) {
		cfg.Raft.Peers = []replication.RaftPeer{{ID: "n2", Addr: "127.0.0.1:1"}} // never answers
	})
	n := start()
	require.True(t, n.Health().Virgin)
	require.NoError(t, n.Shutdown())
	store, err := openBolt(n.cfg.DataDir)
	require.NoError(t, err)
	require.NoError(t, store.SetUint64([]byte("CurrentTerm"), 2)) // as a candidate, or a voter, leaves it
	require.NoError(t, closeIfCloser(store))
	n = start()
	defer func() { require.NoError(t, n.Shutdown()) }()
	require.False(t, n.Health().Virgin)
}

// TestOfficeOfAnEarlierTermIsTakenAnew: a gain of leadership that was lost
// before it was noted must not pass for the present one.
func TestOfficeOfAnEarlierTermIsTakenAnew(t *testing.T) {
	_, start := lonely(t, nil)
	n := start()
	defer func() { require.NoError(t, n.Shutdown()) }()
	leading(t, n)
	n.readyTerm.Store(n.raft.CurrentTerm() - 1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err := n.ReadBarrier(ctx, replication.ConsistencyQuorum)
	require.NoError(t, err)
}

// openFuture is never answered until the test releases it.
type openFuture struct{ asked, release chan struct{} }

func (f openFuture) Error() error {
	close(f.asked)
	<-f.release
	return nil
}

// TestShutdownWaitsForNoTransferThatNobodyStarts: hashicorp/raft keeps one
// request for a transfer of leadership in a buffer, and never answers it when it
// stops first.
func TestShutdownWaitsForNoTransferThatNobodyStarts(t *testing.T) {
	_, start := lonely(t, nil)
	n := start()
	leading(t, n)
	future := openFuture{make(chan struct{}), make(chan struct{})}
	ended, down := make(chan error, 1), make(chan error, 1)
	go func() { ended <- n.await(context.Background(), future) }()
	<-future.asked
	go func() { down <- n.Shutdown() }()
	select {
	case err := <-down:
		require.NoError(t, err)
		close(future.release)
	case <-time.After(20 * time.Second):
		t.Error("Shutdown waits for a future that is never answered")
		close(future.release)
		<-down
	}
	<-ended
}

// deafStore hangs in reads until released.
type deafStore struct {
	raft.InmemStore
	entered, release chan struct{}
}

func (s *deafStore) GetLog(i uint64, l *raft.Log) error {
	close(s.entered)
	<-s.release
	return s.InmemStore.GetLog(i, l)
}

// TestHangingReadsOfTheLogAreNoticedToo: a leader that cannot read its log sends
// nothing but heartbeats, and nobody else is elected.
func TestHangingReadsOfTheLogAreNoticedToo(t *testing.T) {
	s := &deafStore{InmemStore: *raft.NewInmemStore(), entered: make(chan struct{}), release: make(chan struct{})}
	start := time.Unix(0, 0)
	var passed atomic.Int64
	w := newWatchedStore(s, func() time.Time { return start.Add(time.Duration(passed.Load())) })
	require.NoError(t, s.StoreLog(&raft.Log{Index: 1}))
	done := make(chan error, 1)
	go func() { done <- w.GetLog(1, new(raft.Log)) }()
	<-s.entered
	passed.Store(int64(time.Second))
	require.Equal(t, time.Second, w.stuckFor())
	close(s.release)
	require.NoError(t, <-done)
	require.Zero(t, w.stuckFor())
}
