package raftnode

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm"
	"github.com/nornicdb/replication/internal/datadir"
)

// peerView is what a listed peer said before this node, whose directory is
// empty, takes part in a cluster.
type peerView struct {
	addr    string
	id      string
	err     error // it could not be asked
	founded bool  // it has a cluster's log
	virgin  bool  // … in which nothing has happened since it was founded
	namesMe bool  // … whose configuration names this node
	first   bool  // it has no cluster, was told to found one, and goes before this node
	history string
}

// entry is how a node with an empty directory begins.
type entry int

const (
	entryWait   entry = iota // ask again
	entryFound               // found the cluster
	entryBegin               // start Raft empty: the founder has counted on this node from the start
	entryJoin                // be removed, if named, and added as a non-voter
	entryRefuse              // a cluster exists, but this node was told to found one
)

// decideEntry is the rule by which a voter with a wiped disk cannot vote
// committed writes away (architecture, "Raft facts"): a node whose directory is
// empty may vote only if it is sure that it never voted before. That is so if
// every other listed node says that nothing has happened in the cluster yet;
// where something has, the node joins as a non-voter; where that cannot be
// known, it waits.
func decideEntry(bootstrap, force bool, views []peerView) (entry, string) {
	var silent []string
	virgins, first := 0, ""
	for _, v := range views {
		switch {
		case v.err != nil:
			silent = append(silent, fmt.Sprintf("%s (%v)", v.addr, v.err))
		case v.founded && v.virgin && v.namesMe:
			virgins++
		case v.founded && bootstrap && !v.namesMe:
			return entryRefuse, fmt.Sprintf("%s at %s has a cluster", v.id, v.addr)
		case v.founded:
			return entryJoin, ""
		case v.first:
			first = v.id
		}
	}
	switch {
	case len(silent) > 0 && !(bootstrap && force && virgins == 0):
		return entryWait, "listed peers cannot be asked yet: " + strings.Join(silent, ", ")
	case virgins > 0:
		return entryBegin, ""
	case bootstrap && first != "":
		return entryWait, "node " + first + " was told to found the cluster too, and goes first"
	case bootstrap:
		return entryFound, ""
	default:
		return entryWait, "no listed peer has founded a cluster yet"
	}
}

// entryPause is the pause between two rounds of questions.
const entryPause = 200 * time.Millisecond

// enter brings a node with an empty directory to where Raft can start.
func (n *Node) enter(ctx context.Context, cfg *raft.Config) error {
	if err := n.checkEmpty(); err != nil {
		return err
	}
	n.joining.Store(&undecided)
	said := ""
	founds := n.cfg.Raft.Bootstrap && !n.recallJoining()
	for {
		views := withoutSuperseded(n.askPeers(ctx))
		action, reason := decideEntry(founds, n.opts.force, views)
		if action == entryJoin && n.opts.mutant.wipedVotes {
			action = entryBegin
		}
		switch action {
		case entryRefuse:
			return fmt.Errorf("%w: NORNICDB_CLUSTER_RAFT_BOOTSTRAP=true, but %s", replication.ErrClusterExists, reason)
		case entryFound:
			n.beginLog()
			return n.found(cfg, views)
		case entryBegin:
			n.joining.Store(&views[slices.IndexFunc(views, func(v peerView) bool { return v.founded })].history)
			n.beginLog()
			return nil
		case entryJoin:
			founds = false // from here on, and after a restart
			err := n.noteJoining()
			if err == nil {
				err = n.join(ctx, views)
			}
			if err == nil {
				n.beginLog()
				return nil
			}
			reason = "joining: " + err.Error()
		}
		if reason != said {
			n.rt.Logger.Info("waiting to take part in the cluster", "reason", reason)
			said = reason
			n.mu.Lock()
			n.waiting = reason
			n.mu.Unlock()
		}
		timer := time.NewTimer(entryPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w: %s: %w", replication.ErrNotReady, reason, context.Cause(ctx))
		}
	}
}

// joiningKey is where the log store keeps that this node has asked to be taken
// in: a founder that lost its disk, and was removed to be taken in again when it
// was stopped, does not found a second time. The note stays: it is asked for only
// while there is no log.
var joiningKey = []byte("replication/joined")

func (n *Node) noteJoining() error { return n.logs.SetUint64(joiningKey, 1) }

// recallJoining reads the note of noteJoining. A store without it says "not
// found" in words of its own, or zero.
func (n *Node) recallJoining() bool {
	noted, err := n.logs.GetUint64(joiningKey)
	return err == nil && noted == 1
}

// checkEmpty refuses an empty log beside a Storage whose position means nothing
// to it: an entry at or below that position would never be applied.
func (n *Node) checkEmpty() error {
	if len(n.cfg.Raft.Peers) == 0 && !n.cfg.Raft.Bootstrap {
		return fmt.Errorf("%w: an empty node needs NORNICDB_CLUSTER_RAFT_PEERS to join a cluster, or NORNICDB_CLUSTER_RAFT_BOOTSTRAP=true to found one",
			replication.ErrInvalidConfig)
	}
	if len(n.cfg.Raft.Peers) > 0 && n.transport == nil && !n.cfg.Raft.Bootstrap {
		return fmt.Errorf("%w: no cluster transport to ask the listed peers with", replication.ErrInvalidConfig)
	}
	// A history is compared with the cluster's when its snapshot comes; a storage
	// without snapshots would never see one.
	_, snapshots := n.storage.(replication.StorageSnapshotter)
	position, history := n.applier.Position(), n.applier.Identity().History
	if position > 0 && (history == "" || !snapshots) && !n.cfg.Raft.Bootstrap {
		return fmt.Errorf("%w: the storage stands at position %d of history %q, which this node's empty log cannot vouch for; "+
			"found a cluster over it, or empty it to join one", replication.ErrForeignHistory, position, history)
	}
	return nil
}

// askPeers asks every listed peer at once.
func (n *Node) askPeers(ctx context.Context) []peerView {
	ctx, cancel := context.WithTimeout(ctx, max(2*n.cfg.Raft.ElectionTimeout, time.Second))
	defer cancel()
	views := make([]peerView, len(n.cfg.Raft.Peers))
	done := make(chan struct{}, len(views))
	asked := 0
	for i, p := range n.cfg.Raft.Peers {
		views[i] = peerView{addr: p.Addr, id: p.ID, err: replication.ErrClosed}
		if n.spawn(func() { views[i] = n.askPeer(ctx, p); done <- struct{}{} }) {
			asked++
		}
	}
	for range asked {
		<-done
	}
	refuseTwins(views)
	return views
}

// refuseTwins makes errors of peers that have one ID between them: hashicorp/raft
// would give such a node two votes.
func refuseTwins(views []peerView) {
	at := make(map[string]string, len(views))
	for i, v := range views {
		if v.err != nil {
			continue
		}
		if other, taken := at[v.id]; taken {
			views[i].err = fmt.Errorf("%w: it has the ID %s, like %s", replication.ErrWrongPeer, v.id, other)
		}
		at[v.id] = v.addr
	}
}

func (n *Node) askPeer(ctx context.Context, p replication.RaftPeer) peerView {
	v := peerView{addr: p.Addr, id: p.ID}
	var h replication.HealthStatus
	if v.err = n.callPeer(ctx, p.Addr, replication.MsgStatus, &replication.StatusRequest{}, &h); v.err != nil {
		return v
	}
	if p.ID != "" && p.ID != h.NodeID {
		v.err = fmt.Errorf("%w: it is node %s", replication.ErrWrongPeer, h.NodeID)
		return v
	}
	if h.NodeID == n.nodeID {
		v.err = fmt.Errorf("%w: it has this node's ID", replication.ErrWrongPeer)
		return v
	}
	v.id, v.founded, v.virgin, v.history = h.NodeID, h.Founded, h.Virgin, h.History
	v.first = h.Founder && h.NodeID < n.nodeID
	for _, m := range h.Peers {
		v.namesMe = v.namesMe || m.ID == n.nodeID
	}
	return v
}

// keyCurrentTerm is where hashicorp/raft keeps its term.
var keyCurrentTerm = []byte("CurrentTerm")

// found makes the first configuration: this node and the listed peers, all
// voters. A storage that has snapshots is founded by one, from which the other
// nodes begin, so that they get what it holds; otherwise it must be empty.
//
// A crash before the snapshot is complete leaves an empty log: the next start
// founds again, under a new history. A crash after it leaves a founded node.
func (n *Node) found(cfg *raft.Config, views []peerView) error {
	servers := []raft.Server{{Suffrage: raft.Voter, ID: n.id(), Address: raft.ServerAddress(n.cfg.Advertise())}}
	for _, v := range views {
		if v.id == "" {
			return fmt.Errorf("%w: the ID of peer %s is not known", replication.ErrNotReady, v.addr)
		}
		if slices.ContainsFunc(servers, func(s raft.Server) bool { return s.ID == raft.ServerID(v.id) }) { // a forced founding asks nobody
			return fmt.Errorf("%w: two nodes have the ID %s", replication.ErrInvalidConfig, v.id)
		}
		servers = append(servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(v.id), Address: raft.ServerAddress(v.addr)})
	}
	configuration := raft.Configuration{Servers: servers}
	if _, ok := n.storage.(replication.StorageSnapshotter); !ok {
		if p := n.applier.Position(); p > 0 {
			return fmt.Errorf("%w: the storage stands at %d and has no snapshots, so other nodes could not get what it holds", replication.ErrUnsupported, p)
		}
		n.joining.Store(nil) // the first leader founds the history
		return raft.BootstrapCluster(cfg, n.logs, n.logs, n.snaps, n.rtrans, configuration)
	}
	identity := replication.Identity{History: replication.NewHistory(), Base: max(n.applier.Position(), 1)}
	if err := n.applier.Found(identity); err != nil {
		return err
	}
	if err := n.saveIdentity(identity); err != nil {
		return err
	}
	if err := n.writeFoundingSnapshot(identity, configuration); err != nil {
		return fmt.Errorf("founding: %w", err)
	}
	cfg.NoSnapshotRestoreOnStart = true // the storage is what the snapshot was taken of
	// The founding is of term 1, so that the first leader's is a later one.
	if err := n.logs.SetUint64(keyCurrentTerm, 1); err != nil {
		return fmt.Errorf("founding: %w", err)
	}
	n.rt.Logger.Info("cluster founded", "history", identity.History, "base", identity.Base, "voters", len(servers))
	return nil
}

func (n *Node) writeFoundingSnapshot(identity replication.Identity, configuration raft.Configuration) error {
	snap, err := fsm.TakeSnapshot(n.storage, n.applier)
	if err != nil {
		return err
	}
	defer snap.Release()
	sink, err := n.snaps.Create(raft.SnapshotVersionMax, identity.Base, 1, configuration, identity.Base, n.rtrans)
	if err != nil {
		return err
	}
	return snap.Persist(sink)
}

// saveIdentity keeps the history beside the log, for a storage that cannot.
func (n *Node) saveIdentity(identity replication.Identity) error {
	if n.applier.Atomic() {
		return nil
	}
	d := n.dir.Identity()
	return n.dir.Save(datadir.Identity{Version: d.Version, Mode: d.Mode, NodeID: d.NodeID, LogStore: d.LogStore,
		History: identity.History, Base: identity.Base})
}

// join asks the cluster to take this node in; see handleJoin.
func (n *Node) join(ctx context.Context, views []peerView) error {
	ctx, cancel := context.WithTimeout(ctx, max(10*n.cfg.Raft.ElectionTimeout, 5*time.Second))
	defer cancel()
	req := &replication.JoinRequest{NodeID: n.nodeID, Address: n.cfg.Advertise(), Voter: true}
	var errs []error
	for _, v := range views {
		if v.err != nil || !v.founded {
			continue
		}
		var resp replication.JoinResponse
		err := n.callPeer(ctx, v.addr, replication.MsgJoin, req, &resp)
		var elsewhere *replication.NotLeaderError
		if errors.As(err, &elsewhere) && elsewhere.LeaderAddr != "" && elsewhere.LeaderAddr != n.cfg.Advertise() {
			err = n.callPeer(ctx, elsewhere.LeaderAddr, replication.MsgJoin, req, &resp)
		}
		if err == nil && resp.Accepted {
			n.joining.Store(&resp.History)
			n.rt.Logger.Info("accepted into the cluster as a non-voter", "leader", resp.LeaderID)
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", v.addr, err))
	}
	return errors.Join(errs...)
}
