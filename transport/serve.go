package transport

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/nornicdb/replication"
)

// receive takes a message that arrived.
func (c *conn) receive(env *envelope) error {
	switch {
	case c.isResponse(env):
		return c.receiveResponse(env)
	case !env.HasID:
		return c.order.put(c.ctx, env)
	}
	if !c.admit(env) {
		return c.refuse(env)
	}
	started := c.t.spawn(func() {
		defer c.release(env)
		c.handle(env)
	})
	if !started {
		return replication.ErrClosed
	}
	return nil
}

// isResponse tells responses, even codes, from requests. An even code that the
// protocol does not know and that nobody waits for is a message of unknown
// kind, which is answered; one with a failure is a response whatever its code,
// so two nodes never answer each other's refusals.
func (c *conn) isResponse(env *envelope) bool {
	if env.Failure != nil || env.Type%2 == 0 && env.Type <= int(replication.MsgRegionStateResponse) {
		return true
	}
	if env.Type%2 != 0 {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !env.HasID {
		return len(c.fifo) > 0 && c.fifo[0].code == env.Type
	}
	return env.ID <= c.nextID // the answer to one of ours, perhaps a late one
}

// admit counts a request in; false: too many are being handled, or too large
// ones. The reader never waits for a handler: what handlers wait for may come
// through it.
func (c *conn) admit(env *envelope) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.handling >= c.t.opts.MaxRequests || c.held+env.Size > 2*c.t.opts.MaxFrameSize {
		return false
	}
	c.handling++
	c.held += env.Size
	return true
}

func (c *conn) release(env *envelope) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handling--
	c.held -= env.Size
}

// refuse answers a request for which there is no room. A peer that asks
// without reading answers is cut off.
func (c *conn) refuse(env *envelope) error {
	frame, err := c.response(env, nil, fmt.Errorf("%w: too many requests on one connection", replication.ErrOverloaded))
	if err != nil {
		return err
	}
	select {
	case c.send <- &outgoing{frame: frame}:
		return nil
	default:
		// No code of ours: this node's own requests on the connection get it, and
		// what became of them is open.
		return fmt.Errorf("%s sends requests and reads no answers", c.peer.Addr)
	}
}

// orderedQueue holds requests without ID until their turn comes; the one
// reader that fills it waits while it is full.
type orderedQueue struct {
	requests chan *envelope
	held     atomic.Int64 // bytes of requests queued or being handled
	maxBytes int64        // put waits while it would exceed that, unless empty
	drained  chan struct{}
}

func newOrderedQueue(maxBytes int) orderedQueue {
	return orderedQueue{requests: make(chan *envelope, orderedQueueRequests), maxBytes: int64(maxBytes),
		drained: make(chan struct{}, 1)}
}

func (q *orderedQueue) put(ctx context.Context, env *envelope) error {
	for held := q.held.Load(); held > 0 && held+int64(env.Size) > q.maxBytes; held = q.held.Load() {
		select {
		case <-q.drained:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	q.held.Add(int64(env.Size))
	select {
	case q.requests <- env:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// done counts a request out.
func (q *orderedQueue) done(env *envelope) {
	q.held.Add(-int64(env.Size))
	select {
	case q.drained <- struct{}{}:
	default:
	}
}

func (c *conn) orderedLoop() {
	for {
		select {
		case env := <-c.order.requests:
			c.handle(env)
			c.order.done(env)
		case <-c.ctx.Done():
			return
		}
	}
}

// handle answers one request.
func (c *conn) handle(env *envelope) {
	result, err := c.dispatch(env)
	frame, err := c.response(env, result, err)
	if err != nil {
		c.close(err)
		return
	}
	_ = c.enqueue(c.ctx, &outgoing{frame: frame}) // fails only when the connection has ended
}

// response makes the frame that answers a request with a result or a failure.
func (c *conn) response(env *envelope, result any, err error) ([]byte, error) {
	resp := &envelope{Type: env.Type + 1, Node: c.t.opts.NodeID, ID: env.ID, HasID: env.HasID, Epoch: c.t.currentEpoch()}
	if err == nil {
		resp.Payload, err = encodePayload(result)
	}
	if err == nil {
		var frame []byte
		if frame, err = encodeFrame(resp, c.maxFrame); err == nil {
			return frame, nil
		}
	}
	resp.Payload, resp.Failure = nil, failureOf(err)
	return encodeFrame(resp, c.maxFrame)
}

func (c *conn) dispatch(env *envelope) (any, error) {
	if env.Type > 255 || !c.permitted(replication.MessageType(env.Type)) {
		return nil, fmt.Errorf("%w: message %d", replication.ErrUnsupported, env.Type)
	}
	code := replication.MessageType(env.Type)
	switch {
	case code == replication.MsgVoteRequest && c.kind == replication.StreamRPC:
		return c.t.answerVote(), nil
	case code == replication.MsgAppendEntries && c.kind == replication.StreamRPC:
		return c.t.answerAppend(), nil
	}
	h := c.t.handler(c.kind, code)
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
