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
	open   map[*lineConn]struct{}
	closed bool
}

// lineConn is a connection that calls share. One that is given up is closed when
// the last of them has ended: an answer to one says nothing about the others.
type lineConn struct {
	*transport.PeerConn
	calls   int  // that use it; guarded by links.mu
	givenUp bool // no new ones; guarded by links.mu
}

type link struct {
	region string
	addrs  []string
	next   int // index into addrs
	conn   *lineConn
	heard  regionState
	at     time.Time     // when heard came; zero: never
	offset time.Duration // the other's clock less this one's, within slack
	slack  time.Duration // half of what the question took
	asked  bool          // an answer came, or failed to, since this node leads
	err    error         // of the last try

	stuck   time.Time // since when this region's stream there has only failed; zero: it has not
	stuckBy error     // the last failure
	reached uint64    // by the stream
	told    bool      // that it is stuck
}

func newLinks(cfg *replication.Config) *links {
	l := &links{list: make(map[string]*link), open: make(map[*lineConn]struct{})}
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
	defer n.links.release(conn)
	start := time.Now()
	err = conn.Call(ctx, code, req, resp)
	if _, verdict := replication.Verdict(err); err != nil && !verdict && !errors.Is(err, replication.ErrCommandTooLarge) {
		n.links.fault(region, conn, err)
		if errors.Is(ctx.Err(), context.DeadlineExceeded) && time.Since(start) >= dialTimeout { // nobody is there; the other calls need not find out each by itself
			_ = conn.Close()
		}
	}
	return err
}

// connect returns the connection to a region for one call, dialling the next
// address where there is none.
func (n *Node) connect(ctx context.Context, region string) (*lineConn, error) {
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

// pick returns the connection to a region, for one call; without one, the
// address to dial.
func (l *links) pick(region string) (string, *lineConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.list[region]
	if k == nil || l.closed {
		return "", nil
	}
	if k.conn != nil {
		k.conn.calls++
	}
	return k.addrs[k.next%len(k.addrs)], k.conn
}

// keep makes c the connection to a region, unless there is one already, and
// returns the one there is for one call.
func (l *links) keep(region string, c *transport.PeerConn) (*lineConn, error) {
	l.mu.Lock()
	k := l.list[region]
	if !l.closed && k.conn == nil {
		k.conn = &lineConn{PeerConn: c}
		l.open[k.conn] = struct{}{}
	}
	kept, closed := k.conn, l.closed
	if !closed {
		kept.calls++
	}
	l.mu.Unlock()
	if kept == nil || kept.PeerConn != c {
		_ = c.Close()
	}
	if closed {
		return nil, replication.ErrClosed
	}
	return kept, nil
}

// release ends a call.
func (l *links) release(c *lineConn) {
	l.mu.Lock()
	c.calls--
	over := c.givenUp && c.calls == 0
	if over {
		delete(l.open, c)
	}
	l.mu.Unlock()
	if over {
		_ = c.Close() // may take time, so not under the lock
	}
}

// fault gives a connection up, so that the next address is tried. An answer of
// the peer's is a fault too: another node may know its leader.
func (l *links) fault(region string, conn *lineConn, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.list[region]
	k.err = err
	if k.conn != conn {
		return // another call was faster
	}
	k.next++
	if conn != nil {
		k.conn, conn.givenUp = nil, true
	}
}

func (l *links) close() {
	l.mu.Lock()
	l.closed = true
	open := l.open
	l.open = nil
	for _, k := range l.list {
		k.conn = nil
	}
	l.mu.Unlock()
	for c := range open {
		_ = c.Close()
	}
}

// hear notes what a region said of itself.
func (l *links) hear(region string, s *regionState, at time.Time, offset, slack time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k := l.list[region]; k != nil {
		k.heard, k.at, k.offset, k.slack, k.err = *s, at, offset, slack, nil
	}
}

// failed notes that the stream to a region has failed, and says, once, that it has
// got no further for long.
func (l *links) failed(region string, err error, now time.Time) (tell bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.list[region]
	if k.stuckBy = err; k.stuck.IsZero() {
		k.stuck = now
	}
	tell = k.isStuck(now) && !k.told
	k.told = k.told || tell
	return tell
}

// moved notes how far the stream to a region has got. A stream that begins anew says
// so, too, of what it finds there: that is no progress.
func (l *links) moved(region string, to uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.list[region]
	further := to > k.reached
	if k.reached = to; !further {
		return
	}
	k.stuck, k.stuckBy, k.told = time.Time{}, nil, false
}

// isStuck: the stream there has failed for so long that somebody should know.
func (k *link) isStuck(now time.Time) bool {
	return !k.stuck.IsZero() && now.Sub(k.stuck) >= silentAfter
}

// skewed says that this region's clock is off from that of the majority of its
// peers, where the policy is to refuse writes then. With one peer there is no
// majority, and with a bound of zero no bound. A leader that has not asked all of
// its peers yet, and may be off from most: ErrNotReady.
func (l *links) skewed(policy string, bound time.Duration, now time.Time) error {
	if policy != "reject" || bound <= 0 {
		return nil
	}
	off, of := l.skew(bound, now)
	switch {
	case of < 2:
		return nil
	case mostly(off, of):
		return fmt.Errorf("%w: from %d of %d by more than %s", replication.ErrClockSkew, off, of, bound)
	case mostly(off+l.notAsked(), of):
		return fmt.Errorf("%w: the clocks of the other regions are being asked for", replication.ErrNotReady)
	}
	return nil
}

// ask notes that a region was asked, whatever came of it.
func (l *links) ask(region string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k := l.list[region]; k != nil {
		k.asked = true
	}
}

// forgetAsked begins anew, as the node does not lead any more: when it does again
// its clock may have been set, and a stream is not stuck before it has failed.
func (l *links) forgetAsked() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.list {
		k.asked, k.at = false, time.Time{}
		k.stuck, k.stuckBy, k.told, k.reached = time.Time{}, nil, false, 0
	}
}

// notAsked counts the regions that were not asked yet.
func (l *links) notAsked() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.list {
		if !k.asked {
			n++
		}
	}
	return n
}

// skew counts the peers from whose clock this one is certainly off by more than
// bound, as far as they were heard of lately, and all peers.
func (l *links) skew(bound time.Duration, now time.Time) (off, of int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, k := range l.list {
		if !k.at.IsZero() && now.Sub(k.at) < silentAfter && bound > 0 && k.certainOffset().Abs() > bound {
			off++
		}
	}
	return off, len(l.list)
}

// certainOffset is what of the offset the time that the answer took does not
// explain.
func (k *link) certainOffset() time.Duration {
	return k.offset - min(max(k.offset, -k.slack), k.slack)
}

// mostly says whether the clock is off from that of most peers; of one peer it
// cannot be said who is right, so both warn.
func mostly(off, of int) bool { return 2*off > of }

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
