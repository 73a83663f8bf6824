package raftnode_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/raftnode"
	"github.com/nornicdb/replication/transport"
	"github.com/stretchr/testify/require"
)

// newcomer is a node that is not started, with the members as its peers. It
// becomes a member of the test's cluster.
func (c *cluster) newcomer(id string, change func(cfg *replication.Config)) *member {
	c.t.Helper()
	extra := newCluster(c.t, 1, func(_ int, cfg *replication.Config) {
		cfg.NodeID, cfg.Raft.Bootstrap = id, false
		for _, m := range c.members {
			cfg.Raft.Peers = append(cfg.Raft.Peers, replication.RaftPeer{Addr: m.cfg.BindAddr})
		}
		if change != nil {
			change(cfg)
		}
	})
	c.members = append(c.members, extra.members[0])
	return extra.members[0]
}

func orders(m *member) replication.Membership {
	return repeatedOrders{m.repl.(replication.Membership)}
}

// repeatedOrders gives an order again where an election in the middle, which a busy
// machine or one that stands still can cause, leaves its outcome open.
type repeatedOrders struct{ replication.Membership }

func (r repeatedOrders) repeat(ctx context.Context, order func() error) (open bool, err error) {
	for {
		err = order()
		unknown := errors.Is(err, replication.ErrUnknownOutcome)
		again := unknown || errors.Is(err, replication.ErrNotLeader) || errors.Is(err, replication.ErrNoLeader) || errors.Is(err, replication.ErrNotReady)
		if !again || errors.Is(err, replication.ErrQuorumAtRisk) || ctx.Err() != nil {
			return open, err
		}
		open = open || unknown
	}
}

func (r repeatedOrders) AddMember(ctx context.Context, id, addr string, voter bool) error {
	_, err := r.repeat(ctx, func() error { return r.Membership.AddMember(ctx, id, addr, voter) })
	return err
}

func (r repeatedOrders) RemoveMember(ctx context.Context, id string, force bool) error {
	open, err := r.repeat(ctx, func() error { return r.Membership.RemoveMember(ctx, id, force) })
	if open && errors.Is(err, replication.ErrNotFound) {
		return nil
	}
	return err
}

func (r repeatedOrders) ClusterStatus(ctx context.Context) (status *replication.ClusterStatus, err error) {
	_, err = r.repeat(ctx, func() error { status, err = r.Membership.ClusterStatus(ctx); return err })
	return status, err
}

func (r repeatedOrders) TransferLeadership(ctx context.Context, id string) error {
	_, err := r.repeat(ctx, func() error { return r.Membership.TransferLeadership(ctx, id) })
	return err
}

// seen is the member as the leader sees it; false where it is none.
func (c *cluster) seen(id string) (replication.PeerHealth, bool) {
	c.t.Helper()
	status, err := orders(c.leader()).ClusterStatus(withTimeout(c.t))
	require.NoError(c.t, err)
	for _, m := range status.Members {
		if m.ID == id {
			return m, true
		}
	}
	return replication.PeerHealth{}, false
}

func (c *cluster) becomesVoter(id string) {
	c.t.Helper()
	require.Eventually(c.t, func() bool { m, _ := c.seen(id); return m.Voter }, patience, 10*time.Millisecond, "%s becomes a voter", id)
}

// writing writes through a member until the function it returns is called; that
// one returns the number of writes, none of which failed.
func (c *cluster) writing(m *member) (progress func(), stop func() int) {
	ended := make(chan struct{})
	var wg sync.WaitGroup
	var count atomic.Int64
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-ended:
					return
				default:
				}
				if err := m.repl.Apply(putNode(c.t, fmt.Sprintf("w%d-%d", w, i), i), patience); err != nil {
					c.t.Errorf("write: %v", err)
					return
				}
				count.Add(1)
			}
		})
	}
	return func() {
			target := count.Load() + 50
			require.Eventually(c.t, func() bool { return count.Load() >= target }, patience, time.Millisecond, "writes go on")
		}, func() int {
			close(ended)
			wg.Wait()
			return int(count.Load())
		}
}

// TestMembershipFromAnyNodeUnderLoad: add, transfer, move and remove, each
// ordered at a node that does not lead, while writes go on.
func TestMembershipFromAnyNodeUnderLoad(t *testing.T) {
	c := newCluster(t, 3, func(_ int, cfg *replication.Config) { cfg.Raft.SnapshotThreshold, cfg.Raft.TrailingLogs = 1<<40, 5 })
	c.startAll()
	leader := c.leader()
	follower, other := c.others(leader)[0], c.others(leader)[1]
	progress, stop := c.writing(follower)
	progress()
	for _, m := range c.members { // a newcomer needs the snapshot
		require.NoError(t, m.repl.(replication.Snapshotter).TakeSnapshot(withTimeout(t)))
	}
	fourth := c.newcomer("n4", nil)
	require.NoError(t, orders(follower).AddMember(withTimeout(t), "n4", fourth.cfg.BindAddr, true))
	m, known := c.seen("n4")
	require.True(t, known)
	require.False(t, m.Voter, "it has nothing yet")
	require.NoError(t, c.tryStart(fourth))
	c.becomesVoter("n4")
	progress()

	require.NoError(t, orders(other).TransferLeadership(withTimeout(t), "n4"))
	require.Eventually(t, fourth.repl.IsLeader, patience, time.Millisecond)
	progress()

	// A voter moves to another address: told first, while it is away.
	c.stop(other)
	other.cfg.BindAddr = freeAddrs(t, 1)[0]
	require.NoError(t, orders(follower).AddMember(withTimeout(t), other.cfg.NodeID, other.cfg.BindAddr, true))
	require.NoError(t, c.tryStart(other))
	require.Eventually(t, func() bool { m, _ := c.seen(other.cfg.NodeID); return m.Healthy && m.Address == other.cfg.BindAddr }, patience, 10*time.Millisecond)
	progress()

	// The leader itself goes: its successor removes it.
	require.NoError(t, orders(follower).RemoveMember(withTimeout(t), "n4", false))
	_, known = c.seen("n4")
	require.False(t, known)
	progress()
	require.ErrorIs(t, orders(follower).RemoveMember(withTimeout(t), "n4", false), replication.ErrNotFound)
	c.stop(fourth)
	c.members = c.members[:3]
	written := stop()
	require.Equal(t, uint64(written), c.sameContent().Nodes)
	t.Logf("%d writes", written)
}

// TestOperatorsNonvoterStaysOne: the node's own wish does not override it, over
// restarts and changes of leader; the operator's next word does.
func TestOperatorsNonvoterStaysOne(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.startAll()
	c.leader()
	fourth, fifth := c.newcomer("n4", nil), c.newcomer("n5", nil)
	fourth.cfg.Raft.Peers = fourth.cfg.Raft.Peers[:3]
	fifth.cfg.Raft.Peers = fifth.cfg.Raft.Peers[:3]
	require.NoError(t, orders(c.members[0]).AddMember(withTimeout(t), "n4", fourth.cfg.BindAddr, false))
	require.NoError(t, c.tryStart(fourth))
	require.Eventually(t, func() bool { m, _ := c.seen("n4"); return m.Healthy && m.Lag == 0 }, patience, 10*time.Millisecond)

	old := c.leader()
	c.stop(old)
	c.stop(fourth)
	require.NoError(t, c.tryStart(fourth))
	require.NoError(t, c.tryStart(old))
	require.NoError(t, c.tryStart(fifth))
	c.becomesVoter("n5") // so whoever leads now promotes
	require.Eventually(t, func() bool { m, _ := c.seen("n4"); return m.Healthy && m.Lag == 0 }, patience, 10*time.Millisecond)
	m, _ := c.seen("n4")
	require.False(t, m.Voter)
	require.ErrorIs(t, orders(c.members[0]).TransferLeadership(withTimeout(t), "n4"), replication.ErrQuorumAtRisk)

	require.NoError(t, orders(c.members[1]).AddMember(withTimeout(t), "n4", fourth.cfg.BindAddr, true))
	c.becomesVoter("n4")
	require.ErrorIs(t, orders(c.members[1]).AddMember(withTimeout(t), "n4", fourth.cfg.BindAddr, false), replication.ErrMemberExists)
}

// TestWishOutlivesEveryRestart: all nodes stop while a node that is to become a
// voter has not been seen yet. Also with a storage without metadata rows, whose
// wishes are in the log and the snapshots alone.
func TestWishOutlivesEveryRestart(t *testing.T) {
	type plain struct{ replication.Storage }
	type snapshots struct {
		replication.Storage
		replication.StorageSnapshotter
	}
	for name, wrap := range map[string]func(*boltgraph.Store) replication.Storage{
		"rows":             func(s *boltgraph.Store) replication.Storage { return s },
		"log":              func(s *boltgraph.Store) replication.Storage { return plain{s} },
		"log and snapshot": func(s *boltgraph.Store) replication.Storage { return snapshots{s, s} },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 2, func(_ int, cfg *replication.Config) { cfg.Raft.SnapshotThreshold, cfg.Raft.TrailingLogs = 1<<40, 1 })
			start := func() {
				errs := make(chan error, 2)
				for _, m := range c.members[:2] {
					go func() { errs <- c.startMember(m, wrap, raftnode.New) }()
				}
				require.NoError(t, <-errs)
				require.NoError(t, <-errs)
			}
			start()
			third := c.newcomer("n3", nil)
			c.leader()
			require.NoError(t, orders(c.members[1]).AddMember(withTimeout(t), "n3", third.cfg.BindAddr, true))
			for i := range 5 {
				require.NoError(t, c.members[0].repl.Apply(putNode(t, fmt.Sprint("a", i), i), patience))
			}
			for _, m := range c.members[:2] {
				if name != "log" {
					require.NoError(t, m.repl.(replication.Snapshotter).TakeSnapshot(withTimeout(t)))
				}
				c.stop(m)
			}
			start()
			require.NoError(t, c.startMember(third, wrap, raftnode.New))
			c.becomesVoter("n3")
		})
	}
}

// TestOrdersOfStrangersAreRefused: the cluster secret alone does not make one a
// member, and a node speaks for itself only.
func TestOrdersOfStrangersAreRefused(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.startAll()
	leader := c.leader()
	var call func(id string, code replication.MessageType, req any) error
	call = func(id string, code replication.MessageType, req any) error {
		leader := c.leader()
		tr, err := transport.New(transport.Options{NodeID: id, ClusterID: "nornicdb", Secret: []byte(leader.cfg.Secret), Logger: quietLogger()})
		require.NoError(t, err)
		defer tr.Close()
		conn, err := tr.Connect(withTimeout(t), leader.cfg.BindAddr)
		require.NoError(t, err)
		defer conn.Close()
		err = conn.(replication.Caller).Call(withTimeout(t), code, req, nil)
		if errors.Is(err, replication.ErrNotLeader) { // a busy machine
			return call(id, code, req)
		}
		return err
	}
	voter := c.others(leader)[0].cfg.NodeID
	for name, try := range map[string]error{
		"add":                call("stranger", replication.MsgJoin, &replication.JoinRequest{NodeID: "n9", Address: "127.0.0.1:1", Operator: true}),
		"remove":             call("stranger", replication.MsgLeave, &replication.LeaveRequest{NodeID: voter, Operator: true}),
		"transfer":           call("stranger", replication.MsgTransfer, &replication.TransferRequest{}),
		"remove another":     call(voter, replication.MsgLeave, &replication.LeaveRequest{NodeID: leader.cfg.NodeID}),
		"leave by force":     call(voter, replication.MsgLeave, &replication.LeaveRequest{NodeID: voter, Force: true}),
		"leave as no member": call("stranger", replication.MsgLeave, &replication.LeaveRequest{NodeID: "stranger"}),
	} {
		require.ErrorIs(t, try, replication.ErrUnauthenticated, name)
	}
	require.ErrorIs(t, call("stranger", replication.MsgJoin, &replication.JoinRequest{NodeID: voter, Address: "127.0.0.1:1"}), replication.ErrWrongPeer)
	require.ErrorIs(t, call(voter, replication.MsgJoin, &replication.JoinRequest{NodeID: voter, Address: c.others(leader)[0].cfg.BindAddr, Voter: true}),
		replication.ErrMemberExists, "a late request of a voter that is well")
	status, err := orders(leader).ClusterStatus(withTimeout(t))
	require.NoError(t, err)
	require.Len(t, status.Members, 3)
	for _, m := range status.Members {
		require.True(t, m.Voter)
	}
}

// TestMoveThatWouldBreakTheQuorumIsRefused: with one of three away, another must
// not be looked for where nobody answers.
func TestMoveThatWouldBreakTheQuorumIsRefused(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.startAll()
	leader := c.leader()
	moved, away := c.others(leader)[0], c.others(leader)[1]
	require.ErrorIs(t, orders(moved).AddMember(withTimeout(t), moved.cfg.NodeID, away.cfg.BindAddr, true), replication.ErrMemberExists)
	require.ErrorIs(t, orders(moved).AddMember(withTimeout(t), "n9", "nowhere", true), replication.ErrInvalidConfig)
	c.stop(away)
	nowhere := freeAddrs(t, 1)[0]
	require.ErrorIs(t, orders(moved).AddMember(withTimeout(t), moved.cfg.NodeID, nowhere, true), replication.ErrQuorumAtRisk)
	require.NoError(t, leader.repl.Apply(putNode(t, "a", 1), patience), "nothing was changed")
	require.ErrorIs(t, orders(moved).RemoveMember(withTimeout(t), leader.cfg.NodeID, false), replication.ErrQuorumAtRisk)
	require.NoError(t, orders(moved).AddMember(withTimeout(t), away.cfg.NodeID, nowhere, true), "the one that is away may move")
}

// TestOrderThatWasNeverSentFails: its outcome is not unknown.
func TestOrderThatWasNeverSentFails(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.startAll()
	follower := c.others(c.leader())[0]
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := follower.repl.(replication.Membership).AddMember(ctx, "n9", freeAddrs(t, 1)[0], true)
	require.ErrorIs(t, err, replication.ErrTimeout)
	require.NotErrorIs(t, err, replication.ErrUnknownOutcome)
	_, known := c.seen("n9")
	require.False(t, known)
}

// TestOrderWithoutAnswerIsUnknown: the leader has it, and says nothing in time.
func TestOrderWithoutAnswerIsUnknown(t *testing.T) {
	c := newCluster(t, 2, nil)
	c.startAll()
	follower := c.others(c.leader())[0]
	for _, m := range c.members { // the office may change hands
		raftnode.HoldChanges(m.repl)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second) // a machine that stands still sends nothing
	defer cancel()
	once := follower.repl.(replication.Membership)
	require.ErrorIs(t, once.AddMember(ctx, "n3", freeAddrs(t, 1)[0], false), replication.ErrUnknownOutcome)
}
