package transport

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	"github.com/stretchr/testify/require"
)

// TestFullHandlersDoNotHoldUpAnswers: a node whose handlers are all busy still
// gets the answers that they wait for, and says "overloaded" to further requests.
func TestFullHandlersDoNotHoldUpAnswers(t *testing.T) {
	server := newTransport(t, "s", nil)
	dialer := newTransport(t, "d", func(o *Options) { o.MaxRequests = 1 })
	server.Handle(replication.MsgFetch, echo)
	entered := make(chan struct{})
	connected := make(chan *PeerConn, 1)
	dialer.Handle(replication.MsgState, func(ctx context.Context, _ *replication.Request) (any, error) {
		entered <- struct{}{}
		<-entered
		return true, (<-connected).Call(ctx, replication.MsgFetch, map[string]any{}, nil)
	})
	bound, err := server.Bind(t.Context(), "127.0.0.1:0")
	require.NoError(t, err)
	first, second, done := make(chan error, 1), make(chan error, 1), make(chan error, 1)
	go func() {
		done <- server.Listen(context.Background(), "127.0.0.1:0", func(c replication.PeerConnection) {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			call := c.(replication.Caller)
			answered := make(chan struct{})
			go func() {
				defer close(answered)
				first <- call.Call(ctx, replication.MsgState, nil, nil)
			}()
			<-entered
			second <- call.Call(ctx, replication.MsgState, nil, nil)
			entered <- struct{}{}
			<-answered
		})
	}()
	connected <- connect(t, dialer, bound.String())
	require.ErrorIs(t, <-second, replication.ErrOverloaded)
	require.NoError(t, <-first)
	require.NoError(t, server.Close())
	require.NoError(t, <-done)
}

// hole is a connection that at some time begins to swallow what is written, as a
// line does that was cut.
type hole struct {
	net.Conn
	cut *atomic.Bool
}

func (h hole) Write(p []byte) (int, error) {
	if h.cut.Load() {
		return len(p), nil
	}
	return h.Conn.Write(p)
}

func TestVanishedPeerIsNoticedAndDialledAgain(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		server := newTransport(t, "s", nil)
		server.Handle(replication.MsgFetch, echo)
		line := pipeServer(t, server)
		cut := new(atomic.Bool)
		dialer := newTransport(t, "d", func(o *Options) {
			o.SilenceTimeout = 90 * time.Millisecond
			o.Dial = func(context.Context, string) (net.Conn, error) { return hole{line.dial(), cut}, nil }
		})
		c := connect(t, dialer, "s:7688")
		require.NoError(t, c.Call(t.Context(), replication.MsgFetch, map[string]any{}, nil))
		cut.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		start := time.Now()
		err := c.Call(ctx, replication.MsgFetch, map[string]any{}, nil)
		require.ErrorIs(t, err, errSilent)
		require.False(t, replication.NotSent(err))
		require.LessOrEqual(t, time.Since(start), 4*30*time.Millisecond, "periods: one in which the answer before came, one to probe in, two of silence")
		cut.Store(false)
		require.NoError(t, c.Call(ctx, replication.MsgFetch, map[string]any{}, nil))
	})
}

// TestSlowAnswerIsNoSilence: a peer whose handler takes long answers probes.
func TestSlowAnswerIsNoSilence(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		server := newTransport(t, "s", nil)
		line := pipeServer(t, server)
		dialer := newTransport(t, "d", func(o *Options) {
			o.SilenceTimeout = 60 * time.Millisecond
			o.Dial = func(context.Context, string) (net.Conn, error) { return line.dial(), nil }
		})
		c := connect(t, dialer, "s:7688")
		server.Handle(replication.MsgState, func(context.Context, *replication.Request) (any, error) {
			<-time.After(500 * time.Millisecond) // many times the period
			return true, nil
		})
		require.NoError(t, c.Call(t.Context(), replication.MsgState, nil, nil))
	})
}

func TestUnknownCodesAreAnswered(t *testing.T) {
	server := newTransport(t, "s", nil)
	server.Handle(replication.MsgHeartbeat, heartbeatEcho)
	c := raw(t, serve(t, server, "127.0.0.1:0"), []byte(strings.Join([]string{
		string(frameOf(`{"t":98,"n":"p","p":{},"i":5}`)),                     // even, unknown, with ID
		string(frameOf(`{"t":99,"n":"p","i":6,"x":{"code":"unsupported"}}`)), // a refusal is never answered
		string(frameOf(`{"t":7,"n":"p","p":{"WALPosition":4},"i":7,"T":3,"later":[{"}":"]"}]}`)),
	}, "")))
	r := bufio.NewReader(c)
	answers := map[string]bool{}
	for range 2 {
		frame, err := readFrame(r, 1<<20)
		require.NoError(t, err)
		answers[string(frame)] = true
	}
	require.Equal(t, map[string]bool{
		`{"t":99,"n":"s","i":5,"x":{"code":"unsupported","message":"not supported: message 98"}}`: true,
		`{"t":8,"n":"s","i":7,"p":{"NodeID":"","Role":"","WALPosition":4,"Lag":0}}`:               true,
	}, answers)
}

func TestEnvelopeKeysAreTakenAsWritten(t *testing.T) {
	e, err := decodeEnvelope([]byte(` {"T":3,"t":7,"n":"\u0061","P":1,"p":{"a":[1,{"b":"\"}]"}]} ,"X":{"code":"c"},"N":"q"}`))
	require.NoError(t, err)
	require.Equal(t, 7, e.Type)
	require.Equal(t, "a", e.Node)
	require.Equal(t, `{"a":[1,{"b":"\"}]"}]}`, string(e.Payload))
	require.Nil(t, e.Failure)
	for name, frame := range map[string]string{
		"twice": `{"t":7,"t":9}`, "only in capitals": `{"T":7}`, "list": `[7]`, "number": `7`, "cut": `{"t":7`, "more": `{"t":7}{}`,
		"no code": `{}`, "null code": `{"t":null}`, "negative": `{"t":-1}`, "fraction": `{"t":7.5}`, "huge": `{"t":1e300}`,
		"text": `{"t":"7"}`, "epoch": `{"t":7,"e":9007199254740992}`, "previous epoch": `{"t":7,"q":{"Number":9007199254740992}}`,
	} {
		_, err := decodeEnvelope([]byte(frame))
		require.ErrorIs(t, err, errFrame, name)
	}
}

// pipeNet is a network without buffers: what is not read blocks the writer. Its
// connections work in virtual time.
type pipeNet struct{ conns chan net.Conn }

func (p pipeNet) Accept() (net.Conn, error) {
	c, ok := <-p.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p pipeNet) Close() error   { close(p.conns); return nil }
func (p pipeNet) Addr() net.Addr { return netAddr("pipe") }

// pipeServer serves a transport over pipes and returns the network.
func pipeServer(t *testing.T, tr *Transport) pipeNet {
	p := pipeNet{make(chan net.Conn)}
	tr.opts.Listen = func(context.Context, string) (net.Listener, error) { return p, nil }
	done := make(chan error, 1)
	go func() { done <- tr.Listen(context.Background(), "pipe", nil) }()
	t.Cleanup(func() {
		require.NoError(t, tr.Close())
		require.NoError(t, <-done)
	})
	return p
}

// dial returns a connection's other end.
func (p pipeNet) dial() net.Conn {
	mine, theirs := net.Pipe()
	p.conns <- theirs
	return mine
}

// TestPlainRequestsAreBoundedByBytes: those that wait for their turn cost no
// more memory than one largest frame, and the one being handled.
func TestPlainRequestsAreBoundedByBytes(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		server := newTransport(t, "s", func(o *Options) { o.MaxFrameSize = 256 << 10 })
		release := make(chan struct{})
		server.Handle(replication.MsgHeartbeat, func(context.Context, *replication.Request) (any, error) {
			<-release
			return 1, nil
		})
		c := pipeServer(t, server).dial()
		defer c.Close()
		frame := frameOf(`{"t":7,"n":"p","p":"` + strings.Repeat("x", 100<<10) + `"}`)
		written := new(atomic.Int64)
		go func() {
			for range 20 {
				if _, err := c.Write(frame); err != nil {
					return
				}
				written.Add(1)
			}
		}()
		go func() {
			r := bufio.NewReader(c)
			for {
				if _, err := readFrame(r, 1<<20); err != nil {
					return
				}
			}
		}()
		synctest.Wait()
		require.LessOrEqual(t, written.Load(), int64(4))
		require.GreaterOrEqual(t, written.Load(), int64(2))
		close(release)
		synctest.Wait()
		require.Equal(t, int64(20), written.Load(), "and go on when there is room")
	})
}

// TestLargeFrameHasTimeOnASlowLine: the deadline of a frame grows with its size,
// and a line below the least rate is still cut off.
func TestLargeFrameHasTimeOnASlowLine(t *testing.T) {
	for name, tc := range map[string]struct {
		bytesPerSecond int
		served         bool
	}{"slow": {80 << 10, true}, "too slow": {40 << 10, false}} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				server := newTransport(t, "s", func(o *Options) { o.FrameTimeout, o.HandshakeTimeout = 2*time.Second, time.Second })
				server.Handle(replication.MsgHeartbeat, func(context.Context, *replication.Request) (any, error) { return 1, nil })
				c := pipeServer(t, server).dial()
				defer c.Close()
				answers := make(chan error, 2)
				go func() {
					r := bufio.NewReader(c)
					for range 2 {
						_, err := readFrame(r, 1<<20)
						answers <- err
					}
				}()
				_, err := c.Write(frameOf(`{"t":7,"n":"p","p":1}`)) // the first is under the handshake's deadline
				require.NoError(t, err)
				require.NoError(t, <-answers)
				frame := frameOf(`{"t":7,"n":"p","p":"` + strings.Repeat("x", 2<<20) + `"}`) // 26 s at 80 KiB/s
				ticks := time.NewTicker(time.Second)
				defer ticks.Stop()
				for len(frame) > 0 && err == nil {
					n := min(tc.bytesPerSecond, len(frame))
					_, err = c.Write(frame[:n])
					frame = frame[n:]
					<-ticks.C
				}
				if tc.served {
					require.NoError(t, err)
					require.NoError(t, <-answers)
				} else {
					require.Error(t, <-answers)
				}
			})
		})
	}
}

// lineCounter is a log that counts.
type lineCounter struct {
	slog.Handler
	lines *atomic.Int64
}

func (l lineCounter) Handle(ctx context.Context, r slog.Record) error {
	l.lines.Add(1)
	return nil
}

func TestStrangersCannotFloodTheLog(t *testing.T) {
	lines := new(atomic.Int64)
	server := newTransport(t, "s", func(o *Options) {
		o.Secret = []byte(secret)
		o.Logger = slog.New(lineCounter{slog.NewTextHandler(discard{}, nil), lines})
	})
	addr := serve(t, server, "127.0.0.1:0")
	started := time.Now()
	for range 200 {
		raw(t, addr, []byte{0, 0, 0, 0}).Close()
	}
	require.Eventually(t, func() bool {
		s := server.Stats()
		return s.HandshakesRejected["malformed"]+s.HandshakesRejected["too_many"] == 200
	}, patience, time.Millisecond)
	require.LessOrEqual(t, lines.Load(), 2*int64(1+time.Since(started)/throttleInterval))
	require.Positive(t, lines.Load())
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func TestThrottleCountsWhatItSkips(t *testing.T) {
	var th throttle
	now := time.Now()
	for i := range 5 {
		ok, skipped := th.pass("a", now)
		require.Equal(t, i == 0, ok)
		require.Zero(t, skipped)
	}
	ok, skipped := th.pass("a", now.Add(throttleInterval))
	require.True(t, ok)
	require.Equal(t, uint64(4), skipped)
	ok, _ = th.pass("b", now)
	require.True(t, ok, "each kind for itself")
}

func TestDialerCountsRefusals(t *testing.T) {
	server, dialer := newTransport(t, "s", withSecret(secret)), newTransport(t, "d", withSecret("fedcba9876543210"))
	_, err := dialer.Connect(t.Context(), serve(t, server, "127.0.0.1:0"))
	require.ErrorIs(t, err, replication.ErrUnauthenticated)
	require.Equal(t, map[string]uint64{"unauthenticated": 1}, dialer.Stats().DialsRefused)
}

func TestLastHandleEndsADialUnderWay(t *testing.T) {
	dialing, ended := make(chan struct{}, 1), make(chan error, 1)
	tr := newTransport(t, "d", func(o *Options) {
		o.DialTimeout = time.Hour
		o.Dial = func(ctx context.Context, _ string) (net.Conn, error) {
			dialing <- struct{}{}
			<-ctx.Done()
			ended <- ctx.Err()
			return nil, ctx.Err()
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-dialing; cancel() }()
	_, err := tr.Connect(ctx, "nowhere:1")
	require.ErrorIs(t, err, replication.ErrTimeout)
	require.ErrorIs(t, <-ended, context.Canceled)
}

// TestPeerThatHangsUpIsNotDialledWithoutPause: it accepts, greets, and closes.
func TestPeerThatHangsUpIsNotDialledWithoutPause(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		server, dials := newTransport(t, "s", nil), new(atomic.Int64)
		dialer := newTransport(t, "d", func(o *Options) {
			o.Dial = func(context.Context, string) (net.Conn, error) {
				dials.Add(1)
				mine, theirs := net.Pipe()
				go func() {
					if _, err := readFrame(bufio.NewReader(theirs), 1<<20); err == nil {
						_ = server.writeHello(theirs, replication.MsgHelloResponse, server.hello(replication.StreamRPC))
					}
					_ = theirs.Close()
				}()
				return mine, nil
			}
		})
		c := connect(t, dialer, "s:7688")
		ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
		defer cancel()
		for ctx.Err() == nil {
			require.Error(t, c.Call(ctx, replication.MsgFetch, nil, nil))
			<-time.After(time.Millisecond)
		}
		// Waits of at least 25, 50, 100 and 200 ms lie between the dials.
		require.LessOrEqual(t, dials.Load(), int64(5))
		require.GreaterOrEqual(t, dials.Load(), int64(4))
	})
}

func TestConnectionsAreBounded(t *testing.T) {
	server := newTransport(t, "s", func(o *Options) {
		o.MaxConnections, o.MaxUnproven, o.HandshakeTimeout = 3, 2, time.Hour
	})
	server.Handle(replication.MsgHeartbeat, heartbeatEcho)
	addr := serve(t, server, "127.0.0.1:0")
	open := func(want int) {
		require.Eventually(t, func() bool { return server.Stats().Open == want }, patience, time.Millisecond)
	}
	first, _ := raw(t, addr, nil), raw(t, addr, nil)
	open(2)
	third := raw(t, addr, nil)
	_, err := third.Read(make([]byte, 1))
	require.Error(t, err, "two are unproven already")
	require.Equal(t, uint64(1), server.Stats().HandshakesRejected["too_many"])

	ask := func(c net.Conn) error {
		if _, err := c.Write(frameOf(`{"t":7,"n":"p","p":{}}`)); err != nil {
			return err
		}
		_, err := readFrame(bufio.NewReader(c), 1<<20)
		return err
	}
	require.NoError(t, ask(first)) // no longer unproven
	fourth := raw(t, addr, nil)
	require.NoError(t, ask(fourth))
	open(3)
	_, err = raw(t, addr, nil).Read(make([]byte, 1))
	require.Error(t, err, "three are open already")
	require.NoError(t, first.Close())
	open(2)
	require.NoError(t, ask(raw(t, addr, nil)))
}

// TestRegionStreams: messages between regions have handlers of their own, and
// only regions of the same federation get through.
func TestRegionStreams(t *testing.T) {
	region := func(name, hash string) func(*Options) {
		return func(o *Options) { o.Region, o.ClusterID = name, name }
	}
	server := newTransport(t, "s", region("eu", "h"))
	server.Handle(replication.MsgFetch, echo)
	addr := serve(t, server, "127.0.0.1:0")
	known := func(r string) error {
		if r == "mars" {
			return errors.New("not a region of this federation")
		}
		return nil
	}
	dialer := func(name, hash string) *Transport {
		d := newTransport(t, "d-"+name, region(name, hash))
		d.SetRegions(hash, known)
		return d
	}
	_, err := dialer("us", "h").ConnectRegion(t.Context(), addr)
	require.ErrorIs(t, err, replication.ErrUnsupported, "no regions are served yet")

	server.SetRegions("h", known)
	var from replication.Peer
	var mu sync.Mutex
	server.HandleRegion(replication.MsgHeartbeat, func(ctx context.Context, r *replication.Request) (any, error) {
		mu.Lock()
		defer mu.Unlock()
		from = r.Peer
		return heartbeatEcho(ctx, r)
	})
	c, err := dialer("us", "h").ConnectRegion(t.Context(), addr)
	require.NoError(t, err)
	resp, err := c.SendHeartbeat(t.Context(), &replication.HeartbeatRequest{WALPosition: 5})
	require.NoError(t, err)
	require.Equal(t, uint64(5), resp.WALPosition)
	mu.Lock()
	require.Equal(t, "us", from.Region)
	mu.Unlock()
	require.ErrorIs(t, c.(*PeerConn).Call(t.Context(), replication.MsgFetch, map[string]any{}, nil), replication.ErrUnsupported,
		"what is served to the own cluster is not open to other regions")
	_, err = c.SendRaftVote(t.Context(), &replication.RaftVoteRequest{})
	require.ErrorIs(t, err, replication.ErrUnsupported)

	for name, d := range map[string]*Transport{"other settings": dialer("us", "other"), "same region": dialer("eu", "h"), "unknown": dialer("mars", "h")} {
		_, err := d.ConnectRegion(t.Context(), addr)
		require.ErrorIs(t, err, replication.ErrWrongPeer, name)
	}
}

// What comes instead of a proof is no proof, whatever is wrong with it: the answer
// says that and no more.
func TestUnreadableProofIsRefusedAsNone(t *testing.T) {
	server := newTransport(t, "s", withSecret(secret))
	hello, err := json.Marshal(newTransport(t, "d", withSecret(secret)).hello(replication.StreamRPC))
	require.NoError(t, err)
	addr := serve(t, server, "127.0.0.1:0")
	for _, proof := range []string{`{"t":21,"n":"d","e":1.5,"p":{}}`, `{"t":21,"n":"d","p":7}`, `{"t":21,"n":"d"`, `{"t":7,"n":"d","p":{}}`} {
		c := raw(t, addr, append(frameOf(`{"t":21,"n":"d","p":`+string(hello)+`}`), frameOf(proof)...))
		r := bufio.NewReader(c)
		_, err = readFrame(r, 1<<20) // the server's Hello
		require.NoError(t, err)
		frame, err := readFrame(r, 1<<20)
		require.NoError(t, err, proof)
		e, err := decodeEnvelope(frame)
		require.NoError(t, err)
		require.NotNil(t, e.Failure)
		require.Equal(t, "unauthenticated", e.Failure.Code, proof)
	}
}
