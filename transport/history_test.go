package transport

import (
	"net"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// TestRaftStreamsAreOpenWithinOneHistoryOnly: entries of another log are a way to
// truncate this one. Messages still go through, so that the nodes can tell.
func TestRaftStreamsAreOpenWithinOneHistoryOnly(t *testing.T) {
	for name, tc := range map[string]struct {
		dialer, server string
		open           bool
	}{
		"the same": {"H", "H", true}, "none yet here": {"", "H", true}, "none yet there": {"H", "", true}, "neither": {"", "", true},
		"recovered without it": {"H", "H+1", false}, "another": {"G", "H", false},
	} {
		t.Run(name, func(t *testing.T) {
			server, dialer := newTransport(t, "s", nil), newTransport(t, "d", nil)
			server.SetHistory(func() string { return tc.server })
			dialer.SetHistory(func() string { return tc.dialer })
			server.HandleStream(replication.StreamRaft, func(_ replication.Peer, c net.Conn) { _ = c.Close() })
			server.Handle(replication.MsgFetch, echo)
			addr := serve(t, server, "127.0.0.1:0")
			c, err := dialer.OpenStream(t.Context(), addr, replication.StreamRaft)
			if tc.open {
				require.NoError(t, err)
				require.NoError(t, c.Close())
			} else {
				require.ErrorIs(t, err, replication.ErrForeignHistory)
				require.Eventually(t, func() bool { return server.Stats().HandshakesRejected["history"] == 1 }, patience, time.Millisecond)
				require.Equal(t, uint64(1), dialer.Stats().DialsRefused["foreign_history"])
			}
			rpc, err := dialer.Connect(t.Context(), addr)
			require.NoError(t, err)
			require.NoError(t, rpc.Close())
		})
	}
}
