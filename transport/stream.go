package transport

import (
	"bufio"
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
)

// streamConn is a raw stream: what the handshake's reader has buffered comes
// first.
type streamConn struct {
	net.Conn
	r *bufio.Reader
}

func (s *streamConn) Read(p []byte) (int, error) { return s.r.Read(p) }

// errSuspended: the node's disk hangs, so it must not act as if it were well.
var errSuspended = errors.New("raft streams are suspended while the node hangs")

// StreamLayer is a raft.StreamLayer over a Transport: Raft's streams share the
// cluster port. hashicorp/raft's NetworkTransport waits in Accept and in reads
// of accepted connections until Close ends both.
type StreamLayer struct {
	t         *Transport
	advertise net.Addr
	accepted  chan net.Conn
	done      chan struct{} // closed by Close

	// mu guards the fields below.
	mu        sync.Mutex
	closed    bool
	suspended bool
	incoming  map[net.Conn]struct{}
	outgoing  map[net.Conn]struct{}
}

var _ raft.StreamLayer = (*StreamLayer)(nil)

// NewStreamLayer makes t serve Raft streams. advertise is what peers are told.
func NewStreamLayer(t *Transport, advertise net.Addr) *StreamLayer {
	s := &StreamLayer{t: t, advertise: advertise, accepted: make(chan net.Conn), done: make(chan struct{}),
		incoming: make(map[net.Conn]struct{}), outgoing: make(map[net.Conn]struct{})}
	t.HandleStream(replication.StreamRaft, s.take)
	return s
}

// layerConn leaves its layer's list when it is closed.
type layerConn struct {
	net.Conn
	leave func(net.Conn)
	once  sync.Once
	err   error
}

func (c *layerConn) Close() error {
	c.once.Do(func() {
		c.leave(c)
		c.err = c.Conn.Close()
	})
	return c.err
}

// take hands an accepted stream to Accept; it waits for it no longer than the
// layer is open.
func (s *StreamLayer) take(_ replication.Peer, c net.Conn) {
	lc, ok := s.add(c, s.incoming)
	if !ok {
		return
	}
	select {
	case s.accepted <- lc:
	case <-s.done:
		_ = lc.Close()
	}
}

// add lists a connection; false: the layer is closed, and so is the connection.
func (s *StreamLayer) add(c net.Conn, list map[net.Conn]struct{}) (*layerConn, bool) {
	lc := &layerConn{Conn: c, leave: func(c net.Conn) {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(list, c)
	}}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = c.Close()
		return nil, false
	}
	list[lc] = struct{}{}
	return lc, true
}

// Accept implements net.Listener.
func (s *StreamLayer) Accept() (net.Conn, error) {
	select {
	case c := <-s.accepted:
		return c, nil
	case <-s.done:
		return nil, net.ErrClosed
	}
}

// Addr implements net.Listener.
func (s *StreamLayer) Addr() net.Addr { return s.advertise }

// Dial implements raft.StreamLayer.
func (s *StreamLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.t.ctx, max(timeout, time.Millisecond))
	defer cancel()
	if err := s.refusal(); err != nil {
		return nil, err
	}
	c, err := s.t.OpenStream(ctx, string(address), replication.StreamRaft)
	if err != nil {
		return nil, err
	}
	lc, ok := s.add(&patientConn{Conn: c}, s.outgoing)
	if !ok {
		return nil, net.ErrClosed
	}
	if err := s.refusal(); err != nil { // suspended while it dialled
		return nil, errors.Join(err, lc.Close())
	}
	return lc, nil
}

func (s *StreamLayer) refusal() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return net.ErrClosed
	case s.suspended:
		return errSuspended
	}
	return nil
}

// Suspend closes every outgoing Raft stream and refuses new ones until Resume.
func (s *StreamLayer) Suspend() {
	s.mu.Lock()
	s.suspended = true
	open := list(s.outgoing)
	s.mu.Unlock()
	closeAll(open)
}

// Resume ends Suspend.
func (s *StreamLayer) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.suspended = false
}

// Close ends Accept and closes every stream, accepted ones too. Idempotent.
func (s *StreamLayer) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	open := append(list(s.incoming), list(s.outgoing)...)
	s.mu.Unlock()
	s.t.HandleStream(replication.StreamRaft, nil)
	close(s.done)
	closeAll(open)
	return nil
}

func list(m map[net.Conn]struct{}) []net.Conn {
	conns := make([]net.Conn, 0, len(m))
	for c := range m {
		conns = append(conns, c)
	}
	return conns
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		_ = c.Close() // an error of a stream that is given up tells nothing
	}
}
