package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/raftnode"
	"github.com/nornicdb/replication/transport"
)

// walName is what NORNICDB_CLUSTER_LOG_STORE calls hashicorp/raft-wal: segment
// files that are appended to, one sync for a write where bolt needs two.
const walName = "wal"

// maxWALEntry is below the 64 MiB above which raft-wal writes an entry, but
// cannot read it again.
const maxWALEntry = 64<<20 - 64<<10

// walStore is raft-wal with the check of sizes that it lacks, and a Close that
// closes its metadata file too.
type walStore struct {
	*wal.WAL
	meta *metadb.BoltMetaDB
}

var (
	_ raftnode.LogStore      = walStore{}
	_ raft.MonotonicLogStore = walStore{}
)

func openWAL(dir string) (raftnode.LogStore, error) {
	path := filepath.Join(dir, walName)
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	meta := new(metadb.BoltMetaDB)
	w, err := wal.Open(path, wal.WithLogger(hclog.NewNullLogger()), wal.WithMetaStore(meta))
	if err != nil {
		return nil, errors.Join(err, meta.Close())
	}
	return walStore{w, meta}, nil
}

// Close implements io.Closer.
func (s walStore) Close() error { return errors.Join(s.WAL.Close(), s.meta.Close()) }

// checkWAL refuses a configuration that lets commands in which the log cannot
// hold.
func checkWAL(cfg *replication.Config) error {
	if most := transport.MaxCommandBytes(cfg.MaxFrameSize); cfg.LogStore == walName && most > maxWALEntry-64<<10 {
		return fmt.Errorf("%w: NORNICDB_CLUSTER_MAX_FRAME_SIZE=%d lets commands of %d bytes in, the wal log store holds %d",
			replication.ErrInvalidConfig, cfg.MaxFrameSize, most, maxWALEntry-64<<10)
	}
	return nil
}

// StoreLog implements raft.LogStore.
func (s walStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (s walStore) StoreLogs(logs []*raft.Log) error {
	for _, l := range logs {
		if size := len(l.Data) + len(l.Extensions); size > maxWALEntry {
			return fmt.Errorf("wal: entry %d has %d bytes, at most %d", l.Index, size, maxWALEntry)
		}
	}
	return s.WAL.StoreLogs(logs)
}
