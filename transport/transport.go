package transport

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	metrics "github.com/hashicorp/go-metrics/compat"
	"github.com/nornicdb/replication"
)

// Transport is one node's side of the cluster protocol. Safe for concurrent
// use.
type Transport struct {
	opts   Options
	logs   throttle
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine of the transport

	// mu guards the fields below.
	mu        sync.Mutex
	closed    bool
	handlers  map[route]replication.Handler
	streams   map[replication.StreamKind]func(replication.Peer, net.Conn)
	check     func(addr, nodeID string) error
	regions   *regions // nil: no region streams
	raftState func() (term, lastLogIndex uint64)
	epoch     func() replication.Epoch
	history   func() string
	peers     map[peerKey]*peer
	conns     map[net.Conn]struct{} // open connections, closed by Close
	listeners map[string]net.Listener
	stats     Stats
}

// route is where a request goes: messages of other regions have handlers of
// their own.
type route struct {
	kind replication.StreamKind // rpc or region
	code replication.MessageType
}

// regions is what region streams are checked against.
type regions struct {
	settingsHash string
	check        func(region string) error
}

// Stats are counters since the start.
type Stats struct {
	HandshakesRejected map[string]uint64 // by reason
	FramesRejected     map[string]uint64 // by reason
	DialsRefused       map[string]uint64 // handshakes of this node's that failed, by error code
	Accepted           uint64            // connections
	Open               int               // connections now, both ways
	Unproven           int               // accepted ones without finished handshake
}

var (
	_ replication.Transport = (*Transport)(nil)
	_ replication.Mux       = (*Transport)(nil)
)

// New makes a transport. It opens nothing before Bind, Listen or Connect.
func New(opts Options) (*Transport, error) {
	opts.setDefaults()
	if err := opts.validate(); err != nil {
		return nil, err
	}
	t := &Transport{
		opts:      opts,
		handlers:  make(map[route]replication.Handler),
		streams:   make(map[replication.StreamKind]func(replication.Peer, net.Conn)),
		peers:     make(map[peerKey]*peer),
		conns:     make(map[net.Conn]struct{}),
		listeners: make(map[string]net.Listener),
		stats: Stats{HandshakesRejected: make(map[string]uint64), FramesRejected: make(map[string]uint64),
			DialsRefused: make(map[string]uint64)},
	}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t, nil
}

// Handle implements replication.Mux.
func (t *Transport) Handle(code replication.MessageType, h replication.Handler) {
	t.setHandler(route{replication.StreamRPC, code}, h)
}

// HandleRegion sets the handler of a request code that comes on a region
// stream; nil removes it. What Handle serves is not open to other regions.
func (t *Transport) HandleRegion(code replication.MessageType, h replication.Handler) {
	t.setHandler(route{replication.StreamRegion, code}, h)
}

func (t *Transport) setHandler(r route, h replication.Handler) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h == nil {
		delete(t.handlers, r)
		return
	}
	t.handlers[r] = h
}

// SetRegions opens region streams, both ways: to peers with the same hash of
// the settings that all regions share, whose region check takes. A nil check
// closes them to new peers again.
func (t *Transport) SetRegions(settingsHash string, check func(region string) error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.regions = nil
	if check != nil {
		t.regions = &regions{settingsHash, check}
	}
}

func (t *Transport) regionSettings() *regions {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.regions
}

// HandleStream implements replication.Mux.
func (t *Transport) HandleStream(kind replication.StreamKind, accept func(replication.Peer, net.Conn)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if accept == nil {
		delete(t.streams, kind)
		return
	}
	t.streams[kind] = accept
}

// SetPeerCheck sets the dialer's check of who answered at an address; its error
// refuses the connection as replication.ErrWrongPeer.
func (t *Transport) SetPeerCheck(check func(addr, nodeID string) error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.check = check
}

// SetRaftState sets what the answers to codes 1 and 3 report.
func (t *Transport) SetRaftState(state func() (term, lastLogIndex uint64)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.raftState = state
}

// SetEpoch sets the fencing epoch that messages carry while it is not zero.
func (t *Transport) SetEpoch(epoch func() replication.Epoch) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.epoch = epoch
}

// SetHistory sets what tells the history of this node's Raft log, "" where it has
// none yet. Raft and snapshot streams are open only between nodes of one history:
// hashicorp/raft takes entries from whoever has the higher term.
func (t *Transport) SetHistory(history func() string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.history = history
}

func (t *Transport) currentHistory() string {
	t.mu.Lock()
	history := t.history
	t.mu.Unlock()
	if history == nil {
		return ""
	}
	return history()
}

func (t *Transport) currentEpoch() (e replication.Epoch) {
	t.mu.Lock()
	epoch := t.epoch
	t.mu.Unlock()
	if epoch != nil {
		e = epoch()
	}
	return e
}

func (t *Transport) peerCheck() func(addr, nodeID string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.check
}

func (t *Transport) handler(kind replication.StreamKind, code replication.MessageType) replication.Handler {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.handlers[route{kind, code}]
}

func (t *Transport) streamHandler(kind replication.StreamKind) func(replication.Peer, net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.streams[kind]
}

// MaxCommandBytes is the largest command that fits a frame of this node's size:
// three quarters of it, for base64, less 64 KiB.
func (t *Transport) MaxCommandBytes() int { return MaxCommandBytes(t.opts.MaxFrameSize) }

// MaxCommandBytes is the largest command that fits a frame.
func MaxCommandBytes(maxFrameSize int) int { return maxFrameSize/4*3 - 64<<10 }

// Stats returns a copy of the counters.
func (t *Transport) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.stats
	s.HandshakesRejected = maps.Clone(s.HandshakesRejected)
	s.FramesRejected = maps.Clone(s.FramesRejected)
	s.DialsRefused = maps.Clone(s.DialsRefused)
	s.Open = len(t.conns)
	return s
}

// rejectHandshake counts and logs a refused connection.
func (t *Transport) rejectHandshake(reason string, from net.Addr, err error) {
	t.mu.Lock()
	t.stats.HandshakesRejected[reason]++
	t.mu.Unlock()
	metrics.IncrCounterWithLabels([]string{"replication", "handshake_rejected_total"}, 1,
		[]metrics.Label{{Name: "reason", Value: reason}})
	t.warn("cluster connection refused", reason, "from", from.String(), "error", err)
}

// rejectFrame counts and logs a connection that is closed for what came on it.
func (t *Transport) rejectFrame(reason string, from net.Addr, err error) {
	t.mu.Lock()
	t.stats.FramesRejected[reason]++
	t.mu.Unlock()
	metrics.IncrCounterWithLabels([]string{"replication", "frames_rejected_total"}, 1,
		[]metrics.Label{{Name: "reason", Value: reason}})
	t.warn("cluster connection closed for a bad frame", reason, "from", from.String(), "error", err)
}

// refused counts and logs a handshake of this node's that the peer refused, or
// that this node broke off. A peer that is not there is no refusal.
func (t *Transport) refused(addr string, err error) {
	code := replication.ErrorCode(err)
	switch code {
	case "unauthenticated", "wrong_peer", "unsupported", "overloaded", "foreign_history":
	default:
		return
	}
	t.mu.Lock()
	t.stats.DialsRefused[code]++
	t.mu.Unlock()
	metrics.IncrCounterWithLabels([]string{"replication", "dial_refused_total"}, 1, []metrics.Label{{Name: "reason", Value: code}})
	t.warn("no connection to a peer", code, "to", addr, "error", err)
}

// warn logs what a peer causes, thinned out.
func (t *Transport) warn(msg, reason string, args ...any) {
	ok, skipped := t.logs.pass(msg+"/"+reason, time.Now())
	if !ok {
		return
	}
	if args = append(args, "reason", reason); skipped > 0 {
		args = append(args, "not_logged", skipped)
	}
	t.opts.Logger.Warn(msg, args...)
}

// trackedConn leaves the transport's list when it is closed, and counts its
// reads, so that its silence can be told.
type trackedConn struct {
	net.Conn
	t     *Transport
	reads atomic.Int64
	once  sync.Once
	err   error
}

func (c *trackedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.reads.Add(1)
	}
	return n, err
}

func (c *trackedConn) Close() error {
	c.once.Do(func() {
		c.err = c.Conn.Close()
		c.t.mu.Lock()
		delete(c.t.conns, c)
		c.t.mu.Unlock()
	})
	return c.err
}

// track makes a connection one that Close closes; false: too late, it is closed.
func (t *Transport) track(c net.Conn) (*trackedConn, bool) {
	tc := &trackedConn{Conn: c, t: t}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		_ = c.Close()
		return nil, false
	}
	t.conns[tc] = struct{}{}
	return tc, true
}

// spawn runs f in a goroutine that Close waits for; false: closed already.
func (t *Transport) spawn(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		f()
	}()
	return true
}

// dial opens a connection to addr and runs the handshake, within DialTimeout.
func (t *Transport) dial(ctx context.Context, addr string, kind replication.StreamKind) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, t.opts.DialTimeout)
	defer cancel()
	raw, err := t.opts.Dial(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("dialing %s: %w", addr, err)
	}
	c, ok := t.track(raw)
	if !ok {
		return nil, replication.ErrClosed
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	s, err := t.secureDial(ctx, c, addr, kind)
	if err != nil && ctx.Err() == nil {
		t.refused(addr, err)
	}
	if !stop() || err != nil { // the context won, or the handshake failed
		_ = c.Close()
		if err == nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("connecting to %s: %w", addr, err)
	}
	clearDeadline(c)
	return s, nil
}

// Close implements replication.Transport. Idempotent.
func (t *Transport) Close() error {
	t.mu.Lock()
	t.closed = true
	conns, listeners, peers := t.conns, t.listeners, t.peers
	t.listeners = make(map[string]net.Listener)
	open := make([]net.Conn, 0, len(conns))
	for c := range conns {
		open = append(open, c)
	}
	t.peers = make(map[peerKey]*peer)
	t.mu.Unlock()

	t.cancel()
	var errs []error
	for _, l := range listeners {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	for _, c := range open {
		_ = c.Close() // an error of a connection that is given up tells nothing
	}
	for _, p := range peers {
		p.shut()
	}
	t.wg.Wait()
	return errors.Join(errs...)
}
