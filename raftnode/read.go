package raftnode

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
)

// readRounds lets readers share what one of them costs: a round serves every
// reader that waited when it began, one that comes during a round waits for the
// next. On the leader a round is one of fresh heartbeats (Raft dissertation,
// section 6.4), on another node a request to the leader.
type readRounds struct {
	n *Node
	// do returns the position that whoever asked before the call must have
	// applied. It gives up after roundTimeout.
	do func(ctx context.Context) (uint64, error)

	// mu guards the fields below.
	mu      sync.Mutex
	running bool
	next    *readRound // readers of the round after the running one
}

type readRound struct {
	done  chan struct{} // closed when index and err are set
	index uint64
	err   error
}

func (n *Node) roundTimeout() time.Duration { return 2 * n.cfg.Raft.ElectionTimeout }

// index returns the position that a reader who asks now must have applied.
func (r *readRounds) index(ctx context.Context) (uint64, error) {
	r.mu.Lock()
	if r.next == nil {
		r.next = &readRound{done: make(chan struct{})}
	}
	round := r.next
	if !r.running {
		r.running = true
		if !r.n.spawn(r.run) {
			r.running = false
			r.mu.Unlock()
			return 0, replication.ErrClosed
		}
	}
	r.mu.Unlock()
	select {
	case <-round.done:
		return round.index, round.err
	case <-ctx.Done():
		return 0, fmt.Errorf("%w: read index: %w", replication.ErrTimeout, context.Cause(ctx))
	}
}

// run runs rounds until nobody waits.
func (r *readRounds) run() {
	for {
		runtime.Gosched() // those whom the last round answered come back now
		r.mu.Lock()
		round := r.next
		r.next = nil
		r.running = round != nil
		r.mu.Unlock()
		if round == nil {
			return
		}
		ctx, cancel := context.WithTimeout(r.n.ctx, r.n.roundTimeout())
		round.index, round.err = r.do(ctx)
		cancel()
		close(round.done)
	}
}

// confirm takes the read index and then makes sure that this node was still the
// leader after it took it: a quorum of voters answered, in this term, an
// AppendEntries that was sent later.
func (n *Node) confirm(ctx context.Context, all bool) (uint64, error) {
	term := n.readyTerm.Load()
	if n.opts.mutant.readsWithoutOwnTerm {
		term = n.raft.CurrentTerm()
	}
	if n.raft.State() != raft.Leader || term == 0 || n.raft.CurrentTerm() != term || n.rtrans.hung.Load() {
		return 0, n.notLeader()
	}
	if err := n.applier.Failure(); err != nil {
		return 0, err
	}
	index, err := n.lastCommandUpTo(n.raft.CommitIndex())
	if err != nil {
		return 0, err
	}
	voters, selfVotes := n.otherVoters()
	need := (len(voters)+boolToInt(selfVotes))/2 + 1
	if all {
		need = len(voters) + boolToInt(selfVotes)
	}
	return index, n.freshRound(ctx, voters, term, need-boolToInt(selfVotes))
}

// freshRound waits until need of the voters have answered, in this term, a
// request that was sent after the call.
func (n *Node) freshRound(ctx context.Context, voters []raft.ServerID, term uint64, need int) error {
	round := n.rtrans.round.Add(1)
	if n.opts.mutant.oldHeartbeats {
		round = 0
	}
	// VerifyLeader makes heartbeats go out now. Its own verdict counts answers
	// to older ones too and is not waited for.
	n.raft.VerifyLeader()
	for {
		got, changed := n.rtrans.confirmed(voters, term, round)
		if n.raft.State() != raft.Leader || n.raft.CurrentTerm() != term {
			return n.notLeader()
		}
		if got >= need {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: %d of %d needed voters confirmed the leader: %w", replication.ErrNoLeader, got, need, context.Cause(ctx))
		}
	}
}

func boolToInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// lastCommandUpTo is the greatest index ≤ limit whose entry reaches the state
// machine: no-ops and configurations do not, and waiting for one of them would
// never end. Below what is applied there is nothing to look for.
func (n *Node) lastCommandUpTo(limit uint64) (uint64, error) {
	for i := limit; i > n.applier.Position(); i-- {
		var l raft.Log
		if err := n.logs.GetLog(i, &l); err != nil {
			if errors.Is(err, raft.ErrLogNotFound) { // compacted meanwhile, so applied
				break
			}
			return 0, fmt.Errorf("reading the log at %d: %w", i, err)
		}
		if l.Type == raft.LogCommand {
			return i, nil
		}
	}
	return n.applier.Position(), nil
}

// otherVoters are the voters of the latest configuration but this node.
func (n *Node) otherVoters() (others []raft.ServerID, self bool) {
	for _, s := range n.servers() {
		if s.Suffrage != raft.Voter {
			continue
		}
		if s.ID == n.id() {
			self = true
		} else {
			others = append(others, s.ID)
		}
	}
	return others, self
}

func (n *Node) servers() []raft.Server {
	if n.raft == nil {
		return nil
	}
	return n.raft.GetConfiguration().Configuration().Servers
}

func (n *Node) server(id raft.ServerID) (raft.Server, bool) {
	servers := n.servers()
	i := slices.IndexFunc(servers, func(s raft.Server) bool { return s.ID == id })
	if i < 0 {
		return raft.Server{}, false
	}
	return servers[i], true
}

// ReadBarrier implements replication.ConsistentReader. On a follower it asks
// the leader for the read index and waits until this node has applied it.
func (n *Node) ReadBarrier(ctx context.Context, level replication.Consistency) (uint64, error) {
	if err := n.running(); err != nil {
		return 0, err
	}
	switch level {
	case replication.ConsistencyOne, replication.ConsistencyLocalOne:
		return n.applier.Position(), n.applier.Failure()
	case replication.ConsistencyQuorum, replication.ConsistencyLocalQuorum, replication.ConsistencyAll:
	default:
		return 0, fmt.Errorf("%w: consistency level %q", replication.ErrUnsupported, level)
	}
	index, err := n.readIndex(ctx, level)
	if err != nil {
		return 0, err
	}
	return index, n.waitApplied(ctx, index)
}

// vouched: the storage's position is one of this cluster's log. Where the log
// is empty nobody has compared their histories yet, which the first snapshot
// does; until then every index of the log can seem to be applied.
func (n *Node) vouched() error {
	if position := n.applier.Position(); position > 0 && n.raft.LastIndex() == 0 {
		return fmt.Errorf("%w: the storage stands at %d of history %q, and the cluster has not confirmed that this is its own",
			replication.ErrNotReady, position, n.applier.Identity().History)
	}
	return nil
}

// readIndex returns the position that a reader who asks now must have applied.
// ALL makes every voter confirm, the other levels a quorum.
func (n *Node) readIndex(ctx context.Context, level replication.Consistency) (uint64, error) {
	if level == replication.ConsistencyAll || n.raft.State() == raft.Leader {
		return n.askIndex(ctx, level)
	}
	for {
		index, err := n.asked.index(ctx)
		if err == nil || ctx.Err() != nil || !errors.Is(err, replication.ErrTimeout) {
			return index, err
		}
		// The round was over before its readers were out of patience.
	}
}

// leaderIndex answers on the leader.
func (n *Node) leaderIndex(ctx context.Context, level replication.Consistency) (uint64, error) {
	if level == replication.ConsistencyAll {
		return n.confirm(ctx, true)
	}
	return n.reads.index(ctx)
}

// askIndex asks this node, if it leads, or the leader. A read changes nothing,
// so it is tried again until ctx ends.
func (n *Node) askIndex(ctx context.Context, level replication.Consistency) (uint64, error) {
	var index uint64
	err := n.retry().Until(ctx, func(ctx context.Context) (err error) {
		switch addr, known := n.leaderRoute(); {
		case !known:
			return replication.ErrNoLeader
		case addr == "":
			index, err = n.leaderIndex(ctx, level)
		default:
			var resp replication.ReadIndexResponse
			err = n.callPeer(ctx, addr, replication.MsgReadIndex, &replication.ReadIndexRequest{Level: level}, &resp)
			index = resp.Index
		}
		return err
	}, func(error) bool { return true })
	return index, err
}

// WaitApplied implements replication.ConsistentReader.
func (n *Node) WaitApplied(ctx context.Context, position uint64) error {
	if err := n.running(); err != nil {
		return err
	}
	return n.waitApplied(ctx, position)
}

// waitApplied waits until the storage is one of this cluster and stands at the
// position or above. A node's first snapshot is in the storage a moment before
// the log knows of it, so a storage without a voucher may have it soon.
func (n *Node) waitApplied(ctx context.Context, position uint64) error {
	err := n.retry().Until(ctx, func(context.Context) error { return n.vouched() }, func(error) bool { return true })
	if err != nil {
		return err
	}
	return n.applier.WaitApplied(ctx, position)
}
