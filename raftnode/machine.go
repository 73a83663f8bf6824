package raftnode

import (
	"context"
	"sync"
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

	// mu guards the field below.
	mu   sync.Mutex
	call *call // under way; nil: none is
}

// call is a call of the state machine.
type call struct {
	last    uint64        // position of the last entry handed over; 0: there is none
	steps   uint64        // of the applier when it was seen
	watched time.Duration // for how long it has been seen to get no further
	seen    time.Time     // last; or its begin
}

// stuckFor is for how long the call under way has been seen to get no further; 0
// where there is none. last is the position of its last entry.
func (m *machine) stuckFor() (stuck time.Duration, last uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.call == nil {
		return 0, 0
	}
	return m.call.watched, m.call.last
}

// see notes that time has passed, which is to be seen at least every so often. What
// is beyond that the process stood still (SIGSTOP, a suspended machine): that is no
// call's age. Nor is the time in which the storage got further: one that takes a few
// entries at a time is given many in one call.
func (m *machine) see(now time.Time, every time.Duration, steps uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.call
	if c == nil {
		return
	}
	c.watched += min(now.Sub(c.seen), every)
	if steps != c.steps {
		c.steps, c.watched = steps, 0
	}
	c.seen = now
}

// watch notes that a call begins; what it returns, that it has ended.
func (m *machine) watch(last uint64) (ended func()) {
	set := func(c *call) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.call = c
	}
	set(&call{last: last, seen: time.Now()})
	return func() { set(nil) }
}

// ApplyBatch implements raft.BatchingFSM.
func (m *machine) ApplyBatch(logs []*raft.Log) []any {
	last := uint64(0)
	for _, l := range logs {
		if l.Type == raft.LogCommand { // the rest moves no position
			last = l.Index
		}
	}
	defer m.watch(last)()
	return m.FSM.ApplyBatch(logs)
}

// Snapshot implements raft.FSM.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	defer m.watch(0)()
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
	stuck, _ := n.machine.stuckFor()
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
		"position", n.applier.Position(), "to", to.ID)
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

// proof is the position that the storage of another node has to have to show that
// what hangs here does not hang there; own is this node's. One that has a part of
// the batch under way may hang in the rest: batches end elsewhere on each node.
func (m *machine) proof(own uint64) uint64 {
	_, last := m.stuckFor()
	return max(last, own+1)
}

// furtherVoter is another voter whose storage has what hangs here.
func (n *Node) furtherVoter(ctx context.Context) (raft.Server, bool) {
	want := n.machine.proof(n.applier.Position())
	for _, s := range n.servers() {
		if s.ID == n.id() || s.Suffrage != raft.Voter || !n.answers(s.ID) {
			continue
		}
		var h replication.HealthStatus
		if err := n.callPeer(ctx, string(s.Address), replication.MsgStatus, &replication.StatusRequest{}, &h); err == nil && h.AppliedIndex >= want && h.History == n.history() {
			return s, true
		}
	}
	return raft.Server{}, false
}
