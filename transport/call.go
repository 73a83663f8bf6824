package transport

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nornicdb/replication"
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

// call sends a request and waits for its answer. An error marked NotSent says
// that the peer never got it.
func (c *conn) call(ctx context.Context, code replication.MessageType, request, response any) error {
	payload, err := encodePayload(request)
	if err != nil {
		return replication.MarkNotSent(fmt.Errorf("encoding message %d: %w", code, err))
	}
	select {
	case c.window <- struct{}{}:
		defer func() { <-c.window }()
	case <-ctx.Done():
		return replication.MarkNotSent(fmt.Errorf("%w: %w", replication.ErrTimeout, context.Cause(ctx)))
	case <-c.ctx.Done():
		return replication.MarkNotSent(context.Cause(c.ctx))
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
	var timeout <-chan time.Time // bounds the wait for a response that has no ID
	if !env.HasID {
		timer := time.NewTimer(c.t.opts.AnswerTimeout)
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case a := <-w.answer:
		return c.finish(a, out, response)
	case <-c.ctx.Done():
		return c.ended(w, out, response)
	case <-ctx.Done():
	case <-timeout:
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

// abandon ends a request whose caller gives up. The caller's reason is text in
// the error: what it wraps would read like the peer's answer.
func (c *conn) abandon(ctx context.Context, env *envelope, w *waiting, out *outgoing, response any) error {
	err := fmt.Errorf("%w: no answer from %s", replication.ErrTimeout, c.peer.Addr)
	if ctx.Err() != nil {
		err = fmt.Errorf("%w: %w (%v)", err, ctx.Err(), context.Cause(ctx))
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
	if env.HasID {
		c.mu.Lock()
		c.nextID++
		env.ID = c.nextID
		c.mu.Unlock()
	}
	frame, err := encodeFrame(env, c.maxFrame)
	if err != nil {
		return nil, nil, err
	}
	out := &outgoing{frame: frame}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, nil, context.Cause(c.ctx)
	}
	if env.HasID {
		c.pending[env.ID] = w
	} else {
		out.inOrder = w
	}
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
	c.answered.Store(true)
	w.answer <- answer{env: env}
	return nil
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
