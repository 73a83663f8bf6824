package raftnode

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm"
	"github.com/nornicdb/replication/internal/datadir"
	"github.com/nornicdb/replication/transport"
)

// Start implements replication.Replicator. It returns when the node takes part
// in its cluster: a node with an empty directory founds or joins one first, and
// waits for its peers as long as ctx allows.
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
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)() // Shutdown ends a start
	err := n.start(ctx)
	close(n.started)
	if err != nil {
		return errors.Join(err, n.Shutdown())
	}
	return nil
}

func (n *Node) start(ctx context.Context) error {
	if err := n.openLocal(); err != nil {
		return err
	}
	existing, err := raft.HasExistingState(n.logs, n.logs, n.snaps)
	if err != nil {
		return fmt.Errorf("reading the log store: %w", err)
	}
	if existing {
		n.beginLog()
	}
	if err := n.openTransport(ctx); err != nil {
		return err
	}
	n.notify = make(chan bool, 16)
	cfg := raftConfig(n.cfg, n.id(), n.rt.Logger, n.notify)
	if _, ok := n.storage.(replication.StorageSnapshotter); !ok {
		cfg.SnapshotThreshold = 1 << 62
		n.rt.Logger.Warn("the storage has no snapshots: the log is never compacted, and a node that lags too far cannot be rebuilt")
	}
	if !n.applier.Atomic() {
		n.rt.Logger.Warn("the storage has no transactions: no atomic batches, a crash can repeat one write, request outcomes are forgotten at restart")
	}
	if existing {
		if err := n.checkExisting(cfg); err != nil {
			return err
		}
		if err := n.checkSuperseded(ctx); err != nil {
			return err
		}
	} else if err := n.enter(ctx, cfg); err != nil {
		return err
	}
	return n.run(cfg)
}

// beginLog ends the time in which this node may tell others that it has no
// cluster.
func (n *Node) beginLog() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hasLog = true
}

// openLocal opens and locks the data directory and everything in it.
func (n *Node) openLocal() (err error) {
	want := datadir.Identity{Mode: string(n.cfg.Mode), NodeID: n.cfg.NodeID, LogStore: n.cfg.LogStore}
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
	if r := dir.Identity().Recovery; r != nil {
		return fmt.Errorf("%w: a recovery of this node was begun and not finished: recover it again, giving up %v", replication.ErrNotReady, r.Lost)
	}
	n.mu.Lock()
	n.nodeID = dir.Identity().NodeID
	n.mu.Unlock()
	store, err := n.opts.logStores[n.cfg.LogStore](n.cfg.DataDir)
	if err != nil {
		return fmt.Errorf("log store %s in %s: %w", n.cfg.LogStore, n.cfg.DataDir, err)
	}
	n.logs = newWatchedStore(store, time.Now)
	if n.opts.snapshots != nil {
		n.snaps, err = n.opts.snapshots(n.cfg.DataDir, n.cfg.Raft.SnapshotRetain)
	} else {
		n.snaps, err = raft.NewFileSnapshotStoreWithLogger(n.cfg.DataDir, n.cfg.Raft.SnapshotRetain, hclogAdapter(n.rt.Logger))
	}
	if err != nil {
		return fmt.Errorf("snapshot store: %w", err)
	}
	n.applier, err = replication.NewStorageApplier(n.storage)
	if err != nil && !errors.Is(err, replication.ErrRestoreIncomplete) {
		return err
	}
	if id := dir.Identity(); !n.applier.Atomic() && id.History != "" {
		n.applier.Adopt(replication.Identity{History: id.History, Base: id.Base})
	}
	return nil
}

// openTransport opens the cluster port and serves it, so that other nodes can
// ask this one how it stands before it takes part.
func (n *Node) openTransport(ctx context.Context) error {
	n.transport = n.rt.Transport
	inner := n.opts.raftTransport
	if n.transport == nil && inner == nil {
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
		if _, err := n.own.Bind(ctx, n.cfg.BindAddr); err != nil {
			return err
		}
		n.spawn(func() {
			if err := n.own.Listen(n.ctx, n.cfg.BindAddr, nil); err != nil {
				n.rt.Logger.Error("the cluster port is no longer served", "error", err)
			}
		})
	}
	if inner == nil {
		t, ok := n.transport.(*transport.Transport)
		if !ok {
			return fmt.Errorf("%w: Raft streams need a *transport.Transport or WithRaftTransport", replication.ErrUnsupported)
		}
		t.SetPeerCheck(n.checkPeer)
		t.SetRaftState(n.raftPosition)
		t.SetHistory(n.history)
		n.layer = transport.NewStreamLayer(t, netAddr(n.cfg.Advertise()))
		inner = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: n.layer, MaxPool: 3,
			Timeout: max(n.cfg.Raft.ElectionTimeout, time.Second), Logger: hclogAdapter(n.rt.Logger)})
	}
	var err error
	n.rtrans, err = newObservedTransport(inner, n.logs.FirstIndex, func() bool { return n.logs.refusing(10 * n.cfg.Raft.ElectionTimeout) })
	n.handle()
	return err
}

func (n *Node) handlers() map[replication.MessageType]replication.Handler {
	return map[replication.MessageType]replication.Handler{
		replication.MsgStatus:    n.handleStatus,
		replication.MsgApply:     n.handleApply,
		replication.MsgReadIndex: n.handleReadIndex,
		replication.MsgJoin:      n.handleJoin,
		replication.MsgLeave:     n.handleLeave,
		replication.MsgTransfer:  n.handleTransfer,
	}
}

func (n *Node) handle() {
	if mux, ok := n.transport.(replication.Mux); ok {
		for code, h := range n.handlers() {
			mux.Handle(code, h)
		}
	}
}

func (n *Node) unhandle() {
	if mux, ok := n.transport.(replication.Mux); ok {
		for code := range n.handlers() {
			mux.Handle(code, nil)
		}
	}
	if t, ok := n.transport.(*transport.Transport); ok && n.layer != nil {
		t.SetHistory(nil)
	}
}

// checkPeer is the dialer's check of who answered: the member that the
// configuration has at the address, or the listed peer.
func (n *Node) checkPeer(addr, nodeID string) error {
	want := ""
	for _, p := range n.cfg.Raft.Peers {
		if p.Addr == addr {
			want = p.ID
		}
	}
	n.mu.Lock()
	up := n.state == stateRunning
	n.mu.Unlock()
	if up {
		for _, s := range n.servers() {
			if string(s.Address) == addr {
				want = string(s.ID)
			}
		}
	}
	if want != "" && want != nodeID {
		return fmt.Errorf("expected node %s", want)
	}
	return nil
}

func (n *Node) raftPosition() (term, last uint64) {
	if n.running() != nil {
		return 0, 0
	}
	return n.raft.CurrentTerm(), n.raft.LastIndex()
}

// checkExisting compares Storage, snapshot and log of a node that has been in a
// cluster, and decides whether the newest snapshot has to be restored first.
func (n *Node) checkExisting(cfg *raft.Config) error {
	position, storageErr := n.storage.GetWALPosition()
	own := n.applier.Identity()
	meta, header, err := n.newestSnapshot()
	if err != nil {
		return err
	}
	if err := n.checkTerm(meta, header); err != nil {
		return err
	}
	if header != nil {
		n.joining.Store(&header.Identity.History)
	}
	last, err := n.logs.LastIndex()
	if err != nil {
		return fmt.Errorf("reading the log store: %w", err)
	}
	whole := storageErr == nil
	if whole && header != nil && own.History == "" && position == header.Position && !n.applier.Atomic() {
		// A storage that keeps no history was restored, and a crash came before
		// it was noted whose snapshot that was.
		own = header.Identity
		n.applier.Adopt(own)
		if err := n.saveIdentity(own); err != nil {
			return err
		}
	}
	if whole && header == nil && position > 0 && own.History == "" && n.applier.Atomic() {
		return fmt.Errorf("%w: the storage stands at %d of no history: it was written to outside of this cluster; empty it to have it replayed",
			replication.ErrForeignHistory, position)
	}
	if whole && position > 0 && header != nil {
		if own.History != header.Identity.History {
			return fmt.Errorf("%w: the storage stands at %d of history %q, this node's log is of %q; empty the storage to have it rebuilt",
				replication.ErrForeignHistory, position, own.History, header.Identity.History)
		}
		last = max(last, header.Position)
	}
	if whole && position > last {
		return fmt.Errorf("%w: the storage stands at %d, the log ends at %d: the log has lost entries, and with them this node's word; "+
			"remove the data directory to have the node join anew", replication.ErrForeignHistory, position, last)
	}
	cfg.NoSnapshotRestoreOnStart = header == nil || whole && position >= header.Position
	if header != nil {
		n.replayFrom = header.Position
	}
	if cfg.NoSnapshotRestoreOnStart && header != nil {
		n.applier.ImportWishes(header.Wishes)
		return n.applier.ImportOutcomes(header.Outcomes)
	}
	return nil
}

// checkTerm refuses a log store that knows an earlier term than the newest
// snapshot: it is another than the one that stood beside it, and with that one
// went what this node voted for and had acknowledged. Only a founding can have
// been cut short between the two.
func (n *Node) checkTerm(meta *raft.SnapshotMeta, header *fsm.Header) error {
	if meta == nil {
		return nil
	}
	term, err := n.logs.GetUint64(keyCurrentTerm)
	if err != nil { // "not found", or HasExistingState would have failed
		term = 0
	}
	switch {
	case term >= meta.Term:
		return nil
	case n.cfg.Raft.Bootstrap && meta.Term == 1 && meta.Index == header.Identity.Base:
		return n.logs.SetUint64(keyCurrentTerm, 1)
	}
	return fmt.Errorf("%w: the newest snapshot is of term %d, the log store knows %d: the log was lost, and with it this node's word; "+
		"remove the data directory to have the node join anew", replication.ErrForeignHistory, meta.Term, term)
}

// newestSnapshot reads the header of the newest snapshot; nil without one.
func (n *Node) newestSnapshot() (*raft.SnapshotMeta, *fsm.Header, error) {
	list, err := n.snaps.List()
	if err != nil || len(list) == 0 {
		return nil, nil, err
	}
	meta := list[0]
	r, err := n.openSnapshot(meta.ID)
	if err != nil {
		return nil, nil, fmt.Errorf("snapshot %s: %w", list[0].ID, err)
	}
	header, _, err := fsm.ReadHeader(r)
	return meta, header, errors.Join(err, r.Close())
}

// openSnapshot opens a snapshot to read its header, which has a checksum of its
// own: hashicorp/raft's file store would read and check all of it first.
func (n *Node) openSnapshot(id string) (io.ReadCloser, error) {
	if n.opts.snapshots == nil {
		if f, err := os.Open(filepath.Join(n.cfg.DataDir, "snapshots", id, "state.bin")); err == nil {
			return f, nil
		}
	}
	_, r, err := n.snaps.Open(id)
	return r, err
}

// run starts hashicorp/raft and the node's own loop.
func (n *Node) run(cfg *raft.Config) error {
	if d, ok := n.storage.(replication.DeferringStorage); ok {
		n.deferring = d
		if err := d.Defer(true); err != nil { // the log is durable, and is applied again
			return fmt.Errorf("storage: %w", err)
		}
	}
	n.machine = &machine{FSM: fsm.New(n.storage, n.applier, n.fsmOptions())}
	r, err := raft.NewRaft(cfg, n.machine, n.logs, n.logs, n.snaps, n.rtrans)
	if err != nil {
		return fmt.Errorf("starting Raft: %w", err)
	}
	observations := make(chan raft.Observation, 256)
	n.observer = raft.NewObserver(observations, false, nil)
	r.RegisterObserver(n.observer)
	n.reads = &readRounds{n: n, do: func(ctx context.Context) (uint64, error) { return n.confirm(ctx, false) }}
	n.asked = &readRounds{n: n, do: func(ctx context.Context) (uint64, error) { return n.askIndex(ctx, replication.ConsistencyQuorum) }}
	n.mu.Lock()
	n.raft = r
	n.submit = newSubmitter(r, n.cfg.Raft.MaxInflightLogs, n.applier.Atomic())
	closed := n.state == stateClosed
	if !closed {
		n.state, n.waiting = stateRunning, ""
	}
	n.mu.Unlock()
	if closed {
		return replication.ErrClosed
	}
	n.spawn(func() { n.loop(observations) })
	n.publish(replication.Event{Type: replication.EventStarted, Position: n.applier.Position()})
	return nil
}
