package transport

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nornicdb/replication"
)

const (
	// sendQueueFrames bounds frames that wait for the network; a sender waits
	// for room as long as its context allows.
	sendQueueFrames = 128
	// orderedQueueRequests bounds requests without ID that wait their turn.
	orderedQueueRequests = 64
	// minBytesPerSecond is the slowest line on which a large frame still gets
	// through: its deadline grows with its size by that.
	minBytesPerSecond = 64 << 10
)

// errSilent: the peer answered neither requests nor a probe.
var errSilent = fmt.Errorf("%w: the peer is silent", replication.ErrTimeout)

// outgoing is a frame on its way to the network.
type outgoing struct {
	frame   []byte
	state   atomic.Int32 // queued → writing, or queued → withdrawn
	inOrder *waiting     // the request, where its answer is known by order alone
}

const (
	frameQueued int32 = iota
	frameWriting
	frameWithdrawn
)

// conn is a connection that carries messages, requests both ways. One
// goroutine reads, one writes; handlers run in goroutines of their own.
type conn struct {
	t        *Transport
	nc       net.Conn
	raw      *trackedConn // below TLS and records
	r        *bufio.Reader
	peer     replication.Peer
	kind     replication.StreamKind
	maxFrame int
	answered atomic.Bool // the peer has answered a request on it

	ctx    context.Context // ends with the connection
	cancel context.CancelCauseFunc
	send   chan *outgoing
	window chan struct{} // one for each request that waits for its answer
	order  orderedQueue

	// mu guards the fields below.
	mu       sync.Mutex
	nextID   uint64
	pending  map[uint64]*waiting
	fifo     []*waiting // requests without ID, in the order in which they are written
	handling int        // requests with ID being handled ≤ MaxRequests
	held     int        // bytes of these ≤ 2 × MaxFrameSize
	closed   bool
}

func newConn(t *Transport, s *session) *conn {
	c := &conn{t: t, nc: s.conn, raw: s.raw, r: s.r, peer: s.peer, kind: s.kind, maxFrame: s.maxFrame,
		send: make(chan *outgoing, sendQueueFrames), window: make(chan struct{}, t.opts.MaxPending),
		order: newOrderedQueue(t.opts.MaxFrameSize), pending: make(map[uint64]*waiting)}
	c.ctx, c.cancel = context.WithCancelCause(t.ctx)
	return c
}

// start starts everything but the reader.
func (c *conn) start() bool {
	return c.t.spawn(c.writeLoop) && c.t.spawn(c.orderedLoop) && (!c.peer.Hello || c.t.spawn(c.watchLoop))
}

// close ends the connection; requests that wait get err.
func (c *conn) close(err error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed = true
	c.cancel(err) // closed ⇒ the cause is set
	pending, fifo := c.pending, c.fifo
	c.pending, c.fifo = nil, nil
	c.mu.Unlock()
	_ = c.nc.Close()
	for _, w := range pending {
		w.answer <- answer{err: err}
	}
	for _, w := range fifo {
		w.answer <- answer{err: err}
	}
}

func (c *conn) alive() bool { return c.ctx.Err() == nil }

// lineTime is how long size bytes may take on the slowest line.
func lineTime(size int) time.Duration {
	return time.Duration(size) * time.Second / minBytesPerSecond
}

// writeLoop writes frames; it flushes when no further frame waits.
func (c *conn) writeLoop() {
	w := bufio.NewWriterSize(c.nc, readBufferBytes)
	for {
		select {
		case <-c.ctx.Done():
			return
		case out := <-c.send:
			if err := c.writeFrame(w, out); err != nil {
				c.close(fmt.Errorf("writing to %s: %w", c.peer.Addr, err))
				return
			}
		}
	}
}

func (c *conn) writeFrame(w *bufio.Writer, out *outgoing) error {
	if c.beginWrite(out) {
		_ = c.nc.SetWriteDeadline(time.Now().Add(c.t.opts.WriteTimeout + lineTime(len(out.frame))))
		if _, err := w.Write(out.frame); err != nil {
			return err
		}
	}
	if len(c.send) > 0 {
		return nil
	}
	err := w.Flush()
	_ = c.nc.SetWriteDeadline(time.Time{})
	return err
}

// beginWrite takes a frame from the queue, unless it was withdrawn. A request
// without ID gets its place among those that wait for answers here, in one step
// with that: at any earlier time another request could still overtake it.
func (c *conn) beginWrite(out *outgoing) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !out.state.CompareAndSwap(frameQueued, frameWriting) {
		return false
	}
	if out.inOrder != nil {
		c.fifo = append(c.fifo, out.inOrder)
	}
	return true
}

// enqueue hands a frame to the writer.
func (c *conn) enqueue(ctx context.Context, out *outgoing) error {
	select {
	case c.send <- out:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", replication.ErrTimeout, context.Cause(ctx))
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
}

// readLoop reads messages until the connection ends. first, if not nil, was
// read already.
func (c *conn) readLoop(first *envelope) {
	err := error(nil)
	if first != nil {
		err = c.receive(first)
	}
	for err == nil {
		var env *envelope
		if env, err = c.readMessage(); err == nil {
			err = c.receive(env)
		}
	}
	if errors.Is(err, errFrame) {
		c.t.rejectFrame("malformed", c.nc.RemoteAddr(), err)
	}
	if err == io.EOF {
		err = fmt.Errorf("%s closed the connection: %w", c.peer.Addr, err)
	}
	c.close(err)
}

// readMessage waits for a frame as long as it takes; once its first byte is
// there, the rest must come in the time that its size allows.
func (c *conn) readMessage() (*envelope, error) {
	if _, err := c.r.Peek(1); err != nil {
		return nil, err
	}
	if c.wholeFrame() {
		return c.readBuffered()
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(c.t.opts.FrameTimeout))
	size, err := readFrameHead(c.r, c.t.opts.MaxFrameSize)
	if err != nil {
		return nil, err
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(c.t.opts.FrameTimeout + lineTime(size)))
	frame, err := readFrameBody(c.r, size)
	if err != nil {
		return nil, err
	}
	_ = c.nc.SetReadDeadline(time.Time{})
	return decodeEnvelope(frame)
}

// wholeFrame: the next frame has arrived to its end, so that reading it waits for
// nothing and needs no deadline, which costs as much as the reading.
func (c *conn) wholeFrame() bool {
	head, _ := c.r.Peek(min(frameHeadBytes, c.r.Buffered()))
	return len(head) == frameHeadBytes && uint64(c.r.Buffered()-frameHeadBytes) >= uint64(binary.BigEndian.Uint32(head))
}

func (c *conn) readBuffered() (*envelope, error) {
	frame, err := readFrame(c.r, c.t.opts.MaxFrameSize)
	if err != nil {
		return nil, err
	}
	return decodeEnvelope(frame)
}

// watchLoop ends a connection whose peer has vanished without a word: TCP alone
// would let requests wait on it for a quarter of an hour. While requests wait
// and nothing arrives, it sends a probe, which any peer answers at once; if
// nothing arrives in a whole period after the probe was written, the
// connection ends. From the last byte to that it takes about SilenceTimeout.
func (c *conn) watchLoop() {
	period := c.t.opts.SilenceTimeout / 3
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	var probe *outgoing
	written := false // the probe, at the last tick
	seen := int64(0) // reads, at the last tick
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-ticker.C:
		}
		reads := c.raw.reads.Load()
		switch {
		case !c.waits() || reads != seen:
			probe, written, seen = nil, false, reads
		case probe == nil:
			probe = c.probe()
		case probe.state.Load() != frameWriting: // the write deadline's matter
		case !written:
			written = true
		default:
			c.close(fmt.Errorf("%w: %s", errSilent, c.peer.Addr))
			return
		}
	}
}

// waits: a request waits for its answer.
func (c *conn) waits() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.pending) > 0
}

// probeCode is a request that nobody serves: the answer is "unsupported", by
// the transport itself, whatever its node is busy with.
const probeCode replication.MessageType = 255

// probe sends a probe; nil: there is no room for one.
func (c *conn) probe() *outgoing {
	env := &envelope{Type: int(probeCode), Node: c.t.opts.NodeID, HasID: true}
	w, out, err := c.register(env)
	if err != nil {
		return nil
	}
	select {
	case c.send <- out:
		return out
	default:
		c.forget(env, w)
		return nil
	}
}
