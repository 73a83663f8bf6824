package standby_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/standby"
	"github.com/nornicdb/replication/transport"
	"github.com/stretchr/testify/require"
)

// A peer that knows the documented messages alone replicates to a standby that
// has no history, and promotes it; once there is an epoch it changes nothing.
func TestPlainPeer(t *testing.T) {
	inBubble(t, func(c *replication.Config) { c.Secret = ""; c.HA.SyncMode = replication.SyncAsync }, func(t *testing.T, p *pair) {
		p.start(p.b)
		tr, err := transport.New(transport.Options{NodeID: "old", PlainDial: true, Logger: quietLogger(), Dial: p.net.dialer("10.0.0.9:1")})
		require.NoError(t, err)
		defer tr.Close()
		conn, err := tr.Connect(t.Context(), p.b.addr)
		require.NoError(t, err)
		defer conn.Close()
		entry := func(i uint64) *replication.WALEntry {
			return &replication.WALEntry{Position: i, Timestamp: time.Now(), Command: putNode(t, fmt.Sprint("n", i), i)}
		}
		resp, err := conn.SendWALBatch(t.Context(), []*replication.WALEntry{entry(1), entry(2)})
		require.NoError(t, err)
		require.Equal(t, &replication.WALBatchResponse{AckedPosition: 2, ReceivedPosition: 2}, resp)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.NoError(t, p.b.repl.(replication.ConsistentReader).WaitApplied(ctx, 2))
		require.True(t, p.has(p.b, "n2"))
		beat, err := conn.SendHeartbeat(t.Context(), &replication.HeartbeatRequest{NodeID: "old", Role: "primary", WALPosition: 2})
		require.NoError(t, err)
		require.Equal(t, "standby", beat.Role)
		require.Contains(t, fmt.Sprint(p.b.repl.Health().Reasons), "unfenced")
		fence, err := conn.SendFence(t.Context(), &replication.FenceRequest{})
		require.NoError(t, err)
		require.False(t, fence.Fenced)
		promoted, err := conn.SendPromote(t.Context(), &replication.PromoteRequest{})
		require.NoError(t, err)
		require.True(t, promoted.Ready, promoted.Error)
		require.True(t, p.b.repl.IsLeader())
		p.write(p.b, "own")

		resp, err = conn.SendWALBatch(t.Context(), []*replication.WALEntry{entry(3), entry(4)})
		require.NoError(t, err)
		require.EqualValues(t, 3, resp.AckedPosition, "the position, and nothing changes")
		require.False(t, p.has(p.b, "n4"))
		promoted, err = conn.SendPromote(context.Background(), &replication.PromoteRequest{})
		require.NoError(t, err)
		require.False(t, promoted.Ready)
		require.NotContains(t, fmt.Sprint(p.b.repl.Health().Reasons), "unfenced")
	})
}

// A batch without epoch waits for the disk. If the node has become part of a pair
// before it goes on, its positions are those of the primary's entries: the Storage
// gets none of them before they are acknowledged, and the sender is not told that
// they are its own.
func TestPlainBatchThatIsLateCommitsNothing(t *testing.T) {
	inBubble(t, func(c *replication.Config) { c.HA.SyncMode = replication.SyncFull }, func(t *testing.T, p *pair) {
		p.start(p.a, p.b)
		p.admitted(p.a)
		p.write(p.a, "n1")
		p.same()
		for _, n := range []*node{p.a, p.b} {
			before := standby.Committed(n.repl)
			require.ErrorIs(t, standby.CommitPlain(t.Context(), n.repl, before+100), replication.ErrNotLeader)
			require.Equal(t, before, standby.Committed(n.repl))
		}
	})
}

// A plain primary that dies while its last batch waits for the standby's disk is
// replaced nevertheless: what was taken is part of what the standby has.
func TestPlainPeerThatDiesWithinABatchIsReplaced(t *testing.T) {
	inBubble(t, func(c *replication.Config) { c.Secret = ""; c.HA.SyncMode = replication.SyncAsync }, func(t *testing.T, p *pair) {
		p.start(p.b)
		plain := func() replication.PeerConnection {
			tr, err := transport.New(transport.Options{NodeID: "old", PlainDial: true, Logger: quietLogger(), Dial: p.net.dialer("10.0.0.9:1")})
			require.NoError(t, err)
			t.Cleanup(func() { _ = tr.Close() })
			conn, err := tr.Connect(t.Context(), p.b.addr)
			require.NoError(t, err)
			return conn
		}
		old := plain()
		send := func(ctx context.Context, i uint64) error {
			_, err := old.SendWALBatch(ctx, []*replication.WALEntry{{Position: i, Timestamp: time.Now(), Command: putNode(t, fmt.Sprint("n", i), i)}})
			return err
		}
		require.NoError(t, send(t.Context(), 1))
		hang := make(chan struct{})
		p.b.disk.set(nil, hang)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.Error(t, send(ctx, 2))
		require.NoError(t, old.Close())
		<-time.After(time.Second) // virtual: the handler ends
		p.b.disk.set(nil, nil)
		close(hang)
		promoted, err := plain().SendPromote(t.Context(), &replication.PromoteRequest{})
		require.NoError(t, err)
		require.True(t, promoted.Ready, promoted.Error)
		require.True(t, p.has(p.b, "n2"))
	})
}
