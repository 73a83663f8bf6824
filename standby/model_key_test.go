package standby

import (
	"encoding/binary"
	"slices"
	"strings"

	"github.com/nornicdb/replication"
)

// key identifies a world up to the passage of time.
func (w *world) key() []byte {
	b := make([]byte, 0, 512)
	num := func(v uint64) { b = binary.AppendUvarint(b, v) }
	flag := func(v bool) {
		if v {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	ep := func(e replication.Epoch) { num(e.Number); b = append(b, e.Owner...); b = append(b, 0) }
	list := func(l []EpochStart) {
		num(uint64(len(l)))
		for _, e := range l {
			ep(e.Epoch)
			num(e.Start)
		}
	}
	entries := func(l []modelEntry) {
		num(uint64(len(l)))
		for _, e := range l {
			ep(e.epoch)
			num(uint64(e.id))
		}
	}
	age := func(t time_) { num(uint64(min(w.now-t, failoverTicks+1))) }
	stored := func(s *Stored) {
		b = append(b, s.History...)
		ep(s.Epoch)
		list(s.Epochs)
		flag(s.Promoting)
		flag(s.Admitted)
		flag(s.PeerAdmitted)
		flag(s.Solo)
		flag(s.Rebuilding)
	}
	peer := func(p *Peer) {
		b = append(b, p.Role...)
		b = append(b, p.History...)
		ep(p.Epoch)
		list(p.Epochs)
		num(p.Last.Position)
		ep(p.Last.Epoch)
		flag(p.Rebuilding)
	}
	for i := range w.nodes {
		n := &w.nodes[i]
		flag(n.up)
		stored(&n.stored)
		entries(n.wal)
		num(uint64(n.durable))
		num(uint64(len(n.storage)))
		entries(n.tail)
		entries(n.lost)
		if !n.up {
			continue
		}
		stored(&n.m.stored)
		num(n.commit)
		b = append(b, n.m.role...)
		age(ticks(max(n.m.started, n.m.answered)))
		age(ticks(n.m.started))
		flag(n.m.follows)
		flag(n.m.peerKnown)
		flag(n.m.unfenced)
		flag(n.m.solo)
		if n.m.role != RolePrimary { // one that steps down begins anew with these
			age(ticks(n.m.heard))
			peer(&n.m.peer)
			continue
		}
		ep(n.m.peer.Epoch)
		num(n.told)
		age(ticks(n.m.contact))
		age(ticks(n.m.leaseFrom.boot))
		flag(n.m.hasLease)
		flag(n.m.alone)
		num(n.m.barrier)
		num(n.m.ack.Received)
		num(n.m.ack.Persisted)
	}
	// Which message was sent first makes no difference.
	nodes := len(b)
	var texts []string
	for _, m := range w.msgs {
		from := len(b)
		num(uint64(m.kind))
		num(uint64(m.from))
		ep(m.epoch)
		ep(m.prev)
		num(m.at)
		entries(m.entries)
		peer(&m.peer)
		num(m.ack.Received)
		num(m.ack.Persisted)
		age(m.sent)
		num(m.commit)
		flag(m.flag)
		flag(m.life == w.nodes[1-m.from].life)
		flag(m.life == w.nodes[m.from].life)
		texts = append(texts, string(b[from:]))
	}
	slices.Sort(texts)
	b = append(b[:nodes], strings.Join(texts, "|")...)
	num(uint64(w.writes))
	num(uint64(w.crashes))
	num(uint64(w.leads))
	num(uint64(w.copies))
	num(uint64(w.wipes))
	num(uint64(w.words))
	flag(w.mayLose)
	flag(w.mayFork)
	entries(w.acked)
	return b
}
