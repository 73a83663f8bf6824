package standby

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/datadir"
	"github.com/nornicdb/replication/internal/report"
	"github.com/nornicdb/replication/transport"
	"github.com/nornicdb/replication/walstream"
)

// Node is one of the pair. All methods are safe for concurrent use.
type Node struct {
	cfg     *replication.Config
	storage replication.Storage
	rt      replication.Runtime
	opts    options

	ctx    context.Context // ends with Shutdown
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine of the node
	events replication.EventHub
	gauges report.Gauges // of the tick loop, as is the next
	peerUp bool

	// Set by Start before state becomes running.
	dir       *datadir.Dir
	nodeID    string
	file      states
	applier   *replication.StorageApplier
	deferring replication.DeferringStorage // the storage, where it can
	store     raft.LogStore
	log       *walstream.Log
	feed      *walstream.Feed
	receiver  *walstream.Applier
	transport replication.Transport
	own       *transport.Transport // the transport, where this node made it

	epoch   atomic.Pointer[replication.Epoch] // what messages carry
	kick    chan struct{}                     // one token: speak to the peer now
	commits chan struct{}                     // one token: what may be applied has to be looked at
	fencing atomic.Bool                       // a Fence is under way
	plain   atomic.Bool                       // batches without epoch were taken: the pair is unfenced

	// role serializes steps: it is held while a step is performed, and shared by
	// whoever appends, so that no write slips in behind a step that ends them. It
	// is taken before mu.
	role    roleLock
	machine machine
	saved   Stored // what the state file says
	leading bool
	leadAt  uint64 // where the log ended when this node became primary
	stream  *streaming
	leader  string // that others were told of; "": none
	// lastLeader is the last one there was, which a failover is counted by.
	lastLeader string

	// mu guards the fields below.
	mu      sync.Mutex
	state   nodeState
	seen    machine // a copy of machine, for those who do not wait for steps
	changed chan struct{}
	conns   [2]replication.PeerConnection
	tails   []string // files with diverged entries
	tailed  int      // entries in them
	behind  lagClock
	// transfer is what the log is kept for beside what the standby lacks; nil: nothing.
	transfer *transfer
	done     chan struct{}
	err      error // of Shutdown
}

// streaming is the stream to a standby in one epoch.
type streaming struct {
	epoch    replication.Epoch
	streamer *walstream.Streamer
	cancel   context.CancelFunc
	done     chan struct{}
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
	_ replication.Promoter         = (*Node)(nil)
	_ replication.Soloer           = (*Node)(nil)
	_ replication.Subscriber       = (*Node)(nil)
	_ replication.Constructor      = New
)

func newNode(cfg *replication.Config, storage replication.Storage, rt replication.Runtime, o options) *Node {
	n := &Node{cfg: cfg, storage: storage, rt: rt, opts: o, changed: make(chan struct{}), done: make(chan struct{}),
		kick: make(chan struct{}, 1), commits: make(chan struct{}, 1)}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.role = newRoleLock(n.ctx.Done())
	return n
}

// Start implements replication.Replicator. It returns when the node serves; which
// role it has then is found out with its peer (see WaitForLeader).
func (n *Node) Start(ctx context.Context) error {
	n.mu.Lock()
	if n.state != stateNew {
		defer n.mu.Unlock()
		if n.state == stateClosed {
			return replication.ErrClosed
		}
		return fmt.Errorf("%w: started already", replication.ErrInvalidConfig)
	}
	n.state = stateStarting
	n.mu.Unlock()
	err := n.openLocal()
	if err == nil {
		err = n.openTransport(ctx)
	}
	if err != nil {
		return errors.Join(err, n.Shutdown())
	}
	n.mu.Lock()
	n.state = stateRunning
	n.mu.Unlock()
	n.spawn(n.tickLoop)
	n.spawn(n.speakLoop)
	n.spawn(n.commitLoop)
	n.spawn(n.compactLoop)
	n.spawn(n.runFeed)
	n.publish(replication.Event{Type: replication.EventStarted, Position: n.applier.Position()})
	return nil
}

// openLocal opens and locks the data directory and everything in it.
func (n *Node) openLocal() error {
	want := datadir.Identity{Mode: string(replication.ModeHAStandby), NodeID: n.cfg.NodeID, LogStore: n.cfg.LogStore}
	dir, err := datadir.Open(n.cfg.DataDir, want, func() string {
		if host, err := os.Hostname(); err == nil && host != "" {
			return host
		}
		return "node-" + replication.NewHistory()
	})
	if err != nil {
		return err
	}
	n.dir = dir
	n.mu.Lock()
	n.nodeID = dir.Identity().NodeID
	n.mu.Unlock()
	n.file = n.opts.states(dir.Path(stateFileName))
	stored, err := n.file.load()
	if err != nil {
		return err
	}
	if err := n.loadTails(); err != nil {
		return err
	}
	if n.store, err = n.opts.logStores[n.cfg.LogStore](n.cfg.DataDir); err != nil {
		return fmt.Errorf("log store %s in %s: %w", n.cfg.LogStore, n.cfg.DataDir, err)
	}
	if n.log, err = n.openLog(stored); err != nil {
		return err
	}
	applier, err := replication.NewStorageApplier(n.storage)
	if err != nil && !errors.Is(err, replication.ErrRestoreIncomplete) {
		return err
	}
	n.applier = applier
	whole := err == nil
	if stored, err = n.checkStorage(stored, whole); err != nil {
		return err
	}
	if d, ok := n.storage.(replication.DeferringStorage); ok {
		n.deferring = d
		if whole {
			if err := d.Defer(true); err != nil { // the log is durable, and is applied again
				return fmt.Errorf("storage: %w", err)
			}
		}
	}
	n.feed = walstream.NewFeed(n.log, n.applier)
	n.receiver = walstream.NewApplier(n.log, walstream.ApplierOptions{AnswerReceived: n.cfg.HA.SyncMode == replication.SyncSemi})
	n.machine, n.saved = n.newMachine(stored), stored
	n.mu.Lock()
	n.seen = n.machine
	n.mu.Unlock()
	n.epoch.Store(&stored.Epoch)
	return nil
}

// openLog opens the log; one that is being replaced is emptied.
func (n *Node) openLog(stored Stored) (*walstream.Log, error) {
	opts := walstream.LogOptions{Base: stored.Base, OnFailure: n.logFailed}
	log, err := walstream.OpenLog(n.store, opts)
	if err == nil || !stored.Rebuilding {
		return log, err
	}
	n.rt.Logger.Warn("the log of a node that was being rebuilt is emptied", "error", err)
	first, err := n.store.FirstIndex()
	if err != nil {
		return nil, err
	}
	last, err := n.store.LastIndex()
	if err != nil {
		return nil, err
	}
	if last > 0 {
		if err := n.store.DeleteRange(first, last); err != nil {
			return nil, err
		}
	}
	return walstream.OpenLog(n.store, opts)
}

// checkStorage compares the Storage with state file and log. A Storage that the
// log can no longer bring up to date is rebuilt; one that is ahead of the log, or
// of another history, is refused.
func (n *Node) checkStorage(stored Stored, whole bool) (Stored, error) {
	if stored.History == "" {
		if !whole {
			return stored, fmt.Errorf("%w, and this node has no history to restore it from", replication.ErrRestoreIncomplete)
		}
		return stored, nil
	}
	if stored.Rebuilding || !whole {
		stored.Rebuilding = true
		return stored, nil
	}
	if !n.applier.Atomic() {
		n.applier.Adopt(replication.Identity{History: stored.History, Base: stored.Base.Position})
		n.rt.Logger.Warn("the storage has no transactions: no atomic batches, a crash can repeat one write, request outcomes are forgotten at restart")
	}
	position, id := n.applier.Position(), n.applier.Identity()
	switch {
	case id.History != stored.History:
		return stored, fmt.Errorf("%w: the storage stands at %d of history %q, this node's log is of %q",
			replication.ErrForeignHistory, position, id.History, stored.History)
	case position > n.log.Last().Position:
		return stored, fmt.Errorf("%w: the storage stands at %d, the log ends at %d: the log has lost entries, and with them this node's word; "+
			"remove the data directory to have the node rebuilt", replication.ErrForeignHistory, position, n.log.Last().Position)
	case position+1 < n.log.First():
		stored.Rebuilding = true
	}
	return stored, nil
}

// policyConsistency is the partition policy under which a primary needs a lease.
const policyConsistency = "consistency"

func (n *Node) newMachine(stored Stored) machine {
	now := n.now().boot
	m := machine{stored: stored, role: RoleStarting, started: now, heard: now}
	ha := &n.cfg.HA
	m.rules = rules{self: n.nodeID, wantsPrimary: ha.Role == "primary", mode: ha.SyncMode, consistency: ha.PartitionPolicy == policyConsistency,
		auto: ha.AutoFailover, failover: ha.FailoverTimeout, answer: n.callTimeout(), maxLag: uint64(2 * ha.WALBatchSize),
		settings: fmt.Sprintf("%s %s failover=%s", ha.SyncMode, ha.PartitionPolicy, ha.FailoverTimeout)}
	m.hasData, m.dataHistory = n.applier.Position() > 0, n.applier.Identity().History
	return m
}

// openTransport opens the cluster port and serves it.
func (n *Node) openTransport(ctx context.Context) error {
	n.transport = n.rt.Transport
	if n.transport == nil {
		cfg := *n.cfg
		cfg.NodeID = n.nodeID
		opts, err := transport.OptionsFromConfig(&cfg, n.rt.Logger)
		if err != nil {
			return err
		}
		if n.own, err = transport.New(opts); err != nil {
			return err
		}
		n.transport = n.own
	}
	mux, ok := n.transport.(interface {
		replication.Mux
		SetEpoch(func() replication.Epoch)
	})
	if !ok {
		return fmt.Errorf("%w: hot standby needs a transport that serves requests of any code", replication.ErrUnsupported)
	}
	mux.SetEpoch(func() replication.Epoch { return *n.epoch.Load() })
	for code, h := range n.handlers() {
		mux.Handle(code, h)
	}
	mux.HandleStream(replication.StreamSnapshot, n.acceptSnapshot)
	if n.own == nil {
		return nil
	}
	if _, err := n.own.Bind(ctx, n.cfg.BindAddr); err != nil {
		return err
	}
	n.spawn(func() {
		if err := n.own.Listen(n.ctx, n.cfg.BindAddr, nil); err != nil {
			n.rt.Logger.Error("the cluster port is no longer served", "error", err)
		}
	})
	return nil
}

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
	n.wg.Go(f)
	return true
}

// now reads both clocks.
func (n *Node) now() instant {
	return instant{boot: n.opts.bootClock(), wall: time.Duration(n.rt.Now().UnixNano())}
}

func (n *Node) publish(e replication.Event) {
	e.Time = n.rt.Now()
	n.events.Publish(e)
}

// Shutdown implements replication.Replicator. It does not hand the primary's part
// on: the standby takes it over when its timeout is over, or by Promote before.
func (n *Node) Shutdown() error {
	n.mu.Lock()
	if n.state == stateClosed {
		n.mu.Unlock()
		<-n.done
		return n.err
	}
	n.state = stateClosed
	close(n.changed)
	n.changed = make(chan struct{})
	n.mu.Unlock()
	n.cancel()
	var errs []error
	if mux, ok := n.transport.(replication.Mux); ok {
		for code := range n.handlers() {
			mux.Handle(code, nil)
		}
		mux.HandleStream(replication.StreamSnapshot, nil)
	}
	n.mu.Lock()
	conns := n.conns
	n.conns = [2]replication.PeerConnection{}
	n.mu.Unlock()
	for _, c := range conns {
		if c != nil {
			_ = c.Close()
		}
	}
	ended := n.ended()
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case err := <-ended:
		errs = append(append(errs, err), n.closeLocal()...)
	case <-timer.C:
		errs = append(errs, fmt.Errorf("%w: the node did not stop within %s: the log store or the storage hangs", replication.ErrTimeout, stopTimeout))
		if n.applier != nil {
			n.applier.Close()
		}
		go func() { // what hangs uses the rest until then
			err := <-ended
			if err = errors.Join(append(n.closeLocal(), err)...); err != nil {
				n.rt.Logger.Error("closing what was left open", "error", err)
			}
		}()
	}
	n.publish(replication.Event{Type: replication.EventStopped})
	n.events.Close()
	n.err = errors.Join(errs...)
	close(n.done)
	return n.err
}

// stopTimeout bounds how long Shutdown waits for the log store and the storage.
const stopTimeout = 10 * time.Second

// ended closes the node's own transport, which waits for what it was asked, and
// tells when every goroutine of the node has ended.
func (n *Node) ended() <-chan error {
	ended := make(chan error, 1)
	go func() {
		var err error
		if n.own != nil {
			err = n.own.Close()
		}
		n.wg.Wait()
		ended <- err
	}()
	return ended
}

// closeLocal closes what openLocal has opened.
func (n *Node) closeLocal() (errs []error) {
	if n.log != nil {
		if err := n.log.Close(); err != nil && !errors.Is(err, walstream.ErrFailed) {
			errs = append(errs, err)
		}
	}
	if n.applier != nil {
		errs = append(errs, n.stopDeferring())
		n.applier.Close()
	}
	errs = append(errs, closeIfCloser(n.store))
	if n.dir != nil {
		errs = append(errs, n.dir.Close())
	}
	return errs
}

// flush makes what was applied durable, where the storage defers that: before the
// log from which it could be applied again goes.
func (n *Node) flush() error {
	if n.deferring == nil {
		return nil
	}
	if err := n.deferring.Flush(); err != nil {
		return fmt.Errorf("flushing the storage: %w", err)
	}
	return nil
}

// stopDeferring gives the storage back as it was: every write durable. One that has
// failed is left as it is; the log has what it may lose.
func (n *Node) stopDeferring() error {
	if n.deferring == nil || n.applier.Failure() != nil {
		return nil
	}
	return n.deferring.Defer(false)
}

// tailDir is where diverged tails are kept.
func (n *Node) tailDir() string { return filepath.Join(n.cfg.DataDir, "diverged") }

// loadTails looks for what earlier incarnations put aside: health names it until
// somebody has taken it away.
func (n *Node) loadTails() error {
	tails, tailed, err := savedTails(n.tailDir())
	if err != nil {
		return fmt.Errorf("diverged entries: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tails, n.tailed = tails, tailed
	return nil
}
