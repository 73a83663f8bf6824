package transport

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// heartbeatEcho answers a heartbeat with its own position.
func heartbeatEcho(_ context.Context, r *replication.Request) (any, error) {
	var h replication.HeartbeatRequest
	err := json.Unmarshal(r.Payload, &h)
	return &replication.HeartbeatResponse{WALPosition: h.WALPosition}, err
}

// TestPlainDialerMatchesAnswersOfManyCallers: without request IDs answers come
// in the order in which requests went out, whichever goroutine sent them.
func TestPlainDialerMatchesAnswersOfManyCallers(t *testing.T) {
	server := newTransport(t, "s", nil)
	server.Handle(replication.MsgHeartbeat, heartbeatEcho)
	dialer := newTransport(t, "d", func(o *Options) { o.PlainDial = true })
	c := connect(t, dialer, serve(t, server, "127.0.0.1:0"))
	var wg sync.WaitGroup
	for g := range uint64(16) {
		wg.Go(func() {
			for i := range uint64(500) {
				want := g<<32 | i
				resp, err := c.SendHeartbeat(t.Context(), &replication.HeartbeatRequest{WALPosition: want})
				if err != nil || resp.WALPosition != want {
					t.Errorf("asked %x: %v, %v", want, resp, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestPlainCallersLearnThatTheConnectionEnded: those written and those still
// queued alike.
func TestPlainCallersLearnThatTheConnectionEnded(t *testing.T) {
	server := newTransport(t, "s", nil)
	entered := make(chan struct{}, 1)
	server.Handle(replication.MsgHeartbeat, func(ctx context.Context, _ *replication.Request) (any, error) {
		select {
		case entered <- struct{}{}:
		default:
		}
		<-ctx.Done()
		return nil, ctx.Err()
	})
	dialer := newTransport(t, "d", func(o *Options) { o.PlainDial = true })
	c := connect(t, dialer, serve(t, server, "127.0.0.1:0"))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	errs := make(chan error, 40)
	for range cap(errs) {
		go func() { _, err := c.SendHeartbeat(ctx, &replication.HeartbeatRequest{}); errs <- err }()
	}
	<-entered
	require.NoError(t, server.Close())
	for range cap(errs) {
		require.Error(t, <-errs)
	}
	require.NoError(t, ctx.Err(), "they learned it from the connection, not from their deadline")
}

// TestCallsWhileTheConnectionEnds: each gets an error, whatever the instant.
func TestCallsWhileTheConnectionEnds(t *testing.T) {
	server := newTransport(t, "s", nil)
	server.Handle(replication.MsgHeartbeat, heartbeatEcho)
	addr := serve(t, server, "127.0.0.1:0")
	for range 50 {
		dialer := newTransport(t, "d", nil)
		c := connect(t, dialer, addr)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for {
					if _, err := c.SendHeartbeat(t.Context(), &replication.HeartbeatRequest{}); err != nil {
						return
					}
				}
			})
		}
		_, err := c.SendHeartbeat(t.Context(), &replication.HeartbeatRequest{})
		require.NoError(t, err)
		require.NoError(t, dialer.Close())
		wg.Wait()
	}
}

func TestConnectionHandlerCanSendRequests(t *testing.T) {
	server, dialer := newTransport(t, "s", nil), newTransport(t, "d", nil)
	dialer.Handle(replication.MsgHeartbeat, heartbeatEcho)
	bound, err := server.Bind(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	got, done := make(chan uint64, 1), make(chan error, 1)
	go func() {
		done <- server.Listen(context.Background(), "127.0.0.1:0", func(c replication.PeerConnection) {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			resp, err := c.SendHeartbeat(ctx, &replication.HeartbeatRequest{WALPosition: 7})
			if err != nil {
				resp = &replication.HeartbeatResponse{}
			}
			got <- resp.WALPosition
		})
	}()
	connect(t, dialer, bound.String())
	require.Equal(t, uint64(7), <-got)
	require.NoError(t, server.Close())
	require.NoError(t, <-done)
}

// TestClientCertificateCheckDemandsHello: a verified certificate alone does not
// open the documented messages.
func TestClientCertificateCheckDemandsHello(t *testing.T) {
	ca, hour := newAuthority(t), time.Now().Add(time.Hour)
	server := newTransport(t, "s", withTLS(t, ca.issue(t.TempDir(), 2, hour)))
	server.Handle(replication.MsgHeartbeat, heartbeatEcho)
	addr := serve(t, server, "127.0.0.1:0")
	client, err := NewTLS(ca.issue(t.TempDir(), 3, hour), server.opts.Logger)
	require.NoError(t, err)
	raw, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	c := tls.Client(raw, client.client(addr))
	defer c.Close()
	setDeadline(c, patience)
	_, err = c.Write(frameOf(`{"t":7,"n":"x","p":{"WALPosition":1}}`))
	require.NoError(t, err)
	frame, err := readFrame(bufio.NewReader(c), 1<<20)
	require.NoError(t, err)
	require.Contains(t, string(frame), `"code":"unauthenticated"`)
	require.Equal(t, uint64(1), server.Stats().HandshakesRejected["no_proof"])
}
