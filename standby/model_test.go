package standby

import (
	"fmt"
	"slices"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/walstream"
)

// The model: two nodes that run the machine, a network that loses, delays, reorders
// and duplicates, disks that lose what was not synced, or everything, and clients
// that write. Entries are numbers; everything else is the machine's.

const (
	failoverTicks = 3 // a lease is 2
	heartbeatKind = iota
	heartbeatAckKind
	batchKind
	batchAckKind
	fenceKind
	fenceAckKind
	askKind
	stateKind
	fetchKind
	fetchedKind
	snapshotAskKind
	snapshotKind
)

type modelEntry struct {
	epoch replication.Epoch
	id    int
}

type message struct {
	kind, from int
	epoch      replication.Epoch
	prev       replication.Epoch
	at         uint64
	entries    []modelEntry
	peer       Peer
	ack        walstream.Ack
	sent       time_
	commit     uint64
	flag       bool
	life       int // incarnation of whom it answers
}

type time_ = int64

type modelNode struct {
	m        machine
	up       bool
	life     int
	stored   Stored
	wal      []modelEntry
	durable  int // of wal
	storage  []modelEntry
	commit   uint64
	tail     []modelEntry // put aside
	lost     []modelEntry // with its disk, which had them durably
	told     uint64       // where its peer stands, as far as it knows
	wasFirst bool
}

// bounds of what is looked at.
type bounds struct{ messages, writes, crashes, leads, copies, wipes int }

// mutant breaks one rule, to show that the exploration sees it.
type mutant string

const (
	mutantPrevEpoch    mutant = "skip the previous-epoch check"
	mutantUnadmitted   mutant = "an unadmitted standby promotes itself"
	mutantStoredRole   mutant = "the role is kept over a restart"
	mutantReusedEpoch  mutant = "an epoch number is used again"
	mutantAckReceived  mutant = "acknowledge at received under sync"
	mutantCutFirst     mutant = "cut the tail before its file is durable"
	mutantLeaseAtFirst mutant = "check the lease only at acceptance"
	mutantEmptyFounds  mutant = "a node that lost its disk founds by itself"
	// mutantStaleEpochs is not caught where the previous epoch is checked: that
	// check is the second line behind the epoch lists.
	mutantStaleEpochs mutant = "epochs that the log never reached stay in the list"
)

type world struct {
	nodes   [2]modelNode
	msgs    []*message // none is changed
	now     time_
	writes  int
	crashes int
	leads   int // promotions
	copies  int // of messages, that the network made
	wipes   int
	words   int // forced promotions and solos that an operator may still order
	acked   []modelEntry
	used    []replication.Epoch // epochs somebody was primary of
	bad     string
	bounds  bounds
	mutants []mutant
	// What an operator's word has made possible, as the spec has it: acknowledged
	// writes may be in a file instead of at the primary, and two may accept writes.
	mayLose, mayFork bool
}

func (w *world) has(mu mutant) bool { return slices.Contains(w.mutants, mu) }

var modelIDs = [2]string{"a", "b"}

func (w *world) clone() *world {
	c := *w
	// Elements are never changed: what is appended goes elsewhere.
	c.msgs, c.acked, c.used = slices.Clip(w.msgs), slices.Clip(w.acked), slices.Clip(w.used)
	for i := range c.nodes {
		n := &c.nodes[i]
		n.wal, n.storage, n.tail = slices.Clip(n.wal), slices.Clip(n.storage), slices.Clip(n.tail)
	}
	return &c
}

func (w *world) violate(format string, args ...any) {
	if w.bad == "" {
		w.bad = fmt.Sprintf(format, args...)
	}
}

func (n *modelNode) mark(p uint64) walstream.Mark {
	if p == 0 {
		return walstream.Mark{}
	}
	return walstream.Mark{Position: p, Epoch: n.wal[p-1].epoch}
}

func (n *modelNode) log() logView {
	return logView{last: n.mark(uint64(len(n.wal))), durable: uint64(n.durable), applied: uint64(len(n.storage))}
}

func (w *world) instant() instant {
	t := duration(w.now)
	return instant{t, t}
}

// event hands an event to a node's machine and performs what it says, up to
// limit actions, where the node crashes; -1: all.
func (w *world) event(i int, ev event, reply *message, limit int) {
	n := &w.nodes[i]
	ev.now, ev.log, ev.fresh = w.instant(), n.log(), "h2"
	noted := n.m.stored.Epochs
	m, actions := n.m.step(ev)
	n.m = m
	if w.has(mutantStaleEpochs) {
		w.keepEpochs(n, noted, actions)
	}
	if w.has(mutantUnadmitted) && n.m.role == RoleStandby {
		n.m.stored.Admitted = true
	}
	if w.has(mutantCutFirst) {
		for k := 1; k < len(actions); k++ {
			if actions[k-1].kind == doSaveTail && actions[k].kind == doTruncate {
				actions[k-1], actions[k] = actions[k], actions[k-1]
				break
			}
		}
	}
	for k, a := range actions {
		if k == limit {
			w.crash(i, 0)
			return
		}
		w.perform(i, a, reply)
	}
	w.settle()
}

// keepEpochs undoes what beginning an epoch drops from the list.
func (w *world) keepEpochs(n *modelNode, noted []EpochStart, actions []action) {
	at := len(n.m.stored.Epochs) - 1
	if at < 0 || len(noted) == 0 || n.m.stored.Epoch.Owner != n.m.self || slices.Contains(noted, n.m.stored.Epochs[at]) {
		return
	}
	n.m.stored.Epochs = append(slices.Clone(noted), n.m.stored.Epochs[at])
	for k := range actions {
		if actions[k].kind == doSave {
			actions[k].stored.Epochs = n.m.stored.Epochs
		}
	}
}

func (w *world) send(m message) {
	for _, o := range w.msgs { // one of a kind from a node is enough
		if o.kind == m.kind && o.from == m.from && m.kind != fenceAckKind {
			return
		}
	}
	if len(w.msgs) < w.bounds.messages {
		w.msgs = append(w.msgs, &m)
	}
}

func (w *world) perform(i int, a action, reply *message) {
	n := &w.nodes[i]
	switch a.kind {
	case doSave:
		if err := checkEpochs(a.stored.Epoch, a.stored.Epochs); err != nil && !w.has(mutantStaleEpochs) && !w.has(mutantReusedEpoch) {
			w.violate("%s saves what its next start refuses: %v", n.m.self, err)
		}
		n.stored = a.stored
		if w.has(mutantReusedEpoch) && a.stored.Promoting && a.stored.Epoch.Number > 1 {
			n.stored.Epoch.Number--
			n.m.stored.Epoch.Number--
		}
	case doSync:
		n.durable = len(n.wal)
	case doLead:
		if slices.Contains(w.used, n.m.stored.Epoch) {
			w.violate("epoch %s is used again", n.m.stored.Epoch)
		}
		w.used = append(w.used, n.m.stored.Epoch)
		w.leads++
		n.told = n.m.peer.Last.Position
		for _, e := range w.acked {
			if n.m.mode == replication.SyncFull && !w.mayLose && !slices.Contains(n.wal, e) {
				w.violate("%s is primary of %s without acknowledged write %d", n.m.self, n.m.stored.Epoch, e.id)
			}
		}
	case doReply:
		if reply != nil {
			reply.from, reply.peer, reply.flag = i, n.m.state(n.log()), a.granted
			reply.ack = n.ack(w.has(mutantAckReceived))
			w.send(*reply)
		}
	case doFence:
		w.send(message{kind: fenceKind, from: i, epoch: n.m.stored.Epoch, peer: n.m.state(n.log()), life: n.life})
	case doFetch:
		w.send(message{kind: fetchKind, from: i, at: uint64(len(n.wal)), life: n.life, epoch: n.m.stored.Epoch})
	case doSaveTail:
		n.tail = append(n.tail, n.wal[a.position:]...)
	case doTruncate:
		w.cut(i, a.position)
	case doRebuild:
		w.send(message{kind: snapshotAskKind, from: i, life: n.life})
	case doCommit:
		n.commit = a.position
	case doFound:
		w.violate("%s is empty and becomes primary", n.m.self)
	}
}

func (n *modelNode) ack(early bool) walstream.Ack {
	a := walstream.Ack{Received: uint64(len(n.wal)), Persisted: uint64(n.durable), Applied: uint64(len(n.storage))}
	if early {
		a.Persisted = a.Received
	}
	return a
}

// settle lets both nodes apply and acknowledge what their rules allow, and checks
// what must always hold.
func (w *world) settle() {
	accepting := 0
	for i := range w.nodes {
		n := &w.nodes[i]
		if !n.up {
			continue
		}
		if n.m.accepts(w.instant()) {
			accepting++
		}
		m := n.m
		if w.has(mutantLeaseAtFirst) {
			m.consistency = false
		}
		if c, ok := m.commit(w.instant(), uint64(n.durable)); ok {
			for p := len(n.storage); p < int(min(c, uint64(n.durable))); p++ {
				w.acknowledge(i, n.wal[p])
				n.commit = uint64(p + 1)
			}
		}
		for uint64(len(n.storage)) < min(n.commit, uint64(n.durable)) {
			n.storage = append(n.storage, n.wal[len(n.storage)])
		}
		if !n.m.stored.Rebuilding && !slices.Equal(n.storage, n.wal[:min(len(n.storage), len(n.wal))]) {
			w.violate("storage of %s is not a prefix of its log", n.m.self)
		}
	}
	if accepting > 1 && w.nodes[0].m.consistency && !w.mayFork {
		w.violate("two nodes accept writes")
	}
	w.checkMatching()
	w.checkKept()
	for i := range w.nodes {
		if n := &w.nodes[i]; n.up && n.m.role == RoleStandby && n.m.follows && !w.has(mutantStaleEpochs) {
			w.checkPrefix(i)
		}
	}
}

// operate is an operator's word to a node. Promoting by force one that the other has
// not admitted may lose writes, and the other, which needs no lease then, may go
// on; that a peer is down may be false.
func (w *world) operate(i int, ev event) {
	n, o := &w.nodes[i], &w.nodes[1-i]
	safe := n.stored.Admitted && o.stored.PeerAdmitted && o.stored.Epoch == n.stored.Epoch
	switch {
	case ev.kind == evSolo:
		w.mayLose = true
		w.mayFork = w.mayFork || o.up && (!safe || n.m.role == RolePrimary)
	case ev.force && !safe:
		w.mayLose, w.mayFork = true, true
	}
	w.event(i, ev, nil, -1)
}

// crash takes a node's memory away, and of what it had not synced all but keep
// entries.
func (w *world) crash(i, keep int) {
	n := &w.nodes[i]
	w.crashes++
	n.up = false
	n.wasFirst = n.m.role == RolePrimary
	n.wal = n.wal[:min(len(n.wal), n.durable+keep)]
	n.durable = len(n.wal)
	n.commit = 0
	n.life++
}

func (w *world) restart(i int) {
	n := &w.nodes[i]
	n.up = true
	n.m = machine{rules: n.m.rules, stored: n.stored, role: RoleStarting, started: w.instant().boot, heard: w.instant().boot}
	if w.has(mutantEmptyFounds) && n.stored.History == "" {
		n.m.solo = true
	}
	if w.has(mutantStoredRole) && n.wasFirst && n.stored.Epoch.Owner == n.m.self {
		n.m.role = RolePrimary
		n.m.alone = n.m.mode != replication.SyncFull
	}
}

// tick lets a third of the failover timeout pass on both nodes.
func (w *world) tick() {
	w.now++
	for i := range w.nodes {
		n := &w.nodes[i]
		if !n.up {
			continue
		}
		w.event(i, event{kind: evTick}, nil, -1)
		switch n.m.role {
		case RolePrimary:
			c, _ := n.m.commit(w.instant(), uint64(n.durable))
			w.send(message{kind: heartbeatKind, from: i, peer: n.m.state(n.log()), epoch: n.m.stored.Epoch,
				commit: c, flag: n.m.stored.PeerAdmitted, sent: w.now, life: n.life})
		case RoleStarting, RoleRejoining, RoleFenced:
			w.send(message{kind: askKind, from: i, life: n.life})
		}
	}
}

// write is a client's.
func (w *world) write(i int) {
	n := &w.nodes[i]
	w.writes++
	n.wal = append(n.wal, modelEntry{n.m.stored.Epoch, w.writes})
	w.settle()
}

// stream sends what the peer is thought to lack.
func (w *world) stream(i int) {
	n := &w.nodes[i]
	from := min(n.told, uint64(len(n.wal)))
	w.send(message{kind: batchKind, from: i, epoch: n.m.stored.Epoch, at: from, prev: n.mark(from).Epoch,
		entries: slices.Clone(n.wal[from:]), life: n.life})
}

// fits: what a node has already of some entries is the same.
func (w *world) fits(n *modelNode, b message) bool {
	for k := 0; !w.has(mutantPrevEpoch) && k < len(b.entries) && int(b.at)+k < len(n.wal); k++ {
		if n.wal[int(b.at)+k].epoch != b.entries[k].epoch {
			return false
		}
	}
	return len(b.entries) > 0
}

// receive is walstream's Applier: epoch, contiguity, previous epoch.
func (w *world) receive(i int, b message) {
	n := &w.nodes[i]
	if n.m.role != RoleStandby || !n.m.follows || b.epoch != n.m.stored.Epoch {
		return
	}
	if b.at <= uint64(len(n.wal)) && (w.has(mutantPrevEpoch) || n.mark(b.at).Epoch == b.prev) && w.fits(n, b) {
		have := len(n.wal) - int(b.at)
		if have < len(b.entries) {
			n.wal = append(n.wal, b.entries[have:]...)
		}
	}
	w.settle()
	w.send(message{kind: batchAckKind, from: i, epoch: b.epoch, ack: n.ack(w.has(mutantAckReceived)), life: b.life})
}

// deliver hands the k-th message over; the receiver crashes after limit actions.
func (w *world) deliver(k, limit int) {
	m := *w.msgs[k]
	w.msgs = append(w.msgs[:k:k], w.msgs[k+1:]...)
	to := 1 - m.from
	n := &w.nodes[to]
	if !n.up {
		return
	}
	answers := m.kind == heartbeatAckKind || m.kind == batchAckKind || m.kind == fenceAckKind || m.kind == stateKind ||
		m.kind == fetchedKind || m.kind == snapshotKind
	if answers && m.life != n.life { // its connection ended with whom it answers
		return
	}
	switch m.kind {
	case heartbeatKind:
		w.event(to, event{kind: evHeartbeat, peer: m.peer, epoch: m.epoch, commit: m.commit, admit: m.flag},
			&message{kind: heartbeatAckKind, epoch: m.epoch, sent: m.sent, life: m.life}, limit)
	case heartbeatAckKind:
		n.told = m.ack.Received
		w.event(to, event{kind: evHeartbeatAck, peer: m.peer, epoch: m.epoch, ack: m.ack, follows: m.flag,
			sent: instant{duration(m.sent), duration(m.sent)}}, nil, limit)
	case batchKind:
		w.receive(to, m)
	case batchAckKind:
		n.told = m.ack.Received
		w.event(to, event{kind: evStreamAck, epoch: m.epoch, ack: m.ack}, nil, limit)
	case fenceKind:
		w.event(to, event{kind: evFence, peer: m.peer, epoch: m.epoch}, &message{kind: fenceAckKind, epoch: m.epoch, life: m.life}, limit)
	case fenceAckKind:
		w.event(to, event{kind: evFenceAck, peer: m.peer, epoch: m.epoch, fenced: m.flag}, nil, limit)
	case askKind:
		w.send(message{kind: stateKind, from: to, peer: n.m.state(n.log()), life: m.life})
	case stateKind:
		w.event(to, event{kind: evPeer, peer: m.peer}, nil, limit)
	case fetchKind:
		from := max(m.at, 1) - 1 // with the last entry that is there
		w.send(message{kind: fetchedKind, from: to, at: from, entries: slices.Clone(n.wal[min(from, uint64(n.durable)):n.durable]), epoch: m.epoch, life: m.life})
	case fetchedKind:
		if n.m.role == RolePromoting && n.m.stored.Epoch == m.epoch && len(n.wal) <= int(m.at)+1 && w.fits(n, m) {
			n.wal = append(n.wal, m.entries[len(n.wal)-int(m.at):]...)
			n.durable = len(n.wal)
		}
		w.event(to, event{kind: evFetched}, nil, limit)
	case snapshotAskKind:
		w.event(to, event{kind: evSnapshotAsked}, nil, -1)
		w.send(message{kind: snapshotKind, from: to, flag: n.m.role == RolePrimary, epoch: n.m.stored.Epoch,
			entries: slices.Clone(n.storage), peer: n.m.state(n.log()), life: m.life})
	case snapshotKind:
		w.install(to, m, limit)
	}
}

// install is what the driver does with a snapshot.
func (w *world) install(i int, m message, limit int) {
	n := &w.nodes[i]
	if n.m.role != RoleRebuilding {
		return
	}
	if m.flag {
		for _, e := range n.wal {
			if !slices.Contains(n.tail, e) && !slices.Contains(w.nodes[1-i].wal, e) {
				w.violate("write %d vanished with the rebuilding of %s", e.id, n.m.self)
			}
		}
		n.storage, n.wal, n.durable, n.commit = m.entries, slices.Clone(m.entries), len(m.entries), uint64(len(m.entries))
	}
	w.event(i, event{kind: evRebuilt, fenced: m.flag, epoch: m.epoch, epochs: m.peer.Epochs}, nil, limit)
}
