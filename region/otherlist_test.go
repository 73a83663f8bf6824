package region_test

import (
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// TestALeaderOfAnotherEnvironmentMergesNothing: a node that begins empty, with a
// list of regions in which the others have other places, learns from the log that
// it is wrong, and can be elected all the same. What another region sends must not
// be merged as a third one's.
func TestALeaderOfAnotherEnvironmentMergesNothing(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 66, []string{"ap", "eu", "us"}, nil)
		m := f.nodes["us"][2]
		for f.leader("us") == m {
			require.NoError(t, node(m).TransferLeadership(bounded(t, time.Minute), f.nodes["us"][0].ID))
			<-time.After(time.Second) // virtual
		}
		f.Crash(m)
		f.Wipe(m)
		for i, r := range m.Config.Region.RemoteRegions {
			if r.Region == "ap" { // "eu" has its place then
				m.Config.Region.RemoteRegions[i].Region = "fr"
			}
		}
		require.NoError(t, f.Start(t.Context(), m))
		f.Eventually(time.Minute, "it says that it is wrong", func() bool { return m.Replicator().Health().State == "region_stopped" })
		f.Eventually(time.Minute, "it leads", func() bool {
			leader := f.leader("us")
			return leader == m || node(leader).TransferLeadership(bounded(t, time.Minute), m.ID) == nil && f.leader("us") == m
		})
		f.apply("eu", put(t, "of-eu", nil))
		<-time.After(20 * time.Second) // virtual: it is sent, again and again
		for _, m := range f.nodes["us"] {
			require.Zero(t, node(m).Status().Applied[0], "ap has written nothing")
		}

		require.NoError(t, f.Stop(m))
		for i, r := range m.Config.Region.RemoteRegions {
			if r.Region == "fr" {
				m.Config.Region.RemoteRegions[i].Region = "ap"
			}
		}
		require.NoError(t, f.Start(t.Context(), m))
		f.apply("ap", put(t, "of-ap", nil))
		f.converged(time.Minute)
		for _, id := range []replication.NodeID{"of-eu", "of-ap"} {
			_, err := m.Store().Node(id)
			require.NoError(t, err)
		}
	})
}
