package raftnode

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestEmptyNodeJoinsTheRecoveredCluster: not what is left of the one before it.
func TestEmptyNodeJoinsTheRecoveredCluster(t *testing.T) {
	left := withoutSuperseded([]peerView{{id: "old", history: "H"}, {id: "silent"}, {id: "new", history: "H+1"}, {id: "older", history: "H"},
		{id: "stranger", history: "X"}})
	var ids []string
	for _, v := range left {
		ids = append(ids, v.id)
	}
	require.Equal(t, []string{"silent", "new", "stranger"}, ids)
}
