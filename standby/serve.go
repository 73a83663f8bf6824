package standby

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/walstream"
)

func (n *Node) handlers() map[replication.MessageType]replication.Handler {
	return map[replication.MessageType]replication.Handler{
		replication.MsgWALBatch:  n.handleBatch,
		replication.MsgHeartbeat: n.handleHeartbeat,
		replication.MsgFence:     n.handleFence,
		replication.MsgPromote:   n.handlePromote,
		replication.MsgStatus:    n.handleStatus,
		replication.MsgApply:     n.handleApply,
		replication.MsgReadIndex: n.handleReadIndex,
		replication.MsgState:     n.handleState,
		replication.MsgFetch:     n.handleFetch,
	}
}

// trusted says whether a message may move this node: it comes from a node of this
// project, proven where there is anything to prove with.
func (n *Node) trusted(req *replication.Request) error {
	if err := n.running(); err != nil {
		return err
	}
	switch {
	case !req.Peer.Hello || n.authenticated() && !req.Peer.Proven:
		return fmt.Errorf("%w: message %d", replication.ErrUnauthenticated, req.Type)
	case req.Peer.NodeID == n.nodeID:
		return fmt.Errorf("%w: it has this node's node ID %q", replication.ErrWrongPeer, n.nodeID)
	}
	if p := n.view().peer.NodeID; p != "" && p != req.Peer.NodeID {
		return fmt.Errorf("%w: %q is not the peer %q", replication.ErrWrongPeer, req.Peer.NodeID, p)
	}
	return nil
}

// met is trusted for messages that say what the sender is: it must have answered
// at the configured address before.
func (n *Node) met(req *replication.Request) error {
	err := n.trusted(req)
	if err == nil && n.view().peer.NodeID == "" {
		n.signal(n.kick) // ask
		err = fmt.Errorf("%w: the peer has not been asked yet who it is", replication.ErrNotReady)
	}
	return err
}

// authenticated: peers have something to prove.
func (n *Node) authenticated() bool {
	return n.cfg.Secret != "" || n.cfg.SecretFile != "" || n.cfg.TLS.Enabled && n.cfg.TLS.VerifyClient
}

// checkSender: what a message says of its sender is what its connection says.
func checkSender(req *replication.Request, p *Peer) error {
	if p.NodeID != req.Peer.NodeID || p.Epoch != req.Epoch {
		return fmt.Errorf("%w: message of %q in epoch %s from %q in epoch %s", replication.ErrWrongPeer, p.NodeID, p.Epoch, req.Peer.NodeID, req.Epoch)
	}
	return nil
}

// handleBatch serves code 5.
func (n *Node) handleBatch(ctx context.Context, req *replication.Request) (any, error) {
	if req.Epoch.IsZero() {
		return n.plainBatch(ctx, req)
	}
	if err := n.trusted(req); err != nil {
		return nil, err
	}
	if req.Epoch.Owner != req.Peer.NodeID {
		return nil, fmt.Errorf("%w: a batch of epoch %s from %q", replication.ErrWrongPeer, req.Epoch, req.Peer.NodeID)
	}
	entries, err := walstream.DecodeBatch(req.Payload)
	if err != nil {
		return nil, err
	}
	ack, err := n.receiver.Receive(ctx, walstream.Received{Epoch: req.Epoch, Prev: req.PrevEpoch, Entries: entries})
	if err != nil {
		return nil, err
	}
	return n.batchResponse(ack), nil
}

func (n *Node) batchResponse(ack walstream.Ack) *replication.WALBatchResponse {
	return &replication.WALBatchResponse{AckedPosition: ack.Persisted, ReceivedPosition: ack.Received}
}

// handleHeartbeat serves code 7.
func (n *Node) handleHeartbeat(ctx context.Context, req *replication.Request) (any, error) {
	if req.Epoch.IsZero() {
		return n.plainHeartbeat(req)
	}
	if err := n.met(req); err != nil {
		return nil, err
	}
	h, err := decode(req.Payload, func(h *heartbeatRequest) *Peer { return &h.Peer })
	if err == nil {
		err = checkSender(req, &h.Peer)
	}
	if err != nil {
		return nil, err
	}
	r, err := n.stepFor(ctx, event{kind: evHeartbeat, peer: h.Peer, epoch: req.Epoch, commit: h.Commit, admit: h.Admit})
	if err != nil {
		return nil, err
	}
	if r.granted {
		n.mu.Lock()
		n.behind.heard(h.Peer.Last.Position, n.applier.Position(), n.now().boot)
		n.mu.Unlock()
	} else {
		n.signal(n.kick) // ask
	}
	resp := &heartbeatResponse{Peer: r.peer, Follows: r.granted}
	resp.HeartbeatResponse = replication.HeartbeatResponse{NodeID: n.nodeID, Role: string(r.peer.Role), WALPosition: r.peer.Durable,
		Lag: int64(h.Peer.Last.Position) - int64(r.peer.Last.Position)}
	return resp, nil
}

// handleFence serves code 9.
func (n *Node) handleFence(ctx context.Context, req *replication.Request) (any, error) {
	if req.Epoch.IsZero() {
		if err := n.running(); err != nil {
			return nil, err
		}
		return &replication.FenceResponse{WALPosition: n.log.Durable().Position}, nil
	}
	if err := n.met(req); err != nil {
		return nil, err
	}
	f, err := decode(req.Payload, func(f *fenceRequest) *Peer { return &f.Peer })
	if err == nil {
		err = checkSender(req, &f.Peer)
	}
	if err != nil {
		return nil, err
	}
	r, err := n.stepFor(ctx, event{kind: evFence, peer: f.Peer, epoch: req.Epoch})
	if err != nil {
		return nil, err
	}
	resp := &fenceResponse{Peer: r.peer}
	resp.FenceResponse = replication.FenceResponse{Fenced: r.granted, WALPosition: r.peer.Durable, Epoch: &r.peer.Epoch}
	return resp, nil
}

// handlePromote serves code 11.
func (n *Node) handlePromote(ctx context.Context, req *replication.Request) (any, error) {
	if err := n.running(); err != nil {
		return nil, err
	}
	var r replication.PromoteRequest
	if err := json.Unmarshal(req.Payload, &r); err != nil {
		return nil, fmt.Errorf("%w: %v", replication.ErrInvalidCommand, err)
	}
	if !req.Peer.Hello || n.authenticated() && !req.Peer.Proven {
		return n.plainPromote(ctx), nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*n.cfg.HA.FailoverTimeout)
	defer cancel()
	switch err := n.Promote(ctx, r.Force); {
	case errors.Is(err, replication.ErrUnknownOutcome): // "not ready" would say that it does not take place
		return nil, err
	case err != nil:
		return &replication.PromoteResponse{Error: err.Error()}, nil
	}
	return &replication.PromoteResponse{Ready: true}, nil
}

// handleStatus serves code 17.
func (n *Node) handleStatus(context.Context, *replication.Request) (any, error) {
	return n.Health(), nil
}

// handleState serves code 25.
func (n *Node) handleState(ctx context.Context, req *replication.Request) (any, error) {
	if err := n.trusted(req); err != nil {
		return nil, err
	}
	if err := n.role.RLock(ctx); err != nil {
		return nil, err
	}
	defer n.role.RUnlock()
	if n.machine.role == RolePrimary && !n.machine.hasLease {
		n.signal(n.kick) // who asks is about to follow, and writes may wait for that
	}
	p := n.machine.state(n.logView())
	return &p, nil
}

// maxFetchBytes bounds the entries of one answer to Fetch.
const maxFetchBytes = 4 << 20

// handleFetch serves code 27: durable entries only. Where the first is gone, the
// answer begins with the lowest that is there.
func (n *Node) handleFetch(_ context.Context, req *replication.Request) (any, error) {
	if err := n.trusted(req); err != nil {
		return nil, err
	}
	var r replication.FetchRequest
	if err := json.Unmarshal(req.Payload, &r); err != nil || r.From == 0 || r.Max <= 0 {
		return nil, fmt.Errorf("%w: fetch of %d entries from %d: %v", replication.ErrInvalidCommand, r.Max, r.From, err)
	}
	durable := n.log.Durable().Position
	if r.From > durable {
		return []*walstream.WireEntry{}, nil
	}
	after := max(r.From-1, min(n.logView().from, durable))
	count := min(uint64(r.Max), walstream.MaxBatchEntries, durable-after)
	b, err := walstream.LogSource{Log: n.log, History: n.view().stored.History}.Read(after, int(count), maxFetchBytes)
	if err != nil {
		return nil, err
	}
	return b.Entries, nil
}
