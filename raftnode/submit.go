package raftnode

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm"
)

const (
	// maxJoinedCommands and maxJoinedBytes bound what one log entry joins. A
	// larger group goes alone.
	maxJoinedCommands = 256
	maxJoinedBytes    = 64 << 10
	// longestEnqueue bounds how long hashicorp/raft may take to accept an
	// entry before its proposals are looked at again.
	longestEnqueue = time.Second
)

// proposal is one group on its way into the log.
type proposal struct {
	ctx   context.Context
	group replication.Group
	bytes int
	alone bool                    // is not joined with others
	done  chan replication.Result // one answer; Err may be any error of a write
}

// submitter joins queued proposals into log entries. One goroutine hands
// entries to hashicorp/raft, which takes them as fast as its disk allows;
// meanwhile the queue grows, and with it the next entry.
type submitter struct {
	raft   *raft.Raft
	atomic bool          // the storage can take several groups at one position
	slots  chan struct{} // one for each proposal that is queued or proposed
	wake   chan struct{}
	stop   chan struct{} // closed by close
	wg     sync.WaitGroup

	// mu guards the fields below.
	mu     sync.Mutex
	queue  []*proposal
	closed bool
}

func newSubmitter(r *raft.Raft, maxInflight int, atomic bool) *submitter {
	s := &submitter{raft: r, atomic: atomic, slots: make(chan struct{}, maxInflight), wake: make(chan struct{}, 1), stop: make(chan struct{})}
	s.wg.Add(1)
	go s.run()
	return s
}

// propose puts a group into the log and returns its result. ErrTimeout,
// ErrOverloaded, ErrNotLeader and ErrClosed say that it was not proposed.
func (s *submitter) propose(ctx context.Context, g replication.Group) (uint64, error) {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return 0, fmt.Errorf("%w: %d writes in flight: %w", replication.ErrOverloaded, cap(s.slots), context.Cause(ctx))
	case <-s.stop:
		return 0, replication.ErrClosed
	}
	p := &proposal{ctx: ctx, group: g, done: make(chan replication.Result, 1),
		bytes: fsm.EncodedSize([]replication.Group{g}), alone: g.Conditional || !s.atomic}
	if !s.push(p) {
		<-s.slots
		return 0, replication.ErrClosed
	}
	select {
	case res := <-p.done:
		return res.Position, res.Err
	case <-ctx.Done():
	}
	if s.withdraw(p) {
		<-s.slots
		return 0, fmt.Errorf("%w: not proposed: %w", replication.ErrTimeout, context.Cause(ctx))
	}
	select {
	case res := <-p.done:
		return res.Position, res.Err
	default:
		return 0, fmt.Errorf("%w: proposed: %w", replication.ErrUnknownOutcome, context.Cause(ctx))
	}
}

func (s *submitter) push(ps ...*proposal) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.queue = append(s.queue, ps...)
	select {
	case s.wake <- struct{}{}:
	default:
	}
	return true
}

func (s *submitter) withdraw(p *proposal) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.queue, p)
	if i < 0 {
		return false
	}
	s.queue = slices.Delete(s.queue, i, i+1)
	return true
}

// answer ends a proposal and frees its slot.
func (s *submitter) answer(p *proposal, res replication.Result) {
	p.done <- res
	<-s.slots
}

func (s *submitter) run() {
	defer s.wg.Done()
	for {
		select {
		case <-s.wake:
		case <-s.stop:
			return
		}
		for batch := s.take(); len(batch) > 0; batch = s.take() {
			s.submit(batch)
		}
	}
}

// take removes what the next entry joins from the queue. Callers that give up
// withdraw their proposals; one that came back from an enqueue timeout may have
// nobody waiting any more, and must not shorten the time of those beside it.
func (s *submitter) take() []*proposal {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.queue = slices.DeleteFunc(s.queue, func(p *proposal) bool {
		expired := p.ctx.Err() != nil
		if expired {
			s.answer(p, replication.Result{Err: fmt.Errorf("%w: not proposed: %w", replication.ErrTimeout, context.Cause(p.ctx))})
		}
		return expired
	})
	n, commands, bytes := 0, 0, 0
	for _, p := range s.queue {
		commands += len(p.group.Commands)
		bytes += p.bytes
		if n > 0 && (p.alone || commands > maxJoinedCommands || bytes > maxJoinedBytes) {
			break
		}
		n++
		if p.alone {
			break
		}
	}
	batch := slices.Clone(s.queue[:n])
	s.queue = slices.Delete(s.queue, 0, n)
	return batch
}

// submit hands one entry to hashicorp/raft and leaves the waiting to a
// goroutine.
func (s *submitter) submit(batch []*proposal) {
	groups := make([]replication.Group, len(batch))
	timeout := longestEnqueue
	for i, p := range batch {
		groups[i] = p.group
		if deadline, ok := p.ctx.Deadline(); ok {
			timeout = min(timeout, time.Until(deadline))
		}
	}
	data, err := fsm.EncodeEntry(groups)
	if err != nil {
		s.answerAll(batch, err)
		return
	}
	future := s.raft.Apply(data, max(timeout, time.Millisecond))
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		s.collect(batch, future)
	}()
}

// collect answers the proposals of an entry when it is applied, or known not to
// be proposed.
func (s *submitter) collect(batch []*proposal, future raft.ApplyFuture) {
	err := future.Error()
	if errors.Is(err, raft.ErrEnqueueTimeout) {
		if !s.push(batch...) { // back into the queue, or withdrawn there
			s.answerAll(batch, replication.ErrClosed)
		}
		return
	}
	if err != nil {
		s.answerAll(batch, proposalError(err))
		return
	}
	resp, ok := future.Response().(fsm.Response)
	if !ok || resp.Err == nil && len(resp.Results) != len(batch) {
		resp.Err = fmt.Errorf("%w: the state machine answered %T", replication.ErrUnknownOutcome, future.Response())
	}
	if resp.Err != nil {
		s.answerAll(batch, resp.Err)
		return
	}
	for i, p := range batch {
		s.answer(p, resp.Results[i])
	}
}

func (s *submitter) answerAll(batch []*proposal, err error) {
	for _, p := range batch {
		s.answer(p, replication.Result{Err: err})
	}
}

// proposalError says what an error of hashicorp/raft's Apply means for a write:
// refused before it entered the log, or unknown. An error of the log store is
// unknown: the entry may be on the disk.
func proposalError(err error) error {
	if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		return fmt.Errorf("%w: %w", replication.ErrNotLeader, err)
	}
	return fmt.Errorf("%w: %w", replication.ErrUnknownOutcome, err)
}

// drain refuses new proposals, fails queued ones, and waits for those proposed
// until they are answered or ctx ends.
func (s *submitter) drain(ctx context.Context) {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.stop)
	}
	queued := s.queue
	s.queue = nil
	s.mu.Unlock()
	s.answerAll(queued, replication.ErrClosed)
	finished := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(finished)
	}()
	select {
	case <-finished:
	case <-ctx.Done():
	}
}
