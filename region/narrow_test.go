package region_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region/conflict"
	"github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// narrowStorage takes so many changes in a transaction, on every node the same.
type narrowStorage struct {
	replication.TxStorage
	replication.StorageSnapshotter
}

// narrow is more than what an entry settles beside its own changes, and less than
// what writes change that were joined.
const narrow = 150

type tooNarrow struct{}

func (tooNarrow) Error() string     { return "too many changes" }
func (tooNarrow) ErrorCode() string { return "tx_limit" }
func (tooNarrow) Unwrap() error     { return replication.ErrTxTooLarge }

func (s *narrowStorage) Update(fn func(replication.Tx) error) error {
	return s.TxStorage.Update(func(tx replication.Tx) error {
		return fn(&narrowTx{Tx: tx, GraphReader: tx.(conflict.Store)})
	})
}

type narrowTx struct {
	replication.Tx
	conflict.GraphReader
	used int
}

func (t *narrowTx) use() error {
	if t.used++; t.used > narrow {
		return tooNarrow{}
	}
	return nil
}

func (t *narrowTx) SetMeta(k, v []byte) error { return errors.Join(t.use(), t.Tx.SetMeta(k, v)) }

func (t *narrowTx) CreateNode(n *replication.Node) error {
	return errors.Join(t.use(), t.Tx.CreateNode(n))
}

// TestRegionsOverStoragesOfSmallTransactions: writes that Raft joins into an entry,
// and batches of another region, may be too large for a transaction of the storage;
// they are applied, on every node, and again after a restart. One that is too large
// alone has failed, and stops nobody.
func TestRegionsOverStoragesOfSmallTransactions(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederationOver(t, 92, two, nil, func(_ *testharness.Member, s replication.TxStorage) replication.Storage {
			return &narrowStorage{s, s.(replication.StorageSnapshotter)}
		})
		leader := f.leader("eu")
		f.apply("eu", put(t, "first", nil))
		const writers = 200
		done := make(chan error, writers)
		for i := range writers {
			cmd := put(t, fmt.Sprint("n", i), nil)
			go func() { done <- leader.Replicator().Apply(cmd, time.Minute) }()
		}
		for range writers {
			require.NoError(t, <-done)
		}
		var big []*replication.Command
		for i := range 2 * narrow {
			big = append(big, put(t, fmt.Sprint("big", i), nil))
		}
		big[0].RequestID = "big"
		for range 2 {
			_, err := node(leader).ApplyBatch(bounded(t, time.Minute), big)
			code, verdict := replication.Verdict(err)
			require.True(t, verdict, "%v", err)
			require.Equal(t, "verdict:tx_limit", code)
		}
		f.converged(time.Minute)
		f.crashAll("eu")
		f.startAll("eu")
		f.apply("eu", put(t, "last", nil))
		f.converged(time.Minute)
		for _, m := range f.Members {
			require.Equal(t, writers+2, m.Store().Stats().Nodes)
		}
	})
}
