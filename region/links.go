package region

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/transport"
)

// links are the ways to the other regions: their addresses, tried in turn, and
// what was last heard from each.
type links struct {
	// mu guards the fields below.
	mu     sync.Mutex
	list   map[string]*link
	closed bool
}

type link struct {
	region string
	addrs  []string
	next   int // index into addrs
	conn   *transport.PeerConn
	heard  regionState
	at     time.Time     // when heard came; zero: never
	offset time.Duration // the other's clock less this one's, about
	err    error         // of the last try
}

func newLinks(cfg *replication.Config) *links {
	l := &links{list: make(map[string]*link)}
	for _, r := range cfg.Region.RemoteRegions {
		if l.list[r.Region] == nil {
			l.list[r.Region] = &link{region: r.Region}
		}
		l.list[r.Region].addrs = append(l.list[r.Region].addrs, r.Addr)
	}
	return l
}

// call sends a request to a node of a region: the one that answered before, or
// the next. An error for which NotSent is true says that nobody got it.
func (n *Node) call(ctx context.Context, region string, code replication.MessageType, req, resp any) error {
	conn, err := n.connect(ctx, region)
	if err != nil {
		return replication.MarkNotSent(err)
	}
	err = conn.Call(ctx, code, req, resp)
	if _, verdict := replication.Verdict(err); err != nil && !verdict {
		n.links.fault(region, conn, err)
	}
	return err
}

// connect returns the connection to a region, dialling the next address where
// there is none.
func (n *Node) connect(ctx context.Context, region string) (*transport.PeerConn, error) {
	tr := n.transport()
	if tr == nil {
		return nil, replication.ErrNotReady
	}
	addr, conn := n.links.pick(region)
	if conn != nil {
		return conn, nil
	}
	if addr == "" {
		return nil, fmt.Errorf("%w: no address of region %q", replication.ErrNotReady, region)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	fresh, err := tr.ConnectRegion(ctx, addr)
	if err != nil {
		n.links.fault(region, nil, err)
		return nil, err
	}
	c := fresh.(*transport.PeerConn)
	if is := c.Peer().Region; is != region {
		err := fmt.Errorf("%w: region %q answers at %s, not %q", replication.ErrWrongPeer, is, addr, region)
		n.links.fault(region, nil, err)
		return nil, errors.Join(err, c.Close())
	}
	return n.links.keep(region, c)
}

// dialTimeout bounds how long one address is tried.
const dialTimeout = 5 * time.Second

func (l *links) pick(region string) (string, *transport.PeerConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.list[region]
	if k == nil || l.closed {
		return "", nil
	}
	return k.addrs[k.next%len(k.addrs)], k.conn
}

// keep makes c the connection to a region, unless there is one already.
func (l *links) keep(region string, c *transport.PeerConn) (*transport.PeerConn, error) {
	l.mu.Lock()
	k := l.list[region]
	if !l.closed && k.conn == nil {
		k.conn = c
	}
	kept, closed := k.conn, l.closed
	l.mu.Unlock()
	if kept != c {
		_ = c.Close()
	}
	if closed {
		return nil, replication.ErrClosed
	}
	return kept, nil
}

// fault gives a connection up, so that the next address is tried. An answer of
// the peer's is a fault too: another node may know its leader.
func (l *links) fault(region string, conn *transport.PeerConn, err error) {
	l.mu.Lock()
	k := l.list[region]
	k.err = err
	current := k.conn == conn
	if current {
		k.next++
		k.conn = nil
	}
	l.mu.Unlock()
	if current && conn != nil {
		_ = conn.Close() // may take time, so not under the lock
	}
}

func (l *links) close() {
	l.mu.Lock()
	l.closed = true
	var open []*transport.PeerConn
	for _, k := range l.list {
		if k.conn != nil {
			open = append(open, k.conn)
			k.conn = nil
		}
	}
	l.mu.Unlock()
	for _, c := range open {
		_ = c.Close()
	}
}

// hear notes what a region said of itself.
func (l *links) hear(region string, s *regionState, at time.Time, offset time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k := l.list[region]; k != nil {
		k.heard, k.at, k.offset, k.err = *s, at, offset, nil
	}
}

// skewed says that this region's clock is off from that of the majority of its
// peers, where the policy is to refuse writes then. With one peer there is no
// majority, and with a bound of zero no bound.
func (l *links) skewed(cfg *replication.Config) error {
	off, of := l.skew(cfg.Region.MaxClockOffset)
	if cfg.Region.ClockSkewPolicy != "reject" || of < 2 || 2*off <= of {
		return nil
	}
	return fmt.Errorf("%w: from %d of %d by more than %s", replication.ErrClockSkew, off, of, cfg.Region.MaxClockOffset)
}

// skew counts the peers from whose clock this one is off by more than bound.
func (l *links) skew(bound time.Duration) (off, of int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.list {
		if !k.at.IsZero() && bound > 0 && k.offset.Abs() > bound {
			off++
		}
	}
	return off, len(l.list)
}

// snapshot copies what is known of the regions, sorted.
func (l *links) snapshot() []link {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []link
	for _, k := range l.list {
		list = append(list, *k)
	}
	slices.SortFunc(list, func(a, b link) int {
		if a.region < b.region {
			return -1
		}
		return 1
	})
	return list
}
