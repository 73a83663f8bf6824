package transport

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = time.Minute // of a machine that may stand still
	secret   = "0123456789abcdef"
)

func newTransport(t *testing.T, id string, change func(*Options)) *Transport {
	t.Helper()
	o := Options{NodeID: id, ClusterID: "c", Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if change != nil {
		change(&o)
	}
	tr, err := New(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, tr.Close()) })
	return tr
}

// serve starts a server on a free port.
func serve(t *testing.T, tr *Transport, addr string) string {
	t.Helper()
	bound, err := tr.Bind(t.Context(), addr)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- tr.Listen(context.Background(), addr, nil) }()
	t.Cleanup(func() {
		require.NoError(t, tr.Close())
		require.NoError(t, <-done)
	})
	return bound.String()
}

func withSecret(s string) func(*Options) { return func(o *Options) { o.Secret = []byte(s) } }

func connect(t *testing.T, tr *Transport, addr string) *PeerConn {
	t.Helper()
	c, err := tr.Connect(t.Context(), addr)
	require.NoError(t, err)
	return c.(*PeerConn)
}

func echo(_ context.Context, r *replication.Request) (any, error) {
	var v map[string]any
	return v, json.Unmarshal(r.Payload, &v)
}

func TestCallsArePipelinedAndAnsweredToTheirCallers(t *testing.T) {
	for name, change := range map[string]func(*Options){"checksums": nil, "secret": withSecret(secret)} {
		t.Run(name, func(t *testing.T) {
			server, dialer := newTransport(t, "s", change), newTransport(t, "d", change)
			release := make(chan struct{})
			server.Handle(replication.MsgState, func(ctx context.Context, r *replication.Request) (any, error) {
				select {
				case <-release:
				case <-ctx.Done():
				}
				return echo(ctx, r)
			})
			server.Handle(replication.MsgFetch, echo)
			c := connect(t, dialer, serve(t, server, "127.0.0.1:0"))
			require.Equal(t, change != nil, c.Peer().Proven)
			slow := make(chan error, 1)
			go func() { slow <- c.Call(t.Context(), replication.MsgState, map[string]any{"slow": 1}, nil) }()
			var wg sync.WaitGroup
			for i := range 50 {
				wg.Go(func() {
					var out map[string]float64
					if err := c.Call(t.Context(), replication.MsgFetch, map[string]any{"i": i}, &out); err != nil || out["i"] != float64(i) {
						t.Errorf("call %d: %v %v", i, out, err)
					}
				})
			}
			wg.Wait() // the slow request did not hold them up
			close(release)
			require.NoError(t, <-slow)
		})
	}
}

func TestErrorsCrossTheWire(t *testing.T) {
	server, dialer := newTransport(t, "s", nil), newTransport(t, "d", nil)
	server.Handle(replication.MsgApply, func(context.Context, *replication.Request) (any, error) {
		return nil, &replication.NotLeaderError{LeaderID: "x", LeaderAddr: "h:1"}
	})
	c := connect(t, dialer, serve(t, server, "127.0.0.1:0"))
	err := c.Call(t.Context(), replication.MsgApply, nil, nil)
	var notLeader *replication.NotLeaderError
	require.ErrorAs(t, err, &notLeader)
	require.Equal(t, "h:1", notLeader.LeaderAddr)
	sent := &replication.UnconfirmedError{Position: 7, Reason: "no standby"}
	server.Handle(replication.MsgApply, func(context.Context, *replication.Request) (any, error) { return nil, fmt.Errorf("there: %w", sent) })
	err = c.Call(t.Context(), replication.MsgApply, nil, nil)
	var unconfirmed *replication.UnconfirmedError
	require.ErrorAs(t, err, &unconfirmed)
	require.EqualValues(t, 7, unconfirmed.Position)
	require.ErrorIs(t, err, replication.ErrUnknownOutcome)
	require.ErrorContains(t, err, "no standby")
	require.ErrorIs(t, c.Call(t.Context(), 99, nil, nil), replication.ErrUnsupported, "an unknown code is answered")
	vote, err := c.SendRaftVote(t.Context(), &replication.RaftVoteRequest{Term: 9})
	require.NoError(t, err)
	require.False(t, vote.VoteGranted)
	appended, err := c.SendRaftAppendEntries(t.Context(), &replication.RaftAppendEntriesRequest{Term: 9})
	require.NoError(t, err)
	require.False(t, appended.Success)
}

func TestHandshakesThatAreRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		server, dialer func(*Options)
		want           error
	}{
		"wrong secret":       {withSecret(secret), withSecret("fedcba9876543210"), replication.ErrUnauthenticated},
		"dialer without":     {withSecret(secret), nil, replication.ErrUnauthenticated},
		"server without":     {nil, withSecret(secret), replication.ErrUnauthenticated},
		"another cluster":    {nil, func(o *Options) { o.ClusterID = "other" }, replication.ErrWrongPeer},
		"wrong with cluster": {withSecret(secret), func(o *Options) { o.ClusterID, o.Secret = "other", []byte(secret) }, replication.ErrWrongPeer},
	} {
		t.Run(name, func(t *testing.T) {
			server, dialer := newTransport(t, "s", tc.server), newTransport(t, "d", tc.dialer)
			addr := serve(t, server, "127.0.0.1:0")
			_, err := dialer.Connect(t.Context(), addr)
			require.ErrorIs(t, err, tc.want)
			require.True(t, replication.NotSent(err))
		})
	}
}

func TestDialerChecksWhoAnswered(t *testing.T) {
	server, dialer := newTransport(t, "impostor", nil), newTransport(t, "d", nil)
	dialer.SetPeerCheck(func(_, id string) error {
		if id != "s" {
			return io.ErrUnexpectedEOF
		}
		return nil
	})
	_, err := dialer.Connect(t.Context(), serve(t, server, "127.0.0.1:0"))
	require.ErrorIs(t, err, replication.ErrWrongPeer)
}

// raw opens a plain TCP connection and sends bytes.
func raw(t *testing.T, addr string, data []byte) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	_, err = c.Write(data)
	require.NoError(t, err)
	return c
}

func frameOf(payload string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(payload))), payload...)
}

func TestHostileConnectionsAreRefusedCountedAndForgotten(t *testing.T) {
	dialer := newTransport(t, "d", withSecret(secret))
	start := func(timeout time.Duration) (*Transport, string) {
		server := newTransport(t, "s", func(o *Options) { o.Secret, o.HandshakeTimeout = []byte(secret), timeout })
		server.Handle(replication.MsgFetch, echo)
		return server, serve(t, server, "127.0.0.1:0")
	}
	patient, patientAddr := start(time.Hour) // what it counts is for the bytes, however slow the machine
	hasty, hastyAddr := start(300 * time.Millisecond)
	hello, err := json.Marshal(dialer.hello(replication.StreamRPC))
	require.NoError(t, err)
	greeting := frameOf(`{"t":21,"n":"d","p":` + string(hello) + `}`)
	for name, tc := range map[string]struct {
		bytes  []byte
		reason string
	}{
		"garbage":            {[]byte("GET / HTTP/1.1\r\n\r\n"), "malformed"},
		"not an envelope":    {frameOf(`[1,2]`), "malformed"},
		"zero length":        {[]byte{0, 0, 0, 0}, "malformed"},
		"enormous length":    {[]byte{0xff, 0xff, 0xff, 0xff}, "malformed"},
		"half a frame":       {[]byte{0, 0, 1, 0, '{'}, "silent"},
		"nothing":            {nil, "silent"},
		"message too early":  {frameOf(`{"t":7,"n":"x","p":{}}`), "no_proof"},
		"hello, then silent": {greeting, "no_proof"},
		"reflected proof":    {nil, "wrong_proof"},
		"no hello in hello":  {frameOf(`{"t":21,"n":"x","p":7}`), "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			server, addr := patient, patientAddr
			if tc.reason == "silent" || name == "hello, then silent" {
				server, addr = hasty, hastyAddr
			}
			before := server.Stats().HandshakesRejected[tc.reason]
			if name == "reflected proof" { // the server's own proof sent back to it
				c := raw(t, addr, greeting)
				answer, err := readFrame(bufio.NewReader(c), 1<<20)
				require.NoError(t, err)
				e, err := decodeEnvelope(answer)
				require.NoError(t, err)
				var h replication.HelloResponse
				require.NoError(t, json.Unmarshal(e.Payload, &h))
				proof, err := json.Marshal(replication.HelloRequest{MAC: h.MAC})
				require.NoError(t, err)
				_, err = c.Write(frameOf(`{"t":21,"n":"d","p":` + string(proof) + `}`))
				require.NoError(t, err)
			} else {
				raw(t, addr, tc.bytes)
			}
			require.Eventually(t, func() bool { return server.Stats().HandshakesRejected[tc.reason] == before+1 }, patience, time.Millisecond)
		})
	}
	for server, addr := range map[*Transport]string{patient: patientAddr, hasty: hastyAddr} {
		// The node goes on serving; a busy machine may take more than one handshake.
		require.Eventually(t, func() bool {
			c, err := dialer.Connect(t.Context(), addr)
			if err != nil {
				return false
			}
			defer c.Close()
			var out map[string]any
			return c.(*PeerConn).Call(t.Context(), replication.MsgFetch, map[string]any{"a": "b"}, &out) == nil && out["a"] == "b"
		}, patience, time.Millisecond)
		require.Eventually(t, func() bool { return server.Stats().Unproven == 0 }, patience, time.Millisecond)
	}
}

func TestAnnouncedLengthCostsNoMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	head := binary.BigEndian.AppendUint32(nil, 60<<20)
	_, err := readFrame(bufio.NewReader(bytes.NewReader(append(head, "0123456789"...))), 64<<20)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20))
}

// flipper flips one bit of what passes after a number of bytes.
type flipper struct {
	net.Conn
	after int
}

func (f *flipper) Write(p []byte) (int, error) {
	if f.after >= 0 && f.after < len(p) {
		p = bytes.Clone(p)
		p[f.after] ^= 4
	}
	f.after -= len(p)
	return f.Conn.Write(p)
}

func TestFlippedBitEndsTheConnectionAndReachesNobody(t *testing.T) {
	for name, change := range map[string]func(*Options){"crc": nil, "mac": withSecret(secret)} {
		t.Run(name, func(t *testing.T) {
			server := newTransport(t, "s", change)
			reached := false
			server.Handle(replication.MsgFetch, func(context.Context, *replication.Request) (any, error) { reached = true; return nil, nil })
			addr := serve(t, server, "127.0.0.1:0")
			var conn *flipper
			dialer := newTransport(t, "d", func(o *Options) {
				if change != nil {
					change(o)
				}
				o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
					c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
					conn = &flipper{Conn: c, after: -1}
					return conn, err
				}
			})
			c := connect(t, dialer, addr)
			conn.after = 40 // in the next record
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			err := c.Call(ctx, replication.MsgFetch, map[string]any{"property": "a value of some length"}, nil)
			require.Error(t, err)
			require.False(t, replication.NotSent(err), "it may have arrived, for all the caller knows")
			require.Equal(t, uint64(1), server.Stats().FramesRejected["record"])
			require.False(t, reached)
		})
	}
}

func TestRepeatedRecordIsRefused(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	key := []byte("key")
	sender := newRecordConn(a, bufio.NewReader(a), nil, key, func() {})
	bad := 0
	receiver := newRecordConn(b, bufio.NewReader(b), key, nil, func() { bad++ })
	go func() {
		_, _ = sender.Write([]byte("x"))
		_, _ = a.Write(sender.wbuf) // the same record again
	}()
	buf := make([]byte, 8)
	n, err := receiver.Read(buf)
	require.NoError(t, err)
	require.Equal(t, "x", string(buf[:n]))
	_, err = receiver.Read(buf)
	require.ErrorIs(t, err, errRecord)
	require.Equal(t, 1, bad)
}

func TestPlainPeerIsServedInOrderWhereNoProofIsDemanded(t *testing.T) {
	server := newTransport(t, "s", nil)
	release := make(chan struct{})
	server.Handle(replication.MsgHeartbeat, func(context.Context, *replication.Request) (any, error) {
		<-release
		return &replication.HeartbeatResponse{NodeID: "s"}, nil
	})
	c := raw(t, serve(t, server, "127.0.0.1:0"), append(frameOf(`{"t":7,"n":"p","p":{}}`), frameOf(`{"t":19,"n":"p","p":{}}`)...))
	close(release)
	r := bufio.NewReader(c)
	for _, want := range []string{`{"t":8,"n":"s","p":{"NodeID":"s","Role":"","WALPosition":0,"Lag":0}}`,
		`{"t":20,"n":"s","x":{"code":"unsupported","message":"not supported: message 19"}}`} {
		frame, err := readFrame(r, 1<<20)
		require.NoError(t, err)
		require.Equal(t, want, string(frame))
	}
}

func TestPlainDialerMatchesAnswersByOrder(t *testing.T) {
	server := newTransport(t, "s", nil)
	server.Handle(replication.MsgHeartbeat, func(_ context.Context, r *replication.Request) (any, error) {
		var h replication.HeartbeatRequest
		err := json.Unmarshal(r.Payload, &h)
		return &replication.HeartbeatResponse{WALPosition: h.WALPosition}, err
	})
	dialer := newTransport(t, "d", func(o *Options) { o.PlainDial = true })
	c := connect(t, dialer, serve(t, server, "127.0.0.1:0"))
	for i := range uint64(20) {
		resp, err := c.SendHeartbeat(t.Context(), &replication.HeartbeatRequest{WALPosition: i})
		require.NoError(t, err)
		require.Equal(t, i, resp.WALPosition)
	}
}

func TestLateAnswerReachesNobodyElse(t *testing.T) {
	server, dialer := newTransport(t, "s", nil), newTransport(t, "d", nil)
	entered, release := make(chan struct{}, 1), make(chan struct{})
	server.Handle(replication.MsgState, func(context.Context, *replication.Request) (any, error) {
		entered <- struct{}{}
		<-release
		return map[string]any{"late": true}, nil
	})
	server.Handle(replication.MsgFetch, echo)
	c := connect(t, dialer, serve(t, server, "127.0.0.1:0"))
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() { <-entered; cancel(replication.ErrExists) }()
	err := c.Call(ctx, replication.MsgState, nil, nil)
	close(release)
	require.Equal(t, "timeout", replication.ErrorCode(err), "the caller's reason is not the peer's answer")
	require.False(t, replication.NotSent(err))
	var out map[string]any
	require.NoError(t, c.Call(t.Context(), replication.MsgFetch, map[string]any{"mine": true}, &out))
	require.Equal(t, map[string]any{"mine": true}, out)
}

func TestReconnectsWhenThePeerComesBack(t *testing.T) {
	first := newTransport(t, "s", nil)
	first.Handle(replication.MsgFetch, echo)
	addr := serve(t, first, "127.0.0.1:0")
	dialer := newTransport(t, "d", nil)
	c := connect(t, dialer, addr)
	require.NoError(t, c.Call(t.Context(), replication.MsgFetch, map[string]any{}, nil))
	require.NoError(t, first.Close())
	require.Eventually(t, func() bool { return !c.IsConnected() }, patience, time.Millisecond)
	err := c.Call(t.Context(), replication.MsgFetch, map[string]any{}, nil)
	require.True(t, replication.NotSent(err), "%v", err)
	second := newTransport(t, "s", nil)
	second.Handle(replication.MsgFetch, echo)
	serve(t, second, addr)
	require.Eventually(t, func() bool { return c.Call(t.Context(), replication.MsgFetch, map[string]any{}, nil) == nil }, patience, time.Millisecond)
}

func TestStreamLayerCloseEndsAcceptAndAcceptedStreams(t *testing.T) {
	server, dialer := newTransport(t, "s", withSecret(secret)), newTransport(t, "d", withSecret(secret))
	layer := NewStreamLayer(server, netAddr("s"))
	out := NewStreamLayer(dialer, netAddr("d"))
	addr := serve(t, server, "127.0.0.1:0")
	c, err := out.Dial(raft.ServerAddress(addr), patience)
	require.NoError(t, err)
	in, err := layer.Accept()
	require.NoError(t, err)
	message := bytes.Repeat([]byte("raft "), 50000) // several records
	go func() { _, _ = c.Write(message) }()
	got := make([]byte, len(message))
	_, err = io.ReadFull(in, got)
	require.NoError(t, err)
	require.Equal(t, message, got)

	out.Suspend()
	_, err = in.Read(got)
	require.Error(t, err, "suspending closed the stream")
	_, err = out.Dial(raft.ServerAddress(addr), time.Second)
	require.ErrorIs(t, err, errSuspended)
	out.Resume()
	_, err = out.Dial(raft.ServerAddress(addr), patience)
	require.NoError(t, err)
	in, err = layer.Accept()
	require.NoError(t, err)

	accepting, reading := make(chan error, 1), make(chan error, 1)
	go func() { _, err := layer.Accept(); accepting <- err }()
	go func() { _, err := in.Read(got); reading <- err }()
	require.NoError(t, layer.Close())
	require.ErrorIs(t, <-accepting, net.ErrClosed)
	require.Error(t, <-reading)
	require.NoError(t, out.Close())
}

type netAddr string

func (netAddr) Network() string  { return "tcp" }
func (a netAddr) String() string { return string(a) }

func TestGoldenBytes(t *testing.T) {
	frame, err := encodeFrame(&envelope{Type: 7, Node: "n1", ID: 3, HasID: true, Epoch: replication.Epoch{Number: 2, Owner: "n1"},
		Payload: json.RawMessage(`{"a":1}`)}, 1<<20)
	require.NoError(t, err)
	require.Equal(t, "\x00\x00\x00\x31"+`{"t":7,"n":"n1","i":3,"e":2,"o":"n1","p":{"a":1}}`, string(frame))
	s := newSealer(nil)
	require.Equal(t, []byte{0x39, 0x23, 0xf9, 0xb4}, s.seal([4]byte{0, 0, 0, 5}, []byte("hello")))
}

func TestBackoffIsBoundedAndJittered(t *testing.T) {
	for n := range 100 {
		d := backoff(n, 50*time.Millisecond, 2*time.Second)
		require.GreaterOrEqual(t, d, 25*time.Millisecond)
		require.LessOrEqual(t, d, 2*time.Second)
	}
}
