package replication_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/stretchr/testify/require"
)

// limitedStore takes so many commands and rows in a transaction, and has no large
// ones.
type limitedStore struct {
	replication.TxStorage
	store   *boltgraph.Store
	most    int
	tooMuch error
	stop    int    // transactions until it fails; below 0: it does not
	each    func() // not nil: called before each transaction
}

// sameEverywhere is what a store answers that promises to have the same limits on
// all nodes.
type sameEverywhere struct{ error }

func (sameEverywhere) ErrorCode() string { return "tx_limit" }
func (e sameEverywhere) Unwrap() error   { return e.error }

var errStopped = errors.New("stopped")

func (s *limitedStore) Update(fn func(replication.Tx) error) error {
	if s.each != nil {
		s.each()
	}
	if s.stop--; s.stop == -1 {
		return errStopped
	}
	return s.store.Update(func(tx replication.Tx) error { return fn(&limitedTx{Tx: tx, s: s}) })
}

type limitedTx struct {
	replication.Tx
	s    *limitedStore
	used int
}

func (t *limitedTx) use(n int) error {
	if t.used += n; t.used > t.s.most {
		return fmt.Errorf("%d changes: %w", t.used, t.s.tooMuch)
	}
	return nil
}

func (t *limitedTx) ApplyCommand(cmd *replication.Command) error {
	if err := t.use(1); err != nil {
		return err
	}
	return t.Tx.ApplyCommand(cmd)
}

func (t *limitedTx) SetMeta(k, v []byte) error {
	if err := t.use(1); err != nil {
		return err
	}
	return t.Tx.SetMeta(k, v)
}

func limited(t *testing.T, most int, tooMuch error) *limitedStore {
	s := openStore(t)
	return &limitedStore{TxStorage: s, store: s, most: most, tooMuch: tooMuch, stop: -1}
}

func creates(t *testing.T, request string, ids ...string) replication.Group {
	cmds := make([]*replication.Command, len(ids))
	for i, id := range ids {
		cmds[i] = node(t, replication.CmdCreateNode, id, "")
	}
	cmds[0].RequestID = request
	return replication.NewGroup(cmds...)
}

// joined is an entry of writes of several clients, each of which the store takes.
func joined(t *testing.T) replication.Entry {
	return replication.Entry{Position: 7, Groups: []replication.Group{
		creates(t, "r1", "a1", "a2"), creates(t, "r2", "b1", "a1"), creates(t, "", "c1", "c2"), creates(t, "r4", "d1")}}
}

// TestWritesThatAreTooLargeTogetherAreAppliedOneByOne: an entry whose groups are
// too large for one transaction does not stop the node.
func TestWritesThatAreTooLargeTogetherAreAppliedOneByOne(t *testing.T) {
	s := limited(t, 4, replication.ErrTxTooLarge)
	a := newApplier(t, s)
	results, err := a.Apply([]replication.Entry{joined(t), {Position: 8, Groups: []replication.Group{creates(t, "", "e1")}}})
	require.NoError(t, err)
	require.NoError(t, results[0][0].Err)
	require.ErrorIs(t, results[0][1].Err, replication.ErrExists)
	require.NoError(t, results[0][2].Err)
	require.NoError(t, results[0][3].Err)
	require.NoError(t, results[1][0].Err)
	st, err := s.store.Stats()
	require.NoError(t, err)
	require.Equal(t, []uint64{6, 8}, []uint64{st.Nodes, st.Position})
	require.Empty(t, begunRow(t, s.store))
}

// TestAnEntryInPartsIsSeenToGetOn, though its position moves with the last of them: a
// node that takes long for it does not hang.
func TestAnEntryInPartsIsSeenToGetOn(t *testing.T) {
	s := limited(t, 4, replication.ErrTxTooLarge)
	a := newApplier(t, s)
	var steps, positions []uint64
	s.each = func() { steps, positions = append(steps, a.Steps()), append(positions, a.Position()) }
	_, err := a.Apply([]replication.Entry{joined(t)})
	require.NoError(t, err)
	require.Zero(t, positions[len(positions)-1], "before the last part")
	require.EqualValues(t, 3, steps[len(steps)-1])
}

func begunRow(t *testing.T, s *boltgraph.Store) (row []byte) {
	require.NoError(t, s.View(func(m replication.Meta) (err error) {
		row, err = m.GetMeta([]byte("replication/begun"))
		return err
	}))
	return row
}

// TestANodeThatEndsWithinAnEntryGoesOn: wherever it ends, the groups of an entry
// that is applied in parts take effect once, and the end is that of a node that
// took the entry at once.
func TestANodeThatEndsWithinAnEntryGoesOn(t *testing.T) {
	whole := openStore(t)
	_, err := newApplier(t, whole).Apply([]replication.Entry{joined(t)})
	require.NoError(t, err)
	want, err := whole.Stats()
	require.NoError(t, err)
	stopped := 0
	for at := 0; ; at++ {
		s := limited(t, 4, replication.ErrTxTooLarge)
		s.stop = at
		_, err := newApplier(t, s).Apply([]replication.Entry{joined(t)})
		if err == nil {
			break
		}
		require.ErrorIs(t, err, errStopped)
		stopped++
		s.stop = -1
		results, err := newApplier(t, s).Apply([]replication.Entry{joined(t)})
		require.NoError(t, err)
		for i, r := range results[0] { // of what was done before nobody waits for an answer
			if !errors.Is(r.Err, replication.ErrUnknownOutcome) {
				require.Equal(t, i == 1, errors.Is(r.Err, replication.ErrExists), "group %d: %v", i, r.Err)
			}
		}
		have, err := s.store.Stats()
		require.NoError(t, err)
		require.Equal(t, want, have)
		require.Empty(t, begunRow(t, s.store))
		again := apply(t, newApplier(t, s), 9, creates(t, "r1", "a1", "a2"))[0]
		require.NoError(t, again.Err)
		require.Equal(t, uint64(7), again.Position)
	}
	require.Greater(t, stopped, 4, "between the groups, too")
}

// TestASnapshotOfAnEntryThatWasBegun: a node that ended within an entry can be asked
// for a snapshot before the entry comes again (its log begins far below). Whoever is
// given that goes on where it ended, and has what the others have.
func TestASnapshotOfAnEntryThatWasBegun(t *testing.T) {
	whole := openStore(t)
	_, err := newApplier(t, whole).Apply([]replication.Entry{joined(t)})
	require.NoError(t, err)
	want, err := whole.Stats()
	require.NoError(t, err)
	s := limited(t, 4, replication.ErrTxTooLarge)
	s.stop = 3
	_, err = newApplier(t, s).Apply([]replication.Entry{joined(t)})
	require.ErrorIs(t, err, errStopped)
	require.NotEmpty(t, begunRow(t, s.store))
	snap, err := s.store.Snapshot()
	require.NoError(t, err)
	defer snap.Release()
	require.Zero(t, snap.Position())
	var data bytes.Buffer
	_, err = snap.WriteTo(&data)
	require.NoError(t, err)

	joins := openStore(t)
	a := newApplier(t, joins)
	require.NoError(t, apply(t, a, 1, creates(t, "", "of another log"))[0].Err)
	require.NoError(t, joins.Restore(&data))
	require.NoError(t, a.Reload())
	_, err = a.Apply([]replication.Entry{joined(t)})
	require.NoError(t, err)
	have, err := joins.Stats()
	require.NoError(t, err)
	require.Equal(t, want, have)
	require.Empty(t, begunRow(t, joins))
	require.NoError(t, apply(t, a, 8, creates(t, "r1", "a1", "a2"))[0].Err, "it is remembered")
}

// TestAnEntryThatWasBegunEndsWithItsHistory: what another log has at the same
// position is not what was begun.
func TestAnEntryThatWasBegunEndsWithItsHistory(t *testing.T) {
	for name, leave := range map[string]func(*replication.StorageApplier) error{
		"leave": (*replication.StorageApplier).Leave,
		"found": func(a *replication.StorageApplier) error {
			return a.Found(replication.Identity{History: "other", Base: 6})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := limited(t, 4, replication.ErrTxTooLarge)
			a := newApplier(t, s)
			require.NoError(t, a.Found(replication.Identity{History: "one", Base: 6}))
			s.stop = 3
			_, err := a.Apply([]replication.Entry{joined(t)})
			require.ErrorIs(t, err, errStopped)
			require.NotEmpty(t, begunRow(t, s.store))
			s.stop = -1
			a = newApplier(t, s)
			require.NoError(t, leave(a))
			require.Empty(t, begunRow(t, s.store))
			require.NoError(t, apply(t, a, 7, creates(t, "", "new"))[0].Err)
			require.NoError(t, apply(t, newApplier(t, s), 8, creates(t, "", "newer"))[0].Err)
		})
	}
}

// TestAWriteThatIsTooLargeAloneIsRefused: where the store promises that every
// node refuses it, it is a verdict, with an outcome that is remembered, and
// nobody stops.
func TestAWriteThatIsTooLargeAloneIsRefused(t *testing.T) {
	for most := 3; most <= 5; most++ {
		s := limited(t, most, sameEverywhere{replication.ErrTxTooLarge})
		a := newApplier(t, s)
		big := creates(t, "big", "b1", "b2", "b3", "b4", "b5")
		results, err := a.Apply([]replication.Entry{
			{Position: 1, Groups: []replication.Group{creates(t, "", "a")}},
			{Position: 2, Groups: []replication.Group{creates(t, "", "b"), big, creates(t, "", "c")}},
			{Position: 3, Groups: []replication.Group{big}},
		})
		require.NoError(t, err)
		for _, r := range []replication.Result{results[1][1], results[2][0]} {
			code, verdict := replication.Verdict(r.Err)
			require.True(t, verdict, "%v", r.Err)
			require.Equal(t, "verdict:tx_limit", code)
			require.Equal(t, uint64(2), r.Position)
		}
		require.NoError(t, results[1][0].Err)
		require.NoError(t, results[1][2].Err)
		st, err := s.store.Stats()
		require.NoError(t, err)
		require.Equal(t, []uint64{3, 3}, []uint64{st.Nodes, st.Position})
		require.Error(t, apply(t, newApplier(t, s), 4, big)[0].Err, "after a restart")
	}
}

// TestTooLargeForTheTransactionIsNoVerdict: what is too large only together with
// other writes is done, also where the first command of a group is what does not
// fit, which for any other verdict would be the end of it.
func TestTooLargeForTheTransactionIsNoVerdict(t *testing.T) {
	for most := 1; most < 8; most++ {
		s := limited(t, most, sameEverywhere{replication.ErrTxTooLarge})
		var entries []replication.Entry
		for i := range 8 {
			entries = append(entries, replication.Entry{Position: uint64(i + 1), Groups: []replication.Group{creates(t, "", fmt.Sprint("n", i))}})
		}
		results, err := newApplier(t, s).Apply(entries)
		require.NoError(t, err)
		for _, r := range results {
			require.NoError(t, r[0].Err)
		}
	}
}

// TestAWriteThatIsTooLargeAloneStops: without the promise another node may take
// the write, so this one must not go on without it. It goes on when its store
// takes more.
func TestAWriteThatIsTooLargeAloneStops(t *testing.T) {
	s := limited(t, 4, replication.ErrTxTooLarge)
	big := []replication.Entry{{Position: 1, Groups: []replication.Group{creates(t, "", "a")}},
		{Position: 2, Groups: []replication.Group{creates(t, "", "b"), creates(t, "big", "b1", "b2", "b3", "b4", "b5")}}}
	results, err := newApplier(t, s).Apply(big)
	require.ErrorIs(t, err, replication.ErrStorageFailed)
	require.ErrorIs(t, err, replication.ErrTxTooLarge)
	require.Len(t, results, 1)
	require.NoError(t, results[0][0].Err)
	s.most = 100
	results, err = newApplier(t, s).Apply(big[1:])
	require.NoError(t, err)
	require.NoError(t, results[0][1].Err)
	st, err := s.store.Stats()
	require.NoError(t, err)
	require.Equal(t, uint64(7), st.Nodes)
}

// largeStore has large transactions, which have no limit.
type largeStore struct {
	*limitedStore
	large int
}

func (s *largeStore) UpdateLarge(fn func(replication.Tx) error) error {
	s.large++
	return s.store.UpdateLarge(fn)
}

// TestAWriteThatIsTooLargeAloneIsMadeAsALargeOne: where the store has large
// transactions.
func TestAWriteThatIsTooLargeAloneIsMadeAsALargeOne(t *testing.T) {
	s := &largeStore{limitedStore: limited(t, 4, replication.ErrTxTooLarge)}
	big := creates(t, "big", "b1", "b2", "b3", "b4", "b5")
	for _, r := range apply(t, newApplier(t, s), 1, creates(t, "", "a"), big, creates(t, "", "b"), creates(t, "x", "a", "c")) {
		if _, verdict := replication.Verdict(r.Err); !verdict {
			require.NoError(t, r.Err)
		}
	}
	st, err := s.store.Stats()
	require.NoError(t, err)
	require.Equal(t, []uint64{7, 1}, []uint64{st.Nodes, st.Position})
	require.Positive(t, s.large)
}
