package raftnode

import (
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/nornicdb/replication"
)

// LogStore holds a node's log, its term and its vote: durably, when a call that
// writes returns, as a storage that defers is caught up from it. If it is an
// io.Closer it is closed at Shutdown.
type LogStore interface {
	raft.LogStore
	raft.StableStore
}

// boltLogStore is the name of the built-in log store.
const (
	boltLogStore = "bolt"
	boltFile     = "raft.db"
)

type options struct {
	logStores     map[string]func(dir string) (LogStore, error)
	readOnly      map[string]func(dir string) (LogStore, error) // of those that can be opened so
	snapshots     func(dir string, retain int) (raft.SnapshotStore, error)
	raftTransport raft.Transport
	force         bool
	owner         Owner
	mutant        mutant
}

// mutant is a fault of this package's own that a test switches on, to see that
// the checks of the test harness find it. There is no way to do so elsewhere.
type mutant struct {
	readsWithoutOwnTerm bool // a new leader answers reads before an entry of its term is committed
	oldHeartbeats       bool // an answer to a heartbeat sent before a read's round counts for it
	wipedVotes          bool // a voter with an empty directory goes on as a voter
	hungLeads           bool // a node whose disk hangs keeps its Raft traffic
}

// Option is a hashicorp-typed choice of Raft mode.
type Option func(*options)

// WithLogStore offers a log store under a name that
// NORNICDB_CLUSTER_LOG_STORE can choose.
func WithLogStore(name string, open func(dir string) (LogStore, error)) Option {
	return func(o *options) {
		o.logStores[name] = open
		delete(o.readOnly, name)
	}
}

// WithSnapshotStore replaces the file snapshot store.
func WithSnapshotStore(open func(dir string, retain int) (raft.SnapshotStore, error)) Option {
	return func(o *options) { o.snapshots = open }
}

// WithRaftTransport makes Raft use t, hashicorp's in-memory transport say,
// instead of streams on the cluster port. The node closes it at Shutdown if it
// can be closed.
func WithRaftTransport(t raft.Transport) Option {
	return func(o *options) { o.raftTransport = t }
}

// WithForce founds a cluster although a listed peer could not be asked whether
// it has one already.
func WithForce() Option { return func(o *options) { o.force = true } }

// Owner is the mode that a cluster of this package is a part of. Its state
// machine is the Storage that it hands over; here is what it says of writes on
// their way there. A nil function does nothing.
type Owner struct {
	// Check refuses what must not be proposed, in place of
	// replication.ValidateBatch; it runs on every node a write passes.
	Check func(cmds []*replication.Command) error
	// Wrap makes the group that the leader puts into the log out of the group
	// that a client sent. Hash is set to that of the client's commands before, so
	// that a repeated request is known again. Its error says that nothing was
	// proposed.
	Wrap func(g replication.Group) (replication.Group, error)
	// Committed is called on the leader when a write is applied, before it is
	// answered, with the commands that the client sent; its error is the answer.
	Committed func(ctx context.Context, sent []*replication.Command) error
	// Health adds to what a running node says of itself; what it says for the
	// cluster as its leader has the same.
	Health func(h *replication.HealthStatus)
}

// WithOwner makes the cluster a part of another mode.
func WithOwner(o Owner) Option { return func(opts *options) { opts.owner = o } }

func newOptions(opts []Option) options {
	o := options{logStores: map[string]func(string) (LogStore, error){boltLogStore: openBolt},
		readOnly: map[string]func(string) (LogStore, error){boltLogStore: openBoltReadOnly}}
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// Mode returns a Constructor with options.
func Mode(opts ...Option) replication.Constructor {
	return func(cfg *replication.Config, storage replication.Storage, rt replication.Runtime) (replication.Replicator, error) {
		o := newOptions(opts)
		if o.logStores[cfg.LogStore] == nil {
			return nil, fmt.Errorf("%w: NORNICDB_CLUSTER_LOG_STORE=%q was not offered here", replication.ErrInvalidConfig, cfg.LogStore)
		}
		return newNode(cfg, storage, rt, o)
	}
}

// New is Raft mode without options: a replication.Constructor.
func New(cfg *replication.Config, storage replication.Storage, rt replication.Runtime) (replication.Replicator, error) {
	return Mode()(cfg, storage, rt)
}

func openBolt(dir string) (LogStore, error) {
	store, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(dir, boltFile), MsgpackUseNewTimeFormat: true})
	if err != nil {
		return nil, err
	}
	return store, nil
}

func closeIfCloser(v any) error {
	if c, ok := v.(io.Closer); ok {
		return c.Close()
	}
	return nil
}
