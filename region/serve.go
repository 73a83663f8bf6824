package region

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region/conflict"
	"github.com/nornicdb/replication/transport"
	"github.com/nornicdb/replication/walstream"
)

// regionState is what a node says of its region (code 26 on region streams).
type regionState struct {
	Region  string
	Applied map[string]uint64 // of each region's stream
	Stamps  map[string]uint64 // which entries these are
	Epoch   replication.Epoch
	WallMS  uint64
}

// stateRequest is code 25 on region streams.
type stateRequest struct {
	// Exact: as of now, not as this node happens to have applied it.
	Exact bool `json:",omitempty"`
	// Epoch that the asking region knows.
	Epoch replication.Epoch
}

// serve opens the node to other regions, and to other nodes of its own that got
// something from them.
func (n *Node) serve(tr *transport.Transport) {
	tr.HandleRegion(replication.MsgWALBatch, n.handleBatch)
	tr.HandleRegion(replication.MsgState, n.handleState)
	tr.HandleRegion(replication.MsgApply, n.handleApply)
	tr.HandleRegion(replication.MsgRegionState, n.handleTransfer)
	tr.Handle(replication.MsgWALBatch, n.handleOwnBatch)
	tr.Handle(replication.MsgRegionState, n.handleOwnTransfer)
	tr.SetRegions(n.settings.hash(), n.checkRegion)
}

func (n *Node) unserve(tr *transport.Transport) {
	tr.SetRegions("", nil)
	for _, code := range []replication.MessageType{replication.MsgWALBatch, replication.MsgState, replication.MsgApply, replication.MsgRegionState} {
		tr.HandleRegion(code, nil)
	}
	tr.Handle(replication.MsgWALBatch, nil)
	tr.Handle(replication.MsgRegionState, nil)
}

func (n *Node) checkRegion(region string) error {
	if region == n.settings.Self || n.settings.index(region) < 0 {
		return fmt.Errorf("region %q is not one of the others of %q", region, n.settings.Conflict.Regions)
	}
	return nil
}

// handleState serves code 25 of another region.
func (n *Node) handleState(ctx context.Context, req *replication.Request) (any, error) {
	var q stateRequest
	if err := json.Unmarshal(req.Payload, &q); err != nil {
		return nil, fmt.Errorf("%w: %v", replication.ErrInvalidCommand, err)
	}
	if q.Exact {
		ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
		defer cancel()
		if _, err := n.inner.ReadBarrier(ctx, replication.ConsistencyLocalQuorum); err != nil {
			return nil, err
		}
	}
	if err := n.followEpoch(ctx, q.Epoch); err != nil {
		n.rt.Logger.Debug("an announced region epoch was not taken over", "epoch", q.Epoch.String(), "error", err)
	}
	v, _ := n.machine.now()
	if v.settings == nil {
		return nil, fmt.Errorf("%w: the region's settings are not founded", replication.ErrNotReady)
	}
	s := &regionState{Region: n.settings.Self, Applied: make(map[string]uint64), Stamps: v.head.Stamps, Epoch: v.head.Epoch, WallMS: n.wallMS()}
	for _, r := range v.settings.Conflict.Regions {
		s.Applied[r] = v.applied(r)
	}
	return s, nil
}

// ask asks a region for its state.
func (n *Node) ask(ctx context.Context, region string, exact bool) (*regionState, error) {
	v, _ := n.machine.now()
	start := n.rt.Now()
	var s regionState
	if err := n.call(ctx, region, replication.MsgState, &stateRequest{Exact: exact, Epoch: v.head.Epoch}, &s); err != nil {
		return nil, err
	}
	if s.Region != region {
		return nil, fmt.Errorf("%w: region %q answered for %q", replication.ErrWrongPeer, s.Region, region)
	}
	end := n.rt.Now()
	slack := end.Sub(start) / 2
	n.links.hear(region, &s, end, time.UnixMilli(int64(min(s.WallMS, 1<<48))).Sub(start.Add(slack)), slack)
	return &s, nil
}

// handleBatch serves code 5 of another region.
func (n *Node) handleBatch(ctx context.Context, req *replication.Request) (any, error) {
	entries, err := walstream.DecodeBatch(req.Payload)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Origin != req.Peer.Region {
			return nil, fmt.Errorf("%w: region %q sends an entry of %.80q", replication.ErrInvalidCommand, req.Peer.Region, e.Origin)
		}
	}
	if n.inner.IsLeader() {
		return n.take(ctx, entries)
	}
	var resp replication.WALBatchResponse
	if err := n.atLeader(ctx, replication.MsgWALBatch, req.Payload, &resp); err != nil {
		return nil, err
	}
	return &resp, nil
}

// atLeader hands a request of another region to this region's leader.
func (n *Node) atLeader(ctx context.Context, code replication.MessageType, payload json.RawMessage, resp any) error {
	addr, tr := n.inner.LeaderAddr(), n.transport()
	if addr == "" || tr == nil {
		return replication.ErrNoLeader
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	conn, err := tr.Connect(ctx, addr)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return conn.(replication.Caller).Call(ctx, code, payload, resp)
}

// handleOwnBatch serves code 5 of a node of this region, which got it from
// another one.
func (n *Node) handleOwnBatch(ctx context.Context, req *replication.Request) (any, error) {
	if !req.Peer.Hello {
		return nil, fmt.Errorf("%w: entries come from nodes of this project", replication.ErrUnsupported)
	}
	entries, err := walstream.DecodeBatch(req.Payload)
	if err != nil {
		return nil, err
	}
	return n.take(ctx, entries)
}

// take proposes the entries of another region's stream and answers how far this
// region has it. What it has is passed over; a gap is answered by the position
// before it, to which the sender goes back.
func (n *Node) take(ctx context.Context, wire []*walstream.WireEntry) (*replication.WALBatchResponse, error) {
	if !n.inner.IsLeader() {
		return nil, &replication.NotLeaderError{LeaderID: n.inner.LeaderID(), LeaderAddr: n.inner.LeaderAddr()}
	}
	if err := n.placed(); err != nil {
		return nil, err
	}
	entries, size := make([]*conflict.Entry, 0, len(wire)), 0
	for i, w := range wire {
		e, err := n.settings.Conflict.FromWAL(&w.WALEntry)
		if err != nil {
			return nil, fmt.Errorf("%w: %v", replication.ErrInvalidCommand, err)
		}
		if i > 0 && (e.Dot.Region != entries[0].Dot.Region || e.Dot.Pos != entries[i-1].Dot.Pos+1) {
			return nil, fmt.Errorf("%w: entry %d follows %d", replication.ErrInvalidCommand, e.Dot.Pos, entries[i-1].Dot.Pos)
		}
		entries = append(entries, e)
		size += len(w.Command.Data) + 64
	}
	if len(entries) == 0 {
		return &replication.WALBatchResponse{}, nil
	}
	if wire[0].Origin == n.settings.Self {
		return nil, fmt.Errorf("%w: entry %d is of this region's own stream", replication.ErrInvalidCommand, wire[0].Position)
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	if mutants.ackBeforeCommit {
		last := entries[len(entries)-1].Dot.Pos
		n.wg.Go(func() { _ = n.merge(n.ctx, entries) })
		return &replication.WALBatchResponse{AckedPosition: last, ReceivedPosition: last}, nil
	}
	at, err := n.bring(ctx, wire[0].Origin, &arrival{entries, size})
	if err != nil {
		return nil, err
	}
	return &replication.WALBatchResponse{AckedPosition: at, ReceivedPosition: at}, nil
}

// placed is why this node makes nothing of what another region sends: entries
// name regions by their places in the list, so a node that has another list than
// its region would have them merged as somebody else's. It asks for what is
// applied now, as the alarm comes a moment later.
func (n *Node) placed() error {
	v, _ := n.machine.now()
	if v.settings == nil {
		return fmt.Errorf("%w: the region's settings are not founded yet", replication.ErrNotReady)
	}
	if err := n.settings.with(v.settings).differs(v.settings); err != nil {
		return fmt.Errorf("%w: %w", replication.ErrNotReady, err)
	}
	return nil
}

// merge proposes entries and sorts the answers out: a gap is told by the
// position.
func (n *Node) merge(ctx context.Context, entries []*conflict.Entry) error {
	err := n.propose(ctx, &logCommand{kind: kindRemote, wallMS: n.wallMS(), entries: entries})
	if errors.Is(err, conflict.ErrGap) {
		return nil
	}
	return err
}
