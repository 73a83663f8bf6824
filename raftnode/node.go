package raftnode

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm"
	"github.com/nornicdb/replication/internal/datadir"
	"github.com/nornicdb/replication/internal/report"
	"github.com/nornicdb/replication/transport"
)

// Node is one node of a Raft cluster. All methods are safe for concurrent use.
type Node struct {
	cfg     *replication.Config
	storage replication.Storage
	rt      replication.Runtime
	opts    options

	ctx    context.Context // ends with Shutdown
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine of the node
	events replication.EventHub

	started chan struct{} // closed when Start has ended, whichever way

	// Set by Start, in this order, before state becomes running; each is nil
	// before.
	dir       *datadir.Dir
	nodeID    string
	applier   *replication.StorageApplier
	transport replication.Transport // nil with WithRaftTransport and no Runtime.Transport
	own       *transport.Transport  // the transport, where this node made it
	logs      *watchedStore
	snaps     raft.SnapshotStore
	layer     *transport.StreamLayer
	rtrans    *observedTransport
	machine   *machine
	raft      *raft.Raft
	submit    *submitter
	reads     *readRounds // of the leader
	asked     *readRounds // of a node that asks the leader
	observer  *raft.Observer
	notify    chan bool                    // gained or lost leadership
	deferring replication.DeferringStorage // the storage, if run let it defer
	// replayFrom is the storage's position in the newest snapshot at the start.
	replayFrom uint64

	// readyTerm is the term in which this node leads and has committed an
	// entry of its own; 0 while it has not.
	readyTerm  atomic.Uint64
	office     chan struct{} // holds takeOffice's one run; no mutex, as it waits for Raft
	recording  chan struct{} // holds the one opaque command whose effects are on their way
	withhold   atomic.Bool   // this node hung in its storage and could not hand leadership on
	progress   lagTracker
	gauges     report.Gauges          // housekeeping alone
	lastLeader string                 // loop alone: who led last
	outcast    atomic.Pointer[string] // why this node is no member any more
	joining    atomic.Pointer[string] // history of the log that this node, still empty, is to get
	// changing holds one token while a change of the membership is decided and
	// proposed by this node.
	changing chan struct{}

	// mu guards the fields below.
	mu      sync.Mutex
	state   nodeState
	waiting string // what Start waits for
	hasLog  bool   // there is a log, or one is about to be begun
	changed chan struct{}
	peers   map[string]replication.PeerConnection
	done    chan struct{} // closed when Shutdown has finished
	err     error         // of Shutdown
}

type nodeState int

const (
	stateNew nodeState = iota
	stateStarting
	stateRunning
	stateClosed
)

var (
	_ replication.Replicator       = (*Node)(nil)
	_ replication.BatchApplier     = (*Node)(nil)
	_ replication.ConsistentReader = (*Node)(nil)
	_ replication.Membership       = (*Node)(nil)
	_ replication.Snapshotter      = (*Node)(nil)
	_ replication.Subscriber       = (*Node)(nil)
	_ replication.Constructor      = New
)

func newNode(cfg *replication.Config, storage replication.Storage, rt replication.Runtime, o options) (*Node, error) {
	n := &Node{cfg: cfg, storage: storage, rt: rt, opts: o, changed: make(chan struct{}), office: make(chan struct{}, 1), recording: make(chan struct{}, 1), changing: make(chan struct{}, 1),
		peers: make(map[string]replication.PeerConnection), done: make(chan struct{}), started: make(chan struct{})}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	return n, nil
}

func (n *Node) id() raft.ServerID { return raft.ServerID(n.nodeID) }

// running is nil while the node serves.
func (n *Node) running() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch n.state {
	case stateRunning:
		return nil
	case stateClosed:
		return replication.ErrClosed
	default:
		if n.waiting != "" {
			return fmt.Errorf("%w: %s", replication.ErrNotReady, n.waiting)
		}
		return replication.ErrNotReady
	}
}

// spawn runs f in a goroutine that Shutdown waits for; false: too late.
func (n *Node) spawn(f func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.state == stateClosed {
		return false
	}
	n.wg.Add(1)
	go func() {
		defer n.wg.Done()
		f()
	}()
	return true
}

// leaderChanged returns a channel that is closed at the next change of leader.
func (n *Node) leaderChanged() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

func (n *Node) signalChange() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.changed)
	n.changed = make(chan struct{})
}

// callPeer sends a request to the node at addr over the connection that is
// kept to it.
func (n *Node) callPeer(ctx context.Context, addr string, code replication.MessageType, req, resp any) error {
	if n.transport == nil {
		return replication.MarkNotSent(fmt.Errorf("%w: this node has no cluster transport", replication.ErrUnsupported))
	}
	n.mu.Lock()
	conn := n.peers[addr]
	n.mu.Unlock()
	if conn == nil {
		fresh, err := n.transport.Connect(ctx, addr)
		if err != nil {
			return replication.MarkNotSent(err)
		}
		n.mu.Lock()
		if conn = n.peers[addr]; conn == nil && n.state != stateClosed {
			conn, n.peers[addr] = fresh, fresh
			fresh = nil
		}
		n.mu.Unlock()
		if fresh != nil {
			_ = fresh.Close() // another caller was faster, or the node closes
		}
		if conn == nil {
			return replication.MarkNotSent(replication.ErrClosed)
		}
	}
	caller, ok := conn.(replication.Caller)
	if !ok {
		return replication.MarkNotSent(fmt.Errorf("%w: the transport sends documented messages only", replication.ErrUnsupported))
	}
	return caller.Call(ctx, code, req, resp)
}

func (n *Node) maxCommandBytes() int { return transport.MaxCommandBytes(n.cfg.MaxFrameSize) }

// IsLeader implements replication.Replicator.
func (n *Node) IsLeader() bool {
	return n.running() == nil && n.raft.State() == raft.Leader && n.readyTerm.Load() == n.raft.CurrentTerm() &&
		!n.rtrans.hung.Load() && n.applier.Failure() == nil
}

// LeaderAddr implements replication.Replicator.
func (n *Node) LeaderAddr() string {
	if n.running() != nil {
		return ""
	}
	addr, _ := n.raft.LeaderWithID()
	return string(addr)
}

// LeaderID implements replication.Replicator.
func (n *Node) LeaderID() string {
	if n.running() != nil {
		return ""
	}
	_, id := n.raft.LeaderWithID()
	return string(id)
}

// WaitForLeader implements replication.Replicator.
func (n *Node) WaitForLeader(timeout time.Duration) error {
	if timeout <= 0 {
		return fmt.Errorf("%w: %s", replication.ErrInvalidTimeout, timeout)
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		changed := n.leaderChanged()
		if n.LeaderID() != "" {
			return nil
		}
		select {
		case <-changed:
		case <-n.ctx.Done():
			return fmt.Errorf("%w: %w", replication.ErrNoLeader, replication.ErrClosed)
		case <-timer.C:
			return fmt.Errorf("%w: %w after %s", replication.ErrNoLeader, replication.ErrTimeout, timeout)
		}
	}
}

// Mode implements replication.Replicator.
func (n *Node) Mode() replication.ReplicationMode { return n.cfg.Mode }

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

// TakeSnapshot implements replication.Snapshotter.
func (n *Node) TakeSnapshot(ctx context.Context) error {
	if err := n.running(); err != nil {
		return err
	}
	err := n.await(ctx, n.raft.Snapshot())
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	if err == nil {
		n.publish(replication.Event{Type: replication.EventSnapshotTaken, Position: n.applier.Position()})
	}
	return err
}

// await waits for a future of hashicorp/raft no longer than ctx and the node.
// The goroutine ends with the future. Shutdown does not wait for it: a transfer
// of leadership that Raft has not begun when it stops is never answered.
func (n *Node) await(ctx context.Context, f raft.Future) error {
	result := make(chan error, 1)
	go func() { result <- f.Error() }()
	select {
	case err := <-result:
		return err
	case <-n.ctx.Done():
		return replication.ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", replication.ErrTimeout, context.Cause(ctx))
	}
}

// Publish tells subscribers of an event of the owner's.
func (n *Node) Publish(e replication.Event) { n.publish(e) }

func (n *Node) publish(e replication.Event) {
	e.Time = n.rt.Now()
	n.events.Publish(e)
}

// Shutdown implements replication.Replicator.
func (n *Node) Shutdown() error {
	n.mu.Lock()
	if n.state == stateClosed {
		n.mu.Unlock()
		<-n.done
		return n.err
	}
	was := n.state
	n.state = stateClosed
	n.mu.Unlock()
	if was == stateRunning {
		n.handOver()
	}
	n.cancel()
	if was != stateNew {
		<-n.started
	}
	err := n.tearDown()
	n.publish(replication.Event{Type: replication.EventStopped})
	n.events.Close()
	n.err = err
	close(n.done)
	return err
}

// handOver ends this node's own writes and gives leadership to another node.
func (n *Node) handOver() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*n.cfg.Raft.ElectionTimeout)
	defer cancel()
	n.submit.drain(ctx)
	select { // a barrier that is committed when Raft stops is never answered
	case n.office <- struct{}{}:
		<-n.office
	case <-ctx.Done():
	}
	if others, _ := n.otherVoters(); n.raft.State() != raft.Leader || len(others) == 0 || n.rtrans.hung.Load() {
		return
	}
	future := n.raft.LeadershipTransfer()
	result := make(chan error, 1)
	go func() { result <- future.Error() }() // ends with the future, at the latest with Raft
	select {
	case err := <-result:
		if err != nil {
			n.rt.Logger.Warn("leadership was not handed over", "error", err)
		}
	case <-ctx.Done():
	}
}

// tearDown closes what Start has opened, in the opposite order.
func (n *Node) tearDown() error {
	var errs []error
	if n.raft != nil {
		if err := n.stopRaft(); err != nil {
			return err
		}
	}
	if n.submit != nil {
		ctx, cancel := context.WithTimeout(context.Background(), n.cfg.Raft.ElectionTimeout)
		n.submit.drain(ctx)
		cancel()
	}
	if n.rtrans != nil {
		errs = append(errs, n.rtrans.Close())
	}
	n.mu.Lock()
	peers := n.peers
	n.peers = make(map[string]replication.PeerConnection)
	n.mu.Unlock()
	for _, p := range peers {
		_ = p.Close()
	}
	n.unhandle()
	if n.own != nil {
		errs = append(errs, n.own.Close())
	}
	if n.applier != nil {
		n.applier.Close()
	}
	n.wg.Wait()
	errs = append(errs, n.stopDeferring())
	if n.logs != nil {
		errs = append(errs, closeIfCloser(n.logs.LogStore))
	}
	if n.dir != nil {
		errs = append(errs, n.dir.Close())
	}
	return errors.Join(errs...)
}

// stopRaft stops hashicorp/raft. Its main loop cannot stop while a call of the
// log store or the storage hangs; then the rest stays open too, as Raft may still use it.
func (n *Node) stopRaft() error {
	n.raft.DeregisterObserver(n.observer)
	future := n.raft.Shutdown()
	result := make(chan error, 1)
	go func() { result <- future.Error() }() // ends when the log store's call does
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case err := <-result:
		return err
	case <-timer.C:
		return fmt.Errorf("%w: Raft did not stop within %s: the log store or the storage hangs", replication.ErrTimeout, stopTimeout)
	}
}

// stopDeferring gives the storage back as it was: every write durable. One that
// hangs is left with it; the log has what it may lose.
func (n *Node) stopDeferring() error {
	if n.deferring == nil {
		return nil
	}
	result := make(chan error, 1)
	go func() { result <- n.deferring.Defer(false) }() // ends when the storage's call does
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case err := <-result:
		return err
	case <-timer.C:
		return fmt.Errorf("%w: the storage was not flushed within %s: it hangs", replication.ErrTimeout, stopTimeout)
	}
}

// stopTimeout bounds how long Shutdown waits for Raft, and for the storage.
const stopTimeout = 10 * time.Second

// netAddr is an address as text, as Raft wants a net.Addr.
type netAddr string

func (a netAddr) Network() string { return "tcp" }
func (a netAddr) String() string  { return string(a) }

var _ net.Addr = netAddr("")

// fsmOptions tell this node what happens in its state machine.
func (n *Node) fsmOptions() fsm.Options {
	return fsm.Options{
		ReplayFrom: n.replayFrom,
		OnFailure: func(err error) {
			n.rt.Logger.Error("the storage failed; this node applies nothing more until it is restarted", "error", err)
			n.publish(replication.Event{Type: replication.EventStorageFailed, Detail: err.Error()})
			n.readyTerm.Store(0)
			n.signalChange()
		},
		OnRestore: func(position uint64) {
			n.rt.Logger.Info("snapshot restored", "position", position)
			if err := n.saveIdentity(n.applier.Identity()); err != nil { // the next start can do without, see checkExisting
				n.rt.Logger.Warn("the history was not noted", "error", err)
			}
			report.Snapshot("received")
			n.publish(replication.Event{Type: replication.EventSnapshotInstalled, Position: position})
		},
	}
}
