package standby

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/report"
	"github.com/nornicdb/replication/transport"
	"github.com/nornicdb/replication/walstream"
)

// The two connections to the peer. What decides about failover does not wait
// behind batches.
const (
	connData = iota
	connBeat
)

// callTimeout bounds a question to the peer: shorter than the lease.
func (n *Node) callTimeout() time.Duration {
	return max(min(3*n.cfg.HA.Heartbeat, n.cfg.HA.FailoverTimeout/3), time.Millisecond)
}

// call sends a request to the peer. A connection on which no answer comes is
// given up: the next call makes a new one.
func (n *Node) call(ctx context.Context, which int, code replication.MessageType, req, resp any) error {
	conn, err := n.connect(ctx, which)
	if err != nil {
		return replication.MarkNotSent(err)
	}
	caller, ok := conn.(replication.Caller)
	if !ok {
		return replication.MarkNotSent(fmt.Errorf("%w: the transport sends documented messages only", replication.ErrUnsupported))
	}
	err = caller.Call(ctx, code, req, resp)
	if errors.Is(err, replication.ErrTimeout) && which == connBeat && ctx.Err() != nil {
		n.drop(which, conn)
	}
	return err
}

func (n *Node) connect(ctx context.Context, which int) (replication.PeerConnection, error) {
	n.mu.Lock()
	conn, closed := n.conns[which], n.state == stateClosed
	n.mu.Unlock()
	if closed {
		return nil, replication.ErrClosed
	}
	if conn != nil {
		return conn, nil
	}
	dial := n.transport.Connect
	if own, ok := n.transport.(interface {
		ConnectOwn(context.Context, string) (replication.PeerConnection, error)
	}); ok && which == connBeat {
		dial = own.ConnectOwn
	}
	fresh, err := dial(ctx, n.cfg.HA.PeerAddr)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	if conn = n.conns[which]; conn == nil && n.state != stateClosed {
		conn, n.conns[which] = fresh, fresh
		fresh = nil
	}
	n.mu.Unlock()
	if fresh != nil {
		_ = fresh.Close() // another caller was faster, or the node closes
	}
	if conn == nil {
		return nil, replication.ErrClosed
	}
	return conn, nil
}

func (n *Node) drop(which int, conn replication.PeerConnection) {
	n.mu.Lock()
	if n.conns[which] == conn {
		n.conns[which] = nil
	}
	n.mu.Unlock()
	_ = conn.Close()
}

// speakLoop speaks to the peer once every heartbeat interval, and when kicked: a
// primary sends heartbeats, a node without a part asks how things stand.
func (n *Node) speakLoop() {
	interval := n.cfg.HA.Heartbeat
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		kicked := false
		select {
		case <-timer.C:
		case <-n.kick:
			kicked = true
		case <-n.ctx.Done():
			return
		}
		switch n.view().role {
		case RolePrimary:
			if n.view().peer.NodeID == "" { // it began alone: two such primaries must meet
				n.ask()
			}
			_, _ = n.beat(n.ctx)
		case RoleStandby, RoleFencing, RolePromoting, RoleRebuilding:
		default:
			n.ask()
		}
		timer.Reset(interval)
		if kicked && !n.sleep(n.spacing()) {
			return
		}
	}
}

// spacing is the least time between two things said because of a kick. Between
// nodes that have yet to find to each other it is short: writes wait for that.
func (n *Node) spacing() time.Duration {
	ha := &n.cfg.HA
	if v := n.view(); v.role == RolePrimary && v.hasLease {
		return min(ha.WALBatchTimeout, ha.Heartbeat)
	}
	return min(ha.WALBatchTimeout, ha.Heartbeat/20)
}

// sleep waits; false: the node ends.
func (n *Node) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-n.ctx.Done():
		return false
	}
}

// ask asks the peer for its state and takes in the answer.
func (n *Node) ask() {
	ctx, cancel := context.WithTimeout(n.ctx, n.callTimeout())
	defer cancel()
	p, err := n.peerState(ctx, connBeat)
	if err != nil {
		n.rt.Logger.Debug("the peer was not asked", "error", err)
		n.refusedBy(err)
		return
	}
	n.step(event{kind: evPeer, peer: *p})
}

// refusedBy: a peer that is there and will not speak to this node is not a silent
// one, and an operator has to know.
func (n *Node) refusedBy(err error) {
	if errors.Is(err, replication.ErrWrongPeer) || errors.Is(err, replication.ErrUnauthenticated) {
		n.step(event{kind: evRefused, reason: "the peer refuses this node: " + err.Error()})
	}
}

func (n *Node) peerState(ctx context.Context, which int) (*Peer, error) {
	p := new(Peer)
	if err := n.call(ctx, which, replication.MsgState, &replication.StateRequest{}, p); err != nil {
		return nil, err
	}
	return p, p.check()
}

// beat sends a heartbeat and takes in the answer; follows: the standby follows.
// ctx bounds the wait for steps alone: to give an answer up costs the connection.
func (n *Node) beat(ctx context.Context) (follows bool, err error) {
	if n.useless() {
		return false, fmt.Errorf("%w: the disk or the storage hangs", replication.ErrNotReady)
	}
	if err := n.role.RLock(ctx); err != nil {
		return false, err
	}
	m := &n.machine
	if m.role != RolePrimary {
		n.role.RUnlock()
		return false, n.notLeader()
	}
	epoch := m.stored.Epoch
	req := &heartbeatRequest{Peer: m.state(n.logView()), Commit: n.feed.Committed(), Admit: m.stored.PeerAdmitted}
	var received uint64 // which the answer cannot be below, unless the standby lost it
	if n.stream != nil {
		received = n.stream.streamer.Ack().Received
	}
	n.role.RUnlock()
	req.HeartbeatRequest = replication.HeartbeatRequest{NodeID: n.nodeID, Role: string(RolePrimary),
		WALPosition: req.Peer.Last.Position, Timestamp: n.rt.Now().UnixNano()}
	callCtx, cancel := context.WithTimeout(n.ctx, n.callTimeout())
	defer cancel()
	sent := n.now()
	resp := new(heartbeatResponse)
	if err := n.call(callCtx, connBeat, replication.MsgHeartbeat, req, resp); err != nil {
		n.rt.Logger.Debug("heartbeat was not answered", "error", err)
		n.refusedBy(err)
		return false, err
	}
	if err := resp.Peer.check(); err != nil {
		return false, err
	}
	ev := event{kind: evHeartbeatAck, epoch: epoch, sent: sent, peer: resp.Peer, ack: resp.Peer.ack(), follows: resp.Follows}
	if _, err := n.stepFor(ctx, ev); err != nil {
		return false, err
	}
	n.signal(n.commits)
	if resp.Follows {
		n.ensureStream(epoch, resp.Peer.Last.Position < received)
	}
	return resp.Follows, nil
}

// useless: something hangs, so that this node is of no use as primary. It sends no
// heartbeat then, so that the other can take over, where it does so by itself. A call
// of the Storage can be a command that takes long on either node; it is this node that
// hangs where an admitted standby has applied all that the call is about: one that
// has applied a part of it may hang in the rest.
func (n *Node) useless() bool {
	if n.diskHung() {
		return true
	}
	_, last, hung := n.storageHung()
	m := n.view()
	return hung && m.auto && m.stored.PeerAdmitted && m.peer.Applied >= last
}

// diskHung: a sync of the log lasts too long.
func (n *Node) diskHung() bool { return n.log.HungFor() > n.cfg.HA.FailoverTimeout/3 }

// storageHung: so does a call of the Storage, about entries up to last.
func (n *Node) storageHung() (lasted time.Duration, last uint64, hung bool) {
	lasted, last = n.feed.Hung()
	return lasted, last, lasted > n.cfg.HA.FailoverTimeout
}

// ensureStream streams to a standby that follows the epoch. One that has less than
// it had received (it died before it had written that) is asked where it stands: a
// stream that has nothing more to send would not notice.
func (n *Node) ensureStream(epoch replication.Epoch, wentBack bool) {
	if n.role.Lock(n.ctx) != nil {
		return
	}
	defer n.role.Unlock()
	if n.machine.role != RolePrimary || n.machine.stored.Epoch != epoch {
		return
	}
	if s := n.stream; s != nil && s.epoch == epoch && !wentBack {
		select {
		case <-s.done:
		default:
			return
		}
	}
	n.stopStream()
	ctx, cancel := context.WithCancel(n.ctx)
	ha := &n.cfg.HA
	opts := walstream.StreamerOptions{BatchEntries: ha.WALBatchSize, SendTimeout: ha.FailoverTimeout,
		BatchBytes: min(1<<20, n.maxCommandBytes()), BackoffMin: ha.Heartbeat / 10, BackoffMax: ha.ReconnectInterval,
		OnAck:     func(walstream.Ack) { n.signal(n.commits) },
		OnFailure: func(err error) { n.rt.Logger.Debug("the stream begins anew", "error", err) }}
	if ha.SyncMode == replication.SyncAsync {
		opts.BatchTimeout = ha.WALBatchTimeout
	}
	streamer := walstream.NewStreamer(walstream.LogSource{Log: n.log, History: n.machine.stored.History}, sink{n, epoch}, opts)
	s := &streaming{epoch: epoch, streamer: streamer, cancel: cancel, done: make(chan struct{})}
	n.stream = s
	started := n.spawn(func() {
		defer close(s.done)
		defer cancel()
		if err := streamer.Run(ctx); ctx.Err() == nil {
			n.rt.Logger.Warn("the stream to the standby ended", "error", err)
		}
	})
	if !started {
		cancel()
	}
}

// sink is the standby, as the stream of one epoch sees it.
type sink struct {
	n     *Node
	epoch replication.Epoch
}

// Position implements walstream.Sink.
func (s sink) Position(ctx context.Context) (walstream.Ack, error) {
	ctx, cancel := context.WithTimeout(ctx, s.n.callTimeout())
	defer cancel()
	p, err := s.n.peerState(ctx, connData)
	if err != nil {
		return walstream.Ack{}, err
	}
	if p.Role != RoleStandby || p.Epoch != s.epoch {
		return walstream.Ack{}, fmt.Errorf("%w: it is %s in epoch %s", walstream.ErrStaleEpoch, p.Role, p.Epoch)
	}
	return p.ack(), nil
}

// Send implements walstream.Sink.
func (s sink) Send(ctx context.Context, b *walstream.Batch) (walstream.Ack, error) {
	var resp replication.WALBatchResponse
	ctx = transport.WithPrevEpoch(ctx, b.Prev.Epoch)
	if err := s.n.call(ctx, connData, replication.MsgWALBatch, b.Entries, &resp); err != nil {
		return walstream.Ack{}, err
	}
	report.EntriesSent(s.n.view().peer.NodeID, len(b.Entries))
	return walstream.Ack{Received: resp.ReceivedPosition, Persisted: resp.AckedPosition}, nil
}

// sendFence tells the peer to stop; one at a time. n.role is held.
func (n *Node) sendFence() {
	if !n.fencing.CompareAndSwap(false, true) {
		return
	}
	epoch := n.machine.stored.Epoch
	req := &fenceRequest{Peer: n.machine.state(n.logView())}
	req.Reason, req.RequestID = "promotion", epoch.String()
	started := n.spawn(func() {
		defer n.fencing.Store(false)
		ctx, cancel := context.WithTimeout(n.ctx, max(n.callTimeout(), time.Second))
		defer cancel()
		resp := new(fenceResponse)
		err := n.call(ctx, connBeat, replication.MsgFence, req, resp)
		if err == nil {
			err = resp.Peer.check()
		}
		if err != nil {
			n.rt.Logger.Debug("the peer was not fenced", "error", err)
			n.step(event{kind: evFenceLost, epoch: epoch})
			return
		}
		n.step(event{kind: evFenceAck, epoch: epoch, peer: resp.Peer, fenced: resp.Fenced})
	})
	if !started {
		n.fencing.Store(false)
	}
}

// fetch gets what the fenced peer has more, up to a position, as far as it can,
// and makes it durable.
func (n *Node) fetch(epoch replication.Epoch, upTo uint64) {
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.HA.FailoverTimeout)
	defer cancel()
	err := n.fetchEntries(ctx, upTo)
	for err != nil && ctx.Err() == nil && !finalFetch(err) { // the connection broke: the other has stopped, and waits
		n.rt.Logger.Debug("fetching again", "have", n.log.Last().Position, "of", upTo, "error", err)
		n.sleep(n.cfg.HA.Heartbeat / 2)
		err = n.fetchEntries(ctx, upTo)
	}
	if err != nil {
		n.rt.Logger.Warn("what the other node has more could not be had", "have", n.log.Last().Position, "of", upTo, "error", err)
	}
	syncCtx, end := context.WithTimeout(n.ctx, diskTimeout)
	defer end()
	if err := n.log.Sync(syncCtx); err != nil {
		n.rt.Logger.Error("what was fetched is not durable", "error", err)
	}
	if v := n.view(); v.stored.Epoch == epoch {
		n.step(event{kind: evFetched})
	}
}

// finalFetch: to ask again would change nothing.
func finalFetch(err error) bool {
	for _, e := range []error{walstream.ErrDiverged, walstream.ErrStaleEpoch, walstream.ErrCorrupt, walstream.ErrAhead, walstream.ErrFailed,
		replication.ErrForeignHistory, replication.ErrClosed} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// fetchEntries asks from the own last entry on: that the other has the same there
// shows that its log continues this one, whatever the epoch lists said.
func (n *Node) fetchEntries(ctx context.Context, upTo uint64) error {
	for n.log.Last().Position < upTo {
		from := n.log.Last()
		var raw json.RawMessage
		req := &replication.FetchRequest{From: max(from.Position, 1), Max: n.cfg.HA.WALBatchSize + 1}
		if err := n.call(ctx, connData, replication.MsgFetch, req, &raw); err != nil {
			return err
		}
		entries, err := walstream.DecodeBatch(raw)
		if err != nil {
			return err
		}
		if err := n.receiver.Extend(n.view().stored.History, n.view().stored.Epoch, from, entries); err != nil {
			return err
		}
		if n.log.Last().Position == from.Position {
			return fmt.Errorf("%w: it has nothing after %d", walstream.ErrAhead, from.Position)
		}
	}
	return nil
}
