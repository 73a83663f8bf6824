package standby_test

import (
	"context"
	"fmt"
	"net"
	"sync"
)

// memoryNet is a network in memory: listeners by address, pipes for
// connections, and addresses that are cut off. It works in virtual time.
type memoryNet struct {
	mu        sync.Mutex
	listeners map[string]*memoryListener
	conns     map[net.Conn][2]string
	cut       map[string]bool
}

func newNet() *memoryNet {
	return &memoryNet{listeners: make(map[string]*memoryListener), conns: make(map[net.Conn][2]string), cut: make(map[string]bool)}
}

type memoryListener struct {
	addr  string
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

type memoryAddr string

func (memoryAddr) Network() string  { return "memory" }
func (a memoryAddr) String() string { return string(a) }

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *memoryListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *memoryListener) Addr() net.Addr { return memoryAddr(l.addr) }

func (m *memoryNet) listen(_ context.Context, addr string) (net.Listener, error) {
	l := &memoryListener{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.listeners[addr] = l
	return l, nil
}

// dialer is the network as one address sees it.
func (m *memoryNet) dialer(from string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, to string) (net.Conn, error) {
		m.mu.Lock()
		l, refused := m.listeners[to], m.cut[from] || m.cut[to]
		here, there := net.Pipe()
		m.conns[here], m.conns[there] = [2]string{from, to}, [2]string{from, to}
		m.mu.Unlock()
		if l == nil || refused {
			return nil, fmt.Errorf("%s does not answer", to)
		}
		select {
		case l.conns <- there:
			return here, nil
		case <-l.done:
			return nil, fmt.Errorf("%s refuses", to)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// isolate cuts an address off, and its connections.
func (m *memoryNet) isolate(addr string, cut bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cut[addr] = cut
	for c, ends := range m.conns {
		if cut && (ends[0] == addr || ends[1] == addr) {
			_ = c.Close()
			delete(m.conns, c)
		}
	}
}
