package raftnode_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/raftnode"
	"github.com/nornicdb/replication/transport"
	"github.com/stretchr/testify/require"
)

// wipe empties a stopped member's disk.
func (c *cluster) wipe(m *member) {
	require.NoError(c.t, os.RemoveAll(m.cfg.DataDir))
	require.NoError(c.t, os.Remove(filepath.Join(m.dir, "graph.db")))
}

// gatedStore makes the n-th question for its position wait.
type gatedStore struct {
	*boltgraph.Store
	left    atomic.Int32
	entered chan struct{}
	release chan struct{}
}

func (g *gatedStore) GetWALPosition() (uint64, error) {
	if g.left.Add(-1) == 0 {
		close(g.entered)
		<-g.release
	}
	return g.Store.GetWALPosition()
}

// TestWipedFounderFoundsNothingWhileItsPeerStarts: the peer has the cluster on
// its disk but does not run yet. It restores a large snapshot, say.
func TestWipedFounderFoundsNothingWhileItsPeerStarts(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.startAll()
	founder, peer := c.members[0], c.members[1]
	require.NoError(t, peer.repl.Apply(putNode(t, "a", 1), patience))
	c.stop(founder)
	c.stop(peer)
	c.wipe(founder)

	gate := &gatedStore{entered: make(chan struct{}), release: make(chan struct{})}
	gate.left.Store(2) // the applier asks first
	started := make(chan error, 1)
	go func() {
		started <- c.startMember(peer, func(s *boltgraph.Store) replication.Storage { gate.Store = s; return gate }, raftnode.New)
	}()
	<-gate.entered
	store, err := boltgraph.Open(filepath.Join(founder.dir, "graph.db"), boltgraph.WithNoSync())
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	err = startWith(ctx, founder, store)
	close(gate.release)
	require.NoError(t, <-started)
	require.NoError(t, store.Close())
	require.ErrorIs(t, err, replication.ErrNotReady, "a second cluster was founded")
	require.ErrorContains(t, err, peer.cfg.BindAddr)
}

// TestForeignStorageAnswersNoLinearizableRead: a position of another history is
// above every index of this cluster, so that waiting for it ends at once.
func TestForeignStorageAnswersNoLinearizableRead(t *testing.T) {
	c := newCluster(t, 3, nil)
	errs := make(chan error, 3)
	for i, m := range c.members {
		go func() {
			errs <- c.startMember(m, func(s *boltgraph.Store) replication.Storage {
				if i == 2 {
					require.NoError(t, s.Update(func(tx replication.Tx) error {
						if err := tx.SetMeta([]byte("replication/history"), []byte("another")); err != nil {
							return err
						}
						return tx.SetWALPosition(5000)
					}))
				}
				return s
			}, raftnode.New)
		}()
	}
	for range c.members {
		require.NoError(t, <-errs)
	}
	require.NoError(t, c.leader().repl.Apply(putNode(t, "a", 1), patience))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	for range 5 {
		_, err := c.members[2].repl.(replication.ConsistentReader).ReadBarrier(ctx, replication.ConsistencyQuorum)
		require.Error(t, err, "it does not have what was acknowledged")
	}
	require.Eventually(t, func() bool { return !c.members[2].repl.Health().Healthy }, patience, 10*time.Millisecond,
		"a node that refuses the cluster's snapshot is not well")
}

// slowRestore is a store that restores nothing before it is let go.
type slowRestore struct {
	*boltgraph.Store
	release chan struct{}
}

func (s *slowRestore) Restore(r io.Reader) error {
	<-s.release
	return s.Store.Restore(r)
}

// TestReadsWaitForTheFirstSnapshot: a node that starts has nobody's word for its
// storage before the cluster's snapshot is there. Whoever reads meanwhile is late,
// not refused.
func TestReadsWaitForTheFirstSnapshot(t *testing.T) {
	c := newCluster(t, 3, func(_ int, cfg *replication.Config) {
		cfg.Raft.SnapshotThreshold, cfg.Raft.TrailingLogs = 20, 5
	})
	c.startAll()
	require.NoError(t, c.members[0].repl.Apply(putNode(t, "a", 1), patience))
	c.sameContent()
	m := c.others(c.leader())[0]
	c.stop(m)
	require.NoError(t, os.RemoveAll(m.cfg.DataDir)) // the storage stays, and is older than what the others keep
	for i := range 60 {
		require.NoError(t, c.leader().repl.Apply(putNode(t, fmt.Sprint(i), i), patience))
	}
	for _, o := range c.others(m) {
		require.NoError(t, o.repl.(replication.Snapshotter).TakeSnapshot(withTimeout(t)))
	}
	store := &slowRestore{release: make(chan struct{})}
	release := sync.OnceFunc(func() { close(store.release) })
	defer release()
	require.NoError(t, c.startMember(m, func(s *boltgraph.Store) replication.Storage { store.Store = s; return store }, raftnode.New))
	require.NoError(t, c.leader().repl.Apply(putNode(t, "b", 2), patience))
	position := c.leader().repl.(*raftnode.Node).Health().AppliedIndex
	reader := m.repl.(replication.ConsistentReader)

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := reader.WaitApplied(ctx, position)
	require.ErrorIs(t, err, replication.ErrTimeout)
	require.ErrorIs(t, err, replication.ErrNotReady, "it says what it waited for")

	applied, barrier := make(chan error, 1), make(chan error, 1)
	go func() { applied <- reader.WaitApplied(withTimeout(t), position) }()
	go func() {
		_, err := reader.ReadBarrier(withTimeout(t), replication.ConsistencyQuorum)
		barrier <- err
	}()
	release()
	require.NoError(t, <-applied)
	require.NoError(t, <-barrier)
	c.sameContent()
}

// plainSnapshots is a storage with snapshots and without transactions.
type plainSnapshots struct {
	replication.Storage
	replication.StorageSnapshotter
}

// TestPlainStorageWithSnapshotsRestarts: a follower got its history with the
// founder's snapshot, and still has it after a restart.
func TestPlainStorageWithSnapshotsRestarts(t *testing.T) {
	c := newCluster(t, 3, nil)
	plain := func(s *boltgraph.Store) replication.Storage { return plainSnapshots{s, s} }
	errs := make(chan error, 3)
	for _, m := range c.members {
		go func() { errs <- c.startMember(m, plain, raftnode.New) }()
	}
	for range c.members {
		require.NoError(t, <-errs)
	}
	require.NoError(t, c.leader().repl.Apply(putNode(t, "a", 1), patience))
	c.sameContent()
	for _, m := range c.members {
		c.stop(m)
		require.NoError(t, c.startMember(m, plain, raftnode.New), m.cfg.NodeID)
	}
	require.NoError(t, c.members[0].repl.Apply(putNode(t, "b", 1), patience))
	require.Equal(t, uint64(2), c.sameContent().Nodes)
}

func historyOf(t *testing.T, s *boltgraph.Store) (history string) {
	t.Helper()
	require.NoError(t, s.View(func(m replication.Meta) error {
		v, err := m.GetMeta([]byte("replication/history"))
		history = string(v)
		return err
	}))
	return history
}

// meetingSnapshots makes two founders wait for each other before either has
// written the snapshot that founds its cluster.
type meetingSnapshots struct {
	raft.SnapshotStore
	here, there chan struct{}
}

func (m meetingSnapshots) Create(v raft.SnapshotVersion, index, term uint64, c raft.Configuration, ci uint64, t raft.Transport) (raft.SnapshotSink, error) {
	select {
	case <-m.here: // not the first
	default:
		close(m.here)
		select {
		case <-m.there:
		case <-time.After(2 * time.Second): // the other does not found
		}
	}
	return m.SnapshotStore.Create(v, index, term, c, ci, t)
}

// TestOneHistoryThoughAllAreToldToFound: the same environment on every node is
// the mistake that is made first.
func TestOneHistoryThoughAllAreToldToFound(t *testing.T) {
	c := newCluster(t, 2, func(_ int, cfg *replication.Config) { cfg.Raft.Bootstrap = true })
	meet := []chan struct{}{make(chan struct{}), make(chan struct{})}
	errs := make(chan error, 2)
	for i, m := range c.members {
		mode := raftnode.Mode(raftnode.WithSnapshotStore(func(dir string, retain int) (raft.SnapshotStore, error) {
			store, err := raft.NewFileSnapshotStore(dir, retain, io.Discard)
			return meetingSnapshots{store, meet[i], meet[1-i]}, err
		}))
		go func() { errs <- c.startMember(m, func(s *boltgraph.Store) replication.Storage { return s }, mode) }()
	}
	for range c.members {
		require.NoError(t, <-errs)
	}
	require.NoError(t, c.leader().repl.Apply(putNode(t, "a", 1), patience))
	c.sameContent()
	require.Equal(t, historyOf(t, c.members[0].store), historyOf(t, c.members[1].store))
}

// TestNodeThatLostItsLogButNotItsSnapshotsIsRefused: with the log went the term
// and the vote.
func TestNodeThatLostItsLogButNotItsSnapshotsIsRefused(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.startAll()
	require.NoError(t, c.leader().repl.Apply(putNode(t, "a", 1), patience))
	m := c.others(c.leader())[0]
	c.sameContent()
	require.NoError(t, m.repl.(replication.Snapshotter).TakeSnapshot(withTimeout(t)))
	c.stop(m)
	require.NoError(t, os.Remove(filepath.Join(m.cfg.DataDir, "raft.db")))
	require.ErrorIs(t, c.tryStart(m), replication.ErrForeignHistory)
}

// fixedRecorder is a storage whose server knows one query: CREATE of one node.
type fixedRecorder struct{ *boltgraph.Store }

func (r fixedRecorder) RecordEffects(*replication.Command) ([]*replication.Command, uint64, error) {
	st, err := r.Stats()
	if err != nil {
		return nil, 0, err
	}
	if _, err := r.Node("once"); err == nil {
		return nil, 0, fmt.Errorf("%w: once", replication.ErrExists)
	}
	cmd, err := replication.NewNodeCommand(replication.CmdCreateNode, &replication.Node{ID: "once"})
	return []*replication.Command{cmd}, st.Position, err
}

// TestRetriedQueryReturnsTheFirstOutcome: what the query would do now is not
// the question.
func TestRetriedQueryReturnsTheFirstOutcome(t *testing.T) {
	c := newCluster(t, 1, nil)
	m := c.members[0]
	require.NoError(t, c.startMember(m, func(s *boltgraph.Store) replication.Storage { return fixedRecorder{s} }, raftnode.New))
	c.leader()
	cmd := &replication.Command{Type: replication.CmdCypher, Data: []byte(`{"query":"CREATE (n {id: 'once'})"}`), RequestID: "r"}
	require.NoError(t, m.repl.Apply(cmd, patience))
	require.NoError(t, m.repl.Apply(cmd, patience))
	other := *cmd
	other.Data = []byte(`{"query":"MATCH (n) DELETE n"}`)
	require.ErrorIs(t, m.repl.Apply(&other, patience), replication.ErrRequestIDReused)
	other.RequestID = "s"
	require.ErrorIs(t, m.repl.Apply(&other, patience), replication.ErrExists)
}

// TestHistoryWithoutSnapshotsIsLeftByStandalone: what was written alone is in no
// log, and is above nothing.
func TestHistoryWithoutSnapshotsIsLeftByStandalone(t *testing.T) {
	c := newCluster(t, 1, nil)
	m := c.members[0]
	wrap := func(s *boltgraph.Store) replication.Storage { return txOnly{s} }
	require.NoError(t, c.startMember(m, wrap, raftnode.New))
	for i := range 20 {
		require.NoError(t, m.repl.Apply(putNode(t, fmt.Sprint(i), 1), patience))
	}
	// A copy of the storage as it was before the last writes is what an operator
	// brings back and looks at alone.
	require.NoError(t, m.store.SetWALPosition(10))
	require.NoError(t, m.repl.Shutdown())
	m.repl = nil
	alone, err := replication.New(replication.DefaultConfig(), wrap(m.store), nil, replication.WithLogger(quietLogger()))
	require.NoError(t, err)
	require.NoError(t, alone.Start(t.Context()))
	require.NoError(t, alone.Apply(putNode(t, "alone", 1), patience))
	require.NoError(t, alone.Shutdown())
	c.stop(m)
	require.ErrorIs(t, c.startMember(m, wrap, raftnode.New), replication.ErrForeignHistory)
}

// hangingStore is a store whose transactions hang while it is told to.
type hangingStore struct {
	*boltgraph.Store
	hung    atomic.Bool
	release chan struct{}
}

func (h *hangingStore) Update(fn func(replication.Tx) error) error {
	if h.hung.Load() {
		<-h.release
	}
	return h.Store.Update(fn)
}

// TestDeadlinesHoldWhileTheStorageHangs: every write ends in time, and the node
// can be asked how it is.
func TestDeadlinesHoldWhileTheStorageHangs(t *testing.T) {
	c := newCluster(t, 1, nil)
	m := c.members[0]
	h := &hangingStore{release: make(chan struct{})}
	require.NoError(t, c.startMember(m, func(s *boltgraph.Store) replication.Storage { h.Store = s; return h }, raftnode.New))
	c.leader()
	h.hung.Store(true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 3 {
			if err := m.repl.Apply(putNode(t, fmt.Sprint(i), 1), 50*time.Millisecond); err == nil {
				t.Error("a write that hangs was acknowledged")
			}
		}
		m.repl.Health()
		m.repl.IsLeader()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Error("writes of 50 ms have not ended")
	}
	h.hung.Store(false)
	close(h.release)
	<-done
}

// TestFollowerTakesEveryDeadline that the leader would take itself.
func TestFollowerTakesEveryDeadline(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.startAll()
	follower := c.others(c.leader())[0].repl
	require.NoError(t, follower.Apply(putNode(t, "a", 1), 2*time.Hour))
}

// TestCommandTooLargeForTheLeaderIsRefusedAtOnce: trying again makes it no smaller.
func TestCommandTooLargeForTheLeaderIsRefusedAtOnce(t *testing.T) {
	c := newCluster(t, 2, func(i int, cfg *replication.Config) {
		cfg.MaxFrameSize = 1 << 20
		cfg.Raft.ElectionTimeout, cfg.Raft.HeartbeatTimeout = 3*time.Second, 300*time.Millisecond // the leader stays
		if i == 1 {
			cfg.MaxFrameSize = 8 << 20
		}
	})
	c.startAll()
	var start time.Time
	err := error(nil)
	for range 10 {
		if c.leader() != c.members[0] {
			require.NoError(t, orders(c.members[1]).TransferLeadership(withTimeout(t), "n1"))
			require.Eventually(t, c.members[0].repl.IsLeader, patience, 5*time.Millisecond)
		}
		start = time.Now()
		err = c.members[1].repl.Apply(putNode(t, "big", strings.Repeat("x", 2<<20)), patience)
		if err != nil || !c.members[1].repl.IsLeader() { // it leads since an election in the middle, and takes it
			break
		}
	}
	require.ErrorIs(t, err, replication.ErrCommandTooLarge)
	require.NotErrorIs(t, err, replication.ErrTimeout)
	require.Less(t, time.Since(start), patience/2)
}

// TestVoterThatAnswersIsNotTakenForWiped: a Join that was on its way for long
// must not cost a healthy voter its vote, and the cluster its reserve.
func TestVoterThatAnswersIsNotTakenForWiped(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.startAll()
	leader := c.leader()
	require.NoError(t, leader.repl.Apply(putNode(t, "a", 1), patience))
	voter := c.others(leader)[0]
	late, err := transport.New(transport.Options{NodeID: voter.cfg.NodeID, ClusterID: voter.cfg.Raft.ClusterID,
		Secret: []byte(voter.cfg.Secret), Logger: quietLogger()})
	require.NoError(t, err)
	defer late.Close()
	conn, err := late.Connect(withTimeout(t), leader.cfg.BindAddr)
	require.NoError(t, err)
	events, cancel := leader.repl.(replication.Subscriber).Subscribe(1024)
	defer cancel()
	req := &replication.JoinRequest{NodeID: voter.cfg.NodeID, Address: voter.cfg.BindAddr, Voter: true}
	err = conn.(replication.Caller).Call(withTimeout(t), replication.MsgJoin, req, nil)
	require.ErrorIs(t, err, replication.ErrMemberExists)
	for {
		select {
		case e := <-events:
			require.NotEqual(t, replication.EventMemberChanged, e.Type)
			continue
		default:
		}
		break
	}
}

// TestTwoPeersOfOneIDFoundNothing: hashicorp/raft would count the vote of such a
// node twice, its own, and one of them would be a majority of three.
func TestTwoPeersOfOneIDFoundNothing(t *testing.T) {
	c := newCluster(t, 3, func(i int, cfg *replication.Config) {
		if i > 0 {
			cfg.NodeID = "twin" // a host name, say
		}
		for j := range cfg.Raft.Peers {
			cfg.Raft.Peers[j].ID = ""
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	errs := make(chan error, 3)
	for _, m := range c.members {
		store, err := boltgraph.Open(filepath.Join(m.dir, "graph.db"), boltgraph.WithNoSync())
		require.NoError(t, err)
		m.store = store
		go func() { errs <- startWith(ctx, m, store) }()
	}
	for range c.members {
		require.Error(t, <-errs)
	}
}
