package region_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// TestALeaderOfAnotherEnvironmentMergesNothing: a node that begins empty, with a
// list of regions in which the others have other places, learns from the log that
// it is wrong, and can be elected all the same. What another region sends must not
// be merged as a third one's.
func TestALeaderOfAnotherEnvironmentMergesNothing(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 66, []string{"ap", "eu", "us"}, nil)
		good, bad := f.nodes["us"][0], f.nodes["us"][1:]
		f.leads(good)
		for _, m := range bad {
			f.misplace(m)
		}
		f.Crash(good) // or it would be handed leadership
		f.leader("us")
		f.apply("eu", put(t, "of-eu", nil))
		<-time.After(20 * time.Second) // virtual: it is sent, again and again
		for _, m := range bad {
			require.Zero(t, node(m).Status().Applied[0], "ap has written nothing")
		}
		require.Contains(t, fmt.Sprint(f.leader("eu").Health().Reasons), "does not get to region us: not ready: invalid configuration")

		for _, m := range bad {
			require.NoError(t, f.Stop(m))
			for i, r := range m.Config.Region.RemoteRegions {
				if r.Region == "fr" {
					m.Config.Region.RemoteRegions[i].Region = "ap"
				}
			}
		}
		f.startAll("us")
		f.apply("ap", put(t, "of-ap", nil))
		f.converged(time.Minute)
		f.Eventually(time.Minute, "eu tells of nothing any more", func() bool { return len(f.leader("eu").Health().Reasons) == 0 })
		for _, id := range []replication.NodeID{"of-eu", "of-ap"} {
			_, err := bad[0].Store().Node(id)
			require.NoError(t, err)
		}
	})
}

// leads makes a node its region's leader.
func (f *federation) leads(m *testharness.Member) {
	f.t.Helper()
	name, _ := regionOf(m, f.regions)
	f.Eventually(time.Minute, m.ID+" leads", func() bool {
		leader := f.leader(name)
		return leader == m || node(leader).TransferLeadership(bounded(f.t, time.Minute), m.ID) == nil && f.leader(name) == m
	})
}

// misplace makes a node begin empty, with a list of regions that is not the
// region's.
func (f *federation) misplace(m *testharness.Member) {
	f.t.Helper()
	f.Crash(m)
	f.Wipe(m)
	for i, r := range m.Config.Region.RemoteRegions {
		if r.Region == "ap" {
			m.Config.Region.RemoteRegions[i].Region = "fr"
		}
	}
	require.NoError(f.t, f.Start(f.t.Context(), m))
	f.Eventually(time.Minute, "it says that it is wrong", func() bool {
		return m.Replicator().Health().State == "region_stopped" && f.voter(m)
	})
}

// voter: the node's leader says that it is a voter.
func (f *federation) voter(m *testharness.Member) bool {
	name, _ := regionOf(m, f.regions)
	status, err := node(f.leader(name)).ClusterStatus(bounded(f.t, time.Minute))
	require.NoError(f.t, err)
	return slices.ContainsFunc(status.Members, func(p replication.PeerHealth) bool { return p.ID == m.ID && p.Voter })
}

// TestALeaderOfAnotherEnvironmentHandsOn: a node that can do nothing as its
// region's leader gives leadership to one that can; where there is none it keeps
// it, rather than passing it to and fro.
func TestALeaderOfAnotherEnvironmentHandsOn(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 68, []string{"ap", "eu", "us"}, nil)
		good, bad := f.nodes["us"][0], f.nodes["us"][1:]
		f.leads(good)
		for _, m := range bad {
			f.misplace(m)
		}
		for range 3 {
			require.NoError(t, node(good).TransferLeadership(bounded(t, time.Minute), bad[0].ID))
			require.NoError(t, f.leader("us").Replicator().Apply(put(t, "x", nil), time.Minute))
			f.Eventually(30*time.Second, "the good node leads", func() bool { return f.leader("us") == good })
		}

		f.Crash(good)
		leader := f.leader("us")
		term := leader.Replicator().Health().Term
		f.apply("eu", put(t, "of-eu", nil))
		<-time.After(2 * time.Minute) // virtual: it is sent, again and again
		require.Equal(t, leader, f.leader("us"))
		require.Equal(t, term, leader.Replicator().Health().Term, "leadership stayed")
		require.Error(t, leader.Replicator().Apply(put(t, "y", nil), time.Second))
		for _, m := range bad {
			require.Zero(t, node(m).Status().Applied[0], "ap has written nothing")
		}

		require.NoError(t, f.Start(t.Context(), good))
		f.Eventually(time.Minute, "the good node leads", func() bool { return f.leader("us") == good })
		f.apply("us", put(t, "z", nil))
		f.converged(time.Minute)
	})
}

// TestANodeThatTakesItselfForAnotherRegions: it is one of us, and its environment
// says eu, the write region. It must not take writes as if it were of eu.
func TestANodeThatTakesItselfForAnotherRegions(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 90, []string{"ap", "eu", "us"}, func(_ string, cfg *replication.Config) { cfg.Region.WriteRegion = "eu" })
		f.apply("eu", put(t, "x", nil))
		f.converged(time.Minute)
		good, bad := f.nodes["us"][0], f.nodes["us"][2]
		f.leads(good)
		f.Crash(bad)
		f.Wipe(bad)
		bad.Config.Region.RegionID = "eu"
		for i, r := range bad.Config.Region.RemoteRegions {
			if r.Region == "eu" {
				bad.Config.Region.RemoteRegions[i].Region = "us"
			}
		}
		require.NoError(t, f.Start(t.Context(), bad))
		f.Eventually(time.Minute, "it says that it is wrong", func() bool { return bad.Replicator().Health().State == "region_stopped" })
		before := node(good).Status().Applied
		err := bad.Replicator().Apply(put(t, "y", nil), 5*time.Second)
		require.Error(t, err)
		require.NotErrorIs(t, err, replication.ErrUnknownOutcome)
		<-time.After(5 * time.Second) // virtual
		require.Equal(t, before[2], node(good).Status().Applied[2], "us has written nothing")
	})
}
