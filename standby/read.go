package standby

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nornicdb/replication"
)

// ReadBarrier implements replication.ConsistentReader. ONE and LOCAL_ONE are what
// this node has; the other levels are what the primary had acknowledged.
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
	m := n.view()
	var position uint64
	var err error
	if m.role == RolePrimary {
		position, err = n.readIndex(ctx)
	} else if n.leaderOf(&m) != "" {
		var resp replication.ReadIndexResponse
		err = n.call(ctx, connData, replication.MsgReadIndex, &replication.ReadIndexRequest{Level: level}, &resp)
		position = resp.Index
	} else {
		err = n.notLeader()
	}
	if err != nil {
		return 0, err
	}
	return position, n.WaitApplied(ctx, position)
}

// readIndex is the position that a reader must have applied to see all that was
// acknowledged. That this node still is primary is confirmed afterwards: by its
// lease, or by the standby's answer to a heartbeat sent after the position was
// taken; where no standby is admitted, nobody else can have become primary by
// itself.
func (n *Node) readIndex(ctx context.Context) (uint64, error) {
	if err := n.role.RLock(ctx); err != nil {
		return 0, err
	}
	m := n.machine
	position := max(n.feed.Committed(), n.leadAt)
	n.role.RUnlock()
	if m.role != RolePrimary {
		return 0, n.notLeader()
	}
	if !m.stored.PeerAdmitted || m.consistency && m.leased(n.now()) {
		return position, nil
	}
	follows, err := n.beat(ctx)
	if err != nil || !follows {
		return 0, fmt.Errorf("%w: the standby did not confirm the primary: %v", replication.ErrNoLeader, err)
	}
	return position, nil
}

// WaitApplied implements replication.ConsistentReader. Where it is not known that
// the Storage is a prefix of what the pair has, that is waited for first: what this
// node wrote alone stands at positions that the other has given to other writes.
func (n *Node) WaitApplied(ctx context.Context, position uint64) error {
	for {
		if err := n.waitPlaced(ctx); err != nil {
			return err
		}
		if err := n.applier.WaitApplied(ctx, position); err != nil {
			return err
		}
		if n.placed() {
			return nil
		}
	}
}

// placed: positions of the Storage are those of the pair, as far as this node can
// know. A node without a part has met a higher epoch, or has not asked; one that
// follows a peer without epochs has no other positions than that one's.
func (n *Node) placed() bool {
	switch n.view().role {
	case RolePrimary, RoleStandby, RoleFencing, RolePromoting:
		return true
	}
	return n.plain.Load() && n.takesPlain()
}

// waitPlaced waits until the node has found its part.
func (n *Node) waitPlaced(ctx context.Context) error {
	for {
		if err := n.running(); err != nil {
			return err
		}
		changed := n.change()
		if n.placed() {
			return nil
		}
		select {
		case <-changed:
		case <-n.ctx.Done():
			return replication.ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("%w: %w: this node is %s: %w", replication.ErrTimeout, replication.ErrNotReady, n.view().role, context.Cause(ctx))
		}
	}
}

// handleReadIndex serves code 23.
func (n *Node) handleReadIndex(ctx context.Context, req *replication.Request) (any, error) {
	if err := n.trusted(req); err != nil {
		return nil, err
	}
	var r replication.ReadIndexRequest
	if err := json.Unmarshal(req.Payload, &r); err != nil {
		return nil, fmt.Errorf("%w: %v", replication.ErrInvalidCommand, err)
	}
	position, err := n.readIndex(ctx)
	if err != nil {
		return nil, err
	}
	return &replication.ReadIndexResponse{Index: position}, nil
}

// leaderOf is the ID of the primary that a machine knows of; "": none.
func (n *Node) leaderOf(m *machine) string {
	switch {
	case m.role == RolePrimary:
		return m.self
	case m.role == RoleStandby && m.follows:
		return m.stored.Epoch.Owner
	}
	return ""
}

func (n *Node) notLeader() error {
	m := n.view()
	e := &replication.NotLeaderError{LeaderID: n.leaderOf(&m)}
	if e.LeaderID != "" && e.LeaderID != n.nodeID {
		e.LeaderAddr = n.cfg.HA.PeerAddr
	}
	return e
}

// IsLeader implements replication.Replicator.
func (n *Node) IsLeader() bool {
	if n.running() != nil || n.applier.Failure() != nil || n.useless() {
		return false
	}
	m := n.view()
	return m.accepts(n.now())
}

// LeaderAddr implements replication.Replicator.
func (n *Node) LeaderAddr() string {
	switch id := n.LeaderID(); id {
	case "":
		return ""
	case n.nodeID:
		return n.cfg.Advertise()
	default:
		return n.cfg.HA.PeerAddr
	}
}

// LeaderID implements replication.Replicator.
func (n *Node) LeaderID() string {
	if n.running() != nil {
		return ""
	}
	m := n.view()
	return n.leaderOf(&m)
}

// WaitForLeader implements replication.Replicator.
func (n *Node) WaitForLeader(timeout time.Duration) error {
	if timeout <= 0 {
		return fmt.Errorf("%w: %s", replication.ErrInvalidTimeout, timeout)
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		changed := n.change()
		if n.LeaderID() != "" {
			return nil
		}
		select {
		case <-changed:
		case <-n.ctx.Done():
			return fmt.Errorf("%w: %w", replication.ErrNoLeader, replication.ErrClosed)
		case <-timer.C:
			return fmt.Errorf("%w: %w after %s: %s", replication.ErrNoLeader, replication.ErrTimeout, timeout, n.view().waiting)
		}
	}
}

// Mode implements replication.Replicator.
func (n *Node) Mode() replication.ReplicationMode { return replication.ModeHAStandby }

// NodeID implements replication.Replicator.
func (n *Node) NodeID() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nodeID == "" {
		return n.cfg.NodeID
	}
	return n.nodeID
}

// Subscribe implements replication.Subscriber.
func (n *Node) Subscribe(buffer int) (<-chan replication.Event, func()) {
	return n.events.Subscribe(buffer)
}
