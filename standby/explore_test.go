package standby

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

func duration(t time_) time.Duration { return time.Duration(t) * time.Second }
func ticks(d time.Duration) time_    { return time_(d / time.Second) }

type modelConfig struct {
	mode        replication.SyncMode
	consistency bool
	admitted    bool
}

func (c modelConfig) String() string {
	policy := "availability"
	if c.consistency {
		policy = "consistency"
	}
	return fmt.Sprintf("%s/%s/admitted=%t", c.mode, policy, c.admitted)
}

var modelConfigs = []modelConfig{
	{replication.SyncFull, true, true}, {replication.SyncFull, false, true}, {replication.SyncFull, false, false},
	{replication.SyncSemi, true, true}, {replication.SyncSemi, false, true}, {replication.SyncAsync, false, true},
	{replication.SyncSemi, true, false},
}

// Within wide there is more than can be looked at: it is explored as far as the budget
// goes, nearest first, and by random schedules beyond. Within narrow a normal run
// leaves nothing out.
var (
	wide   = bounds{messages: 4, writes: 3, crashes: 2, leads: 2}
	narrow = bounds{messages: 1, writes: 1, crashes: 1, leads: 1}
	// Random schedules have messages that come twice, and a disk that is gone.
	random = bounds{messages: 4, writes: 3, crashes: 3, leads: 3, copies: 3, wipes: 1}
)

// newWorld is a pair that has been running: a is primary, b follows.
func newWorld(c modelConfig, mutants ...mutant) *world {
	w := &world{now: 10, mutants: mutants, bounds: wide}
	first := replication.Epoch{Number: 1, Owner: "a"}
	for i := range w.nodes {
		n := &w.nodes[i]
		n.up = true
		n.stored = Stored{History: "h", Epoch: first, Epochs: []EpochStart{{first, 1}}, Admitted: c.admitted && i == 1, PeerAdmitted: c.admitted && i == 0}
		n.m = machine{rules: rules{self: modelIDs[i], wantsPrimary: i == 0, mode: c.mode, consistency: c.consistency, auto: true,
			failover: duration(failoverTicks), maxLag: 1}, stored: n.stored, role: RoleStandby, follows: true,
			heard: duration(10), answered: duration(10), started: 0}
		if i == 0 {
			n.m.role, n.m.follows, n.m.contact = RolePrimary, false, duration(10)
			n.m.hasLease, n.m.leaseFrom = true, w.instant()
			n.m.alone = !c.admitted && c.mode == replication.SyncSemi
		}
	}
	w.used = append(w.used, first)
	return w
}

// move is one way in which a world can go on.
type move struct {
	name string
	do   func(*world)
}

func (w *world) moves() []move {
	moves := []move{{"tick", func(w *world) { w.tick() }}}
	add := func(name string, do func(*world)) { moves = append(moves, move{name, do}) }
	for i := range w.nodes {
		n := &w.nodes[i]
		id := modelIDs[i]
		if !n.up {
			add("restart "+id, func(w *world) { w.restart(i) })
			continue
		}
		if w.crashes < w.bounds.crashes {
			add("crash "+id, func(w *world) { w.crash(i, 0) })
			if w.wipes < w.bounds.wipes && w.spare(i) {
				add("crash and wipe "+id, func(w *world) { w.wipe(i) })
			}
			if len(n.wal) > n.durable {
				add("crash after the write of "+id, func(w *world) { w.crash(i, len(w.nodes[i].wal)) })
			}
		}
		if n.durable < len(n.wal) {
			add("sync "+id, func(w *world) { w.nodes[i].durable = len(w.nodes[i].wal); w.settle() })
		}
		if w.writes < w.bounds.writes && n.m.accepts(w.instant()) {
			add("write "+id, func(w *world) { w.write(i) })
		}
		if n.m.role == RolePrimary && n.told < uint64(len(n.wal)) {
			add("stream "+id, func(w *world) { w.stream(i) })
		}
		if !w.pending(i) { // its connection ended
			switch n.m.role {
			case RolePromoting:
				add("the fetch of "+id+" fails", func(w *world) { w.event(i, event{kind: evFetched}, nil, -1) })
			case RoleRebuilding:
				add("the snapshot of "+id+" fails", func(w *world) { w.event(i, event{kind: evRebuilt}, nil, -1) })
			}
		}
		if w.leads < w.bounds.leads && n.m.role == RoleStandby && n.m.stored.Admitted {
			add("promote "+id, func(w *world) { w.operate(i, event{kind: evPromote}) })
		}
		if w.leads < w.bounds.leads && w.words > 0 && n.stored.History != "" {
			add("force "+id, func(w *world) { w.words--; w.operate(i, event{kind: evPromote, force: true}) })
			add("solo "+id, func(w *world) { w.words--; w.operate(i, event{kind: evSolo}) })
		}
	}
	for k, m := range w.msgs {
		name := fmt.Sprintf("%d from %s", m.kind, modelIDs[m.from])
		add("deliver "+name, func(w *world) { w.deliver(k, -1) })
		if w.copies < w.bounds.copies && len(w.msgs) < w.bounds.messages && !m.once() {
			add("copy "+name, func(w *world) { w.copy(k) })
		}
		add("lose "+name, func(w *world) { w.msgs = append(w.msgs[:k:k], w.msgs[k+1:]...) })
		if w.crashes < w.bounds.crashes && (m.kind == stateKind || m.kind == fenceKind || m.kind == fenceAckKind || m.kind == snapshotKind) {
			for limit := 1; limit < 6; limit++ {
				add(fmt.Sprint("deliver ", name, " and crash after ", limit), func(w *world) { w.deliver(k, limit) })
			}
		}
	}
	return moves
}

// pending: an answer to a fetch or a snapshot of node i can still come.
func (w *world) pending(i int) bool {
	for _, m := range w.msgs {
		switch m.kind {
		case fetchKind, snapshotAskKind:
			if m.from == i {
				return true
			}
		case fetchedKind, snapshotKind:
			if m.from != i {
				return true
			}
		}
	}
	return false
}

// bounded: the world is within what is explored.
func (w *world) bounded() bool { return w.leads <= w.bounds.leads && w.crashes <= w.bounds.crashes }

type visit struct {
	w      *world
	parent int32
	depth  int32
	name   string
}

// exploration is what was seen of a world's future.
type exploration struct {
	worlds    int
	depth     int32
	exhausted bool     // no other world is within the bounds
	trace     []string // the moves to the first violation
}

// explore looks at every world within the bounds, nearest first, until no new one
// appears or there are budget of them.
func explore(start *world, budget int) (x exploration) {
	seed := maphash.MakeSeed()
	known := map[uint64]struct{}{maphash.Bytes(seed, start.key()): {}}
	queue := []visit{{start, -1, 0, "start"}}
	for at := 0; at < len(queue); at++ {
		w := queue[at].w
		x.worlds, x.depth = len(known), queue[at].depth
		if x.worlds >= budget {
			return x
		}
		for _, mv := range w.moves() {
			next := w.clone()
			mv.do(next)
			if next.bad != "" {
				x.trace = []string{mv.name, next.bad}
				for i := int32(at); i >= 0; i = queue[i].parent {
					x.trace = append([]string{queue[i].name}, x.trace...)
				}
				return x
			}
			if !next.bounded() {
				continue
			}
			h := maphash.Bytes(seed, next.key())
			if _, ok := known[h]; ok {
				continue
			}
			known[h] = struct{}{}
			queue = append(queue, visit{next, int32(at), x.depth + 1, mv.name})
		}
		queue[at].w = nil
	}
	x.exhausted = true
	return x
}

// wander follows one random schedule; weights make faults rarer than progress.
func wander(w *world, rng *rand.Rand, steps int) []string {
	var trace []string
	for range steps {
		moves := w.moves()
		mv := moves[rng.IntN(len(moves))]
		if strings.HasPrefix(mv.name, "crash") || strings.HasPrefix(mv.name, "lose") || strings.HasPrefix(mv.name, "copy") || strings.Contains(mv.name, "and crash") {
			if rng.IntN(4) != 0 {
				continue
			}
		}
		trace = append(trace, mv.name)
		mv.do(w)
		if w.bad != "" {
			return append(trace, w.bad)
		}
		if !w.bounded() {
			return nil
		}
	}
	return nil
}

// budget of an exploration: STANDBY_EXPLORE=1 takes an hour's quarter.
func budget() (worlds, schedules int) {
	switch {
	case os.Getenv("STANDBY_EXPLORE") != "":
		return 2_000_000, 200_000
	case testing.Short():
		return 10_000, 2_000
	}
	return 60_000, 8_000
}

func TestInvariantsHoldEverywhere(t *testing.T) {
	t.Parallel()
	worlds, schedules := budget()
	for _, c := range modelConfigs {
		t.Run(c.String(), func(t *testing.T) {
			t.Parallel()
			for b, budget := range map[bounds]int{wide: worlds, narrow: 10 * worlds} {
				w := newWorld(c)
				w.bounds = b
				if b == narrow && c.mode == replication.SyncFull { // what it promises, it promises after the loss of a disk, too
					w.bounds.wipes = 1
				}
				x := explore(w, budget)
				require.True(t, x.exhausted || b == wide || testing.Short())
				require.Empty(t, x.trace, strings.Join(x.trace, "\n"))
				t.Logf("within %+v: %d worlds, up to %d moves; exhausted: %t", w.bounds, x.worlds, x.depth, x.exhausted)
			}
			for seed := range schedules {
				w := newWorld(c)
				w.bounds, w.words = random, seed%3
				trace := wander(w, rand.New(rand.NewPCG(uint64(seed), 7)), 120)
				require.Empty(t, trace, "seed %d\n%s", seed, strings.Join(trace, "\n"))
			}
		})
	}
}

// heal ends all faults and lets the pair run.
func heal(w *world) {
	for i := range w.nodes {
		if !w.nodes[i].up {
			w.restart(i)
		}
	}
	for range 12 * failoverTicks {
		w.tick()
		for range 40 {
			if len(w.msgs) > 0 {
				w.deliver(0, -1)
			}
		}
		for i := range w.nodes {
			n := &w.nodes[i]
			n.durable = len(n.wal)
			if n.m.role == RolePromoting && !w.pending(i) {
				w.event(i, event{kind: evFetched}, nil, -1)
			}
			if n.m.role == RoleRebuilding && !w.pending(i) {
				w.event(i, event{kind: evRebuilt}, nil, -1)
			}
			if n.m.role == RolePrimary && n.told < uint64(len(n.wal)) {
				w.stream(i)
			}
		}
	}
}

// obey does what a node asks its operator for, where the owner of its epoch has lost
// its disk. The node has everything (see spare), so nothing may be lost by that.
func obey(w *world) (asked bool) {
	for i := range w.nodes {
		if n := &w.nodes[i]; w.wipes > 0 && n.m.role != RolePrimary && strings.Contains(n.m.waiting, "with force") {
			w.event(i, event{kind: evPromote, force: true}, nil, -1)
			return true
		}
	}
	return false
}

// After faults end there is one primary with an admitted standby that has its
// whole log; where a disk was lost, at the latest when the operator has done what a
// node asks for.
func TestPairHeals(t *testing.T) {
	_, schedules := budget()
	stuck, wiped, asked := 0, 0, 0
	for _, c := range modelConfigs {
		for seed := range schedules / 4 {
			w := newWorld(c)
			w.bounds, w.words = random, seed%3
			trace := wander(w, rand.New(rand.NewPCG(uint64(seed), 9)), 60)
			if w.bad == "" {
				heal(w)
			}
			wiped += w.wipes
			if w.bad == "" && obey(w) {
				asked++
				heal(w)
			}
			require.Empty(t, w.bad, strings.Join(trace, "\n"))
			a, b := &w.nodes[0], &w.nodes[1]
			if a.m.role != RolePrimary {
				a, b = b, a
			}
			if a.m.role != RolePrimary {
				t.Logf("%s, seed %d: %s %s %q, %s %s %q", c, seed, a.m.role, a.m.stored.Epoch, a.m.waiting, b.m.role, b.m.stored.Epoch, b.m.waiting)
				stuck++
				continue
			}
			require.Equal(t, RoleStandby, b.m.role, "%s, seed %d: %s", c, seed, b.m.waiting)
			require.True(t, a.m.stored.PeerAdmitted && b.m.stored.Admitted, "%s, seed %d", c, seed)
			require.True(t, slices.Equal(a.wal, b.wal) && slices.Equal(a.storage, b.storage), "%s, seed %d: %v %v", c, seed, a.wal, b.wal)
			require.Len(t, a.storage, len(a.wal), "everything is applied in the end")
		}
	}
	require.Zero(t, stuck)
	require.Greater(t, wiped, schedules/10)
	require.Positive(t, asked)
	t.Logf("%d disks were lost, %d times an operator was needed", wiped, asked)
}

// Each rule is needed: without it the exploration finds a violation.
func TestMutantsAreCaught(t *testing.T) {
	for _, mu := range []mutant{mutantUnadmitted, mutantStoredRole, mutantReusedEpoch, mutantAckReceived, mutantCutFirst, mutantLeaseAtFirst, mutantEmptyFounds} {
		t.Run(string(mu), func(t *testing.T) { caught(t, modelConfigs, 100_000, mu) })
	}
}

// caught wanders until a violation is found.
func caught(t *testing.T, configs []modelConfig, seeds int, mutants ...mutant) (at int) {
	t.Helper()
	for seed := range seeds {
		for _, c := range configs {
			w := newWorld(c, mutants...)
			w.bounds = random
			if trace := wander(w, rand.New(rand.NewPCG(uint64(seed), 7)), 120); trace != nil {
				t.Logf("%s, seed %d, %d moves: %s", c, seed, len(trace)-1, trace[len(trace)-1])
				return seed
			}
		}
	}
	require.Fail(t, "not caught")
	return 0
}

// The check of the previous epoch is a second line: where epoch lists are right,
// a log that has diverged is cut before anything is taken onto it. Behind lists
// that are wrong it keeps the logs apart; without it they are mixed. The schedules
// begin where a power failure has taken an entry of the primary that the standby
// has.
func TestPreviousEpochIsTheSecondLine(t *testing.T) {
	begun := func(mutants ...mutant) *world {
		w := newWorld(modelConfig{replication.SyncSemi, false, true}, mutants...)
		w.play(t, "tick", "tick", "write a", "deliver 1 from a", "stream a", "tick", "crash a", "restart a", "deliver 3 from a", "sync b",
			"deliver 1 from a", "deliver 2 from b", "lose 4 from b")
		return w
	}
	mixed := 0
	for seed := range uint64(3000) {
		rng := func() *rand.Rand { return rand.New(rand.NewPCG(seed, 7)) }
		if wander(begun(mutantStaleEpochs, mutantPrevEpoch), rng(), 60) != nil {
			mixed++
		}
		trace := wander(begun(mutantStaleEpochs), rng(), 60)
		require.Nil(t, trace, "seed %d: %s", seed, strings.Join(trace, "\n"))
	}
	require.Positive(t, mixed, "not caught")
	t.Logf("%d of 3000 schedules mix logs without the check", mixed)
}

// play makes moves by their names.
func (w *world) play(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		moves := w.moves()
		i := slices.IndexFunc(moves, func(m move) bool { return m.name == name })
		require.GreaterOrEqual(t, i, 0, "%s: not possible", name)
		moves[i].do(w)
	}
}
