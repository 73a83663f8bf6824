package testharness

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/stretchr/testify/require"
)

// openedMem is a MemStore as the suite wants it.
func openedMem() Opened { return openedWrapped(func(s *MemStore) replication.Storage { return s }) }

// openedWrapped is a MemStore in a wrapper.
func openedWrapped(wrap func(*MemStore) replication.Storage) Opened {
	mem := NewMemStore()
	again := func() (replication.Storage, error) { return wrap(mem.Clone()), nil }
	return Opened{Storage: wrap(mem), Crash: again, Reopen: again}
}

func TestMemStoreIsAStorage(t *testing.T) {
	TestStorage(t, func(t *testing.T) Opened {
		o := openedMem()
		o.Digest = func(s replication.Storage) (string, error) { return s.(*MemStore).Stats().Digest, nil }
		return o
	})
}

func TestEffectStoreIsAStorage(t *testing.T) {
	TestStorage(t, func(t *testing.T) Opened {
		o := openedWrapped(func(s *MemStore) replication.Storage { return s.WithEffects(touch) })
		o.Opaque = &replication.Command{Type: replication.CmdCypher, Data: []byte(`{"query":"CREATE (n)"}`)}
		return o
	})
}

// touch counts in a node how often it was run.
func touch(r GraphReader, _ *replication.Command) ([]*replication.Command, error) {
	n, err := r.Node(universeNode(0))
	if err != nil {
		n = &replication.Node{ID: universeNode(0), Properties: map[string]any{"count": int64(0)}}
	}
	n.Properties["count"] = n.Properties["count"].(int64) + 1
	cmd, err := replication.NewNodeCommand(replication.CmdPutNode, n)
	return []*replication.Command{cmd}, err
}

// plainStore is a storage with the nine methods and nothing else.
type plainStore struct{ replication.Storage }

func TestPlainStorageIsAStorage(t *testing.T) {
	TestStorage(t, func(t *testing.T) Opened {
		return openedWrapped(func(s *MemStore) replication.Storage { return plainStore{s} })
	})
}

// readableStore is a plain storage whose content can be read.
type readableStore struct {
	plainStore
	GraphReader
}

func TestReadablePlainStorageIsAStorage(t *testing.T) {
	TestStorage(t, func(t *testing.T) Opened {
		return openedWrapped(func(s *MemStore) replication.Storage { return readableStore{plainStore{s}, s} })
	})
}

func TestBoltgraphIsAStorage(t *testing.T) {
	TestStorage(t, func(t *testing.T) Opened {
		dir := t.TempDir()
		path := filepath.Join(dir, "g.db")
		open := func(path string) (*boltgraph.Store, error) {
			s, err := boltgraph.Open(path, boltgraph.WithNoSync())
			if err == nil {
				t.Cleanup(func() { require.NoError(t, s.Close()) })
			}
			return s, err
		}
		s, err := open(path)
		require.NoError(t, err)
		return Opened{
			Storage: s,
			Crash: func() (replication.Storage, error) {
				copied := t.TempDir()
				if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
					return nil, err
				}
				return open(filepath.Join(copied, "g.db"))
			},
			Reopen: func() (replication.Storage, error) {
				if err := s.Close(); err != nil {
					return nil, err
				}
				return open(path)
			},
			Digest: func(s replication.Storage) (string, error) {
				st, err := s.(*boltgraph.Store).Stats()
				return st.Digest, err
			},
		}
	})
}
