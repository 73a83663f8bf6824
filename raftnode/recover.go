package raftnode

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm"
	"github.com/nornicdb/replication/internal/datadir"
	"go.etcd.io/bbolt"
)

// RecoverRequest is an operator's word that a cluster has lost its quorum for
// good (see Recover).
type RecoverRequest struct {
	// DataDir of the node that survived. Nobody else may have it open.
	DataDir string
	// NodeID, if not empty, must be the directory's.
	NodeID string
	// Address of this node from now on, host:port; empty: as before.
	Address string
	// Lost names every other member. None of them comes back with what it has:
	// each is started with an empty directory, or never.
	Lost   []string
	Logger replication.Logger
}

// Recovery is what Recover found and made.
type Recovery struct {
	NodeID     string
	Address    string
	Lost       []string
	LastIndex  uint64 // the log ends here
	LastTerm   uint64
	Position   uint64 // of the storage, after it was brought to the end of the log
	OldHistory string
	History    string
}

// Recover makes a cluster of one out of a node whose cluster has lost its quorum
// for good (raftnode/DESIGN.md, "Recovery"). The node is not running. Its log
// counts as committed as far as it goes: writes that were acknowledged and did
// not reach this node are lost, and writes that were not acknowledged may appear.
// The log gets a new history, so that a member of the old cluster that comes back
// after all can neither vote nor send entries here.
//
// A wrong request is refused before anything is touched, with ErrInvalidConfig,
// ErrLocked or ErrForeignHistory; open, which opens the node's storage, is called
// after that. The caller closes the storage. A recovery that a crash cut short
// keeps the node from starting and is finished by the same request.
func Recover(req RecoverRequest, open func() (replication.Storage, error), opts ...Option) (*Recovery, error) {
	dir, err := datadir.OpenExisting(req.DataDir)
	if err != nil {
		return nil, err
	}
	r := &recovery{req: req, opts: newOptions(opts), dir: dir}
	err = r.check()
	if err == nil {
		err = r.perform(open)
	}
	if err := errors.Join(err, dir.Close()); err != nil {
		return nil, err
	}
	return &r.result, nil
}

// recovery is one run of Recover.
type recovery struct {
	req    RecoverRequest
	opts   options
	dir    *datadir.Dir
	begun  *datadir.Recovery // by an earlier run
	found  raftState
	result Recovery
}

// raftState is what a node's log store and snapshots say.
type raftState struct {
	lastIndex, lastTerm uint64
	configuration       raft.Configuration
	header              *fsm.Header // of the newest snapshot; nil without one
	empty               bool        // the log store holds no entry
}

// check looks at everything but the storage and changes nothing.
func (r *recovery) check() error {
	id := r.dir.Identity()
	switch {
	case id.Mode != string(replication.ModeRaft):
		return fmt.Errorf("%w: %s belongs to a node of mode %q; those of mode raft can be recovered", replication.ErrInvalidConfig, r.req.DataDir, id.Mode)
	case r.req.NodeID != "" && r.req.NodeID != id.NodeID:
		return fmt.Errorf("%w: %s is the directory of node %s, not %s", replication.ErrInvalidConfig, r.req.DataDir, id.NodeID, r.req.NodeID)
	case r.opts.logStores[id.LogStore] == nil:
		return fmt.Errorf("%w: its log store %q was not offered here", replication.ErrInvalidConfig, id.LogStore)
	}
	r.begun = id.Recovery
	r.result = Recovery{NodeID: id.NodeID, Lost: slices.Sorted(slices.Values(r.req.Lost))}
	open := r.opts.logStores[id.LogStore]
	if read := r.opts.readOnly[id.LogStore]; read != nil {
		open = read
	}
	logs, err := open(r.req.DataDir)
	if err != nil {
		return fmt.Errorf("%w: log store: %w", replication.ErrInvalidConfig, err)
	}
	snaps, err := r.snapshots()
	if err == nil {
		err = r.found.read(logs, snaps)
	}
	if err := errors.Join(err, closeIfCloser(logs)); err != nil {
		return err
	}
	r.result.LastIndex, r.result.LastTerm = r.found.lastIndex, r.found.lastTerm
	return r.checkRequest()
}

func (r *recovery) snapshots() (raft.SnapshotStore, error) {
	if r.opts.snapshots != nil {
		return r.opts.snapshots(r.req.DataDir, 1)
	}
	if _, err := os.Stat(filepath.Join(r.req.DataDir, "snapshots")); err != nil {
		return nil, fmt.Errorf("%w: %w", replication.ErrInvalidConfig, err)
	}
	// One is kept: those of the old history go when the new one's is complete.
	return raft.NewFileSnapshotStoreWithLogger(r.req.DataDir, 1, hclogAdapter(r.req.Logger))
}

// read fills the state from a node's stores.
func (s *raftState) read(logs LogStore, snaps raft.SnapshotStore) error {
	list, err := snaps.List()
	if err != nil {
		return err
	}
	if len(list) > 0 {
		s.lastIndex, s.lastTerm, s.configuration = list[0].Index, list[0].Term, list[0].Configuration
		if s.header, err = newestHeader(snaps, list); err != nil {
			return err
		}
	}
	last, err := logs.LastIndex()
	if err != nil {
		return fmt.Errorf("reading the log store: %w", err)
	}
	s.empty = last == 0
	for index := s.lastIndex + 1; index <= last; index++ {
		var entry raft.Log
		if err := logs.GetLog(index, &entry); err != nil {
			return fmt.Errorf("the log lacks entry %d of %d: %w", index, last, err)
		}
		if entry.Type == raft.LogConfiguration {
			if s.configuration, err = decodeConfiguration(entry.Data); err != nil {
				return fmt.Errorf("entry %d: %w", index, err)
			}
		}
		s.lastIndex, s.lastTerm = entry.Index, entry.Term
	}
	if s.lastIndex == 0 {
		return fmt.Errorf("%w: the node was never part of a cluster", replication.ErrInvalidConfig)
	}
	return nil
}

// decodeConfiguration turns the panic of a damaged entry into an error.
func decodeConfiguration(data []byte) (c raft.Configuration, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("damaged configuration: %v", p)
		}
	}()
	return raft.DecodeConfiguration(data), nil
}

func newestHeader(snaps raft.SnapshotStore, list []*raft.SnapshotMeta) (*fsm.Header, error) {
	_, source, err := snaps.Open(list[0].ID)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", list[0].ID, err)
	}
	header, _, err := fsm.ReadHeader(source)
	return header, errors.Join(err, source.Close())
}

// checkRequest compares what is asked for with the node's configuration, or with
// the recovery that was begun.
func (r *recovery) checkRequest() error {
	address := r.req.Address
	if r.begun != nil {
		if !slices.Equal(r.begun.Lost, r.result.Lost) || address != "" && address != r.begun.Address {
			return fmt.Errorf("%w: a recovery was begun that gives up %v and puts the node at %s; finish it with the same request",
				replication.ErrInvalidConfig, r.begun.Lost, r.begun.Address)
		}
		r.result.Address = r.begun.Address
		return nil
	}
	var others []string
	voters, member := 0, false
	for _, s := range r.found.configuration.Servers {
		voters += boolToInt(s.Suffrage == raft.Voter)
		if string(s.ID) != r.result.NodeID {
			others = append(others, string(s.ID))
			continue
		}
		member = true
		if address == "" {
			address = string(s.Address)
		}
		if s.Suffrage == raft.Voter {
			voters-- // it is not lost
		}
	}
	slices.Sort(others)
	switch {
	case !member:
		return fmt.Errorf("%w: %s is no member of its cluster, which is %v", replication.ErrInvalidConfig, r.result.NodeID, others)
	case voters == 0:
		return fmt.Errorf("%w: %s is the only voter: nothing is lost; start it, and remove the others", replication.ErrInvalidConfig, r.result.NodeID)
	case !slices.Equal(others, r.result.Lost):
		return fmt.Errorf("%w: the other members are %v, but %v are named as lost; name every other member, and none of them if the cluster has a quorum: then start it",
			replication.ErrInvalidConfig, others, r.result.Lost)
	}
	if _, port, err := net.SplitHostPort(address); err != nil || port == "" || port == "0" {
		return fmt.Errorf("%w: address %q is not host:port", replication.ErrInvalidConfig, address)
	}
	r.result.Address = address
	return nil
}

// perform opens the storage and rewrites log and history.
func (r *recovery) perform(open func() (replication.Storage, error)) error {
	storage, err := open()
	if err != nil {
		return fmt.Errorf("storage: %w", err)
	}
	applier, err := replication.NewStorageApplier(storage)
	if err != nil && !errors.Is(err, replication.ErrRestoreIncomplete) {
		return err
	}
	defer applier.Close()
	id := r.dir.Identity()
	if !applier.Atomic() && id.History != "" {
		applier.Adopt(replication.Identity{History: id.History, Base: id.Base})
	}
	if err := r.checkStorage(storage, applier); err != nil {
		return err
	}
	if r.begun == nil {
		id.Recovery = &datadir.Recovery{History: replication.SucceedingHistory(r.result.OldHistory), Address: r.result.Address, Lost: r.result.Lost}
		if err := r.dir.Save(id); err != nil {
			return err
		}
	}
	next := replication.Identity{History: id.Recovery.History, Base: r.found.lastIndex}
	if err := r.rewrite(storage, applier, next); err != nil {
		return fmt.Errorf("recovery was begun and not finished, run it again: %w", err)
	}
	r.result.History, r.result.Position = next.History, applier.Position()
	id.Recovery = nil
	if !applier.Atomic() {
		id.History, id.Base = next.History, next.Base
	}
	return r.dir.Save(id)
}

// checkStorage refuses a storage that does not go with the log.
func (r *recovery) checkStorage(storage replication.Storage, applier *replication.StorageApplier) error {
	if _, ok := storage.(replication.StorageSnapshotter); !ok {
		return fmt.Errorf("%w: recovery needs a storage with snapshots", replication.ErrUnsupported)
	}
	position, stateErr := storage.GetWALPosition()
	own, header := applier.Identity().History, r.found.header
	r.result.OldHistory = own
	if header != nil {
		r.result.OldHistory = header.Identity.History
	}
	switch {
	case stateErr != nil && header == nil:
		return fmt.Errorf("there is no snapshot to finish the restore with: %w", stateErr)
	case stateErr != nil || r.begun != nil && own == r.begun.History:
		return nil
	case position > r.found.lastIndex:
		return fmt.Errorf("%w: the storage stands at %d, the log ends at %d: it has lost entries", replication.ErrForeignHistory, position, r.found.lastIndex)
	case header != nil && position > 0 && own != header.Identity.History:
		return fmt.Errorf("%w: the storage stands at %d of history %q, the log is of %q", replication.ErrForeignHistory, position, own, header.Identity.History)
	}
	return nil
}

// rewrite brings the storage to the end of the log and puts a snapshot of it, in
// the new history and with the new configuration, in the log's place.
func (r *recovery) rewrite(storage replication.Storage, applier *replication.StorageApplier, next replication.Identity) error {
	if r.begun != nil && r.found.empty && r.found.header != nil && r.found.header.Identity.History == next.History {
		return nil // all but the last step was done
	}
	logs, err := r.opts.logStores[r.dir.Identity().LogStore](r.req.DataDir)
	if err != nil {
		return err
	}
	snaps, err := r.snapshots()
	if err == nil {
		cfg := raft.DefaultConfig()
		cfg.LocalID, cfg.Logger = raft.ServerID(r.result.NodeID), hclogAdapter(r.req.Logger)
		_, trans := raft.NewInmemTransport(raft.ServerAddress(r.result.Address))
		machine := &recoveringFSM{FSM: fsm.New(storage, applier, fsm.Options{}), applier: applier, next: next}
		defer machine.release()
		err = raft.RecoverCluster(cfg, machine, logs, logs, snaps, trans, raft.Configuration{Servers: []raft.Server{
			{Suffrage: raft.Voter, ID: raft.ServerID(r.result.NodeID), Address: raft.ServerAddress(r.result.Address)}}})
	}
	return errors.Join(err, closeIfCloser(logs))
}

// recoveringFSM changes the history between the replay of the log and the
// snapshot that takes its place.
type recoveringFSM struct {
	*fsm.FSM
	applier *replication.StorageApplier
	next    replication.Identity
	taken   raft.FSMSnapshot
}

// Restore implements raft.FSM. A storage that is in the new history has all that
// the old one's snapshots hold.
func (f *recoveringFSM) Restore(source io.ReadCloser) error {
	if f.applier.Identity().History == f.next.History {
		return source.Close()
	}
	return f.FSM.Restore(source)
}

// Snapshot implements raft.FSM.
func (f *recoveringFSM) Snapshot() (raft.FSMSnapshot, error) {
	if err := f.applier.Failure(); err != nil { // raft.RecoverCluster does not look at what Apply answers
		return nil, err
	}
	if err := f.applier.Found(f.next); err != nil {
		return nil, err
	}
	snap, err := f.FSM.Snapshot()
	if err == nil {
		f.taken = snap
	}
	return snap, err
}

// release frees the snapshot, which raft.RecoverCluster does not.
func (f *recoveringFSM) release() {
	if f.taken != nil {
		f.taken.Release()
	}
}

// openBoltReadOnly opens the built-in log store without a change to its file.
func openBoltReadOnly(dir string) (LogStore, error) {
	options := *bbolt.DefaultOptions
	options.ReadOnly = true
	store, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(dir, boltFile), BoltOptions: &options, MsgpackUseNewTimeFormat: true})
	if err != nil {
		return nil, err
	}
	return store, nil
}
