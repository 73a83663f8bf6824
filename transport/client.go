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
	return send[replication.WALBatchResponse](ctx, r, replication.MsgWALBatch, walEntries(entries))
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

// peerKey is what peers are told apart by.
type peerKey struct {
	addr string
	kind replication.StreamKind
}

// peer is the one connection to an address that all PeerConnections to it
// share. It is dialled when it is needed and not there.
type peer struct {
	t      *Transport
	key    peerKey
	ctx    context.Context // ends with the last handle
	cancel context.CancelFunc
	refs   int // guarded by t.mu

	// mu guards the fields below. t.mu is taken under it, never the other way
	// round.
	mu       sync.Mutex
	conn     *conn // nil: none, or it has ended
	opened   time.Time
	dialing  *attempt  // nil: none under way
	failures int       // since a connection that was of use
	notUntil time.Time // next dial, after failures
	lastErr  error
}

// attempt is one dial, which many callers may wait for.
type attempt struct {
	done chan struct{} // closed at its end
	err  error         // valid then
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
	return t.connect(ctx, peerKey{addr, replication.StreamRPC})
}

// ConnectRegion is Connect to a node of another region; see SetRegions.
func (t *Transport) ConnectRegion(ctx context.Context, addr string) (replication.PeerConnection, error) {
	return t.connect(ctx, peerKey{addr, replication.StreamRegion})
}

func newPeer(t *Transport, key peerKey) *peer {
	p := &peer{t: t, key: key}
	p.ctx, p.cancel = context.WithCancel(t.ctx)
	return p
}

func (t *Transport) connect(ctx context.Context, key peerKey) (replication.PeerConnection, error) {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil, replication.ErrClosed
	}
	p := t.peers[key]
	if p == nil {
		p = newPeer(t, key)
		t.peers[key] = p
	}
	p.refs++
	t.mu.Unlock()
	pc := &PeerConn{p: p, requester: requester{p.call}}
	if _, err := p.get(ctx); err != nil {
		_ = pc.Close()
		return nil, replication.MarkNotSent(err)
	}
	return pc, nil
}

// ConnectOwn is Connect over a connection of its own, which no other handle
// shares: what is sent on it does not wait behind anything else.
func (t *Transport) ConnectOwn(ctx context.Context, addr string) (replication.PeerConnection, error) {
	p := newPeer(t, peerKey{addr, replication.StreamRPC})
	p.refs = 1
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
	p.refs--
	last := p.refs == 0
	if last && p.t.peers[p.key] == p {
		delete(p.t.peers, p.key)
	}
	p.t.mu.Unlock()
	if last {
		p.shut()
	}
}

// shut ends the connection and a dial under way.
func (p *peer) shut() {
	p.cancel()
	p.mu.Lock()
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
		c, a := p.current()
		if c != nil {
			return c, nil
		}
		if a == nil {
			return nil, replication.ErrClosed
		}
		select {
		case <-a.done:
			if a.err != nil {
				return nil, a.err
			}
		case <-ctx.Done():
			p.mu.Lock()
			defer p.mu.Unlock()
			return nil, fmt.Errorf("%w: connecting to %s: %w (last: %v)", replication.ErrTimeout, p.key.addr, context.Cause(ctx), p.lastErr)
		}
	}
}

// current returns the connection, or else the dial that is to bring it;
// neither: closed.
func (p *peer) current() (*conn, *attempt) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		return nil, nil
	}
	if p.conn != nil {
		if p.conn.alive() {
			return p.conn, nil
		}
		p.lost()
	}
	if p.dialing == nil {
		a := &attempt{done: make(chan struct{})}
		wait := time.Until(p.notUntil)
		if !p.t.spawn(func() { p.dial(a, wait) }) {
			return nil, nil
		}
		p.dialing = a
	}
	return nil, p.dialing
}

// lost takes note of a connection that ended. One that never answered a request
// and did not last counts as a failed dial, so that a peer that accepts and
// hangs up is not dialled without pause. p.mu is held.
func (p *peer) lost() {
	if p.conn.answered.Load() || time.Since(p.opened) > p.t.opts.BackoffMax {
		p.failures = 0
	} else {
		p.failed(context.Cause(p.conn.ctx))
	}
	p.conn = nil
}

// failed takes note of a failure. p.mu is held.
func (p *peer) failed(err error) {
	p.lastErr = err
	p.notUntil = time.Now().Add(backoff(p.failures, p.t.opts.BackoffMin, p.t.opts.BackoffMax))
	p.failures++
}

// dial waits out the back-off and dials once.
func (p *peer) dial(a *attempt, wait time.Duration) {
	var c *conn
	timer := time.NewTimer(max(wait, 0))
	defer timer.Stop()
	select {
	case <-timer.C:
		c, a.err = p.dialOnce()
	case <-p.ctx.Done():
		a.err = replication.ErrClosed
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case a.err != nil:
		p.failed(a.err)
	case p.ctx.Err() != nil:
		c.close(replication.ErrClosed)
		a.err = replication.ErrClosed
	default:
		p.conn, p.opened = c, time.Now()
	}
	p.dialing = nil
	close(a.done)
}

func (p *peer) dialOnce() (*conn, error) {
	s, err := p.t.dial(p.ctx, p.key.addr, p.key.kind)
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

// OpenStream implements replication.Mux. Streams of kind rpc and region carry
// frames, not raw bytes: use Connect and ConnectRegion.
func (t *Transport) OpenStream(ctx context.Context, addr string, kind replication.StreamKind) (net.Conn, error) {
	if carriesMessages(kind) {
		return nil, fmt.Errorf("%w: %s is not a raw stream", replication.ErrUnsupported, kind)
	}
	s, err := t.dial(ctx, addr, kind)
	if err != nil {
		return nil, err
	}
	return &streamConn{Conn: s.conn, r: s.r}, nil
}
