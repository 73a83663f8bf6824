package conflict

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/nornicdb/replication"
)

// step is one event of a history. Its bytes are read modulo what is possible,
// so that any subsequence of a history is a history too.
type step struct {
	kind stepKind
	x    [10]byte
}

type stepKind byte

const (
	stepWrite stepKind = iota
	stepBatch
	stepDeliver
	stepAgain // a duplicate, or one too early
	stepMark
	stepLink // one direction goes down or up
	stepResolve
	stepTransfer
	stepKinds
)

var stepWeights = [stepKinds]int{30, 8, 40, 4, 8, 4, 6, 2}

// history is a federation's settings and what happens in it.
type history struct {
	seed     uint64
	regions  int
	strategy Strategy
	bound    uint64
	offsets  [MaxRegions]int64 // of the clocks, ms
	collect  bool
	budget   int  // of each collection
	updates  bool // the Storage has EdgeStorage
	nodes    int  // of the graph
	steps    []step
}

func makeHistory(seed uint64, length int) *history {
	rng := rand.New(rand.NewPCG(seed, 7))
	h := &history{seed: seed, regions: 2 + rng.IntN(4), collect: rng.IntN(4) != 0, updates: rng.IntN(2) == 0}
	h.strategy = []Strategy{LastWriteWins, FirstWriteWins, Manual}[rng.IntN(3)]
	if rng.IntN(3) == 0 {
		h.bound = 500
	}
	for i := range h.offsets {
		h.offsets[i] = []int64{0, 0, 0, 100, -100, 5000, -5000}[rng.IntN(7)]
	}
	h.budget = []int{0, 0, 1, 2, 5}[rng.IntN(5)]
	h.nodes = 1 + rng.IntN(len(oracleNodes))
	weights := stepWeights
	if rng.IntN(2) == 0 { // links that are often down, and regions that tell quickly what they have
		weights[stepMark], weights[stepLink] = 25, 15
	}
	total := 0
	for _, w := range weights {
		total += w
	}
	for range length {
		var s step
		pick := rng.IntN(total)
		for pick >= weights[s.kind] {
			pick -= weights[s.kind]
			s.kind++
		}
		for i := range s.x {
			s.x[i] = byte(rng.Uint32())
		}
		h.steps = append(h.steps, s)
	}
	return h
}

func (h *history) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d, %d regions, %s, clock bound %d ms, offsets %v, collect %v, %d at once", h.seed, h.regions, h.strategy,
		h.bound, h.offsets[:h.regions], h.collect, h.budget)
	for _, s := range h.steps {
		fmt.Fprintf(&b, "\n  {%d, %v}", s.kind, s.x)
	}
	return b.String()
}

// shrink drops steps for as long as the history fails.
func (h *history) shrink() *history {
	small := *h
	for size := len(small.steps) / 2; size >= 1; {
		removed := false
		for at := 0; at+size <= len(small.steps); {
			try := small
			try.steps = slices.Delete(slices.Clone(small.steps), at, at+size)
			if try.run() != nil {
				small, removed = try, true
			} else {
				at += size
			}
		}
		if !removed || size > len(small.steps) {
			size /= 2
		}
	}
	return &small
}

// sim runs a history.
type sim struct {
	h        *history
	settings Settings
	oracle   *oracle
	regions  []*simRegion
	now      uint64 // ms
	down     [MaxRegions][MaxRegions]bool
	trace    func(format string, args ...any)
}

type simRegion struct {
	store   *memStore
	stream  []*Entry // its own entries
	applied Vector
	last    uint64
	log     []func(*Core) error // its commands, for replay
}

var simRegionNames = []string{"asia", "eu", "latam", "us-east", "us-west"}

func (h *history) run() error { return h.trace(func(string, ...any) {}) }

// trace runs the history and returns the first thing that is wrong.
func (h *history) trace(trace func(format string, args ...any)) error {
	s := newSim(h)
	s.trace = trace
	mutants.collectNothing = !h.collect
	defer func() { mutants.collectNothing = false }()
	for i := range h.steps {
		if i%8 == 0 {
			s.now += 10
		}
		if err := s.step(&h.steps[i]); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return s.end()
}

func newSim(h *history) *sim {
	s := &sim{h: h, now: 1_700_000_000_000, trace: func(string, ...any) {}, oracle: &oracle{strategy: h.strategy},
		settings: Settings{Regions: simRegionNames[:h.regions], Strategy: h.strategy, MaxClockOffsetMS: h.bound}}
	for range h.regions {
		s.regions = append(s.regions, &simRegion{store: newStore()})
	}
	return s
}

func (s *sim) end() error {
	if err := s.quiesce(); err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	return s.replay()
}

func (s *sim) core(r int) (*Core, error) {
	var store Store = s.regions[r].store
	if s.h.updates {
		store = edgeStore{s.regions[r].store}
	}
	for i := range s.regions {
		mutants.acks[i] = s.regions[i].applied
	}
	mutants.self = uint8(r)
	c, err := Load(store, s.settings.Regions[r], s.settings)
	if err == nil && s.h.budget > 0 {
		c.budget = s.h.budget
	}
	return c, err
}

func (s *sim) wall(r int) uint64 { return uint64(int64(s.now) + s.h.offsets[r]) }

func (s *sim) step(st *step) error {
	r := int(st.x[0]) % s.h.regions
	switch st.kind {
	case stepWrite:
		return s.write(r, st.x[1:], 1)
	case stepBatch:
		return s.write(r, st.x[1:], 2+int(st.x[9])%3)
	case stepDeliver:
		for range 1 + st.x[2]%3 {
			if err := s.deliver((r+1+int(st.x[1])%max(1, s.h.regions-1))%s.h.regions, r); err != nil {
				return err
			}
		}
	case stepAgain:
		return s.again((r+1+int(st.x[1])%max(1, s.h.regions-1))%s.h.regions, r, st.x[2:])
	case stepMark:
		return s.mark(r)
	case stepLink:
		down := &s.down[r][int(st.x[1])%s.h.regions]
		*down = !*down
	case stepResolve:
		return s.resolve(r, st.x[1:])
	case stepTransfer:
		return s.transfer((r+1+int(st.x[1])%max(1, s.h.regions-1))%s.h.regions, r)
	}
	return nil
}

// command makes a command out of five bytes.
func command(x []byte, nodes int) *replication.Command {
	node := oracleNodes[int(x[1])%nodes]
	other := oracleNodes[int(x[2])%nodes]
	value := any(int64(x[3] % 16))
	props := map[string]any{}
	if x[4]&1 != 0 {
		props["k"] = value
	}
	if x[4]&2 != 0 {
		props["l"] = fmt.Sprint(value)
	}
	n := &replication.Node{ID: replication.NodeID(node), Properties: props}
	if x[4]&4 != 0 {
		n.Labels = []string{fmt.Sprintf("L%d", x[3]%4)}
	}
	e := &replication.Edge{StartNode: n.ID, EndNode: replication.NodeID(other), Type: "T", Properties: props}
	var cmd *replication.Command
	var err error
	switch k := x[0] % 32; {
	case k < 7:
		cmd, err = replication.NewNodeCommand(replication.CmdCreateNode, n)
	case k < 9:
		cmd, err = replication.NewNodeCommand(replication.CmdUpdateNode, n)
	case k < 11:
		cmd, err = replication.NewNodeCommand(replication.CmdPutNode, n)
	case k < 15:
		cmd = replication.NewDeleteNode(n.ID)
	case k < 20:
		cmd, err = replication.NewEdgeCommand(replication.CmdCreateEdge, e)
	case k < 21:
		cmd, err = replication.NewEdgeCommand(replication.CmdPutEdge, e)
	case k < 22:
		cmd, err = replication.NewEdgeCommand(replication.CmdUpdateEdge, e)
	case k < 24:
		cmd, err = replication.NewDeleteEdge(e.StartNode, e.EndNode, "T")
	default:
		if x[4]&24 == 24 {
			value = nil
		}
		cmd, err = replication.NewSetProperty(n.ID, oracleProps[int(x[2])%2], value)
	}
	if err != nil {
		panic(err)
	}
	return cmd
}

func (s *sim) write(r int, x []byte, size int) error {
	if len(s.oracle.writes) >= 60 {
		return nil
	}
	var cmds []*replication.Command
	for i := range size { // later commands read the same bytes, turned
		y := append(slices.Clone(x[i:5]), x[:5]...)
		y[0] += byte(i) * 37
		y[1] += x[7] * byte(i)
		cmds = append(cmds, command(y, s.h.nodes))
	}
	batch := cmds[0]
	if size > 1 {
		var err error
		if batch, err = replication.NewBatchWrite(cmds); err != nil {
			return err
		}
	}
	return s.submit(r, batch, cmds)
}

// submit has region r execute a command, which amounts to cmds.
func (s *sim) submit(r int, batch *replication.Command, cmds []*replication.Command) error {
	before := s.regions[r].store.clone()
	set := s.oracle.set(s.regions[r].applied)
	e, err := s.local(r, func(c *Core, wall uint64) (*Entry, error) { return c.Local(wall, batch) })
	s.trace("%s: %s: %v", s.settings.Regions[r], batch.Data, err)
	if err != nil {
		if _, verdict := replication.Verdict(err); !verdict || errors.Is(err, ErrMismatch) {
			return fmt.Errorf("%s %s: %w", batch.Type, batch.Data, err)
		}
		if !s.regions[r].store.equal(before) {
			return fmt.Errorf("the verdict %v left traces", err)
		}
	}
	if len(cmds) > 1 {
		return nil
	}
	return s.checkVerdict(cmds[0], set, e, err)
}

// checkVerdict compares the answer to a single command with what the region showed.
func (s *sim) checkVerdict(cmd *replication.Command, set uint64, e *Entry, got error) error {
	var want error
	var n replication.Node
	var edge replication.Edge
	_ = n.UnmarshalJSON(cmd.Data)
	_ = edge.UnmarshalJSON(cmd.Data)
	o := s.oracle
	node, from, to := nodeIndex(string(n.ID)), nodeIndex(string(edge.StartNode)), nodeIndex(string(edge.EndNode))
	switch cmd.Type {
	case replication.CmdCreateNode:
		if o.nodeShown(set, node) {
			want = replication.ErrExists
		} else if got == nil && !mutants.freshFromTombstone && (e.ops[0].kind == opCreateNode) == o.nodeExists(set, node) {
			return fmt.Errorf("creation of %s: fresh is %v", n.ID, e.ops[0].kind == opCreateNode)
		}
	case replication.CmdUpdateNode:
		if !o.nodeShown(set, node) {
			want = replication.ErrNotFound
		}
	case replication.CmdDeleteNode:
		if !o.nodeShown(set, nodeIndex(string(cmd.Data))) {
			want = replication.ErrNotFound
		}
	case replication.CmdCreateEdge, replication.CmdPutEdge:
		if !o.nodeShown(set, from) || !o.nodeShown(set, to) {
			want = replication.ErrMissingEnd
		} else if cmd.Type == replication.CmdCreateEdge && o.edgeShown(set, from, to) {
			want = replication.ErrExists
		}
	case replication.CmdUpdateEdge, replication.CmdDeleteEdge:
		if !o.edgeShown(set, from, to) {
			want = replication.ErrNotFound
		}
	default:
		return nil
	}
	if !errors.Is(got, want) {
		return fmt.Errorf("%s %s: got %v, want %v", cmd.Type, cmd.Data, got, want)
	}
	return nil
}

// local makes an own entry of region r and checks what it must hold.
func (s *sim) local(r int, make func(c *Core, wallMS uint64) (*Entry, error)) (*Entry, error) {
	c, err := s.core(r)
	if err != nil {
		return nil, fmt.Errorf("load: %v", err)
	}
	wall := s.wall(r)
	e, err := make(c, wall)
	if err != nil || e == nil {
		return e, err
	}
	reg := s.regions[r]
	reg.log = append(reg.log, func(c *Core) error {
		again, err := make(c, wall)
		if err == nil && !bytes.Equal(again.Encode(), e.Encode()) {
			err = fmt.Errorf("replay made another entry")
		}
		return err
	})
	// What the others get has gone over the wire.
	if e.Dot.Pos%2 == 0 {
		e, err = DecodeEntry(e.Encode())
	} else {
		e, err = s.settings.FromWAL(s.settings.ToWAL(e))
	}
	if err != nil {
		return nil, fmt.Errorf("wire: %v", err)
	}
	if e.Dot != (Dot{uint8(r), uint64(len(reg.stream) + 1)}) || e.Context != reg.applied || e.Time <= reg.last {
		return nil, fmt.Errorf("entry %+v at time %d, context %v after %v, %d", e.Dot, e.Time, e.Context, reg.applied, reg.last)
	}
	for i := range s.oracle.writes {
		if w := &s.oracle.writes[i]; s.h.bound == 0 && e.Context.Covers(w.dot) && w.time >= e.Time {
			return nil, fmt.Errorf("time %d of %v after %d of %v, which it knew", e.Time, e.Dot, w.time, w.dot)
		}
	}
	reg.last = e.Time
	reg.stream = append(reg.stream, e)
	reg.applied[r]++
	s.oracle.add(e)
	if err := s.check(r, c); err != nil {
		return nil, fmt.Errorf("after its own %+v: %v", e.Dot, err)
	}
	return e, nil
}

func (s *sim) deliver(from, to int) error {
	stream := s.regions[from].stream
	if next := s.regions[to].applied[from]; from != to && !s.down[from][to] && next < uint64(len(stream)) {
		return s.remote(to, stream[next])
	}
	return nil
}

func (s *sim) remote(to int, e *Entry) error {
	c, err := s.core(to)
	if err != nil {
		return err
	}
	reg := s.regions[to]
	wall := s.wall(to)
	fresh, err := c.Remote(wall, e)
	if err != nil || !fresh {
		return fmt.Errorf("%s: entry %+v: fresh %v: %w", s.settings.Regions[to], e.Dot, fresh, err)
	}
	reg.log = append(reg.log, func(c *Core) error {
		_, err := c.Remote(wall, e)
		return err
	})
	reg.applied[e.Dot.Region] = e.Dot.Pos
	s.trace("%s: applies %+v context %v time %d: %+v", s.settings.Regions[to], e.Dot, e.Context, e.Time, e.ops)
	if err := s.check(to, c); err != nil {
		return fmt.Errorf("%s after %+v: %w", s.settings.Regions[to], e.Dot, err)
	}
	return nil
}

// again delivers an entry a second time, or one too early.
func (s *sim) again(from, to int, x []byte) error {
	stream := s.regions[from].stream
	if from == to || len(stream) == 0 {
		return nil
	}
	e := stream[int(x[0])%len(stream)]
	have := s.regions[to].applied[from]
	if e.Dot.Pos == have+1 {
		return nil
	}
	c, err := s.core(to)
	if err != nil {
		return err
	}
	before := s.regions[to].store.clone()
	fresh, err := c.Remote(s.wall(to), e)
	if fresh || (e.Dot.Pos > have) != errors.Is(err, ErrGap) || !mutants.noDedupe && e.Dot.Pos <= have && err != nil {
		return fmt.Errorf("%+v with %d applied: %v, %w", e.Dot, have, fresh, err)
	}
	if !s.regions[to].store.equal(before) {
		return fmt.Errorf("%+v with %d applied left traces", e.Dot, have)
	}
	return nil
}

func (s *sim) mark(r int) error {
	c, err := s.core(r)
	if err != nil || !c.Status().NeedsMark {
		return err
	}
	e, err := s.local(r, func(c *Core, wall uint64) (*Entry, error) { return c.Mark(wall) })
	if err == nil && !e.Mark() {
		err = fmt.Errorf("a mark with effects")
	}
	return err
}

func (s *sim) resolve(r int, x []byte) error {
	open, err := Conflicts(s.regions[r].store, Filter{})
	if err != nil || len(open) == 0 || len(s.oracle.writes) >= 60 {
		return err
	}
	c := open[int(x[0])%len(open)]
	var res Resolution
	for _, v := range c.Versions {
		res.Expect = append(res.Expect, v.VersionID)
	}
	keep := c.Versions[int(x[1])%len(c.Versions)]
	switch {
	case x[2]%3 == 0 && c.Key.Field != FieldLabels:
		res.Deleted = true
	case x[2]%3 == 1 && c.Key.Field == FieldProperty:
		res.Value = int64(x[3])
	default:
		res.Keep = &keep.VersionID
	}
	e, err := s.local(r, func(core *Core, wall uint64) (*Entry, error) { return core.Resolve(wall, c.Key, res) })
	if err != nil || e == nil {
		return fmt.Errorf("resolving %+v by %+v: %v", c, res, err)
	}
	s.trace("%s: resolves %+v", s.settings.Regions[r], e.ops)
	open, err = Conflicts(s.regions[r].store, Filter{})
	if slices.ContainsFunc(open, func(o Conflict) bool { return o.Key == c.Key }) {
		return fmt.Errorf("%+v is not resolved", c.Key)
	}
	return err
}
