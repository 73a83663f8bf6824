package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// lineFaults are what a bad line does to what goes over it, as TCP shows it. The
// zero lineFaults are a good line.
type lineFaults struct {
	delay time.Duration // and up to as much more
	loss  float64       // probability that a piece comes 200 to 800 ms later
	reset float64       // probability that a piece ends its connection
}

// badLine is a TCP proxy before one node's cluster port.
type badLine struct {
	l      net.Listener
	to     string
	faults atomic.Pointer[lineFaults]
	wg     sync.WaitGroup

	lost, dropped atomic.Int64 // pieces that met a fault

	// mu guards the fields below.
	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
}

func newBadLine(t *testing.T, at, to string) *badLine {
	t.Helper()
	l, err := net.Listen("tcp", at)
	require.NoError(t, err)
	b := &badLine{l: l, to: to, conns: make(map[net.Conn]bool)}
	b.faults.Store(&lineFaults{})
	b.wg.Go(b.accept)
	t.Cleanup(func() {
		_ = l.Close()
		b.mu.Lock()
		b.closed = true
		for c := range b.conns {
			_ = c.Close()
		}
		b.mu.Unlock()
		b.wg.Wait()
	})
	return b
}

func (b *badLine) accept() {
	for {
		near, err := b.l.Accept()
		if err != nil {
			return
		}
		b.wg.Go(func() {
			far, err := net.Dial("tcp", b.to)
			if err != nil {
				_ = near.Close()
				return
			}
			ended := make(chan struct{})
			end := sync.OnceFunc(func() { close(ended); b.forget(near, far) })
			if !b.keep(near, far) {
				end()
				return
			}
			b.wg.Go(func() { b.carry(near, far, ended, end) })
			b.carry(far, near, ended, end)
		})
	}
}

func (b *badLine) keep(list ...net.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range list {
		b.conns[c] = true
	}
	return !b.closed
}

func (b *badLine) forget(list ...net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range list {
		delete(b.conns, c)
		_ = c.Close()
	}
}

// carry carries bytes one way, in order, until the connection ends.
func (b *badLine) carry(from, to net.Conn, ended <-chan struct{}, end func()) {
	type piece struct {
		data []byte
		due  time.Time
	}
	queue := make(chan piece, 64)
	b.wg.Go(func() {
		defer end()
		for p := range queue {
			timer := time.NewTimer(time.Until(p.due))
			select {
			case <-timer.C:
			case <-ended:
			}
			timer.Stop()
			if _, err := to.Write(p.data); err != nil {
				return
			}
		}
	})
	defer close(queue)
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		f := b.faults.Load()
		if err != nil || rand.Float64() < f.reset {
			if err == nil {
				b.dropped.Add(1)
				end()
			}
			return
		}
		due := time.Now().Add(f.delay + time.Duration(rand.Float64()*float64(f.delay)))
		if rand.Float64() < f.loss {
			b.lost.Add(1)
			due = due.Add(200 * time.Millisecond << rand.IntN(3))
		}
		select {
		case queue <- piece{append([]byte(nil), buf[:n]...), due}:
		case <-ended:
			return
		}
	}
}

// TestHistoriesOverBadLines: three processes that reach each other over lines
// that delay, lose and drop.
func TestHistoriesOverBadLines(t *testing.T) {
	if testing.Short() {
		t.Skip("three processes and several faults take a while")
	}
	addrs, err := loopbackAddrs(0, 2*demoNodes)
	require.NoError(t, err)
	at, bound := addrs[:demoNodes], addrs[demoNodes:]
	lines := make([]*badLine, demoNodes)
	for i := range lines {
		lines[i] = newBadLine(t, at[i], bound[i])
	}
	list := threeProcesses(t, func(i int, p *process) {
		var peers []string
		for j, addr := range at {
			if j != i {
				peers = append(peers, fmt.Sprintf("n%d:%s", j, addr))
			}
		}
		p.env = append(p.env, clusterPrefix+"BIND_ADDR="+bound[i], clusterPrefix+"ADVERTISE_ADDR="+at[i],
			clusterPrefix+"RAFT_PEERS="+strings.Join(peers, ","))
	})
	bad := func(f lineFaults) func(*process) func() {
		return func(*process) func() {
			for _, l := range lines {
				l.faults.Store(&f)
			}
			return func() {
				for _, l := range lines {
					l.faults.Store(&lineFaults{})
				}
			}
		}
	}
	historyOn(t, list, map[string]func(*process) func(){
		"delay":        bad(lineFaults{delay: 30 * time.Millisecond}),
		"loss":         bad(lineFaults{loss: 0.05}),
		"drops":        bad(lineFaults{reset: 0.02}),
		"all together": bad(lineFaults{delay: 20 * time.Millisecond, loss: 0.03, reset: 0.01}),
	})
	var lost, dropped int64
	for _, l := range lines {
		lost, dropped = lost+l.lost.Load(), dropped+l.dropped.Load()
	}
	t.Logf("%d pieces were lost, %d connections dropped", lost, dropped)
	require.NotZero(t, lost)
	require.NotZero(t, dropped)
}
