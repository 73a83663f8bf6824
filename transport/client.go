package transport

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/nornicdb/replication"
)

// requester gives a thing that can call the methods of PeerConnection.
type requester struct {
	call func(ctx context.Context, code replication.MessageType, request, response any) error
}

// Call implements replication.Caller.
func (r requester) Call(ctx context.Context, code replication.MessageType, request, response any) error {
	return r.call(ctx, code, request, response)
}

func send[T any](ctx context.Context, r requester, code replication.MessageType, request any) (*T, error) {
	response := new(T)
	if err := r.call(ctx, code, request, response); err != nil {
		return nil, err
	}
	return response, nil
}

// SendWALBatch implements replication.PeerConnection.
func (r requester) SendWALBatch(ctx context.Context, entries []*replication.WALEntry) (*replication.WALBatchResponse, error) {
	return send[replication.WALBatchResponse](ctx, r, replication.MsgWALBatch, entries)
}

// SendHeartbeat implements replication.PeerConnection.
func (r requester) SendHeartbeat(ctx context.Context, req *replication.HeartbeatRequest) (*replication.HeartbeatResponse, error) {
	return send[replication.HeartbeatResponse](ctx, r, replication.MsgHeartbeat, req)
}

// SendFence implements replication.PeerConnection.
func (r requester) SendFence(ctx context.Context, req *replication.FenceRequest) (*replication.FenceResponse, error) {
	return send[replication.FenceResponse](ctx, r, replication.MsgFence, req)
}

// SendPromote implements replication.PeerConnection.
func (r requester) SendPromote(ctx context.Context, req *replication.PromoteRequest) (*replication.PromoteResponse, error) {
	return send[replication.PromoteResponse](ctx, r, replication.MsgPromote, req)
}

// SendRaftVote implements replication.PeerConnection.
func (r requester) SendRaftVote(ctx context.Context, req *replication.RaftVoteRequest) (*replication.RaftVoteResponse, error) {
	return send[replication.RaftVoteResponse](ctx, r, replication.MsgVoteRequest, req)
}

// SendRaftAppendEntries implements replication.PeerConnection.
func (r requester) SendRaftAppendEntries(ctx context.Context, req *replication.RaftAppendEntriesRequest) (*replication.RaftAppendEntriesResponse, error) {
	return send[replication.RaftAppendEntriesResponse](ctx, r, replication.MsgAppendEntries, req)
}

// peer is the one connection to an address that all PeerConnections to it
// share. It is dialled when it is needed and not there.
type peer struct {
	t    *Transport
	addr string

	// mu guards the fields below.
	mu       sync.Mutex
	refs     int
	conn     *conn // nil: none, or it has ended
	dialing  chan struct{}
	failures int
	notUntil time.Time // next dial, after failures
	lastErr  error
	shutDown bool
}

// PeerConn is a handle on the connection to one address. Safe for many
// goroutines; their requests are pipelined on one connection, which is dialled
// again when it is broken and needed.
type PeerConn struct {
	requester
	p    *peer
	once sync.Once
}

var (
	_ replication.PeerConnection = (*PeerConn)(nil)
	_ replication.Caller         = (*PeerConn)(nil)
	_ replication.PeerConnection = (*acceptedConn)(nil)
	_ replication.Caller         = (*acceptedConn)(nil)
)

// acceptedConn is an accepted connection as a PeerConnection.
type acceptedConn struct {
	requester
	c *conn
}

func (a *acceptedConn) Close() error           { a.c.close(replication.ErrClosed); return nil }
func (a *acceptedConn) IsConnected() bool      { return a.c.alive() }
func (a *acceptedConn) Peer() replication.Peer { return a.c.peer }

// Connect implements replication.Transport. The result is a *PeerConn.
func (t *Transport) Connect(ctx context.Context, addr string) (replication.PeerConnection, error) {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil, replication.ErrClosed
	}
	p := t.peers[addr]
	if p == nil {
		p = &peer{t: t, addr: addr}
		t.peers[addr] = p
	}
	p.mu.Lock()
	p.refs++
	p.mu.Unlock()
	t.mu.Unlock()
	pc := &PeerConn{p: p, requester: requester{p.call}}
	if _, err := p.get(ctx); err != nil {
		_ = pc.Close()
		return nil, replication.MarkNotSent(err)
	}
	return pc, nil
}

// Close gives the handle back; the last one closes the connection.
func (pc *PeerConn) Close() error {
	pc.once.Do(pc.p.release)
	return nil
}

// IsConnected says whether the connection stands at this moment.
func (pc *PeerConn) IsConnected() bool {
	pc.p.mu.Lock()
	defer pc.p.mu.Unlock()
	return pc.p.conn != nil && pc.p.conn.alive()
}

// Peer is who answered; zero while not connected.
func (pc *PeerConn) Peer() replication.Peer {
	pc.p.mu.Lock()
	defer pc.p.mu.Unlock()
	if pc.p.conn == nil {
		return replication.Peer{}
	}
	return pc.p.conn.peer
}

// MaxCommandBytes is the largest command that both sides' frames take.
func (pc *PeerConn) MaxCommandBytes() int {
	pc.p.mu.Lock()
	defer pc.p.mu.Unlock()
	if pc.p.conn == nil {
		return pc.p.t.MaxCommandBytes()
	}
	return MaxCommandBytes(pc.p.conn.maxFrame)
}

func (p *peer) release() {
	p.t.mu.Lock()
	p.mu.Lock()
	p.refs--
	last := p.refs == 0
	if last && p.t.peers[p.addr] == p {
		delete(p.t.peers, p.addr)
	}
	p.mu.Unlock()
	p.t.mu.Unlock()
	if last {
		p.shut()
	}
}

func (p *peer) shut() {
	p.mu.Lock()
	p.shutDown = true
	c := p.conn
	p.mu.Unlock()
	if c != nil {
		c.close(replication.ErrClosed)
	}
}

func (p *peer) call(ctx context.Context, code replication.MessageType, request, response any) error {
	c, err := p.get(ctx)
	if err != nil {
		return replication.MarkNotSent(err)
	}
	return c.call(ctx, code, request, response)
}

// get returns the connection, dialling where there is none. Callers that come
// while a dial runs, or while the back-off lasts, wait for it.
func (p *peer) get(ctx context.Context) (*conn, error) {
	for {
		p.mu.Lock()
		if p.shutDown {
			p.mu.Unlock()
			return nil, replication.ErrClosed
		}
		if p.conn != nil && p.conn.alive() {
			defer p.mu.Unlock()
			return p.conn, nil
		}
		p.conn = nil
		if p.dialing == nil {
			p.dialing = make(chan struct{})
			wait := time.Until(p.notUntil)
			if !p.t.spawn(func() { p.dial(wait) }) {
				p.dialing = nil
				p.mu.Unlock()
				return nil, replication.ErrClosed
			}
		}
		dialed, failures := p.dialing, p.failures
		p.mu.Unlock()

		select {
		case <-dialed:
		case <-ctx.Done():
			p.mu.Lock()
			defer p.mu.Unlock()
			return nil, fmt.Errorf("%w: connecting to %s: %w (last: %v)", replication.ErrTimeout, p.addr, context.Cause(ctx), p.lastErr)
		}
		p.mu.Lock()
		failed, err := p.failures > failures, p.lastErr
		p.mu.Unlock()
		if failed {
			return nil, err
		}
	}
}

// dial waits out the back-off and dials once.
func (p *peer) dial(wait time.Duration) {
	var c *conn
	err := error(nil)
	timer := time.NewTimer(max(wait, 0))
	defer timer.Stop()
	select {
	case <-timer.C:
		c, err = p.dialOnce()
	case <-p.t.ctx.Done():
		err = replication.ErrClosed
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil && p.shutDown {
		c.close(replication.ErrClosed)
		err = replication.ErrClosed
	}
	if err != nil {
		p.lastErr = err
		p.notUntil = time.Now().Add(backoff(p.failures, p.t.opts.BackoffMin, p.t.opts.BackoffMax))
		p.failures++
	} else {
		p.conn, p.failures, p.notUntil = c, 0, time.Time{}
	}
	close(p.dialing)
	p.dialing = nil
}

func (p *peer) dialOnce() (*conn, error) {
	s, err := p.t.dial(p.t.ctx, p.addr, replication.StreamRPC)
	if err != nil {
		return nil, err
	}
	c := newConn(p.t, s)
	if !c.start() || !p.t.spawn(func() { c.readLoop(nil) }) {
		c.close(replication.ErrClosed)
		return nil, replication.ErrClosed
	}
	return c, nil
}

// backoff is the wait after a number of failures: doubling, with jitter from
// half of it to the whole, so that many nodes do not dial in step.
func backoff(failures int, least, most time.Duration) time.Duration {
	d := most
	if failures < 30 && least<<failures < most && least<<failures > 0 {
		d = least << failures
	}
	return d/2 + rand.N(d/2+1)
}

// OpenStream implements replication.Mux. A stream of kind rpc carries frames,
// not raw bytes: use Connect.
func (t *Transport) OpenStream(ctx context.Context, addr string, kind replication.StreamKind) (net.Conn, error) {
	if kind == replication.StreamRPC {
		return nil, fmt.Errorf("%w: %s is not a raw stream", replication.ErrUnsupported, kind)
	}
	s, err := t.dial(ctx, addr, kind)
	if err != nil {
		return nil, err
	}
	return &streamConn{Conn: s.conn, r: s.r}, nil
}
