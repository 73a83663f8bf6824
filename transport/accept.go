package transport

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/nornicdb/replication"
)

// Bind opens the listener of addr now; a following Listen on addr serves it. It
// returns the address that is listened on, for a port of 0.
func (t *Transport) Bind(ctx context.Context, addr string) (net.Addr, error) {
	l, err := t.opts.Listen(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", addr, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, errors.Join(replication.ErrClosed, l.Close())
	}
	if _, taken := t.listeners[addr]; taken {
		return nil, errors.Join(fmt.Errorf("%w: %s is bound already", replication.ErrInvalidConfig, addr), l.Close())
	}
	t.listeners[addr] = l
	return l.Addr(), nil
}

// Listen implements replication.Transport. It returns nil after ctx or Close
// ended it, even before it began.
func (t *Transport) Listen(ctx context.Context, addr string, handler replication.ConnectionHandler) error {
	t.mu.Lock()
	l := t.listeners[addr]
	t.mu.Unlock()
	if l == nil {
		if _, err := t.Bind(ctx, addr); err != nil {
			if t.ctx.Err() != nil {
				return nil
			}
			return err
		}
		t.mu.Lock()
		l = t.listeners[addr]
		t.mu.Unlock()
		if l == nil { // closed meanwhile
			return nil
		}
	}
	t.warnIfPlain(l.Addr())
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	err := t.acceptLoop(l, handler)
	t.mu.Lock()
	if t.listeners[addr] == l {
		delete(t.listeners, addr)
	}
	t.mu.Unlock()
	if ctx.Err() != nil || t.ctx.Err() != nil {
		return nil
	}
	return err
}

func (t *Transport) warnIfPlain(addr net.Addr) {
	tcp, ok := addr.(*net.TCPAddr)
	if ok && t.opts.TLS == nil && !tcp.IP.IsLoopback() {
		t.opts.Logger.Warn("cluster traffic is not encrypted: TLS is off on an address that is not loopback", "addr", addr.String())
	}
}

func (t *Transport) acceptLoop(l net.Listener, handler replication.ConnectionHandler) error {
	wait := time.Duration(0)
	for {
		raw, err := l.Accept()
		if err != nil {
			var timeout net.Error
			if errors.Is(err, net.ErrClosed) || t.ctx.Err() != nil || !errors.As(err, &timeout) {
				return fmt.Errorf("accepting: %w", err)
			}
			// Out of file descriptors, say: it may pass.
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			select {
			case <-time.After(wait):
			case <-t.ctx.Done():
			}
			continue
		}
		wait = 0
		t.accept(raw, handler)
	}
}

// accept starts serving a connection, if there is room.
func (t *Transport) accept(raw net.Conn, handler replication.ConnectionHandler) {
	t.mu.Lock()
	full := t.stats.Unproven >= t.opts.MaxUnproven || len(t.conns) >= t.opts.MaxConnections
	if !full {
		t.stats.Unproven++
		t.stats.Accepted++
	}
	t.mu.Unlock()
	if full {
		t.rejectHandshake("too_many", raw.RemoteAddr(), replication.ErrOverloaded)
		_ = raw.Close()
		return
	}
	proven := func() {
		t.mu.Lock()
		t.stats.Unproven--
		t.mu.Unlock()
	}
	c, ok := t.track(raw)
	if !ok || !t.spawn(func() { t.serve(c, handler, proven) }) {
		proven()
		_ = raw.Close()
	}
}

// serve runs an accepted connection to its end. proven is called once, when
// the handshake has succeeded or failed.
func (t *Transport) serve(c *trackedConn, handler replication.ConnectionHandler, proven func()) {
	setDeadline(c, t.opts.HandshakeTimeout)
	s, first, err := t.admit(c)
	proven()
	if err != nil {
		t.reject(c, err)
		_ = c.Close()
		return
	}
	clearDeadline(c)
	if !carriesMessages(s.kind) {
		if accept := t.streamHandler(s.kind); accept != nil {
			accept(s.peer, &streamConn{Conn: s.conn, r: s.r})
			return // the handler owns the connection
		}
		_ = c.Close()
		return
	}
	rpc := newConn(t, s)
	if !rpc.start() {
		_ = c.Close()
		return
	}
	if handler != nil && s.kind == replication.StreamRPC { // beside the reader, which brings the answers to its requests
		t.spawn(func() { handler(&acceptedConn{requester{rpc.call}, rpc}) })
	}
	rpc.readLoop(first)
}

// admit finds out who speaks: a node with a Hello, or, where no proof is
// demanded, a plain peer, whose first message is returned.
func (t *Transport) admit(c *trackedConn) (*session, *envelope, error) {
	var nc net.Conn = c
	demanded := len(t.opts.Secret) > 0 || t.opts.TLS != nil && t.opts.TLS.cfg.VerifyClient
	if t.opts.TLS != nil {
		tc := tls.Server(c, t.opts.TLS.server())
		if err := tc.HandshakeContext(t.ctx); err != nil {
			refused := &rejection{reason: tlsReason(err), err: tlsError(err)}
			refused.to, refused.request = plainDialer(err)
			return nil, nil, refused
		}
		nc = tc
	}
	r := bufio.NewReaderSize(nc, readBufferBytes)
	limit := t.opts.MaxFrameSize
	if demanded {
		limit = maxUnprovenFrameBytes
	}
	start, _ := r.Peek(len(tlsRecord)) // readFrame meets the error
	encrypted := t.opts.TLS == nil && bytes.Equal(start, tlsRecord)
	frame, err := readFrame(r, limit)
	if errors.Is(err, errFrame) && encrypted {
		err = fmt.Errorf("%w: the peer speaks TLS: %s", err, bothOrNone)
	}
	if err != nil {
		reason := "malformed"
		if !errors.Is(err, errFrame) {
			reason = "silent"
		}
		return nil, nil, &rejection{reason: reason, err: err}
	}
	first, err := decodeEnvelope(frame)
	if err != nil {
		return nil, nil, &rejection{reason: "malformed", err: err}
	}
	if first.Type == int(replication.MsgHello) {
		s, err := t.acceptHandshake(nc, r, first)
		if err != nil {
			var refused *rejection
			if errors.As(err, &refused) && refused.reason != "io" {
				refused.to, refused.request = nc, first
			}
			return nil, nil, err
		}
		s.raw = c
		return s, nil, nil
	}
	if demanded {
		return nil, nil, &rejection{reason: "no_proof", to: nc, request: first,
			err: fmt.Errorf("%w: message %d came before a Hello", replication.ErrUnauthenticated, first.Type)}
	}
	peer := replication.Peer{NodeID: first.Node, Addr: c.RemoteAddr().String(), Proven: t.certificateShown(nc)}
	return &session{conn: nc, raw: c, r: r, peer: peer, maxFrame: t.opts.MaxFrameSize, kind: replication.StreamRPC}, first, nil
}

// reject counts a failed handshake, says it to the operator, and then to the
// peer, in the one error response that it gets.
func (t *Transport) reject(c net.Conn, err error) {
	t.rejectHandshake(rejectionReason(err), c.RemoteAddr(), err)
	var refused *rejection
	if !errors.As(err, &refused) || refused.request == nil {
		return
	}
	request := refused.request
	frame, encodeErr := encodeFrame(&envelope{Type: request.Type + 1, Node: t.opts.NodeID, ID: request.ID,
		HasID: request.HasID, Failure: failureOf(refused.err)}, maxUnprovenFrameBytes)
	if encodeErr == nil {
		_, _ = refused.to.Write(frame) // the connection is closed either way
	}
}

// carriesMessages: frames follow the handshake, not raw bytes.
func carriesMessages(kind replication.StreamKind) bool {
	return kind == replication.StreamRPC || kind == replication.StreamRegion
}

// secureDial runs TLS and the handshake on a dialled connection.
func (t *Transport) secureDial(ctx context.Context, raw *trackedConn, addr string, kind replication.StreamKind) (*session, error) {
	setDeadline(raw, t.opts.DialTimeout)
	var c net.Conn = raw
	if t.opts.TLS != nil {
		tc := tls.Client(c, t.opts.TLS.client(addr))
		if err := tc.HandshakeContext(ctx); err != nil {
			return nil, tlsError(err)
		}
		c = tc
	}
	if t.opts.PlainDial && kind == replication.StreamRPC {
		return &session{conn: c, raw: raw, r: bufio.NewReaderSize(c, readBufferBytes), maxFrame: t.opts.MaxFrameSize,
			peer: replication.Peer{Addr: addr}, kind: kind}, nil
	}
	s, err := t.dialHandshake(c, addr, kind)
	if err != nil {
		return nil, err
	}
	s.raw = raw
	return s, nil
}
