package region

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region/conflict"
	"github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// narrowStore is a MemStore whose transactions take so many changes.
type narrowStore struct {
	*testharness.MemStore
	most    int
	tooMuch error
	stop    int // transactions until it fails; below 0: it does not
}

// limit is a promise that it is the same on all nodes.
type limit struct{}

func (limit) Error() string     { return "too many changes" }
func (limit) ErrorCode() string { return "tx_limit" }
func (limit) Unwrap() error     { return replication.ErrTxTooLarge }

func (s *narrowStore) Update(fn func(replication.Tx) error) error {
	if s.stop--; s.stop == -1 {
		return errDisk
	}
	return s.MemStore.Update(func(tx replication.Tx) error {
		return fn(&narrowTx{Tx: tx, GraphReader: tx.(conflict.Store), s: s})
	})
}

type narrowTx struct {
	replication.Tx
	conflict.GraphReader
	s    *narrowStore
	used int
}

func (t *narrowTx) use() error {
	if t.used++; t.used > t.s.most {
		return fmt.Errorf("%d changes: %w", t.used, t.s.tooMuch)
	}
	return nil
}

func (t *narrowTx) SetMeta(k, v []byte) error {
	return errors.Join(t.use(), t.Tx.SetMeta(k, v))
}
func (t *narrowTx) CreateNode(n *replication.Node) error {
	return errors.Join(t.use(), t.Tx.CreateNode(n))
}
func (t *narrowTx) UpdateNode(n *replication.Node) error {
	return errors.Join(t.use(), t.Tx.UpdateNode(n))
}
func (t *narrowTx) SetProperty(id replication.NodeID, key string, value any) error {
	return errors.Join(t.use(), t.Tx.SetProperty(id, key, value))
}

// reopened is a node that is started again over a store.
func reopened(t testing.TB, s replication.Storage) *solo {
	m, err := newMachine(s)
	require.NoError(t, err)
	a, err := replication.NewStorageApplier(m.storage())
	require.NoError(t, err)
	return &solo{m, a}
}

// TestEntriesThatAreTooLargeTogetherAreMergedInParts: a batch of another region
// that does not fit into one transaction is merged all the same, once, wherever
// the node ends meanwhile. A gap in it is answered as ever.
func TestEntriesThatAreTooLargeTogetherAreMergedInParts(t *testing.T) {
	eu := newSoloOf(t, testharness.NewMemStore(), "eu", func(s *settings) { s.OutboxMaxEntries = 100 })
	for i := range 30 {
		require.NoError(t, eu.put(t, fmt.Sprint("n", i%20), fmt.Sprint("r", i)))
	}
	list := eu.stream(t, 0)
	want := testharness.NewMemStore()
	ref := newSoloOf(t, want, "us", func(*settings) {})
	require.NoError(t, ref.put(t, "own", ""))
	all := remote(append(list[:20:20], list[21:]...)...)
	require.ErrorContains(t, ref.do(t, all), "gap")
	require.NoError(t, ref.do(t, remote(list...)))

	stopped := 0
	for at := 0; ; at++ {
		s := &narrowStore{MemStore: testharness.NewMemStore(), most: 1000, tooMuch: replication.ErrTxTooLarge, stop: -1}
		us := newSoloOf(t, s, "us", func(*settings) {})
		require.NoError(t, us.put(t, "own", ""))
		s.most, s.stop = 24, at
		ended := false
		for _, c := range []*logCommand{all, remote(list...)} {
			e := []replication.Entry{{Position: us.applier.Position() + 1, Groups: []replication.Group{{Commands: []*replication.Command{c.encode()}}}}}
			res, err := us.applier.Apply(e)
			if errors.Is(err, errDisk) {
				require.NoError(t, s.View(func(m replication.Meta) error {
					is, err := readView(m)
					shown, _ := us.now()
					require.Equal(t, is.status, shown.status, "what readers see is what is there")
					return err
				}))
				ended, s.stop = true, -1
				us = reopened(t, s)
				res, err = us.applier.Apply(e)
			}
			require.NoError(t, err)
			require.Equal(t, c == all, res[0][0].Err != nil, "%v", res[0][0].Err)
		}
		have, wanted := strings.Split(content(t, s.MemStore), "\n"), strings.Split(content(t, want), "\n")
		require.Equal(t, wanted, have)
		if !ended {
			break
		}
		stopped++
	}
	require.Greater(t, stopped, 10)
}

// TestAWriteThatIsTooLargeForEveryNodeIsRefused: by a verdict; what another
// region sends, too, and neither leaves anything or stops the region.
func TestAWriteThatIsTooLargeForEveryNodeIsRefused(t *testing.T) {
	big := make([]*replication.Command, 40)
	for i := range big {
		big[i] = nodeCmd(t, replication.CmdPutNode, fmt.Sprint("big", i), nil)
	}
	eu := newSoloOf(t, testharness.NewMemStore(), "eu", func(*settings) {})
	sc := &script{last: eu}
	require.NoError(t, sc.write(t, "", big...))
	s := &narrowStore{MemStore: testharness.NewMemStore(), most: 24, tooMuch: limit{}, stop: -1}
	us := newSoloOf(t, s, "us", func(*settings) {})
	before := content(t, s.MemStore)
	for _, c := range []*logCommand{{kind: kindWrite, wallMS: 1000, commands: big}, remote(eu.stream(t, 0)...)} {
		code, verdict := replication.Verdict(us.do(t, c))
		require.True(t, verdict)
		require.Equal(t, "verdict:tx_limit", code)
	}
	require.Equal(t, strings.Count(before, "\n"), strings.Count(content(t, s.MemStore), "\n"))
	require.Zero(t, s.Stats().Nodes)
	require.NoError(t, us.put(t, "small", ""))
}
