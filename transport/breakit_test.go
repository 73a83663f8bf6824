package transport

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// TestCutOffPeerLeavesOutcomesOpen: the requests of this node that wait on the
// connection may have been carried out. The reason why the connection ends must
// not read like a peer's answer that they were not.
func TestCutOffPeerLeavesOutcomesOpen(t *testing.T) {
	tr, err := New(Options{NodeID: "a", Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	require.NoError(t, err)
	defer tr.Close()
	here, there := net.Pipe()
	defer there.Close()
	raw, ok := tr.track(here)
	require.True(t, ok)
	c := newConn(tr, &session{conn: raw, raw: raw, r: bufio.NewReader(raw), maxFrame: 1 << 20, kind: replication.StreamRPC,
		peer: replication.Peer{NodeID: "b", Addr: "b", Hello: true}})
	for range sendQueueFrames { // the peer reads nothing
		c.send <- &outgoing{}
	}
	err = c.refuse(&envelope{Type: int(replication.MsgStatus), ID: 1, HasID: true})
	require.Error(t, err)
	require.Equal(t, "internal", replication.ErrorCode(err))
	c.close(err)
}
