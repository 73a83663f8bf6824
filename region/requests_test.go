package region_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

func create(t *testing.T, id, request string) *replication.Command {
	cmd := put(t, id, nil)
	cmd.Type, cmd.RequestID = replication.CmdCreateNode, request
	return cmd
}

// TestARequestIsKnownInTheNextWriteRegion: a write whose answer was lost with
// its region is not made again by the region that was promoted, whichever way
// it got there, through whichever node, one that has it from a snapshot too.
func TestARequestIsKnownInTheNextWriteRegion(t *testing.T) {
	for _, way := range []string{"stream", "state"} {
		t.Run(way, func(t *testing.T) {
			virtually(t, func(t *testing.T) {
				f := newFederation(t, 22, two, func(_ string, cfg *replication.Config) {
					cfg.Region.WriteRegion = "eu"
					cfg.Raft.SnapshotThreshold, cfg.Raft.TrailingLogs, cfg.Raft.SnapshotInterval = 20, 10, time.Second
					if way == "state" {
						cfg.Region.OutboxMaxEntries = 2
					}
				})
				f.apply("us", create(t, "first", ""))
				f.converged(time.Minute)
				if way == "state" {
					f.Net.Partition(f.ids("eu"), f.ids("us"))
				}
				refused := set(t, "missing", "k", 1)
				refused.RequestID = "refused"
				require.ErrorIs(t, f.leader("eu").Replicator().Apply(refused, time.Minute), replication.ErrNotFound)
				for i := range 10 {
					f.apply("eu", create(t, fmt.Sprint("n", i), fmt.Sprint("r", i)))
				}
				f.Net.Heal()
				f.converged(time.Minute)
				f.afresh(f.nodes["us"][1])
				for _, m := range f.nodes["eu"] {
					f.Crash(m)
				}
				us := node(f.nodes["us"][1])
				require.NoError(t, us.PromoteRegion(bounded(t, time.Minute)))
				f.Eventually(time.Minute, "it is a voter again, and leads", func() bool {
					return us.TransferLeadership(bounded(t, time.Minute), us.NodeID()) == nil
				})
				before := f.nodes["us"][0].Store().Stats()
				for i := range 10 {
					_, err := us.ApplyBatch(bounded(t, time.Minute), []*replication.Command{create(t, fmt.Sprint("n", i), fmt.Sprint("r", i))})
					require.NoError(t, err, "the first answer, not %q: it was made again", replication.ErrExists)
				}
				require.Equal(t, before.Digest, f.leader("us").Store().Stats().Digest)
				for _, m := range f.nodes["us"] {
					_, err := node(m).ApplyBatch(bounded(t, time.Minute), []*replication.Command{create(t, "other", "r3")})
					require.ErrorIs(t, err, replication.ErrRequestIDReused)
				}
				if way == "state" { // a verdict is not in the stream
					require.ErrorIs(t, us.Apply(refused, time.Minute), replication.ErrNotFound)
				}
				require.NoError(t, us.Apply(create(t, "n3", "r3"), time.Minute), "still")
			})
		})
	}
}

// afresh gives a node an empty disk and waits until it has a snapshot.
func (f *federation) afresh(m *testharness.Member) {
	f.Crash(m)
	f.Wipe(m)
	name, _ := regionOf(m, f.regions)
	leader := node(f.leader(name))
	require.NoError(f.t, leader.TakeSnapshot(bounded(f.t, time.Minute)))
	require.NoError(f.t, leader.RemoveMember(bounded(f.t, time.Minute), m.ID, false))
	require.NoError(f.t, f.Start(f.t.Context(), m))
	f.Eventually(time.Minute, "it has caught up", func() bool { return m.Replicator().Health().Ready })
	f.converged(time.Minute)
}
