package standby

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/report"
	"github.com/nornicdb/replication/walstream"
)

// reply is what a step answers to the message that caused it.
type reply struct {
	granted bool
	detail  string
	peer    Peer
	log     logView
}

func (n *Node) logView() logView {
	durable := n.log.Durable().Position
	v := logView{last: n.log.Last(), durable: durable, applied: n.applier.Position()}
	v.from = n.log.First() - 1
	if _, err := n.log.EpochAt(v.from); err != nil {
		v.from++
	}
	return v
}

// step hands an event to the machine and does what it says, in order. What
// cannot be done ends this node's part. Nothing is done of a node that has ended.
func (n *Node) step(ev event) reply {
	r, _ := n.stepFor(context.Background(), ev)
	return r
}

// stepFor is step for somebody who waits no longer than ctx for an earlier step,
// which may itself wait for a disk. With an error nothing was done.
func (n *Node) stepFor(ctx context.Context, ev event) (reply, error) {
	if err := n.role.Lock(ctx); err != nil {
		return reply{}, err
	}
	defer n.role.Unlock()
	ev.now, ev.log = n.now(), n.logView()
	if ev.fresh == "" && n.machine.stored.History == "" {
		ev.fresh = replication.NewHistory()
	}
	before := n.machine
	next, actions := n.machine.step(ev)
	n.machine = next
	if before.role == RolePrimary && next.role != RolePrimary { // what is to be done may take long, and no other part begins before
		ended := before
		ended.role, ended.follows, ended.hasLease = RoleFenced, false, false
		n.look(before.role, ended)
	}
	var r reply
	for _, a := range actions {
		if err := n.perform(a, &r); err != nil {
			n.rt.Logger.Error("this node ends its part", "error", err)
			n.machine.follows, n.machine.hasLease = false, false
			n.machine.role, n.machine.broken, n.machine.waiting = RoleFenced, true, err.Error()
			n.machine.stored = n.saved // nobody hears of what the disk does not have
			n.stop()
			r.granted = false
			break
		}
	}
	if next.waiting != "" && next.waiting != before.waiting {
		n.rt.Logger.Info("hot standby waits", "role", next.role, "reason", next.waiting)
	}
	n.look(before.role, n.machine)
	if n.machine.stored.Epoch != before.stored.Epoch || n.machine.role != before.role {
		n.signal(n.kick) // now that whoever speaks sees the role
	}
	r.log = n.logView()
	r.peer = n.machine.state(r.log)
	return r, nil
}

// look lets others see what the machine now is. n.role is held.
func (n *Node) look(before Role, now machine) {
	n.mu.Lock()
	defer n.mu.Unlock()
	was := n.seen
	n.seen = now
	n.lookForLeader()
	if before != now.role || was.follows != now.follows || was.peer.Role != now.peer.Role {
		close(n.changed)
		n.changed = make(chan struct{})
	}
}

// lookForLeader tells of another primary, or of none. n.role and n.mu are held.
func (n *Node) lookForLeader() {
	leader := n.leaderOf(&n.seen)
	if leader == n.leader {
		return
	}
	n.leader = leader
	n.publish(replication.Event{Type: replication.EventLeaderChanged, Leader: leader, Term: n.seen.stored.Epoch.Number})
	if leader == "" {
		return
	}
	if n.lastLeader != "" && n.lastLeader != leader {
		report.Failover()
	}
	n.lastLeader = leader
}

// view is the machine as of its last step.
func (n *Node) view() machine {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.seen
}

// diskTimeout bounds the wait for the log's own sync within a step.
const diskTimeout = time.Minute

// perform does one thing. n.role is held.
func (n *Node) perform(a action, r *reply) error {
	switch a.kind {
	case doSave:
		if err := n.file.save(a.stored); err != nil {
			return err
		}
		n.saved = a.stored
		e := a.stored.Epoch
		n.epoch.Store(&e)
	case doSync:
		ctx, cancel := context.WithTimeout(n.ctx, diskTimeout)
		defer cancel()
		return n.log.Sync(ctx)
	case doStop:
		n.stop()
	case doFollow:
		n.stop()
		n.mu.Lock()
		n.behind = lagClock{}
		n.mu.Unlock()
		n.feed.Resume()
		n.receiver.Follow(n.machine.stored.History, n.machine.stored.Epoch)
	case doLead:
		n.lead()
		n.signal(n.commits)
	case doReply:
		r.granted, r.detail = a.granted, a.detail
	case doFence:
		n.sendFence()
	case doFetch:
		epoch := n.machine.stored.Epoch
		n.spawn(func() { n.fetch(epoch, a.position) })
	case doSaveTail:
		return n.putAside(a.position)
	case doTruncate:
		return n.log.Truncate(a.position)
	case doRebuild:
		n.spawn(n.rebuild)
	case doFound:
		return n.found(a.stored)
	case doCommit:
		n.feed.Commit(a.position)
	case doTell:
		n.tell(a)
	}
	return nil
}

func (n *Node) tell(a action) {
	n.rt.Logger.Info("hot standby", "event", string(a.tell), "detail", a.detail, "epoch", n.machine.stored.Epoch.String())
	e := replication.Event{Type: a.tell, Detail: a.detail, Role: string(n.machine.role), Term: n.machine.stored.Epoch.Number, Position: n.log.Last().Position}
	if a.tell == replication.EventFenced {
		report.Fenced()
	}
	n.publish(e)
}

// lead takes office, or, where this node is primary already, begins a new epoch:
// writes go on, the stream begins anew.
func (n *Node) lead() {
	if n.leading {
		n.stopStream()
		return
	}
	n.stop()
	n.leading = true
	n.leadAt = n.log.Last().Position
	n.feed.Resume()
}

var errStopped = fmt.Errorf("%w: this node is no longer primary", replication.ErrUnknownOutcome)

// stop ends writing, streaming and following. When it returns, nothing of the
// role that ends is being done any more.
func (n *Node) stop() {
	n.leading = false
	n.receiver.Stop()
	n.stopStream()
	n.feed.Pause(errStopped)
}

func (n *Node) stopStream() {
	if s := n.stream; s != nil {
		n.stream = nil
		s.cancel()
	}
}

func (n *Node) signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// found makes the Storage part of a new history, at its present position.
func (n *Node) found(s Stored) error {
	if err := n.applier.Found(replication.Identity{History: s.History, Base: s.Base.Position}); err != nil {
		return err
	}
	if err := n.flush(); err != nil {
		return err
	}
	n.rt.Logger.Info("history founded", "history", s.History, "base", s.Base.Position)
	return n.log.Reset(s.Base)
}

// logFailed is told by the log that it ended.
func (n *Node) logFailed(err error) {
	n.spawn(func() {
		n.rt.Logger.Error("the write-ahead log failed", "error", err)
		n.publish(replication.Event{Type: replication.EventStorageFailed, Detail: err.Error()})
		n.step(event{kind: evFailed})
	})
}

// runFeed applies the log to the Storage for as long as the node lives.
func (n *Node) runFeed() {
	err := n.feed.Run(n.ctx)
	if n.ctx.Err() != nil {
		return
	}
	n.rt.Logger.Error("the storage failed; this node applies nothing more until it is restarted", "error", err)
	n.publish(replication.Event{Type: replication.EventStorageFailed, Detail: err.Error()})
	n.step(event{kind: evFailed})
}

// tickLoop lets time pass for the machine.
func (n *Node) tickLoop() {
	interval := min(n.cfg.HA.Heartbeat, n.cfg.HA.FailoverTimeout/10)
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for last := n.now().boot; ; {
		select {
		case <-ticker.C:
		case <-n.ctx.Done():
			return
		}
		now := n.now().boot
		n.step(event{kind: evTick, useless: n.useless(), stood: now-last > n.cfg.HA.FailoverTimeout/2})
		last = now
		n.signal(n.commits)
		n.report()
	}
}

const compactInterval = 10 * time.Second

// compactLoop lets go of log entries that nobody needs. It waits for the disk, so
// nothing else waits for it.
func (n *Node) compactLoop() {
	for n.sleep(compactInterval) {
		n.compact()
	}
}

// maxRetainBytes bounds what is kept for a standby that is away.
const maxRetainBytes = 1 << 30

func (n *Node) compact() {
	applied := n.applier.Position() // before kept is asked: a snapshot that begins after it stands no lower
	if n.applier.Failure() != nil {
		return
	}
	if err := n.flush(); err != nil {
		n.rt.Logger.Warn("the log is not compacted", "error", err)
		return
	}
	m := n.view()
	peer := m.ack.Persisted
	if m.role == RoleStandby {
		peer = n.log.Last().Position // its primary has all of it
	}
	r := walstream.Retention{Applied: applied, Peer: peer, MaxEntries: uint64(n.cfg.HA.WALRetain), MaxBytes: maxRetainBytes}
	r.Snapshot, r.SnapshotBytes = n.kept()
	err := n.log.Compact(r)
	if err != nil && !errors.Is(err, walstream.ErrFailed) {
		n.rt.Logger.Warn("the log could not be compacted", "error", err)
	}
}

// commitLoop lets the primary's Storage go as far as the mode allows, and tells
// the standby.
func (n *Node) commitLoop() {
	for {
		changed := n.log.DurableChanged()
		if n.role.RLock(n.ctx) != nil {
			return
		}
		if ev, news := n.streamed(); news {
			n.role.RUnlock()
			n.step(ev)
			continue
		}
		position, ok := n.machine.commit(n.now(), n.log.Durable().Position)
		if ok {
			if position > n.feed.Committed() && n.machine.hasLease { // somebody follows, who is to hear of it
				n.signal(n.kick)
			}
			n.feed.Commit(position)
		}
		n.role.RUnlock()
		select {
		case <-changed:
		case <-n.commits:
		case <-n.ctx.Done():
			return
		}
	}
}

// streamed is what the stream's peer has answered that the machine has not heard
// of. n.role is held.
func (n *Node) streamed() (ev event, news bool) {
	s := n.stream
	if s == nil || n.machine.role != RolePrimary || n.machine.stored.Epoch != s.epoch {
		return ev, false
	}
	ack, last := s.streamer.Ack(), n.log.Last().Position
	news = min(ack.Received, last) > n.machine.ack.Received || min(ack.Persisted, last) > n.machine.ack.Persisted
	return event{kind: evStreamAck, epoch: s.epoch, ack: ack}, news
}

// Promote implements replication.Promoter.
func (n *Node) Promote(ctx context.Context, force bool) error {
	if m := n.view(); force && n.running() == nil && m.role != RolePrimary {
		n.rt.Logger.Warn("a promotion is forced: what the primary acknowledged after the end of this node's log is lost to the pair",
			"ends", n.log.Last().Position, "admitted", m.stored.Admitted, "primary was last heard of at", m.peer.Last.Position)
	}
	return n.command(ctx, event{kind: evPromote, force: force})
}

// Solo implements replication.Soloer.
func (n *Node) Solo(ctx context.Context) error { return n.command(ctx, event{kind: evSolo}) }

// command hands an operator's word to the machine and waits until this node is
// primary. Once the machine may have taken it, the promotion goes on whoever waits:
// to give up is ErrUnknownOutcome then.
func (n *Node) command(ctx context.Context, ev event) error {
	if err := n.running(); err != nil {
		return err
	}
	if r, err := n.stepAside(ctx, ev); err != nil {
		return err
	} else if !r.granted {
		return fmt.Errorf("%w: %s", replication.ErrNotReady, r.detail)
	}
	n.signal(n.commits)
	for {
		changed := n.change()
		m := n.view()
		switch {
		case m.role == RolePrimary:
			return nil
		case !slices.Contains([]Role{RoleFencing, RolePromoting}, m.role) && m.stored.History != "":
			return fmt.Errorf("%w: it became %s: %s", replication.ErrNotReady, m.role, m.waiting)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w: it is %s: %w", replication.ErrUnknownOutcome, replication.ErrTimeout, n.view().role, context.Cause(ctx))
		case <-n.ctx.Done():
			return fmt.Errorf("%w: %w", replication.ErrUnknownOutcome, replication.ErrClosed)
		}
	}
}

// stepAside is stepFor for somebody who does not wait longer than ctx for the
// step itself either, whose disk may hang. With ErrUnknownOutcome it may still be
// done.
func (n *Node) stepAside(ctx context.Context, ev event) (reply, error) {
	type outcome struct {
		reply reply
		err   error
	}
	done := make(chan outcome, 1)
	started := n.spawn(func() {
		r, err := n.stepFor(ctx, ev)
		done <- outcome{r, err}
	})
	if !started {
		return reply{}, replication.ErrClosed
	}
	select {
	case o := <-done:
		return o.reply, o.err
	case <-ctx.Done():
		return reply{}, fmt.Errorf("%w: %w: the node waits for its disk: %w", replication.ErrUnknownOutcome, replication.ErrTimeout, context.Cause(ctx))
	}
}

// change returns a channel that is closed at the next change of role.
func (n *Node) change() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}
