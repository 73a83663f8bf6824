package raftnode

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm"
	"github.com/nornicdb/replication/internal/report"
)

// hungStorage is how many election timeouts a call of the state machine takes
// before it counts as one that hangs.
const hungStorage = 10

// machine is the state machine that hashicorp/raft calls, from one goroutine. It
// knows for how long a call has been under way, but for a restore, which takes the
// time that it takes; and counts the snapshots.
type machine struct {
	*fsm.FSM
	began atomic.Pointer[time.Time] // the call under way; nil: none is
}

// stuckFor is the age of the call under way; 0 where there is none.
func (m *machine) stuckFor() time.Duration {
	if began := m.began.Load(); began != nil {
		return time.Since(*began)
	}
	return 0
}

// watch notes that a call begins; what it returns, that it has ended.
func (m *machine) watch() (ended func()) {
	now := time.Now()
	m.began.Store(&now)
	return func() { m.began.Store(nil) }
}

// ApplyBatch implements raft.BatchingFSM.
func (m *machine) ApplyBatch(logs []*raft.Log) []any {
	defer m.watch()()
	return m.FSM.ApplyBatch(logs)
}

// Snapshot implements raft.FSM.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	defer m.watch()()
	snap, err := m.FSM.Snapshot()
	if err != nil {
		return nil, err
	}
	return countedSnapshot{snap}, nil
}

// countedSnapshot counts when a snapshot is complete.
type countedSnapshot struct{ raft.FSMSnapshot }

// Persist implements raft.FSMSnapshot.
func (s countedSnapshot) Persist(sink raft.SnapshotSink) error {
	err := s.FSMSnapshot.Persist(sink)
	if err == nil {
		report.Snapshot("taken")
	}
	return err
}

// storageHangs says for how long the storage has not answered, where that is too
// long to be a command's own time.
func (n *Node) storageHangs() (time.Duration, bool) {
	stuck := n.machine.stuckFor()
	return stuck, stuck > hungStorage*n.cfg.Raft.ElectionTimeout
}

// leaveHungStorage hands leadership to a voter that has applied what hangs here,
// if there is one: where the command itself takes long, every leader would wait.
func (n *Node) leaveHungStorage() {
	ctx, cancel := context.WithTimeout(n.ctx, 2*n.cfg.Raft.ElectionTimeout)
	defer cancel()
	to, found := n.furtherVoter(ctx)
	if !found {
		return
	}
	n.rt.Logger.Error("the storage hangs here, and not on another voter: leadership is handed on",
		"position", n.applier.Position(), "to", to.ID, "stuck", n.machine.stuckFor())
	if err := n.await(ctx, n.raft.LeadershipTransferToServer(to.ID, to.Address)); err == nil || n.raft.State() != raft.Leader {
		return
	}
	// With many entries to apply hashicorp/raft's main loop waits for the storage too,
	// while its heartbeats go on.
	if _, hangs := n.storageHangs(); hangs {
		n.withhold.Store(true)
	}
}

// hung says what keeps this node from leading and lets its heartbeats go on; "" if
// nothing does.
func (n *Node) hung() string {
	if n.logs.stuckFor() > n.cfg.Raft.ElectionTimeout && !n.opts.mutant.hungLeads {
		return "log store"
	}
	if _, hangs := n.storageHangs(); !hangs {
		n.withhold.Store(false)
	}
	if n.withhold.Load() {
		return "storage"
	}
	return ""
}

// furtherVoter is another voter whose storage is further than this node's.
func (n *Node) furtherVoter(ctx context.Context) (raft.Server, bool) {
	own := n.applier.Position()
	for _, s := range n.servers() {
		if s.ID == n.id() || s.Suffrage != raft.Voter || !n.answers(s.ID) {
			continue
		}
		var h replication.HealthStatus
		if err := n.callPeer(ctx, string(s.Address), replication.MsgStatus, &replication.StatusRequest{}, &h); err == nil && h.AppliedIndex > own && h.History == n.history() {
			return s, true
		}
	}
	return raft.Server{}, false
}
