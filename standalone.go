package replication

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// maxStandaloneQueue bounds the writes that wait for a transaction.
const maxStandaloneQueue = 1 << 16

// standalone is the mode of one node. It has no goroutine: of the callers that
// wait, one applies what all of them queued in one transaction, and hands the
// rest to the next.
type standalone struct {
	cfg     *Config
	rt      Runtime
	applier *StorageApplier
	storage Storage
	events  EventHub

	// mu guards the fields below.
	mu      sync.Mutex
	started bool
	closed  bool
	busy    bool // somebody is applying, or was told to
	idle    *sync.Cond
	queue   []*queuedWrite
}

// queuedWrite is one group on its way. What it hears is a result, or that it is
// its caller's turn to apply.
type queuedWrite struct {
	group Group
	turn  chan struct{} // closed when the caller is to apply
	done  chan Result   // one answer
}

var (
	_ Replicator       = (*standalone)(nil)
	_ BatchApplier     = (*standalone)(nil)
	_ ConsistentReader = (*standalone)(nil)
	_ Membership       = (*standalone)(nil)
	_ Subscriber       = (*standalone)(nil)
)

func newStandalone(cfg *Config, storage Storage, rt Runtime) (Replicator, error) {
	s := &standalone{cfg: cfg, rt: rt, storage: storage}
	s.idle = sync.NewCond(&s.mu)
	return s, nil
}

// Start reads the storage's position. What is written from now on belongs to
// no history, so a replicated history that the storage was part of is left.
func (s *standalone) Start(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	if s.started {
		return fmt.Errorf("%w: started already", ErrInvalidConfig)
	}
	applier, err := NewStorageApplier(s.storage)
	if err != nil {
		return fmt.Errorf("standalone: %w", err)
	}
	if id := applier.Identity(); id.History != "" {
		s.rt.Logger.Warn("the storage leaves the history it was replicated in", "history", id.History)
		if err := applier.Leave(); err != nil {
			return fmt.Errorf("standalone: %w", err)
		}
	}
	if !applier.Atomic() {
		s.rt.Logger.Warn("the storage has no transactions: no atomic batches, a crash can repeat one write, request IDs are forgotten at restart")
	}
	s.applier, s.started = applier, true
	s.events.Publish(Event{Type: EventStarted, Time: s.rt.Now(), Role: "standalone", Position: applier.Position()})
	return nil
}

func (s *standalone) Apply(cmd *Command, timeout time.Duration) error {
	if timeout <= 0 {
		return fmt.Errorf("%w: %s", ErrInvalidTimeout, timeout)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	_, err := s.ApplyBatch(ctx, []*Command{cmd})
	return err
}

// ApplyBatch implements BatchApplier.
func (s *standalone) ApplyBatch(ctx context.Context, cmds []*Command) (uint64, error) {
	if err := ValidateBatch(cmds); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrTimeout, err)
	}
	w := &queuedWrite{group: NewGroup(cmds...), turn: make(chan struct{}), done: make(chan Result, 1)}
	if err := s.enqueue(w, len(cmds) > 1 || cmds[0].Type == CmdBatchWrite); err != nil {
		return 0, err
	}
	for {
		select {
		case res := <-w.done:
			return res.Position, res.Err
		case <-w.turn:
			s.applyQueue()
			res := <-w.done
			return res.Position, res.Err
		case <-ctx.Done():
			if s.withdraw(w) {
				return 0, fmt.Errorf("%w: %w", ErrTimeout, ctx.Err())
			}
			select { // taken: it may be done, or its outcome stays unknown
			case res := <-w.done:
				return res.Position, res.Err
			default:
				return 0, fmt.Errorf("%w: %w", ErrUnknownOutcome, ctx.Err())
			}
		}
	}
}

// ValidateBatch checks the commands of a write before it is proposed: there is
// at least one, each is valid, and none is one that only the replication layer
// itself proposes.
func ValidateBatch(cmds []*Command) error {
	if len(cmds) == 0 {
		return fmt.Errorf("%w: no commands", ErrInvalidCommand)
	}
	for i, c := range cmds {
		if err := c.Validate(); err != nil {
			if len(cmds) > 1 {
				return fmt.Errorf("command %d: %w", i, err)
			}
			return err
		}
	}
	return nil
}

// enqueue puts w into the queue; if nobody applies, it is w's caller's turn.
func (s *standalone) enqueue(w *queuedWrite, batch bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return ErrClosed
	case !s.started:
		return ErrNotReady
	case batch && !s.applier.Atomic():
		return fmt.Errorf("%w: atomic batches need a storage with transactions", ErrUnsupported)
	case len(s.queue) >= maxStandaloneQueue:
		return ErrOverloaded
	}
	if err := s.applier.Failure(); err != nil {
		return err
	}
	s.queue = append(s.queue, w)
	if !s.busy {
		s.busy = true
		close(w.turn)
	}
	return nil
}

// withdraw takes w out of the queue, if it still is there.
func (s *standalone) withdraw(w *queuedWrite) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.queue, w)
	if i < 0 {
		return false
	}
	s.queue = slices.Delete(s.queue, i, i+1)
	select {
	case <-w.turn: // it was this caller's turn
		s.passTurn()
	default:
	}
	return true
}

// passTurn makes the first in the queue apply. s.mu is held, s.busy is true.
func (s *standalone) passTurn() {
	if len(s.queue) > 0 {
		close(s.queue[0].turn)
		return
	}
	s.busy = false
	s.idle.Broadcast()
}

// applyQueue applies what is queued now, in one transaction where it can, and
// passes the turn on.
func (s *standalone) applyQueue() {
	s.mu.Lock()
	batch := s.queue
	s.queue = nil
	s.mu.Unlock()

	entries := make([]Entry, len(batch))
	position := s.applier.Position()
	for i, w := range batch {
		entries[i] = Entry{Position: position + 1 + uint64(i), Groups: []Group{w.group}}
	}
	results, err := s.applier.Apply(entries)
	for i, w := range batch {
		if i < len(results) {
			w.done <- results[i][0]
		} else {
			w.done <- Result{Err: fmt.Errorf("%w: %w", ErrUnknownOutcome, err)}
		}
	}
	if err != nil {
		s.rt.Logger.Error("the storage failed; nothing more is applied until restart", "error", err)
		s.events.Publish(Event{Type: EventStorageFailed, Time: s.rt.Now(), Detail: err.Error()})
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.passTurn()
}

// ready returns the applier of a node that runs.
func (s *standalone) ready() (*StorageApplier, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, ErrClosed
	case !s.started:
		return nil, ErrNotReady
	}
	return s.applier, nil
}

func (s *standalone) IsLeader() bool {
	applier, err := s.ready()
	return err == nil && applier.Failure() == nil
}

func (s *standalone) LeaderAddr() string {
	if s.IsLeader() {
		return s.cfg.Advertise()
	}
	return ""
}

func (s *standalone) LeaderID() string {
	if s.IsLeader() {
		return s.NodeID()
	}
	return ""
}

func (s *standalone) WaitForLeader(timeout time.Duration) error {
	if timeout <= 0 {
		return fmt.Errorf("%w: %s", ErrInvalidTimeout, timeout)
	}
	if _, err := s.ready(); err != nil {
		return fmt.Errorf("%w: %w", ErrNoLeader, err)
	}
	if !s.IsLeader() {
		return fmt.Errorf("%w: %w", ErrNoLeader, ErrStorageFailed)
	}
	return nil
}

func (s *standalone) Mode() ReplicationMode { return ModeStandalone }

func (s *standalone) NodeID() string {
	if s.cfg.NodeID == "" {
		return "standalone"
	}
	return s.cfg.NodeID
}

// ReadBarrier implements ConsistentReader: every level means this node.
func (s *standalone) ReadBarrier(_ context.Context, level Consistency) (uint64, error) {
	if !slices.Contains(levels, level) {
		return 0, fmt.Errorf("%w: consistency level %q", ErrUnsupported, level)
	}
	applier, err := s.ready()
	if err != nil {
		return 0, err
	}
	return applier.Position(), applier.Failure()
}

// WaitApplied implements ConsistentReader.
func (s *standalone) WaitApplied(ctx context.Context, position uint64) error {
	applier, err := s.ready()
	if err != nil {
		return err
	}
	return applier.WaitApplied(ctx, position)
}

func (s *standalone) Subscribe(buffer int) (<-chan Event, func()) { return s.events.Subscribe(buffer) }

func (s *standalone) Health() *HealthStatus {
	h := &HealthStatus{Mode: ModeStandalone, NodeID: s.NodeID(), Role: "standalone", State: "healthy"}
	applier, err := s.ready()
	if err == nil {
		err = applier.Failure()
		h.AppliedIndex = applier.Position()
		h.CommitIndex = h.AppliedIndex
	}
	switch {
	case err == nil:
		h.IsLeader, h.Healthy, h.Ready = true, true, true
		h.LeaderID, h.LeaderAddr = h.NodeID, s.cfg.Advertise()
	case errors.Is(err, ErrClosed):
		h.State = "closed"
	case errors.Is(err, ErrNotReady):
		h.State = "starting"
	default:
		h.State = "storage_failed"
		h.Reasons = []string{err.Error()}
	}
	return h
}

// ClusterStatus implements Membership: a cluster of one.
func (s *standalone) ClusterStatus(context.Context) (*ClusterStatus, error) {
	h := s.Health()
	return &ClusterStatus{
		Mode: ModeStandalone, LeaderID: h.LeaderID, LeaderAddr: h.LeaderAddr,
		Members:     []PeerHealth{{ID: h.NodeID, Address: s.cfg.Advertise(), Voter: true, Healthy: h.Healthy, State: h.Role}},
		CommitIndex: h.CommitIndex, Source: h.NodeID,
	}, nil
}

func (s *standalone) AddMember(context.Context, string, string, bool) error { return errStandalone }
func (s *standalone) RemoveMember(context.Context, string, bool) error      { return errStandalone }
func (s *standalone) TransferLeadership(context.Context, string) error      { return errStandalone }

var errStandalone = fmt.Errorf("%w: a standalone node has no members", ErrUnsupported)

// Shutdown waits for the writes that were taken, and no new ones are.
func (s *standalone) Shutdown() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	for s.busy {
		s.idle.Wait()
	}
	if s.applier != nil {
		s.applier.Close()
	}
	s.events.Publish(Event{Type: EventStopped, Time: s.rt.Now()})
	s.events.Close()
	return nil
}
