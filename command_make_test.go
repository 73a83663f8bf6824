package replication_test

import (
	"context"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// A command is not made of what it is not about: it would be refused far from where
// the mistake is.
func TestCommandsAreMadeOfWhatTheyAreAbout(t *testing.T) {
	for err, make := range map[string]func() (*replication.Command, error){
		"is not about a node": func() (*replication.Command, error) {
			return replication.NewNodeCommand(replication.CmdPutEdge, &replication.Node{ID: "a"})
		},
		"no node": func() (*replication.Command, error) { return replication.NewNodeCommand(replication.CmdPutNode, nil) },
		"is not about an edge": func() (*replication.Command, error) {
			return replication.NewEdgeCommand(replication.CmdDeleteEdge, &replication.Edge{StartNode: "a", Type: "T", EndNode: "b"})
		},
		"no edge": func() (*replication.Command, error) { return replication.NewEdgeCommand(replication.CmdPutEdge, nil) },
	} {
		cmd, got := make()
		require.ErrorIs(t, got, replication.ErrInvalidCommand, err)
		require.ErrorContains(t, got, err)
		require.Nil(t, cmd)
	}
	require.ErrorIs(t, replication.Dispatch(openStore(t), nil), replication.ErrInvalidCommand)
}

// Standalone mode is started once and waits for a positive time, as the others are.
func TestStandaloneIsStartedOnce(t *testing.T) {
	r := startStandalone(t, openStore(t))
	require.ErrorIs(t, r.Start(context.Background()), replication.ErrInvalidConfig)
	require.True(t, r.IsLeader(), "it goes on")
	require.ErrorIs(t, r.WaitForLeader(0), replication.ErrInvalidTimeout)
	require.NoError(t, r.WaitForLeader(time.Second))
}
