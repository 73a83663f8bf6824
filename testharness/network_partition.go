package testharness

import (
	"context"
	"maps"
	"slices"
	"time"
)

// SetFaults sets the faults of the link that carries bytes from one host to
// another, for what is written from now on.
func (n *Network) SetFaults(from, to string, f Faults) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.link(from, to)
	l.faults, l.own = f, true
	n.note(from, to, 0, "faults", "%+v", f)
}

// SetDefaultFaults sets the faults of every link between two hosts that
// SetFaults has not been called for.
func (n *Network) SetDefaultFaults(f Faults) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.defaults = f
	for p, l := range n.links {
		if !l.own && p.from != p.to {
			l.faults = f
		}
	}
	n.note("", "", 0, "faults", "%+v", f)
}

// ClearFaults makes every link perfect; it does not heal.
func (n *Network) ClearFaults() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.defaults = Faults{}
	for _, l := range n.links {
		l.faults, l.own = Faults{}, false
	}
	n.note("", "", 0, "faults", "none")
}

// Partition cuts the links between two groups, both ways. As TCP sees it: bytes
// that have not arrived wait, writes fill the window and then block, dials time
// out. Nobody is told.
func (n *Network) Partition(groupA, groupB []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.between(groupA, groupB, n.cut)
}

// OneWay cuts the link from one host to another; the way back stays, but for
// want of acknowledgements takes no more than what fits the window.
func (n *Network) OneWay(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut(from, to)
}

// Isolate cuts a host off from all other hosts there are.
func (n *Network) Isolate(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.between([]string{id}, n.others(id), n.cut)
}

// Bridge parts the other hosts in two halves, by their names, that both reach
// middle but not each other.
func (n *Network) Bridge(middle string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	others := n.others(middle)
	half := len(others) / 2
	n.between(others[:half], others[half:], n.cut)
}

// Flap cuts two groups off from each other for down, lets them through for up,
// and so on until ctx ends; then they are connected.
func (n *Network) Flap(ctx context.Context, groupA, groupB []string, down, up time.Duration) {
	for ctx.Err() == nil {
		n.Partition(groupA, groupB)
		pauseFor(ctx, down)
		n.mu.Lock()
		n.between(groupA, groupB, n.heal)
		n.mu.Unlock()
		pauseFor(ctx, up)
	}
}

// Heal ends every cut: what has waited goes on its way. Drop them
// before to have connections not survive.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range slices.SortedFunc(maps.Keys(n.links), pair.compare) {
		n.heal(p.from, p.to)
	}
}

// Reconnect ends every cut between a host and the others.
func (n *Network) Reconnect(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.between([]string{id}, n.others(id), n.heal)
}

// Drop resets every connection between two hosts, on both sides, whatever links
// are cut; before a Heal it plays a network that has forgotten them.
func (n *Network) Drop(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.sortedConns() {
		l := c.halves[0].link
		if l.from == a && l.to == b || l.from == b && l.to == a {
			c.halves[0].note("drop", "")
			c.kill(time.Now())
		}
	}
}

func (n *Network) others(id string) []string {
	all := slices.Sorted(maps.Keys(n.hosts))
	return slices.DeleteFunc(all, func(other string) bool { return other == id })
}

// between does something to both links of each pair of hosts.
func (n *Network) between(groupA, groupB []string, do func(from, to string)) {
	for _, a := range groupA {
		for _, b := range groupB {
			if a != b {
				do(a, b)
				do(b, a)
			}
		}
	}
}

func (n *Network) cut(from, to string) {
	l := n.link(from, to)
	if l.cut {
		return
	}
	l.cut = true
	n.note(from, to, 0, "cut", "")
	n.eachHalf(l, (*half).hold)
}

func (n *Network) heal(from, to string) {
	l := n.link(from, to)
	if !l.cut {
		return
	}
	l.cut = false
	n.note(from, to, 0, "heal", "")
	n.eachHalf(l, (*half).resume)
	n.changed.raise()
}

func (n *Network) eachHalf(l *link, do func(*half, time.Time)) {
	now := time.Now()
	for c := range n.conns {
		for _, h := range c.halves {
			if h.link == l {
				do(h, now)
			}
		}
	}
}
