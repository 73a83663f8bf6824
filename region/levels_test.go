package region_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region"
	"github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// TestConfiguredLevels: what goes beyond a region is refused when the node is
// made, not promised and not given.
func TestConfiguredLevels(t *testing.T) {
	all := []replication.Consistency{replication.ConsistencyOne, replication.ConsistencyLocalOne, replication.ConsistencyQuorum,
		replication.ConsistencyLocalQuorum, replication.ConsistencyAll}
	reads := map[replication.Consistency]bool{replication.ConsistencyOne: true, replication.ConsistencyLocalOne: true, replication.ConsistencyLocalQuorum: true}
	writes := map[replication.Consistency]bool{"": true, replication.ConsistencyLocalQuorum: true}
	try := func(read, write replication.Consistency) error {
		cfg := replication.DefaultConfig()
		cfg.Mode, cfg.NodeID, cfg.BindAddr, cfg.Region.RegionID = replication.ModeMultiRegion, "n1", "127.0.0.1:7688", "eu"
		cfg.ReadConsistency, cfg.WriteConsistency = read, write
		r, err := replication.New(cfg, testharness.NewMemStore(), replication.Modes{replication.ModeMultiRegion: region.New})
		if err == nil {
			require.NoError(t, r.Shutdown())
		}
		return err
	}
	for _, level := range all {
		for given, err := range map[bool]error{reads[level]: try(level, ""), writes[level]: try(replication.ConsistencyOne, level)} {
			if given {
				require.NoError(t, err, level)
			} else {
				require.ErrorIs(t, err, replication.ErrInvalidConfig, level)
			}
		}
	}
}

// TestReadLevels: LOCAL_QUORUM sees on every node what was acknowledged in the
// region before, and needs the quorum; ONE and LOCAL_ONE ask nobody; QUORUM and
// ALL are across regions, and refused.
func TestReadLevels(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 28, two, nil)
		follower := f.nodes["eu"][0]
		if follower == f.leader("eu") {
			follower = f.nodes["eu"][1]
		}
		for i := range 20 {
			f.apply("eu", putX(t, i))
			position, err := node(follower).ReadBarrier(bounded(t, time.Minute), replication.ConsistencyLocalQuorum)
			require.NoError(t, err)
			require.NoError(t, node(follower).WaitApplied(bounded(t, time.Minute), position))
			require.EqualValues(t, i, property(t, follower, "x", "k"))
		}
		for _, m := range f.nodes["eu"] {
			if m != follower {
				f.Crash(m)
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err := node(follower).ReadBarrier(ctx, replication.ConsistencyLocalQuorum)
		require.Error(t, err, "there is no quorum")
		for _, level := range []replication.Consistency{replication.ConsistencyOne, replication.ConsistencyLocalOne} {
			_, err := node(follower).ReadBarrier(bounded(t, time.Minute), level)
			require.NoError(t, err)
		}
		for _, level := range []replication.Consistency{replication.ConsistencyQuorum, replication.ConsistencyAll, "SOME"} {
			_, err := node(f.nodes["us"][0]).ReadBarrier(bounded(t, time.Minute), level)
			require.ErrorIs(t, err, replication.ErrUnsupported, level)
		}
	})
}

func putX(t *testing.T, i int) *replication.Command { return put(t, "x", map[string]any{"k": i}) }

// recorder is a storage whose server knows one query: it creates a node that
// says how many there were.
type recorder struct {
	replication.TxStorage
	replication.StorageSnapshotter
	m *testharness.Member
}

// RecordEffects implements replication.EffectRecorder.
func (r recorder) RecordEffects(cmd *replication.Command) ([]*replication.Command, uint64, error) {
	s := r.m.Store().Stats()
	c, err := replication.NewNodeCommand(replication.CmdCreateNode, &replication.Node{
		ID: replication.NodeID(fmt.Sprint("drawn-", r.m.ID, "-", s.Position)), Properties: map[string]any{"before": s.Nodes}})
	return []*replication.Command{c}, s.Position, err
}

// TestOpaqueWritesTravelAsTheirEffects: what a query did in its region is what
// the others get; a retry is known, in its region and in the next write region.
func TestOpaqueWritesTravelAsTheirEffects(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederationOver(t, 30, two, func(_ string, cfg *replication.Config) { cfg.Region.WriteRegion = "eu" },
			func(m *testharness.Member, s replication.TxStorage) replication.Storage {
				return recorder{s, s.(replication.StorageSnapshotter), m}
			})
		query := func(i int) *replication.Command {
			return &replication.Command{Type: replication.CmdCypher, Data: []byte(`{"query":"CREATE (n)"}`), RequestID: fmt.Sprint("q", i)}
		}
		for i := range 5 {
			require.NoError(t, f.nodes[two[i%2]][i%3].Replicator().Apply(query(i), time.Minute))
			require.NoError(t, f.nodes[two[i%2]][i%3].Replicator().Apply(query(i), time.Minute))
		}
		batch := []*replication.Command{query(9), put(t, "x", nil)}
		_, err := node(f.leader("eu")).ApplyBatch(bounded(t, time.Minute), batch)
		require.ErrorIs(t, err, replication.ErrOpaqueWrite, "its effects cannot be recorded in the midst of others")
		f.converged(time.Minute)
		require.Equal(t, 5, f.nodes["us"][0].Store().Stats().Nodes)
		for _, m := range f.nodes["eu"] {
			f.Crash(m)
		}
		us := node(f.nodes["us"][2])
		require.NoError(t, us.PromoteRegion(bounded(t, time.Minute)))
		for i := range 5 {
			require.NoError(t, us.Apply(query(i), time.Minute))
		}
		require.Equal(t, 5, f.leader("us").Store().Stats().Nodes)
	})
}
