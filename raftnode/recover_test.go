package raftnode_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/raftnode"
	"github.com/stretchr/testify/require"
)

// recoverMember recovers a member that is stopped.
func recoverMember(m *member, change func(*raftnode.RecoverRequest), opts ...raftnode.Option) (*raftnode.Recovery, error) {
	req := raftnode.RecoverRequest{DataDir: m.cfg.DataDir, Logger: quietLogger()}
	change(&req)
	var store *boltgraph.Store
	rec, err := raftnode.Recover(req, func() (s replication.Storage, err error) {
		store, err = boltgraph.Open(filepath.Join(m.dir, "graph.db"), boltgraph.WithNoSync())
		return store, err
	}, opts...)
	if store != nil {
		err = errors.Join(err, store.Close())
	}
	return rec, err
}

// fingerprint is a hash of every file below a directory.
func fingerprint(t *testing.T, dir string) [32]byte {
	t.Helper()
	h := sha256.New()
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(h, "%s %d\n", path, len(data))
		h.Write(data)
		return err
	}))
	return [32]byte(h.Sum(nil))
}

// lostQuorum is a cluster of three that has been in use and is stopped; the last
// two are to be lost.
func lostQuorum(t *testing.T, snapshot bool) (c *cluster, survivor *member, lost []*member) {
	c = newCluster(t, 3, func(_ int, cfg *replication.Config) { cfg.Raft.SnapshotThreshold, cfg.Raft.TrailingLogs = 1<<40, 5 })
	c.startAll()
	survivor = c.members[1] // not the founder
	c.leader()
	for i := range 20 {
		require.NoError(t, c.members[0].repl.Apply(putNode(t, fmt.Sprint("a", i), i), patience))
		if snapshot && i == 15 {
			require.Eventually(t, func() bool { s, err := survivor.store.Stats(); return err == nil && s.Nodes == 16 }, patience, time.Millisecond)
			require.NoError(t, survivor.repl.(replication.Snapshotter).TakeSnapshot(withTimeout(t)))
		}
	}
	c.sameContent()
	lost = c.others(survivor)
	for _, m := range c.members {
		c.stop(m)
	}
	return c, survivor, lost
}

func wipe(t *testing.T, m *member) {
	t.Helper()
	require.NoError(t, os.RemoveAll(m.cfg.DataDir))
	require.NoError(t, os.Remove(filepath.Join(m.dir, "graph.db")))
}

// TestRecoveryFromOneOfThree: the survivor has all that it had, request IDs
// included, and the lost come back with empty directories.
func TestRecoveryFromOneOfThree(t *testing.T) {
	for name, snapshot := range map[string]bool{"from the log": false, "past a snapshot": true} {
		t.Run(name, func(t *testing.T) {
			c, survivor, lost := lostQuorum(t, snapshot)
			rec, err := recoverMember(survivor, func(r *raftnode.RecoverRequest) { r.Lost = []string{"n3", "n1"} })
			require.NoError(t, err)
			require.True(t, replication.Supersedes(rec.History, rec.OldHistory))
			require.Equal(t, rec.LastIndex, rec.Position)
			require.NoError(t, c.tryStart(survivor))
			require.Eventually(t, survivor.repl.IsLeader, patience, time.Millisecond)
			require.NoError(t, survivor.repl.Apply(putNode(t, "after", 1), patience))
			stats, err := survivor.store.Stats()
			require.NoError(t, err)
			require.Equal(t, uint64(21), stats.Nodes)

			for _, m := range lost {
				wipe(t, m)
				m.cfg.Raft.Bootstrap = false
				require.NoError(t, c.tryStart(m))
				c.becomesVoter(m.cfg.NodeID)
			}
			require.NoError(t, lost[0].repl.Apply(putNode(t, "with three", 1), patience))
			require.Equal(t, uint64(22), c.sameContent().Nodes)
			for _, m := range c.members { // and it restarts like any other
				c.stop(m)
			}
			c.startAll()
			require.NoError(t, c.leader().repl.Apply(putNode(t, "again", 1), patience))
			require.Equal(t, uint64(23), c.sameContent().Nodes)
		})
	}
}

// TestTheLostComeBackAfterARecovery: with all they had. They bring the old
// cluster to life, which may reach neither the recovered one's log nor its
// members; alone with the recovered one they do not start at all.
func TestTheLostComeBackAfterARecovery(t *testing.T) {
	c, survivor, lost := lostQuorum(t, true)
	_, err := recoverMember(survivor, func(r *raftnode.RecoverRequest) { r.Lost = []string{"n1", "n3"} })
	require.NoError(t, err)
	errs := make(chan error, 2)
	for _, m := range lost { // before anybody can tell them
		go func() { errs <- c.tryStart(m) }()
	}
	require.NoError(t, <-errs)
	require.NoError(t, <-errs)
	require.NoError(t, lost[0].repl.Apply(putNode(t, "old life", 1), patience))
	old := lost[0]
	if !old.repl.IsLeader() {
		old = lost[1]
	}
	require.NoError(t, c.tryStart(survivor))
	require.Eventually(t, survivor.repl.IsLeader, patience, time.Millisecond)
	term := survivor.repl.Health().Term
	for i := range 50 { // while the old leader tries to send it entries
		require.NoError(t, survivor.repl.Apply(putNode(t, fmt.Sprint("new", i), i), patience))
		require.NoError(t, old.repl.Apply(putNode(t, fmt.Sprint("old", i), i), patience))
	}
	require.Equal(t, term, survivor.repl.Health().Term)
	_, err = survivor.store.Node("old life")
	require.ErrorIs(t, err, replication.ErrNotFound)
	_, err = old.store.Node("new0")
	require.ErrorIs(t, err, replication.ErrNotFound)

	// An operator who adds one of them as it is changes nothing for the worse.
	require.NoError(t, orders(survivor).AddMember(withTimeout(t), old.cfg.NodeID, old.cfg.BindAddr, true))
	require.NoError(t, survivor.repl.Apply(putNode(t, "alone still", 1), patience))
	m, known := func() (replication.PeerHealth, bool) {
		s, err := orders(survivor).ClusterStatus(withTimeout(t))
		require.NoError(t, err)
		for _, m := range s.Members {
			if m.ID == old.cfg.NodeID {
				return m, true
			}
		}
		return replication.PeerHealth{}, false
	}()
	require.True(t, known)
	require.False(t, m.Voter || m.Healthy)
	for _, m := range lost {
		c.stop(m)
		err := c.tryStart(m)
		require.ErrorIs(t, err, replication.ErrForeignHistory)
		require.ErrorContains(t, err, "recovered without this node")
		m.repl = nil
		c.stop(m)
		wipe(t, m)
		m.cfg.Raft.Bootstrap = false
		require.NoError(t, c.tryStart(m))
		c.becomesVoter(m.cfg.NodeID)
	}
	require.Equal(t, uint64(71), c.sameContent().Nodes)
}

// TestWrongRecoveryTouchesNothing: every refusal leaves every byte.
func TestWrongRecoveryTouchesNothing(t *testing.T) {
	c, survivor, _ := lostQuorum(t, true)
	both := []string{"n1", "n3"}
	before := fingerprint(t, survivor.dir)
	for name, change := range map[string]func(*raftnode.RecoverRequest){
		"nobody lost":      func(*raftnode.RecoverRequest) {},
		"one forgotten":    func(r *raftnode.RecoverRequest) { r.Lost = []string{"n3"} },
		"an unknown one":   func(r *raftnode.RecoverRequest) { r.Lost = []string{"n1", "n3", "n4"} },
		"itself":           func(r *raftnode.RecoverRequest) { r.Lost = []string{"n1", "n2", "n3"} },
		"another node":     func(r *raftnode.RecoverRequest) { r.Lost, r.NodeID = both, "n1" },
		"no port":          func(r *raftnode.RecoverRequest) { r.Lost, r.Address = both, "host" },
		"no directory":     func(r *raftnode.RecoverRequest) { r.Lost, r.DataDir = both, survivor.cfg.DataDir+"-not" },
		"wrong directory":  func(r *raftnode.RecoverRequest) { r.Lost, r.DataDir = both, survivor.dir },
		"one of them more": func(r *raftnode.RecoverRequest) { r.Lost = []string{"n1", "n3", "n3"} },
	} {
		_, err := recoverMember(survivor, change)
		require.ErrorIs(t, err, replication.ErrInvalidConfig, name)
		require.Equal(t, before, fingerprint(t, survivor.dir), name)
	}
	require.NoError(t, c.tryStart(survivor))
	_, err := recoverMember(survivor, func(r *raftnode.RecoverRequest) { r.Lost = both })
	require.ErrorIs(t, err, replication.ErrLocked, "it is running")
	c.stop(survivor)

	// A storage that does not go with the log.
	store, err := boltgraph.Open(filepath.Join(survivor.dir, "graph.db"), boltgraph.WithNoSync())
	require.NoError(t, err)
	require.NoError(t, store.SetWALPosition(1<<40))
	require.NoError(t, store.Close())
	raftDir := fingerprint(t, survivor.cfg.DataDir)
	_, err = recoverMember(survivor, func(r *raftnode.RecoverRequest) { r.Lost = both })
	require.ErrorIs(t, err, replication.ErrForeignHistory)
	require.Equal(t, raftDir, fingerprint(t, survivor.cfg.DataDir))
}

// failingSnapshots fails at creating a snapshot; failingLogs at deleting the log.
type failingSnapshots struct{ raft.SnapshotStore }

func (failingSnapshots) Create(raft.SnapshotVersion, uint64, uint64, raft.Configuration, uint64, raft.Transport) (raft.SnapshotSink, error) {
	return nil, errors.New("no room")
}

// TestRecoveryCutShortIsFinishedLater: the node does not start in between, and
// another request does not finish it.
func TestRecoveryCutShortIsFinishedLater(t *testing.T) {
	c, survivor, _ := lostQuorum(t, true)
	request := func(r *raftnode.RecoverRequest) { r.Lost, r.Address = []string{"n1", "n3"}, survivor.cfg.BindAddr }
	_, err := recoverMember(survivor, request, raftnode.WithSnapshotStore(func(dir string, retain int) (raft.SnapshotStore, error) {
		s, err := raft.NewFileSnapshotStore(dir, retain, nil)
		return failingSnapshots{s}, err
	}))
	require.ErrorContains(t, err, "no room")
	require.ErrorContains(t, c.tryStart(survivor), "begun and not finished")
	survivor.repl = nil
	c.stop(survivor)
	_, err = recoverMember(survivor, func(r *raftnode.RecoverRequest) { r.Lost = []string{"n1"} })
	require.ErrorIs(t, err, replication.ErrInvalidConfig)
	rec, err := recoverMember(survivor, request)
	require.NoError(t, err)
	require.NoError(t, c.tryStart(survivor))
	require.NoError(t, survivor.repl.Apply(putNode(t, "after", 1), patience))
	require.Equal(t, rec.History, survivor.repl.Health().History)
	stats, err := survivor.store.Stats()
	require.NoError(t, err)
	require.Equal(t, uint64(21), stats.Nodes)
}

// TestRemovedWhileAway: a node that comes back with all it had learns that it was
// removed, says so, and harms nobody; added again it goes on from where it was.
func TestRemovedWhileAway(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.startAll()
	gone := c.others(c.leader())[0]
	c.stop(gone)
	leader := c.leader()
	require.NoError(t, orders(leader).RemoveMember(withTimeout(t), gone.cfg.NodeID, false))
	require.NoError(t, leader.repl.Apply(putNode(t, "a", 1), patience))
	require.NoError(t, c.tryStart(gone))
	require.Eventually(t, func() bool { h := gone.repl.Health(); return h.State == "removed" && !h.Healthy }, patience, 5*time.Millisecond)
	require.NoError(t, leader.repl.Apply(putNode(t, "b", 1), patience))
	require.NoError(t, orders(leader).AddMember(withTimeout(t), gone.cfg.NodeID, gone.cfg.BindAddr, true))
	c.becomesVoter(gone.cfg.NodeID)
	require.Eventually(t, func() bool { return gone.repl.Health().Healthy }, patience, 5*time.Millisecond)
	require.Equal(t, uint64(2), c.sameContent().Nodes)
}
