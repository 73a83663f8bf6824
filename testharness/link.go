package testharness

import (
	"bytes"
	"cmp"
	"math/rand/v2"
	"strconv"
	"time"
)

const (
	// maxChunkBytes is the most that shares one fate.
	maxChunkBytes = 16 << 10
	// windowBytes bounds what one direction of a connection holds, bytes that
	// were not read and those whose acknowledgement cannot come back.
	windowBytes = 64 << 10
	// chunkCostBytes is what a chunk costs besides its bytes.
	chunkCostBytes = 64
)

// link is one direction between two hosts, shared by their connections.
// Guarded by the network's mutex, like halves and connections.
type link struct {
	from, to string
	faults   Faults
	own      bool // faults were set for this link, not by default
	cut      bool
	busy     time.Time // the last chunk has been sent by then
}

func (n *Network) link(from, to string) *link {
	p := pair{from, to}
	l := n.links[p]
	if l == nil {
		l = &link{from: from, to: to}
		if from != to {
			l.faults = n.defaults
		}
		n.links[p] = l
	}
	return l
}

// chunk is bytes under way, or the end of a connection.
type chunk struct {
	data []byte
	at   time.Time // of arrival
	held bool      // cut off: has no time of arrival
	end  error     // io.EOF or a reset, in place of data
}

func (c *chunk) arrived(now time.Time) bool { return !c.held && !c.at.After(now) }

// half is one direction of a connection.
type half struct {
	conn  *connection
	link  *link
	back  *half
	rng   *rand.Rand
	queue []*chunk
	size  int       // what the window counts, unacked included
	lost  int       // bytes that were read while the way back was cut
	last  time.Time // queued chunks arrive by then
	swap  *chunk    // waits to be overtaken
	base  time.Time // last, as it was before swap
}

// connection is two halves and two ends; 0 is the dialer's.
type connection struct {
	n       *Network
	number  int
	halves  [2]*half
	ends    [2]*Conn
	changed signal
	dead    time.Time // from then on it is reset on both sides; zero: never
}

func newConnection(n *Network, from, to *Host, addr string, number int) *connection {
	c := &connection{n: n, number: number}
	from.ports++
	c.halves[0] = &half{conn: c, link: n.link(from.id, to.id), rng: n.rng(from.id, to.id, 2*number)}
	c.halves[1] = &half{conn: c, link: n.link(to.id, from.id), rng: n.rng(from.id, to.id, 2*number+1)}
	c.halves[0].back, c.halves[1].back = c.halves[1], c.halves[0]
	local := address(from.id + ":" + strconv.Itoa(40000+from.ports))
	c.ends[0] = &Conn{c: c, host: from, local: local, remote: address(addr), out: c.halves[0], in: c.halves[1]}
	c.ends[1] = &Conn{c: c, host: to, local: address(addr), remote: local, out: c.halves[1], in: c.halves[0]}
	return c
}

// open puts an established connection into a listener's backlog.
func (c *connection) open(l *listener) {
	c.ends[1].host = l.h // the incarnation that listens
	c.n.conns[c] = struct{}{}
	l.backlog = append(l.backlog, c.ends[1])
	l.changed.raise()
}

func (c *connection) compare(o *connection) int {
	a, b := c.halves[0].link, o.halves[0].link
	return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to), cmp.Compare(c.number, o.number))
}

func (c *connection) isDead(now time.Time) bool { return !c.dead.IsZero() && !c.dead.After(now) }

// kill resets the connection on both sides.
func (c *connection) kill(at time.Time) {
	if c.dead.IsZero() || at.Before(c.dead) {
		c.dead = at
	}
	c.changed.raise()
}

func (h *half) note(kind, format string, args ...any) {
	h.conn.n.note(h.link.from, h.link.to, h.conn.number, kind, format, args...)
}

// connectDelay is how long the first packet of a dial takes this way.
func (h *half) connectDelay() time.Duration {
	d := rollDice(h.rng)
	delay, _ := h.link.faults.delay(d)
	return delay + retransmission(connectFirst, h.link.faults.losses(d))
}

// room is how many bytes of data the window takes now.
func (h *half) room() int { return min(windowBytes-h.size-chunkCostBytes, maxChunkBytes) }

// send puts data, which it copies, under way.
func (h *half) send(now time.Time, data []byte) {
	f := &h.link.faults
	d := rollDice(h.rng)
	for _, tap := range h.conn.n.taps {
		tap(h, data)
	}
	if d.drop < f.Drop {
		h.note("drop", "")
		h.conn.kill(now)
		return
	}
	delay, spiked := f.delay(d)
	if spiked {
		h.note("spike", "%v", delay)
	}
	if losses := f.losses(d); losses > 0 {
		delay += retransmission(retransmitFirst, losses)
		h.note("loss", "%d times, %v", losses, delay)
		if losses == maxLosses {
			h.conn.kill(now.Add(delay))
		}
	}
	data = bytes.Clone(data)
	if d.corrupt < f.Corrupt {
		bit := int(d.bit * float64(8*len(data)))
		data[bit/8] ^= 1 << (bit % 8)
		h.note("corrupt", "bit %d of %d bytes", bit, len(data))
	}
	h.put(now, &chunk{data: data}, delay, d.reorder < f.Reorder)
	if d.duplicate < f.Duplicate {
		h.note("duplicate", "%d bytes", len(data))
		h.put(now, &chunk{data: data}, delay, false)
	}
	h.conn.changed.raise()
}

// put queues a chunk: behind the others, or before one that waits to be
// overtaken.
func (h *half) put(now time.Time, c *chunk, delay time.Duration, swap bool) {
	if h.link.busy.Before(now) {
		h.link.busy = now
	}
	h.link.busy = h.link.busy.Add(h.link.faults.transmission(len(c.data)))
	c.at = h.link.busy.Add(delay)
	c.held = h.link.cut
	h.size += len(c.data) + chunkCostBytes
	if s := h.swap; s != nil && !s.arrived(now) && c.end == nil {
		c.at = later(c.at, h.base)
		h.queue = append(h.queue[:len(h.queue)-1], c, s)
		h.swap, s.at, h.last = nil, c.at, c.at
		h.note("reorder", "%d bytes overtake %d", len(c.data), len(s.data))
		return
	}
	h.swap = nil
	c.at = later(c.at, h.last)
	if swap {
		h.swap, h.base = c, c.at
		c.at = c.at.Add(reorderHold)
	}
	h.last = c.at
	h.queue = append(h.queue, c)
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// end puts the end of the stream behind its bytes.
func (h *half) end(now time.Time, err error) {
	delay, _ := h.link.faults.delay(rollDice(h.rng))
	h.put(now, &chunk{end: err}, delay, false)
}

// ended says with what the stream has ended, nil while it has not, and when the
// end that is under way arrives.
func (h *half) ended(now time.Time) (arrives time.Time, end error) {
	if len(h.queue) == 0 {
		return arrives, nil
	}
	c := h.queue[len(h.queue)-1]
	switch {
	case c.end == nil || c.held:
		return arrives, nil
	case c.arrived(now):
		return arrives, c.end
	}
	return c.at, nil
}

// take reads bytes that have arrived; 0 and no error: there are none. next is
// when the first of them will.
func (h *half) take(now time.Time, p []byte) (n int, next time.Time, err error) {
	for n < len(p) && len(h.queue) > 0 && h.queue[0].arrived(now) {
		c := h.queue[0]
		if c.end != nil {
			if n == 0 {
				err = c.end
			}
			return n, next, err
		}
		k := copy(p[n:], c.data)
		n += k
		freed := k
		if c.data = c.data[k:]; len(c.data) == 0 {
			h.queue = h.queue[1:]
			freed += chunkCostBytes
		}
		if h.back.link.cut { // nobody tells the sender
			h.lost += freed
		} else {
			h.size -= freed
		}
	}
	if len(h.queue) > 0 && !h.queue[0].held {
		next = h.queue[0].at
	}
	if n > 0 {
		h.conn.changed.raise()
	}
	return n, next, nil
}

// discard forgets what was under way to an end that is closed.
func (h *half) discard() { h.queue, h.swap = nil, nil }

// hold stops what has not arrived.
func (h *half) hold(now time.Time) {
	for _, c := range h.queue {
		c.held = c.held || !c.arrived(now)
	}
	h.conn.changed.raise()
}

// resume sends again what was held, and lets the other direction know what was
// read of it.
func (h *half) resume(now time.Time) {
	h.last = now.Add(h.link.faults.Latency)
	for _, c := range h.queue {
		if c.held {
			c.held, c.at = false, h.last
		}
	}
	h.swap = nil
	h.back.size -= h.back.lost
	h.back.lost = 0
	h.conn.changed.raise()
}
