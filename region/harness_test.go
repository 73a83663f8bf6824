package region_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	"github.com/nornicdb/replication/region"
	"github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// federation is some regions of three nodes each, on one simulated network.
type federation struct {
	*testharness.Cluster
	t       *testing.T
	regions []string
	nodes   map[string][]*testharness.Member
}

const perRegion = 3

// regionOf says in which region a member is: n1 to n3 in the first, and so on.
func regionOf(m *testharness.Member, regions []string) (name string, place int) {
	var number int
	if _, err := fmt.Sscanf(m.ID, "n%d", &number); err != nil {
		panic(err)
	}
	return regions[(number-1)/perRegion], (number - 1) % perRegion
}

// newFederation makes and starts the regions.
func newFederation(t *testing.T, seed uint64, regions []string, configure func(region string, cfg *replication.Config)) *federation {
	return newFederationOver(t, seed, regions, configure, nil)
}

// newFederationOver is newFederation with something between the replicators and
// their storages.
func newFederationOver(t *testing.T, seed uint64, regions []string, configure func(region string, cfg *replication.Config),
	wrap func(*testharness.Member, replication.TxStorage) replication.Storage) *federation {
	f := &federation{t: t, regions: regions, nodes: make(map[string][]*testharness.Member)}
	f.Cluster = testharness.NewCluster(t, testharness.ClusterConfig{Seed: seed, Nodes: perRegion * len(regions), Deferring: seed%2 == 1, Wrap: wrap,
		Configure: func(m *testharness.Member, cfg *replication.Config) {
			own, place := regionOf(m, regions)
			cfg.Mode = replication.ModeMultiRegion
			cfg.Raft.ClusterID = "cluster-" + own
			cfg.Raft.Bootstrap = place == 0
			cfg.Region.RegionID = own
			for _, o := range m.Peers() {
				if other, _ := regionOf(o, regions); other == own {
					cfg.Raft.Peers = append(cfg.Raft.Peers, replication.RaftPeer{ID: o.ID, Addr: o.Addr})
				} else {
					cfg.Region.RemoteRegions = append(cfg.Region.RemoteRegions, replication.RemoteRegion{Region: other, Addr: o.Addr})
				}
			}
			if configure != nil {
				configure(own, cfg)
			}
		},
		Modes: func(m *testharness.Member) replication.Modes {
			return replication.Modes{replication.ModeMultiRegion: region.Mode(m.RaftStores()...)}
		}})
	for _, m := range f.Members {
		own, _ := regionOf(m, regions)
		f.nodes[own] = append(f.nodes[own], m)
	}
	f.StartAll(t.Context())
	return f
}

// node is a member's replicator; the test fails where it is down.
func node(m *testharness.Member) *region.Node { return m.Replicator().(*region.Node) }

// leader waits for a region's leader.
func (f *federation) leader(name string) (found *testharness.Member) {
	f.t.Helper()
	f.Eventually(time.Minute, name+" has a leader", func() bool {
		for _, m := range f.nodes[name] {
			if m.Running() && m.Replicator().IsLeader() {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

// apply applies a command at a region's leader.
func (f *federation) apply(name string, cmd *replication.Command) {
	f.t.Helper()
	require.NoError(f.t, f.leader(name).Replicator().Apply(cmd, time.Minute))
}

func put(t *testing.T, id string, props map[string]any) *replication.Command {
	cmd, err := replication.NewNodeCommand(replication.CmdPutNode, &replication.Node{ID: replication.NodeID(id), Labels: []string{"L"}, Properties: props})
	require.NoError(t, err)
	return cmd
}

func set(t *testing.T, id, key string, value any) *replication.Command {
	cmd, err := replication.NewSetProperty(replication.NodeID(id), key, value)
	require.NoError(t, err)
	return cmd
}

// converged waits until every running node of every region has applied the
// same of all streams and holds the same graph. A node shows its graph a moment
// before it says what it has applied, so one that differs is asked again: what
// has diverged stays so.
func (f *federation) converged(within time.Duration) {
	f.t.Helper()
	digests := make(map[string]string)
	if f.Eventually(within, "all regions have applied the same and hold the same graph", func() bool {
		before := f.inStep()
		for _, m := range f.Members {
			digests[m.ID] = m.Store().Stats().Digest
		}
		return before != nil && slices.Equal(before, f.inStep()) && len(slices.Compact(slices.Sorted(maps.Values(digests)))) == 1
	}) {
		return
	}
	for _, m := range f.Members {
		if m.Running() {
			f.t.Logf("%s %s %+v %+v", m.ID, digests[m.ID], node(m).Status(), m.Health())
		}
	}
}

// inStep returns what all running nodes have applied of all streams; nil: they
// have not applied the same, or one has still something to tell.
func (f *federation) inStep() (applied []uint64) {
	for _, m := range f.Members {
		if !m.Running() {
			continue
		}
		status := node(m).Status()
		if applied == nil {
			applied = slices.Clone(status.Applied[:])
		}
		if status.Self == "" || status.NeedsMark || !slices.Equal(applied, status.Applied[:]) {
			return nil
		}
	}
	return applied
}

// property of a node as a member shows it.
func property(t *testing.T, m *testharness.Member, id, key string) any {
	t.Helper()
	v, err := m.Store().Property(replication.NodeID(id), key)
	require.NoError(t, err)
	return v
}

// virtually runs a test in a bubble of virtual time.
func virtually(t *testing.T, fn func(t *testing.T)) {
	bubble.Test(t, func(t *testing.T) {
		t.Cleanup(func() { <-time.After(time.Minute) }) // hashicorp/raft leaves RPCs to their timeout; virtual
		fn(t)
	})
}

func bounded(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
