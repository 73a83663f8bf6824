package raftnode

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication/internal/report"
)

// errHung: this node's disk hangs, so it must not seem alive.
var errHung = errors.New("this node hangs: Raft traffic is withheld")

// errRefusing: this node could not store what it would have to as a leader.
var errRefusing = errors.New("the log store took nothing lately: no vote is asked for")

// observedTransport is the Raft transport of a node, with four additions. It
// notes how far each follower's log reaches. It numbers rounds, so that a
// reader knows of an AppendEntries that was *sent after* it asked and answered
// in the same term: hashicorp/raft's VerifyLeader also counts answers to
// heartbeats sent before. It withholds traffic while the node hangs. And it
// corrects what comes in, see incoming.
type observedTransport struct {
	raft.Transport
	preVote  raft.WithPreVote
	rpcs     *incoming
	closing  sync.Once
	wg       sync.WaitGroup
	hung     atomic.Bool
	refusing func() bool   // the log store takes nothing
	round    atomic.Uint64 // the latest round asked for

	// mu guards the fields below.
	mu        sync.Mutex
	followers map[raft.ServerID]*followerState
	answered  chan struct{} // closed and replaced with every new answer of note
}

// followerState is what the answers of one follower said.
type followerState struct {
	term    uint64    // of the latest answer
	round   uint64    // greatest round that was open when an answered request of that term was sent
	lastLog uint64    // its last log index
	contact time.Time // of the latest answer
}

var (
	_ raft.Transport   = (*observedTransport)(nil)
	_ raft.WithPreVote = (*observedTransport)(nil)
	_ raft.WithClose   = (*observedTransport)(nil)
)

func newObservedTransport(t raft.Transport, firstIndex func() (uint64, error), refusing func() bool) (*observedTransport, error) {
	preVote, ok := t.(raft.WithPreVote)
	if !ok {
		return nil, errors.New("the Raft transport has no pre-vote")
	}
	o := &observedTransport{Transport: t, preVote: preVote, refusing: refusing, followers: make(map[raft.ServerID]*followerState),
		answered: make(chan struct{}),
		rpcs:     &incoming{first: firstIndex, in: t.Consumer(), out: make(chan raft.RPC), done: make(chan struct{})}}
	o.wg.Go(o.rpcs.run)
	return o, nil
}

// Consumer implements raft.Transport.
func (o *observedTransport) Consumer() <-chan raft.RPC { return o.rpcs.out }

// guardVote keeps a node whose log store takes nothing from being elected.
func (o *observedTransport) guardVote() error {
	if o.refusing() {
		return errRefusing
	}
	return o.guard()
}

func (o *observedTransport) guard() error {
	if o.hung.Load() {
		return errHung
	}
	return nil
}

// note records an answer to a request of a term that was sent while round was
// the latest.
func (o *observedTransport) note(id raft.ServerID, term, round uint64, resp *raft.AppendEntriesResponse) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f := o.followers[id]
	if f == nil {
		f = &followerState{}
		o.followers[id] = f
	}
	f.contact = time.Now()
	if resp.Term != term || !resp.Success && term < f.term {
		return // a follower of another term confirms nothing
	}
	if term != f.term {
		f.term, f.round = term, 0
	}
	f.lastLog = resp.LastLog
	if round > f.round {
		f.round = round
		close(o.answered)
		o.answered = make(chan struct{})
	}
}

// confirmed counts the voters that answered a request of the term which was
// sent in the round or later; the channel is closed when that may have changed.
func (o *observedTransport) confirmed(voters []raft.ServerID, term, round uint64) (int, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := 0
	for _, id := range voters {
		if f := o.followers[id]; f != nil && f.term == term && f.round >= round {
			n++
		}
	}
	return n, o.answered
}

// follower returns what is known of a follower.
func (o *observedTransport) follower(id raft.ServerID) followerState {
	o.mu.Lock()
	defer o.mu.Unlock()
	if f := o.followers[id]; f != nil {
		return *f
	}
	return followerState{}
}

// AppendEntries implements raft.Transport.
func (o *observedTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if err := o.guard(); err != nil {
		return err
	}
	round := o.round.Load()
	if err := o.Transport.AppendEntries(id, target, args, resp); err != nil {
		return err
	}
	o.note(id, args.Term, round, resp)
	return nil
}

// AppendEntriesPipeline implements raft.Transport.
func (o *observedTransport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	if err := o.guard(); err != nil {
		return nil, err
	}
	p, err := o.Transport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	return o.observe(id, p), nil
}

func (o *observedTransport) observe(id raft.ServerID, p raft.AppendPipeline) *observedPipeline {
	op := &observedPipeline{AppendPipeline: p, o: o, id: id, consumer: make(chan raft.AppendFuture), done: make(chan struct{})}
	op.wg.Go(op.run)
	return op
}

// RequestVote implements raft.Transport.
func (o *observedTransport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if err := o.guardVote(); err != nil {
		return err
	}
	return o.Transport.RequestVote(id, target, args, resp)
}

// RequestPreVote implements raft.WithPreVote.
func (o *observedTransport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if err := o.guardVote(); err != nil {
		return err
	}
	return o.preVote.RequestPreVote(id, target, args, resp)
}

// InstallSnapshot implements raft.Transport.
func (o *observedTransport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if err := o.guard(); err != nil {
		return err
	}
	err := o.Transport.InstallSnapshot(id, target, args, resp, data)
	if err == nil && resp.Success {
		report.Snapshot("sent")
	}
	return err
}

// Close implements raft.WithClose.
func (o *observedTransport) Close() error {
	o.closing.Do(func() { close(o.rpcs.done) })
	err := closeIfCloser(o.Transport)
	o.wg.Wait()
	return err
}

// observedPipeline passes answers on and notes them.
//
// After a refusal, or an answer of a later term, hashicorp/raft (v1.7.3,
// pipelineDecode) reads no further answer, but may send once more before it looks
// why. Its own pipeline then has room for neither the answers under way nor the
// request, so the sender waits for ever: the follower gets nothing more from
// this leader, whose heartbeats go on, and Shutdown does not end. Here answers
// that nobody reads are taken, and nothing more is sent.
type observedPipeline struct {
	raft.AppendPipeline
	o        *observedTransport
	id       raft.ServerID
	over     atomic.Bool // nobody reads answers any more
	consumer chan raft.AppendFuture
	done     chan struct{}
	once     sync.Once
	wg       sync.WaitGroup
}

func (p *observedPipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if err := p.o.guard(); err != nil {
		return nil, err
	}
	if p.over.Load() {
		return nil, raft.ErrPipelineShutdown
	}
	return p.AppendPipeline.AppendEntries(args, resp)
}

func (p *observedPipeline) Consumer() <-chan raft.AppendFuture { return p.consumer }

func (p *observedPipeline) run() {
	for {
		select {
		case f, ok := <-p.AppendPipeline.Consumer():
			if !ok {
				return
			}
			if f.Error() == nil {
				p.o.note(p.id, f.Request().Term, 0, f.Response())
			}
			if p.over.Load() {
				continue
			}
			select {
			case p.consumer <- f:
				p.over.Store(!f.Response().Success || f.Response().Term > f.Request().Term)
			case <-p.done:
				return
			}
		case <-p.done:
			return
		}
	}
}

func (p *observedPipeline) Close() error {
	p.once.Do(func() { close(p.done) })
	err := p.AppendPipeline.Close()
	p.wg.Wait()
	return err
}
