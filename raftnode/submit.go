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
	// joinWait bounds how long a proposal is held back for an entry that is
	// under way, lingerPart and lingerMost how long for others to join it: a part
	// of the time that the last entry took.
	joinWait   = 10 * time.Millisecond
	lingerPart = 8
	lingerMost = 2 * time.Millisecond
)

// proposal is one group on its way into the log.
type proposal struct {
	ctx   context.Context
	group replication.Group
	bytes int
	since time.Time               // in the queue
	alone bool                    // is not joined with others
	done  chan replication.Result // one answer; Err may be any error of a write
}

// submitter joins queued proposals into log entries. What costs is the entry,
// not what is in it: two writes to a disk, on every node. So while an entry is
// under way the queue grows, and with it the next entry, until that is full, the
// one before is answered, or joinWait is over. When an entry is answered its
// writers come back at once, but one after the other: the next one waits a moment
// for as many as were answered. See pace.
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
	pace   pace
	closed bool
}

// pace decides when the next entry is proposed. It has no clock of its own.
type pace struct {
	commands, bytes int // in the queue
	open            int // entries under way
	returning       int // proposals that the last answered entry held
	linger          time.Time
}

// wait says for how long the entry at the head of a queue of n > 0 proposals is
// held back, counted from now; 0 or less: it is not.
func (p *pace) wait(head *proposal, n int, now time.Time) time.Duration {
	switch {
	case head.alone || p.commands >= maxJoinedCommands || p.bytes >= maxJoinedBytes:
		return 0
	case p.open > 0:
		return head.since.Add(joinWait).Sub(now)
	case n < p.returning:
		return p.linger.Sub(now)
	}
	return 0
}

// answered notes that an entry of n proposals was answered, after took.
func (p *pace) answered(n int, took time.Duration, now time.Time) {
	p.open--
	p.returning = n
	p.linger = now.Add(min(took/lingerPart, lingerMost))
}

// queued counts proposals that come into the queue, or with sign -1 leave it.
func (p *pace) queued(sign int, list ...*proposal) {
	for _, q := range list {
		p.commands += sign * len(q.group.Commands)
		p.bytes += sign * q.bytes
	}
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
	now := time.Now()
	for _, p := range ps {
		p.since = now
	}
	s.queue = append(s.queue, ps...)
	s.pace.queued(1, ps...)
	s.rouse()
	return true
}

// rouse makes run look at the queue again.
func (s *submitter) rouse() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *submitter) withdraw(p *proposal) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.queue, p)
	if i < 0 {
		return false
	}
	s.queue = slices.Delete(s.queue, i, i+1)
	s.pace.queued(-1, p)
	return true
}

// answer ends a proposal and frees its slot.
func (s *submitter) answer(p *proposal, res replication.Result) {
	p.done <- res
	<-s.slots
}

func (s *submitter) run() {
	defer s.wg.Done()
	timer := time.NewTimer(joinWait)
	defer timer.Stop()
	for {
		select {
		case <-s.wake:
		case <-timer.C:
		case <-s.stop:
			return
		}
		for {
			batch, wait := s.take()
			if wait > 0 {
				timer.Reset(wait)
			}
			if len(batch) == 0 {
				break
			}
			s.submit(batch)
		}
	}
}

// take removes what the next entry joins from the queue, or says how long that
// is held back.
func (s *submitter) take() ([]*proposal, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.queue) == 0 {
		return nil, 0
	}
	if wait := s.pace.wait(s.queue[0], len(s.queue), time.Now()); wait > 0 {
		return nil, wait
	}
	batch := s.next()
	if len(batch) > 0 {
		s.pace.open++
	}
	return batch, 0
}

// next removes the next entry's proposals from the queue. Callers that give up
// withdraw their proposals; one that came back from an enqueue timeout may have
// nobody waiting any more, and must not shorten the time of those beside it.
// s.mu is held.
func (s *submitter) next() []*proposal {
	s.dropExpired()
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
	s.pace.queued(-1, batch...)
	return batch
}

// dropExpired answers queued proposals whose time is over. s.mu is held.
func (s *submitter) dropExpired() {
	s.queue = slices.DeleteFunc(s.queue, func(p *proposal) bool {
		expired := p.ctx.Err() != nil
		if expired {
			s.pace.queued(-1, p)
			s.answer(p, replication.Result{Err: fmt.Errorf("%w: not proposed: %w", replication.ErrTimeout, context.Cause(p.ctx))})
		}
		return expired
	})
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
	start := time.Now()
	data, err := fsm.EncodeEntry(groups)
	if err != nil {
		s.finished(batch, start)
		s.answerAll(batch, err)
		return
	}
	future := s.raft.Apply(data, max(timeout, time.Millisecond))
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		err := future.Error()
		s.finished(batch, start)
		s.collect(batch, future, err)
	}()
}

// finished notes that an entry is not under way any more.
func (s *submitter) finished(batch []*proposal, start time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.pace.answered(len(batch), now.Sub(start), now)
	s.rouse()
}

// collect answers the proposals of an entry that is applied, or known not to be
// proposed.
func (s *submitter) collect(batch []*proposal, future raft.ApplyFuture, err error) {
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
