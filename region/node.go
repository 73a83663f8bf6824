package region

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/raftnode"
	"github.com/nornicdb/replication/region/conflict"
	"github.com/nornicdb/replication/transport"
)

// Node is one node of one region. All methods are safe for concurrent use.
type Node struct {
	cfg      *replication.Config
	rt       replication.Runtime
	settings *settings // what the environment says
	followed *settings // what the region says, as run saw it last; its own
	machine  *machine
	inner    *raftnode.Node
	acks     *acks
	links    *links
	lags     lags
	inboxes  map[string]*inbox // of the other regions

	ctx    context.Context // ends with Shutdown
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine of the node

	// mu guards the fields below.
	mu      sync.Mutex
	tr      *transport.Transport // set when Start has succeeded
	stopped bool
	alarm   error // the environment is not what the region was founded with
}

var (
	_ replication.Replicator       = (*Node)(nil)
	_ replication.BatchApplier     = (*Node)(nil)
	_ replication.ConsistentReader = (*Node)(nil)
	_ replication.Membership       = (*Node)(nil)
	_ replication.Snapshotter      = (*Node)(nil)
	_ replication.Subscriber       = (*Node)(nil)
	_ replication.Constructor      = New
)

// Mode returns a Constructor with options of the region's own Raft cluster. It
// refuses a storage without transactions that read the graph, or without
// snapshots: ErrUnsupported.
func Mode(opts ...raftnode.Option) replication.Constructor {
	return func(cfg *replication.Config, storage replication.Storage, rt replication.Runtime) (replication.Replicator, error) {
		s, err := settingsOf(cfg)
		if err != nil {
			return nil, err
		}
		m, err := newMachine(storage)
		if err != nil {
			return nil, err
		}
		if v, _ := m.now(); v.settings != nil {
			if err := s.differs(v.settings); err != nil {
				return nil, err
			}
		}
		n := &Node{cfg: cfg, rt: rt, settings: s, machine: m, acks: newAcks(), links: newLinks(cfg), inboxes: make(map[string]*inbox)}
		for _, r := range s.others() {
			n.inboxes[r] = newInbox()
		}
		n.ctx, n.cancel = context.WithCancel(context.Background())
		owner := raftnode.WithOwner(raftnode.Owner{Check: checkCommands, Wrap: n.wrap, Committed: n.committed, Health: n.federate})
		inner, err := raftnode.Mode(append([]raftnode.Option{owner}, opts...)...)(cfg, m.storage(), rt)
		if err != nil {
			return nil, err
		}
		n.inner = inner.(*raftnode.Node)
		m.committed = n.observed
		return n, nil
	}
}

// New is multi-region mode without options: a replication.Constructor.
func New(cfg *replication.Config, storage replication.Storage, rt replication.Runtime) (replication.Replicator, error) {
	return Mode()(cfg, storage, rt)
}

// Start implements replication.Replicator: it returns when the node takes part
// in its region's cluster. Other regions need not be there.
func (n *Node) Start(ctx context.Context) error {
	if err := n.inner.Start(ctx); err != nil {
		return err
	}
	tr, ok := n.inner.Transport().(*transport.Transport)
	if !ok {
		return errors.Join(fmt.Errorf("%w: region streams need a *transport.Transport", replication.ErrUnsupported), n.Shutdown())
	}
	n.mu.Lock()
	if n.stopped {
		n.mu.Unlock()
		return replication.ErrClosed
	}
	if err := removeSpools(n.cfg.DataDir); err != nil { // now the directory is this node's
		n.rt.Logger.Warn("what is left of a state on its way was not removed", "error", err)
	}
	n.tr = tr
	n.serve(tr)
	n.wg.Go(n.run)
	n.wg.Go(n.observe)
	n.mu.Unlock()
	return nil
}

// transport is the cluster transport; nil before Start has succeeded.
func (n *Node) transport() *transport.Transport {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.tr
}

// Shutdown implements replication.Replicator.
func (n *Node) Shutdown() error {
	n.mu.Lock()
	first := !n.stopped
	n.stopped = true
	tr := n.tr
	n.mu.Unlock()
	n.cancel()
	if first && tr != nil {
		n.unserve(tr)
	}
	err := n.inner.Shutdown()
	n.wg.Wait()
	n.links.close()
	return err
}

// wallMS is this node's wall reading.
func (n *Node) wallMS() uint64 { return uint64(max(n.rt.Now().UnixMilli(), 0)) }

// propose puts an entry of this package's own into the region's log; only the
// leader can.
func (n *Node) propose(ctx context.Context, c *logCommand) error {
	_, err := n.inner.Propose(ctx, replication.Group{Commands: []*replication.Command{c.encode()}})
	return err
}

// run is the node's own loop: it leads while the inner node does, and its
// environment is the region's.
func (n *Node) run() {
	tick := time.NewTicker(leadTick)
	defer tick.Stop()
	var stop func()
	skewed := false
	var passing passing
	defer passing.wg.Wait()
	for {
		leads := n.inner.IsLeader()
		if leads && n.misplaced() { // it can do nothing with its office
			n.passOn(&passing)
			leads = false
		}
		switch {
		case leads && stop == nil:
			stop = n.lead()
		case !leads && stop != nil:
			stop()
			stop = nil
		}
		select {
		case <-tick.C:
		case <-n.ctx.Done():
			if stop != nil {
				stop()
			}
			return
		}
		n.followSettings()
		if leads {
			skewed = n.tellSkew(skewed)
		}
	}
}

// tellSkew tells when this region's clock goes off from the others', and when it
// comes back.
func (n *Node) tellSkew(was bool) (is bool) {
	bound := n.clockBound()
	off, of := n.links.skew(bound, n.rt.Now())
	if is = mostly(off, of); is == was {
		return is
	}
	detail := "the clock is within " + bound.String() + " of the other regions' again"
	if is {
		detail = fmt.Sprintf("the clock is off from that of %d of %d regions by more than %s", off, of, bound)
		n.rt.Logger.Warn("clock skew", "detail", detail)
	}
	n.inner.Publish(replication.Event{Type: replication.EventClockSkew, Detail: detail})
	return is
}

// leadTick is how often a node looks whether it leads.
const leadTick = 50 * time.Millisecond

// alarmed makes the node refuse writes and say why, until it is restarted.
func (n *Node) alarmed(err error) {
	n.mu.Lock()
	first := n.alarm == nil
	if first {
		n.alarm = err
	}
	n.mu.Unlock()
	if first {
		n.rt.Logger.Error("this node takes no writes any more", "error", err)
	}
}

// alarmedBy is why the node takes no writes; nil: it does.
func (n *Node) alarmedBy() error {
	n.mu.Lock()
	alarm := n.alarm
	n.mu.Unlock()
	if alarm != nil {
		return alarm
	}
	v, _ := n.machine.now()
	return v.head.err()
}

// The methods below are the inner cluster's.

// IsLeader implements replication.Replicator.
func (n *Node) IsLeader() bool { return n.inner.IsLeader() }

// LeaderAddr implements replication.Replicator: of this region.
func (n *Node) LeaderAddr() string { return n.inner.LeaderAddr() }

// LeaderID implements replication.Replicator: of this region.
func (n *Node) LeaderID() string { return n.inner.LeaderID() }

// WaitForLeader implements replication.Replicator.
func (n *Node) WaitForLeader(timeout time.Duration) error { return n.inner.WaitForLeader(timeout) }

// Mode implements replication.Replicator.
func (n *Node) Mode() replication.ReplicationMode { return replication.ModeMultiRegion }

// NodeID implements replication.Replicator.
func (n *Node) NodeID() string { return n.inner.NodeID() }

// TakeSnapshot implements replication.Snapshotter.
func (n *Node) TakeSnapshot(ctx context.Context) error { return n.inner.TakeSnapshot(ctx) }

// Subscribe implements replication.Subscriber.
func (n *Node) Subscribe(buffer int) (<-chan replication.Event, func()) {
	return n.inner.Subscribe(buffer)
}

// AddMember implements replication.Membership: of this region.
func (n *Node) AddMember(ctx context.Context, id, addr string, voter bool) error {
	return n.inner.AddMember(ctx, id, addr, voter)
}

// RemoveMember implements replication.Membership: of this region.
func (n *Node) RemoveMember(ctx context.Context, id string, force bool) error {
	return n.inner.RemoveMember(ctx, id, force)
}

// TransferLeadership implements replication.Membership: in this region.
func (n *Node) TransferLeadership(ctx context.Context, id string) error {
	return n.inner.TransferLeadership(ctx, id)
}

// ClusterStatus implements replication.Membership: of this region.
func (n *Node) ClusterStatus(ctx context.Context) (*replication.ClusterStatus, error) {
	return n.inner.ClusterStatus(ctx)
}

// WaitApplied implements replication.ConsistentReader: positions are those of
// this region.
func (n *Node) WaitApplied(ctx context.Context, position uint64) error {
	return n.inner.WaitApplied(ctx, position)
}

// ReadBarrier implements replication.ConsistentReader: what stays within the
// region.
func (n *Node) ReadBarrier(ctx context.Context, level replication.Consistency) (uint64, error) {
	switch level {
	case replication.ConsistencyOne, replication.ConsistencyLocalOne, replication.ConsistencyLocalQuorum:
		return n.inner.ReadBarrier(ctx, level)
	}
	return 0, fmt.Errorf("%w: mode multi_region has no reads of level %q", replication.ErrUnsupported, level)
}

// Status is this region's state, as this node has applied it: streams, clock,
// unsettled rows, conflicts.
func (n *Node) Status() conflict.Status {
	v, _ := n.machine.now()
	return v.status
}
