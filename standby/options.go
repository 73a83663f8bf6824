package standby

import (
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/nornicdb/replication"
	"go.etcd.io/bbolt"
)

// boltLogStore is the name of the built-in log store.
const boltLogStore = "bolt"

// What replication calls so.
var (
	ErrUnconfirmed = replication.ErrUnconfirmed
	ErrNoLease     = replication.ErrNoLease
)

// UnconfirmedError is replication's.
type UnconfirmedError = replication.UnconfirmedError

type options struct {
	logStores map[string]func(dir string) (raft.LogStore, error)
	bootClock func() time.Duration
	states    func(path string) states
}

// Option is a choice of hot-standby mode.
type Option func(*options)

// WithLogStore offers a log store under a name that NORNICDB_CLUSTER_LOG_STORE
// can choose. If it is an io.Closer it is closed at Shutdown.
func WithLogStore(name string, open func(dir string) (raft.LogStore, error)) Option {
	return func(o *options) { o.logStores[name] = open }
}

// WithBootClock replaces the clock that leases are measured by beside the wall
// clock: it must go on while the machine is suspended.
func WithBootClock(clock func() time.Duration) Option {
	return func(o *options) { o.bootClock = clock }
}

// Mode returns a Constructor with options.
func Mode(opts ...Option) replication.Constructor {
	return func(cfg *replication.Config, storage replication.Storage, rt replication.Runtime) (replication.Replicator, error) {
		o := options{logStores: map[string]func(string) (raft.LogStore, error){boltLogStore: openBolt}, bootClock: bootClock,
			states: func(path string) states { return stateFile{path} }}
		for _, opt := range opts {
			opt(&o)
		}
		if o.logStores[cfg.LogStore] == nil {
			return nil, fmt.Errorf("%w: NORNICDB_CLUSTER_LOG_STORE=%q was not offered here", replication.ErrInvalidConfig, cfg.LogStore)
		}
		if _, ok := storage.(replication.StorageSnapshotter); !ok {
			return nil, fmt.Errorf("%w: hot standby needs a storage with snapshots", replication.ErrUnsupported)
		}
		return newNode(cfg, storage, rt, o), nil
	}
}

// New is hot-standby mode without options: a replication.Constructor.
func New(cfg *replication.Config, storage replication.Storage, rt replication.Runtime) (replication.Replicator, error) {
	return Mode()(cfg, storage, rt)
}

// openBolt opens the built-in log store. It keeps no list of free pages in its file,
// which every sync would write anew, megabytes after a compaction of a large log: at
// the next start it looks for them in what OpenLog reads then, too. Files with and
// without the list are read by either kind.
func openBolt(dir string) (raft.LogStore, error) {
	opts := *bbolt.DefaultOptions
	opts.NoFreelistSync, opts.FreelistType = true, bbolt.FreelistMapType
	store, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(dir, "wal.db"), BoltOptions: &opts, MsgpackUseNewTimeFormat: true})
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
