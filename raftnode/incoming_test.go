package raftnode

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/stretchr/testify/require"
)

// TestAnOlderSnapshotDoesNotReachRaft: it would set what Raft has applied back
// to before the log's first entry, and Raft would panic there.
func TestAnOlderSnapshotDoesNotReachRaft(t *testing.T) {
	in := make(chan raft.RPC)
	i := &incoming{first: func() (uint64, error) { return 10, nil }, in: in, out: make(chan raft.RPC), done: make(chan struct{})}
	ended := make(chan struct{})
	go func() { i.run(); close(ended) }()
	defer func() { close(i.done); <-ended }()

	body := strings.NewReader("the whole state")
	answers := make(chan raft.RPCResponse, 1)
	in <- raft.RPC{Command: &raft.InstallSnapshotRequest{LastLogIndex: 8, Term: 3}, Reader: body, RespChan: answers}
	select {
	case a := <-answers:
		require.NoError(t, a.Error)
		require.True(t, a.Response.(*raft.InstallSnapshotResponse).Success)
		require.Zero(t, body.Len(), "what follows on the connection is the next request")
	case <-i.out:
		t.Fatal("an older snapshot was passed on")
	case <-time.After(time.Minute):
		t.Fatal("not answered")
	}
	in <- raft.RPC{Command: &raft.InstallSnapshotRequest{LastLogIndex: 9}}
	require.EqualValues(t, 9, (<-i.out).Command.(*raft.InstallSnapshotRequest).LastLogIndex, "the log goes on behind this one")
}
