package replication_test

import (
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// TestWishes: what a node wishes for itself leaves an operator's wish alone; the
// rows outlive the applier, and a rolled-back transaction leaves no wish.
func TestWishes(t *testing.T) {
	store := openStore(t)
	applier, err := replication.NewStorageApplier(store)
	require.NoError(t, err)
	wish := func(w replication.MemberWish) {
		cmd, err := replication.NewMemberWishCommand(w)
		require.NoError(t, err)
		require.ErrorIs(t, replication.ValidateBatch([]*replication.Command{cmd}), replication.ErrInvalidCommand, "not a client's to send")
		results, err := applier.Apply([]replication.Entry{{Position: applier.Position() + 1, Groups: []replication.Group{replication.NewGroup(cmd)}}})
		require.NoError(t, err)
		require.NoError(t, results[0][0].Err)
	}
	check := func(id string, voter, known bool) {
		t.Helper()
		for range 2 { // as it is, and read anew
			v, k := applier.MemberWish(id)
			require.Equal(t, [2]bool{voter, known}, [2]bool{v, k}, id)
			require.NoError(t, applier.Reload())
		}
	}
	check("a", false, false)
	wish(replication.MemberWish{NodeID: "a", Voter: true, IfNone: true})
	check("a", true, true)
	wish(replication.MemberWish{NodeID: "a"})
	wish(replication.MemberWish{NodeID: "a", Voter: true, IfNone: true})
	check("a", false, true)
	wish(replication.MemberWish{NodeID: "b", Voter: true})
	wish(replication.MemberWish{NodeID: "a", Forget: true})
	check("a", false, false)
	check("b", true, true)
	require.Nil(t, applier.ExportWishes(), "they are in the rows")
	for _, id := range []string{"", string(make([]byte, 257)), "\xff"} {
		_, err := replication.NewMemberWishCommand(replication.MemberWish{NodeID: id})
		require.ErrorIs(t, err, replication.ErrInvalidCommand)
	}
}

// FuzzSettings: no settings that arrive break the applier; what is malformed is
// the verdict ErrInvalidCommand.
func FuzzSettings(f *testing.F) {
	f.Add([]byte(`{"Member":{"NodeID":"a","Voter":true}}`))
	f.Add([]byte(`{"History":"h"}`))
	f.Add([]byte(`{"History":"h","Member":{"NodeID":"a"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		applier, err := replication.NewStorageApplier(openStore(t))
		require.NoError(t, err)
		cmd := &replication.Command{Type: replication.CmdSettings, Data: data}
		results, err := applier.Apply([]replication.Entry{{Position: 1, Groups: []replication.Group{replication.NewGroup(cmd)}}})
		require.NoError(t, err)
		if results[0][0].Err != nil {
			require.ErrorIs(t, results[0][0].Err, replication.ErrInvalidCommand)
		}
	})
}
