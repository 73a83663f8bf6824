package standby

import (
	"context"
	"encoding/json"
	"fmt"
	"math"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/walstream"
)

// Peers that know the documented messages alone have no epochs (hot standby,
// "Plain peers"). A node that was to be standby and has no history yet takes
// their batches; once a node has an epoch they get the documented answer and
// change nothing.

// takesPlain: this node has never been part of a pair with epochs, and was not
// configured as primary.
func (n *Node) takesPlain() bool {
	m := n.view()
	return m.stored.History == "" && m.stored.Epoch.IsZero() && !m.wantsPrimary && !m.broken
}

// plainBatch serves code 5 without an epoch. What came is applied as soon as it
// is durable: nobody says what is safe before.
func (n *Node) plainBatch(ctx context.Context, req *replication.Request) (any, error) {
	if err := n.running(); err != nil {
		return nil, err
	}
	if !n.takesPlain() {
		return n.batchResponse(n.receiver.Ack()), nil
	}
	entries, err := walstream.DecodeBatch(req.Payload)
	if err != nil {
		return nil, err
	}
	if err := n.followPlain(ctx); err != nil {
		return nil, err
	}
	ack, err := n.receiver.Receive(ctx, walstream.Received{Entries: entries})
	if err != nil {
		return nil, err
	}
	if err := n.commitPlain(ctx, ack.Received); err != nil {
		return nil, err // what came was cut off again; what stands there now is the primary's
	}
	return n.batchResponse(ack), nil
}

// followPlain makes the receiver take batches without epoch.
func (n *Node) followPlain(ctx context.Context) error {
	return n.whilePlain(ctx, func() {
		n.plain.Store(true)
		n.receiver.Follow("", replication.Epoch{})
	})
}

// commitPlain lets the Storage have what a batch without epoch has brought. The batch
// has waited for the disk since it was taken.
func (n *Node) commitPlain(ctx context.Context, position uint64) error {
	return n.whilePlain(ctx, func() { n.feed.Commit(position) })
}

// whilePlain does something, unless a step has made this node part of a pair
// meanwhile.
func (n *Node) whilePlain(ctx context.Context, do func()) error {
	if err := n.role.RLock(ctx); err != nil {
		return err
	}
	defer n.role.RUnlock()
	if n.machine.stored.History != "" || n.machine.role != RoleStarting {
		return n.notLeader()
	}
	do()
	return nil
}

// plainHeartbeat serves code 7 without an epoch.
func (n *Node) plainHeartbeat(req *replication.Request) (any, error) {
	if err := n.running(); err != nil {
		return nil, err
	}
	var h replication.HeartbeatRequest
	if err := json.Unmarshal(req.Payload, &h); err != nil {
		return nil, fmt.Errorf("%w: %v", replication.ErrInvalidCommand, err)
	}
	durable := n.log.Durable().Position
	resp := &replication.HeartbeatResponse{NodeID: n.nodeID, Role: string(n.view().role), WALPosition: durable}
	if n.takesPlain() {
		resp.Role = string(RoleStandby)
		if h.WALPosition > durable {
			resp.Lag = int64(min(h.WALPosition-durable, math.MaxInt64))
		}
	}
	return resp, nil
}

// plainPromote serves code 11 from who cannot be believed an epoch: it promotes
// the standby of a pair without any, which founds a history with what it has.
func (n *Node) plainPromote(ctx context.Context) *replication.PromoteResponse {
	if !n.takesPlain() || !n.plain.Load() {
		return &replication.PromoteResponse{Error: "the pair has epochs; a message without one promotes nobody"}
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.HA.FailoverTimeout)
	defer cancel()
	last := n.log.Last().Position // of a batch, perhaps, whose sender has not waited for the disk
	err := n.commitPlain(ctx, last)
	if err == nil {
		err = n.applier.WaitApplied(ctx, last)
	}
	if err != nil {
		return &replication.PromoteResponse{Error: err.Error()}
	}
	r, err := n.stepFor(ctx, event{kind: evPromote, plain: true})
	if err != nil {
		r.detail = err.Error()
	}
	if !r.granted {
		return &replication.PromoteResponse{Error: r.detail}
	}
	return &replication.PromoteResponse{Ready: true}
}
