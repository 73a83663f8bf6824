package region_test

import (
	"testing"
	"time"

	"github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// TestLeadershipIsTransferred: an operator's order to a node that does not lead
// reaches the region's leader.
func TestLeadershipIsTransferred(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 20, two, nil)
		leader := f.leader("eu")
		var follower *testharness.Member
		for _, m := range f.nodes["eu"] {
			if m != leader {
				follower = m
			}
		}
		require.NoError(t, node(follower).TransferLeadership(bounded(t, time.Minute), follower.ID))
		f.Eventually(time.Minute, "it leads", func() bool { return follower.Replicator().IsLeader() })
	})
}
