package testharness

import (
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// Conn is one end of a connection: a net.Conn. Its errors are those of a TCP
// connection: io.EOF, net.ErrClosed, os.ErrDeadlineExceeded (a timeout),
// syscall.ECONNRESET, syscall.EPIPE, all but the first in a *net.OpError.
type Conn struct {
	c             *connection
	host          *Host // the incarnation that this end belongs to
	local, remote address

	// Guarded by the network's mutex.
	out, in       *half
	closed        bool
	writing       bool // a Write is under way, others wait for it
	readDeadline  time.Time
	writeDeadline time.Time
}

var _ net.Conn = (*Conn)(nil)

func (e *Conn) fail(op string, err error) error {
	return &net.OpError{Op: op, Net: networkName, Source: e.local, Addr: e.remote, Err: err}
}

// usable is the error that an end has for every read or write.
func (e *Conn) usable(now, deadline time.Time) error {
	switch {
	case e.closed:
		return net.ErrClosed
	case e.c.isDead(now):
		return syscall.ECONNRESET
	case !deadline.IsZero() && !deadline.After(now):
		return os.ErrDeadlineExceeded
	}
	return nil
}

// sleep waits for the connection to change, or for the first of these times.
func (e *Conn) sleep(times ...time.Time) {
	first := e.c.dead
	for _, t := range times {
		if first.IsZero() || !t.IsZero() && t.Before(first) {
			first = t
		}
	}
	e.c.n.wait(&e.c.changed, first, nil)
}

// Read implements net.Conn.
func (e *Conn) Read(p []byte) (int, error) {
	n := e.c.n
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		now := time.Now()
		if err := e.usable(now, e.readDeadline); err != nil {
			return 0, e.fail("read", err)
		}
		if len(p) == 0 {
			return 0, nil
		}
		k, next, err := e.in.take(now, p)
		switch {
		case err == io.EOF:
			return 0, io.EOF
		case err != nil:
			return 0, e.fail("read", err)
		case k > 0:
			return k, nil
		}
		e.sleep(next, e.readDeadline)
	}
}

// Write implements net.Conn. It returns when the last byte has found room in
// the connection's window, which says nothing of its arrival.
func (e *Conn) Write(p []byte) (written int, err error) {
	n := e.c.n
	n.mu.Lock()
	defer n.mu.Unlock()
	for e.writing {
		if err := e.usable(time.Now(), e.writeDeadline); err != nil {
			return 0, e.fail("write", err)
		}
		e.sleep(e.writeDeadline)
	}
	e.writing = true
	defer func() {
		e.writing = false
		e.c.changed.raise()
	}()
	for {
		now := time.Now()
		if err := e.usable(now, e.writeDeadline); err != nil {
			return written, e.fail("write", err)
		}
		arrives, gone := e.in.ended(now)
		room := e.out.room()
		switch {
		case gone != nil:
			return written, e.fail("write", syscall.EPIPE)
		case written == len(p):
			return written, nil
		case room > 0:
			k := min(room, len(p)-written)
			e.out.send(now, p[written:written+k])
			written += k
		default:
			e.sleep(arrives, e.writeDeadline)
		}
	}
}

// Close implements net.Conn: what was written still goes its way, then the peer
// reads io.EOF; what it writes from then on fails.
func (e *Conn) Close() error {
	n := e.c.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if e.closed {
		return e.fail("close", net.ErrClosed)
	}
	e.shut(io.EOF)
	return nil
}

// shut closes an end, and tells the other: io.EOF or a reset.
func (e *Conn) shut(err error) {
	if e.closed {
		return
	}
	e.closed = true
	e.in.discard()
	e.out.end(time.Now(), err)
	if e.c.ends[0].closed && e.c.ends[1].closed {
		delete(e.c.n.conns, e.c)
	}
	e.c.changed.raise()
}

// LocalAddr implements net.Conn.
func (e *Conn) LocalAddr() net.Addr { return e.local }

// RemoteAddr implements net.Conn.
func (e *Conn) RemoteAddr() net.Addr { return e.remote }

// SetDeadline implements net.Conn.
func (e *Conn) SetDeadline(t time.Time) error {
	return e.setDeadline(&e.readDeadline, &e.writeDeadline, t)
}

// SetReadDeadline implements net.Conn.
func (e *Conn) SetReadDeadline(t time.Time) error { return e.setDeadline(&e.readDeadline, nil, t) }

// SetWriteDeadline implements net.Conn.
func (e *Conn) SetWriteDeadline(t time.Time) error { return e.setDeadline(nil, &e.writeDeadline, t) }

func (e *Conn) setDeadline(read, write *time.Time, t time.Time) error {
	n := e.c.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if e.closed {
		return e.fail("set", net.ErrClosed)
	}
	if read != nil {
		*read = t
	}
	if write != nil {
		*write = t
	}
	e.c.changed.raise()
	return nil
}
