package testharness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// ErrCrashed: the incarnation of a host or a disk that is called has crashed.
var ErrCrashed = errors.New("crashed")

const (
	// backlogConns bounds connections that wait to be accepted.
	backlogConns = 128
	// connectTimeout bounds a dial whose context does not.
	connectTimeout = 2 * time.Minute
	networkName    = "memory"
)

// Network is a network in memory. Hosts listen and dial on it; each direction
// between two hosts is a link with faults of its own, which can be changed at
// any time. It has no goroutines. Safe for concurrent use.
type Network struct {
	seed uint64

	// mu guards everything of the network, its links and connections.
	mu        sync.Mutex
	changed   signal // something that a dial waits for
	hosts     map[string]*Host
	owners    map[string]string // host by address that was ever listened on
	listeners map[string]*listener
	links     map[pair]*link
	defaults  Faults
	dialed    map[pair]int // connections so far, by dialer and listener
	conns     map[*connection]struct{}
	log       func(NetworkEvent)
	taps      []func(h *half, data []byte) // see what is written, under mu
}

type pair struct{ from, to string }

func (p pair) compare(o pair) int {
	return cmp.Or(cmp.Compare(p.from, o.from), cmp.Compare(p.to, o.to))
}

// NewNetwork makes a network whose faults are drawn from seed.
func NewNetwork(seed uint64) *Network {
	return &Network{seed: seed, hosts: make(map[string]*Host), owners: make(map[string]string), listeners: make(map[string]*listener),
		links: make(map[pair]*link), dialed: make(map[pair]int), conns: make(map[*connection]struct{})}
}

// NetworkEvent is a line of the transcript: what the network did to whom.
type NetworkEvent struct {
	Time     time.Time
	From, To string // hosts
	Conn     int    // number of the connection between the two, by its dialer
	Kind     string // "dial", "refused", "spike", "loss", "drop", "corrupt", "duplicate", "reorder", "cut", "heal", "crash", ...
	Detail   string
}

func (e NetworkEvent) String() string {
	return fmt.Sprintf("%s %s→%s #%d %s %s", e.Time.Format("15:04:05.000000"), e.From, e.To, e.Conn, e.Kind, e.Detail)
}

// SetLog sets who is told of every fault, under the network's lock: it must
// not call back.
func (n *Network) SetLog(log func(NetworkEvent)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.log = log
}

func (n *Network) note(from, to string, conn int, kind, format string, args ...any) {
	if n.log != nil {
		n.log(NetworkEvent{Time: time.Now(), From: from, To: to, Conn: conn, Kind: kind, Detail: fmt.Sprintf(format, args...)})
	}
}

// signal wakes all that wait for it. The network's mutex guards it.
type signal struct{ ch chan struct{} }

func (s *signal) raise() {
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}

// wait gives up the mutex until s is raised, done is closed or the time has
// come; the zero time never comes.
func (n *Network) wait(s *signal, until time.Time, done <-chan struct{}) {
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	raised := s.ch
	n.mu.Unlock()
	defer n.mu.Lock()
	var timeUp <-chan time.Time
	if !until.IsZero() {
		timer := time.NewTimer(time.Until(until))
		defer timer.Stop()
		timeUp = timer.C
	}
	select {
	case <-raised:
	case <-timeUp:
	case <-done:
	}
}

// Host is one node's place on a network. Its Listen and Dial are made for
// transport.Options.
type Host struct {
	n     *Network
	id    string
	down  bool // this incarnation has crashed; guarded by n.mu
	ports int  // given to dialled connections; guarded by n.mu
}

// Host returns the host with this ID; after a Crash a new incarnation of it.
func (n *Network) Host(id string) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hosts[id]
	if h == nil || h.down {
		h = &Host{n: n, id: id}
		n.hosts[id] = h
	}
	return h
}

// ID names the host.
func (h *Host) ID() string { return h.id }

// address is a net.Addr of the network.
type address string

func (address) Network() string  { return networkName }
func (a address) String() string { return string(a) }

func opError(op, addr string, err error) error {
	return &net.OpError{Op: op, Net: networkName, Addr: address(addr), Err: err}
}

// Listen makes the host answer at addr, any string that no other host uses.
func (h *Host) Listen(_ context.Context, addr string) (net.Listener, error) {
	n := h.n
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case h.down:
		return nil, opError("listen", addr, ErrCrashed)
	case n.listeners[addr] != nil || n.owners[addr] != "" && n.owners[addr] != h.id:
		return nil, opError("listen", addr, syscall.EADDRINUSE)
	}
	l := &listener{h: h, addr: addr}
	n.listeners[addr], n.owners[addr] = l, h.id
	n.changed.raise()
	return l, nil
}

// Dial connects to addr: after a round trip, and as soon as both links let it
// through. Nobody there: refused. It ends with ctx, or after two minutes.
func (h *Host) Dial(ctx context.Context, addr string) (net.Conn, error) {
	n := h.n
	n.mu.Lock()
	defer n.mu.Unlock()
	to := n.owners[addr]
	if to == "" {
		n.note(h.id, addr, 0, "refused", "unknown address")
		return nil, opError("dial", addr, syscall.ECONNREFUSED)
	}
	p := pair{h.id, to}
	n.dialed[p]++
	c := newConnection(n, h, n.hosts[to], addr, n.dialed[p])
	roundTrip := c.halves[0].connectDelay() + c.halves[1].connectDelay()
	arrival := time.Now().Add(roundTrip)
	giveUp := time.Now().Add(connectTimeout)
	for {
		now := time.Now()
		l := n.listeners[addr]
		switch {
		case h.down:
			return nil, opError("dial", addr, ErrCrashed)
		case ctx.Err() != nil:
			n.note(h.id, to, c.number, "dial failed", "%v", ctx.Err())
			return nil, opError("dial", addr, ctx.Err())
		case !now.Before(giveUp):
			return nil, opError("dial", addr, os.ErrDeadlineExceeded)
		case now.Before(arrival):
			n.wait(&n.changed, arrival, ctx.Done())
		case c.halves[0].link.cut || c.halves[1].link.cut || l != nil && len(l.backlog) >= backlogConns:
			n.wait(&n.changed, giveUp, ctx.Done())
		case l == nil:
			n.note(h.id, to, c.number, "refused", "%s", addr)
			return nil, opError("dial", addr, syscall.ECONNREFUSED)
		default:
			c.open(l)
			n.note(h.id, to, c.number, "dial", "%s after %v", addr, roundTrip)
			return c.ends[0], nil
		}
	}
}

// listener is a net.Listener of the network.
type listener struct {
	h    *Host
	addr string

	// Guarded by n.mu.
	backlog []*Conn
	closed  bool
	changed signal
}

func (l *listener) Accept() (net.Conn, error) {
	n := l.h.n
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		switch {
		case l.closed:
			return nil, opError("accept", l.addr, net.ErrClosed)
		case len(l.backlog) > 0:
			c := l.backlog[0]
			l.backlog = l.backlog[1:]
			n.changed.raise()
			return c, nil
		}
		n.wait(&l.changed, time.Time{}, nil)
	}
}

func (l *listener) Addr() net.Addr { return address(l.addr) }

// Close ends Accept and resets what was not accepted.
func (l *listener) Close() error {
	n := l.h.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if l.closed {
		return opError("close", l.addr, net.ErrClosed)
	}
	l.close()
	return nil
}

func (l *listener) close() {
	n := l.h.n
	l.closed = true
	delete(n.listeners, l.addr)
	for _, c := range l.backlog {
		c.shut(syscall.ECONNRESET)
	}
	l.backlog = nil
	l.changed.raise()
	n.changed.raise()
}

// Crash ends the present incarnation of a host as a killed process ends: its
// listeners and connections are gone at once and all its later calls fail; its
// peers learn of it as the links let them, so isolate it before to play a power
// cut. Host(id) returns the next incarnation.
func (n *Network) Crash(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.hosts[id]
	if h == nil || h.down {
		return
	}
	h.down = true
	n.note(id, id, 0, "crash", "")
	for _, addr := range slices.Sorted(maps.Keys(n.listeners)) {
		if l := n.listeners[addr]; l.h == h {
			l.close()
		}
	}
	for _, c := range n.sortedConns() {
		for _, end := range c.ends {
			if end.host == h {
				end.shut(syscall.ECONNRESET)
			}
		}
	}
	n.changed.raise()
}

// sortedConns are the open connections in an order that does not depend on
// chance.
func (n *Network) sortedConns() []*connection {
	return slices.SortedFunc(maps.Keys(n.conns), func(a, b *connection) int { return a.compare(b) })
}

// rng is a source of random numbers of its own for everything that has a name.
func (n *Network) rng(from, to string, number int) *rand.Rand {
	h := fnv.New64a()
	fmt.Fprintf(h, "%q %q %d", from, to, number)
	return rand.New(rand.NewPCG(n.seed, h.Sum64()))
}
