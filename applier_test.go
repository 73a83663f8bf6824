package replication_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/internal/bubble"
	"github.com/stretchr/testify/require"
)

func node(t *testing.T, ct replication.CommandType, id, requestID string) *replication.Command {
	t.Helper()
	cmd, err := replication.NewNodeCommand(ct, &replication.Node{ID: replication.NodeID(id)})
	require.NoError(t, err)
	cmd.RequestID = requestID
	return cmd
}

func edge(t *testing.T, from, to string) *replication.Command {
	t.Helper()
	cmd, err := replication.NewEdgeCommand(replication.CmdCreateEdge,
		&replication.Edge{StartNode: replication.NodeID(from), EndNode: replication.NodeID(to), Type: "R"})
	require.NoError(t, err)
	return cmd
}

func newApplier(t *testing.T, s replication.Storage) *replication.StorageApplier {
	t.Helper()
	a, err := replication.NewStorageApplier(s)
	require.NoError(t, err)
	return a
}

func apply(t *testing.T, a *replication.StorageApplier, position uint64, groups ...replication.Group) []replication.Result {
	t.Helper()
	results, err := a.Apply([]replication.Entry{{Position: position, Groups: groups}})
	require.NoError(t, err)
	return results[0]
}

func TestGroupThatFailsLaterIsRolledBackAlone(t *testing.T) {
	s := openStore(t)
	a := newApplier(t, s)
	create := replication.CmdCreateNode
	results, err := a.Apply([]replication.Entry{
		{Position: 1, Groups: []replication.Group{
			replication.NewGroup(node(t, create, "a", "")),
			replication.NewGroup(node(t, create, "gone", ""), edge(t, "gone", "nowhere")),
			replication.NewGroup(node(t, create, "a", "")),
		}},
		{Position: 5, Groups: []replication.Group{replication.NewGroup(node(t, create, "b", ""), edge(t, "a", "b"))}},
	})
	require.NoError(t, err)
	require.NoError(t, results[0][0].Err)
	require.ErrorIs(t, results[0][1].Err, replication.ErrMissingEnd)
	require.ErrorIs(t, results[0][2].Err, replication.ErrExists)
	require.NoError(t, results[1][0].Err)
	require.Equal(t, uint64(5), a.Position())
	st, err := s.Stats()
	require.NoError(t, err)
	require.Equal(t, []uint64{2, 1, 5}, []uint64{st.Nodes, st.Edges, st.Position})
}

func TestManyFailingGroupsAreSplit(t *testing.T) {
	s := openStore(t)
	a := newApplier(t, s)
	var entries []replication.Entry
	for i := range 40 {
		entries = append(entries, replication.Entry{Position: uint64(i + 1), Groups: []replication.Group{
			replication.NewGroup(node(t, replication.CmdCreateNode, fmt.Sprint("x", i), ""), edge(t, fmt.Sprint("x", i), "nowhere")),
			replication.NewGroup(node(t, replication.CmdCreateNode, fmt.Sprint("y", i), "")),
		}})
	}
	results, err := a.Apply(entries)
	require.NoError(t, err)
	for _, r := range results {
		require.ErrorIs(t, r[0].Err, replication.ErrMissingEnd)
		require.NoError(t, r[1].Err)
	}
	st, err := s.Stats()
	require.NoError(t, err)
	require.Equal(t, uint64(40), st.Nodes)
}

func TestRequestIDsOutliveReopening(t *testing.T) {
	s := openStore(t)
	a := newApplier(t, s)
	first := replication.NewGroup(node(t, replication.CmdCreateNode, "a", "r1"))
	require.NoError(t, apply(t, a, 1, first)[0].Err)
	require.ErrorIs(t, apply(t, a, 2, replication.NewGroup(node(t, replication.CmdCreateNode, "a", "r2")))[0].Err, replication.ErrExists)
	a = newApplier(t, s)
	again := apply(t, a, 3, first)[0]
	require.NoError(t, again.Err)
	require.Equal(t, uint64(1), again.Position)
	require.ErrorIs(t, apply(t, a, 4, replication.NewGroup(node(t, replication.CmdCreateNode, "a", "r2")))[0].Err, replication.ErrExists)
	other := apply(t, a, 5, replication.NewGroup(node(t, replication.CmdCreateNode, "b", "r1")))[0]
	require.ErrorIs(t, other.Err, replication.ErrRequestIDReused)
}

func TestConditionalGroupIsValidAtItsPositionOnly(t *testing.T) {
	a := newApplier(t, openStore(t))
	g := replication.NewGroup(node(t, replication.CmdCreateNode, "a", "r"))
	g.Conditional, g.ValidAt = true, 3
	require.ErrorIs(t, apply(t, a, 1, g)[0].Err, replication.ErrStaleEffects)
	g.ValidAt = 1
	require.NoError(t, apply(t, a, 2, g)[0].Err, "a stale try does not use up the request ID")
}

// brokenStore fails with a plain error when told to.
type brokenStore struct {
	*boltgraph.Store
	err error
}

func (b *brokenStore) Update(fn func(replication.Tx) error) error {
	if b.err != nil {
		return b.err
	}
	return b.Store.Update(fn)
}

func TestPlainErrorStopsTheApplier(t *testing.T) {
	s := &brokenStore{Store: openStore(t)}
	a := newApplier(t, s)
	apply(t, a, 1, replication.NewGroup(node(t, replication.CmdCreateNode, "a", "")))
	s.err = errors.New("disk on fire")
	entry := []replication.Entry{{Position: 2, Groups: []replication.Group{replication.NewGroup(node(t, replication.CmdCreateNode, "b", ""))}}}
	_, err := a.Apply(entry)
	require.ErrorIs(t, err, replication.ErrStorageFailed)
	s.err = nil
	_, err = a.Apply(entry)
	require.ErrorIs(t, err, replication.ErrStorageFailed, "it applies nothing more")
	require.Equal(t, uint64(1), a.Position())
	require.ErrorIs(t, a.WaitApplied(context.Background(), 2), replication.ErrStorageFailed)
}

func TestWaitApplied(t *testing.T) {
	s := openStore(t)
	bubble.Test(t, func(t *testing.T) {
		a := newApplier(t, s)
		got := make(chan error, 2)
		go func() { got <- a.WaitApplied(context.Background(), 2) }()
		synctest.Wait()
		apply(t, a, 2, replication.NewGroup(node(t, replication.CmdCreateNode, "a", "")))
		require.NoError(t, <-got)
		ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
		defer cancel()
		require.ErrorIs(t, a.WaitApplied(ctx, 3), replication.ErrTimeout)
		go func() { got <- a.WaitApplied(context.Background(), 9) }()
		synctest.Wait()
		a.Close()
		require.ErrorIs(t, <-got, replication.ErrClosed)
	})
}

func TestErrorsKeepTheirMeaningAcrossTheWire(t *testing.T) {
	for _, err := range []error{replication.ErrExists, replication.ErrUnknownOutcome, replication.ErrNotLeader, replication.ErrTimeout,
		replication.ErrRequestIDReused, replication.ErrOverloaded, replication.ErrUnconfirmed, replication.ErrNoLease} {
		wrapped := fmt.Errorf("context: %w", err)
		require.ErrorIs(t, replication.ErrorFromCode(replication.ErrorCode(wrapped), "text"), err)
	}
	own := replication.ErrorFromCode(replication.ErrorCode(&replication.VerdictError{Code: "timeout"}), "")
	require.NotErrorIs(t, own, replication.ErrTimeout, "an embedder's code is not taken for ours")
	code, ok := replication.Verdict(own)
	require.True(t, ok)
	require.Equal(t, "verdict:timeout", code)
	both := fmt.Errorf("%w: %w", replication.ErrUnknownOutcome, replication.ErrExists)
	require.Equal(t, "unknown_outcome", replication.ErrorCode(both))
	require.ErrorIs(t, replication.ErrorFromCode("unconfirmed", "text"), replication.ErrUnknownOutcome, "it may still take effect")
	require.NotErrorIs(t, replication.ErrorFromCode("no_lease", "text"), replication.ErrUnknownOutcome, "nothing was appended")
	require.True(t, replication.NotSent(fmt.Errorf("x: %w", replication.MarkNotSent(err1))))
	require.False(t, replication.NotSent(err1))
}

var err1 = errors.New("one")

func FuzzCommand(f *testing.F) {
	f.Add(uint8(1), []byte(`{"id":"a","labels":["L"],"properties":{"k":1,"f":1.0}}`))
	f.Add(uint8(4), []byte(`{"startNode":"a","endNode":"b","type":"R","properties":{}}`))
	f.Add(uint8(6), []byte(`{"node_id":"a","key":"k","value":9223372036854775808}`))
	f.Add(uint8(7), []byte(`{"commands":[{"Type":3,"Data":"YQ=="}],"nodes":[{"id":"n"}]}`))
	f.Fuzz(func(t *testing.T, ct uint8, data []byte) {
		cmd := &replication.Command{Type: replication.CommandType(ct), Data: data}
		if err := cmd.Validate(); err != nil {
			require.ErrorIs(t, err, replication.ErrInvalidCommand)
		}
	})
}

func FuzzValue(f *testing.F) {
	for _, s := range []string{`1`, `1.0`, `-0.0`, `1e400`, `9223372036854775808`, `{"a":[null,true,"x"]}`, `[[[[]]]]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := replication.DecodeValue(data)
		if err != nil {
			return
		}
		canonical, err := replication.AppendValue(nil, v)
		require.NoError(t, err)
		again, err := replication.DecodeValue(canonical)
		require.NoError(t, err)
		require.Equal(t, v, again, "canonical JSON keeps values and number types")
	})
}
