package transport

import (
	"bufio"
	"context"
	"encoding/json"
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
)

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

// answer is what a request waits for.
type answer struct {
	env *envelope
	err error
}

// waiting is a request that was sent.
type waiting struct {
	code   int         // of the response
	answer chan answer // one
}

// conn is a connection that carries messages, requests both ways. One
// goroutine reads, one writes; handlers run in goroutines of their own.
type conn struct {
	t        *Transport
	nc       net.Conn
	r        *bufio.Reader
	peer     replication.Peer
	maxFrame int

	ctx    context.Context // ends with the connection
	cancel context.CancelCauseFunc
	send   chan *outgoing
	slots  chan struct{}  // one for each request being handled
	order  chan *envelope // requests without ID, handled in turn

	// mu guards the fields below.
	mu      sync.Mutex
	nextID  uint64
	pending map[uint64]*waiting
	fifo    []*waiting // requests without ID, in the order in which they are written
	closed  bool
}

func newConn(t *Transport, s *session) *conn {
	c := &conn{t: t, nc: s.conn, r: s.r, peer: s.peer, maxFrame: s.maxFrame,
		send: make(chan *outgoing, sendQueueFrames), slots: make(chan struct{}, t.opts.MaxRequests),
		order: make(chan *envelope, orderedQueueRequests), pending: make(map[uint64]*waiting)}
	c.ctx, c.cancel = context.WithCancelCause(t.ctx)
	return c
}

// start starts the writer and the handler of ordered requests.
func (c *conn) start() bool {
	return c.t.spawn(c.writeLoop) && c.t.spawn(c.orderedLoop)
}

// close ends the connection; requests that wait get err.
func (c *conn) close(err error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed = true
	pending, fifo := c.pending, c.fifo
	c.pending, c.fifo = nil, nil
	c.mu.Unlock()
	c.cancel(err)
	_ = c.nc.Close()
	for _, w := range pending {
		w.answer <- answer{err: err}
	}
	for _, w := range fifo {
		w.answer <- answer{err: err}
	}
}

func (c *conn) alive() bool { return c.ctx.Err() == nil }

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
		_ = c.nc.SetWriteDeadline(time.Now().Add(c.t.opts.WriteTimeout))
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
// there, the rest must come within FrameTimeout.
func (c *conn) readMessage() (*envelope, error) {
	if _, err := c.r.Peek(1); err != nil {
		return nil, err
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(c.t.opts.FrameTimeout))
	frame, err := readFrame(c.r, c.t.opts.MaxFrameSize)
	if err != nil {
		return nil, err
	}
	_ = c.nc.SetReadDeadline(time.Time{})
	return decodeEnvelope(frame)
}

func (c *conn) receive(env *envelope) error {
	if env.Type%2 == 0 {
		return c.receiveResponse(env)
	}
	if !env.HasID {
		select {
		case c.order <- env:
			return nil
		case <-c.ctx.Done():
			return context.Cause(c.ctx)
		}
	}
	select {
	case c.slots <- struct{}{}:
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
	started := c.t.spawn(func() {
		defer func() { <-c.slots }()
		c.handle(env)
	})
	if !started {
		return replication.ErrClosed
	}
	return nil
}

// receiveResponse gives a response to the request it answers. One that nobody
// waits for any more is dropped, if it has an ID; without one, or with the
// wrong code, the connection has lost its order and ends.
func (c *conn) receiveResponse(env *envelope) error {
	c.mu.Lock()
	var w *waiting
	if env.HasID {
		w = c.pending[env.ID]
		delete(c.pending, env.ID)
	} else if len(c.fifo) > 0 {
		w, c.fifo = c.fifo[0], c.fifo[1:]
	}
	c.mu.Unlock()
	switch {
	case w == nil && env.HasID:
		return nil
	case w == nil:
		return fmt.Errorf("%w: response %d to no request", errFrame, env.Type)
	case w.code != env.Type:
		err := fmt.Errorf("%w: response %d where %d was due", errFrame, env.Type, w.code)
		w.answer <- answer{err: err}
		return err
	}
	w.answer <- answer{env: env}
	return nil
}

func (c *conn) orderedLoop() {
	for {
		select {
		case env := <-c.order:
			c.handle(env)
		case <-c.ctx.Done():
			return
		}
	}
}

// handle answers one request.
func (c *conn) handle(env *envelope) {
	result, err := c.dispatch(env)
	resp := &envelope{Type: env.Type + 1, Node: c.t.opts.NodeID, ID: env.ID, HasID: env.HasID, Epoch: c.t.currentEpoch()}
	if err == nil {
		resp.Payload, err = json.Marshal(result)
	}
	var frame []byte
	if err == nil {
		frame, err = encodeFrame(resp, c.maxFrame)
	}
	if err != nil {
		resp.Payload, resp.Failure = nil, failureOf(err)
		if frame, err = encodeFrame(resp, c.maxFrame); err != nil {
			c.close(err)
			return
		}
	}
	_ = c.enqueue(c.ctx, &outgoing{frame: frame}) // fails only when the connection has ended
}

func (c *conn) dispatch(env *envelope) (any, error) {
	if env.Type > 255 || !c.permitted(replication.MessageType(env.Type)) {
		return nil, fmt.Errorf("%w: message %d", replication.ErrUnsupported, env.Type)
	}
	code := replication.MessageType(env.Type)
	switch code {
	case replication.MsgVoteRequest:
		return c.t.answerVote(), nil
	case replication.MsgAppendEntries:
		return c.t.answerAppend(), nil
	}
	h := c.t.handler(code)
	if h == nil {
		return nil, fmt.Errorf("%w: message %d", replication.ErrUnsupported, env.Type)
	}
	peer := c.peer
	if !peer.Hello {
		peer.NodeID = env.Node
	}
	return h(c.ctx, &replication.Request{Type: code, Peer: peer, Epoch: env.Epoch, PrevEpoch: env.Prev, Payload: env.Payload})
}

// permitted: a peer without a handshake gets the documented messages only.
func (c *conn) permitted(code replication.MessageType) bool {
	return c.peer.Hello || code <= replication.MsgPromoteResponse || code == replication.MsgStatus
}

// answerVote and answerAppend refuse: Raft nodes talk over Raft streams only,
// and nothing that arrives as JSON reaches hashicorp/raft.
func (t *Transport) answerVote() *replication.RaftVoteResponse {
	term, _ := t.raftPosition()
	return &replication.RaftVoteResponse{Term: term, VoteGranted: false, VoterID: t.opts.NodeID}
}

func (t *Transport) answerAppend() *replication.RaftAppendEntriesResponse {
	term, last := t.raftPosition()
	return &replication.RaftAppendEntriesResponse{Term: term, Success: false, MatchIndex: last}
}

func (t *Transport) raftPosition() (term, last uint64) {
	t.mu.Lock()
	state := t.raftState
	t.mu.Unlock()
	if state == nil {
		return 0, 0
	}
	return state()
}

// call sends a request and waits for its answer. An error marked NotSent says
// that the peer never got it.
func (c *conn) call(ctx context.Context, code replication.MessageType, request, response any) error {
	payload, err := json.Marshal(request)
	if err != nil {
		return replication.MarkNotSent(fmt.Errorf("encoding message %d: %w", code, err))
	}
	env := &envelope{Type: int(code), Node: c.t.opts.NodeID, Payload: payload, Epoch: c.t.currentEpoch(),
		Prev: prevEpoch(ctx), HasID: c.peer.Hello}
	w, out, err := c.register(env)
	if err != nil {
		return replication.MarkNotSent(err)
	}
	if err := c.enqueue(ctx, out); err != nil {
		c.forget(env, w)
		return replication.MarkNotSent(err)
	}
	timeout := c.answerTimeout(env)
	defer timeout.Stop()
	select {
	case a := <-w.answer:
		return c.finish(a, out, response)
	case <-c.ctx.Done():
		return c.ended(w, out, response)
	case <-ctx.Done():
	case <-timeout.C:
		ctx = c.ctx // the reason given below is the timeout's
	}
	return c.abandon(ctx, env, w, out, response)
}

func (c *conn) finish(a answer, out *outgoing, response any) error {
	switch {
	case a.err != nil && out.state.CompareAndSwap(frameQueued, frameWithdrawn):
		return replication.MarkNotSent(a.err)
	case a.err != nil:
		return a.err
	case a.env.Failure != nil:
		return a.env.Failure.err()
	case response == nil:
		return nil
	}
	if err := json.Unmarshal(a.env.Payload, response); err != nil {
		return fmt.Errorf("decoding response %d: %w", a.env.Type, err)
	}
	return nil
}

// ended finishes a request whose connection has ended: by the answer, if it came
// before that.
func (c *conn) ended(w *waiting, out *outgoing, response any) error {
	select {
	case a := <-w.answer:
		return c.finish(a, out, response)
	default:
		return c.finish(answer{err: context.Cause(c.ctx)}, out, response)
	}
}

// abandon ends a request whose caller gives up.
func (c *conn) abandon(ctx context.Context, env *envelope, w *waiting, out *outgoing, response any) error {
	err := fmt.Errorf("%w: no answer from %s", replication.ErrTimeout, c.peer.Addr)
	if cause := context.Cause(ctx); cause != nil {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	if out.state.CompareAndSwap(frameQueued, frameWithdrawn) {
		c.forget(env, w)
		return replication.MarkNotSent(err)
	}
	if !c.forget(env, w) { // answered, or the connection ended, at this very moment
		select {
		case a := <-w.answer:
			return c.finish(a, out, response)
		case <-c.ctx.Done():
			return c.ended(w, out, response)
		}
	}
	if !env.HasID {
		c.close(err) // a late answer must not reach the next caller
	}
	return err
}

// register makes a request's frame; one with an ID gets its place among those
// that wait for answers, one without gets it when it is written.
func (c *conn) register(env *envelope) (*waiting, *outgoing, error) {
	w := &waiting{code: env.Type + 1, answer: make(chan answer, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, nil, context.Cause(c.ctx)
	}
	if env.HasID {
		c.nextID++
		env.ID = c.nextID
	}
	frame, err := encodeFrame(env, c.maxFrame)
	if err != nil {
		return nil, nil, err
	}
	out := &outgoing{frame: frame}
	if env.HasID {
		c.pending[env.ID] = w
		return w, out, nil
	}
	out.inOrder = w
	return w, out, nil
}

// forget takes a request out of those that wait; false: it was answered.
func (c *conn) forget(env *envelope, w *waiting) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if env.HasID {
		_, waits := c.pending[env.ID]
		delete(c.pending, env.ID)
		return waits
	}
	for i := range c.fifo {
		if c.fifo[i] == w {
			c.fifo = append(c.fifo[:i], c.fifo[i+1:]...)
			return true
		}
	}
	return false
}

// answerTimeout bounds the wait for a response that has no ID.
func (c *conn) answerTimeout(env *envelope) *time.Timer {
	if env.HasID {
		t := time.NewTimer(time.Hour)
		t.Stop() // never fires
		return t
	}
	return time.NewTimer(c.t.opts.AnswerTimeout)
}

type prevEpochKey struct{}

// WithPrevEpoch makes a WALBatch sent under ctx carry the epoch of the entry
// before its first (envelope key q).
func WithPrevEpoch(ctx context.Context, e replication.Epoch) context.Context {
	return context.WithValue(ctx, prevEpochKey{}, &e)
}

func prevEpoch(ctx context.Context) *replication.Epoch {
	e, _ := ctx.Value(prevEpochKey{}).(*replication.Epoch)
	return e
}
