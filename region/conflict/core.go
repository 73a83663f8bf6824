package conflict

import (
	"errors"
	"fmt"

	"github.com/nornicdb/replication"
)

// Core is the state machine, for the length of one Storage transaction. It is
// deterministic: the same calls on the same Store give the same Store. It is
// not safe for concurrent use. After an error that is neither a verdict nor
// one of this package's answers the transaction must be rolled back and the
// Core thrown away; every later call returns that error.
type Core struct {
	store  Store
	head   header
	counts Counts
	failed error
	budget int  // of collect
	held   bool // see Hold
	dirty  bool // the header has changed since it was written

	blocks    map[blockID]*queueBlock // of the queues
	lastBlock *queueBlock             // the one that was asked for last; nil: none
	changed   []*queueBlock           // room for those that are to be written
	key, row  writer                  // room for a key and a row
	room      []byte                  // and for a node's values

	// while an entry is applied
	w        write
	nodes    map[string]*node
	edges    map[edgeKey]*edge
	nodeList []*node
	edgeList []*edge
	at       map[string][]*edge // loaded edges by their ends
	given    *replication.Node  // what a client wants to be written as a whole; nil: nothing
	spare    []*node            // to be used again
}

// write is the name, time and context of the entry that is being applied.
type write struct {
	dot   Dot
	time  uint64
	ctx   Vector
	fixes bool // by Resolve
}

// Field is a kind of thing about which regions can be in conflict.
type Field string

// The fields.
const (
	FieldNode     Field = "node"     // whether it exists
	FieldLabels   Field = "labels"   // of a node
	FieldProperty Field = "property" // of a node
	FieldEdge     Field = "edge"     // with its properties
)

// Counts are what happened since Load, for metrics.
type Counts struct {
	Conflicts         map[Field]uint64 // that arose
	SettledByWrite    uint64
	SettledByResolve  uint64
	Merged, Duplicate uint64 // remote entries
	Gaps              uint64
	ClockAhead        uint64 // remote times that the clock did not follow
}

// Load reads the state of region self. In a Store without it everything in the
// graph counts as settled: all regions must begin with the same graph. The
// settings must be the replicated ones: ErrSettings.
func Load(store Store, self string, settings Settings) (*Core, error) {
	if err := settings.Validate(); err != nil {
		return nil, err
	}
	index, ok := settings.index(self)
	if !ok {
		return nil, fmt.Errorf("%w: region %q is not one of %q", ErrSettings, self, settings.Regions)
	}
	c := &Core{store: store, head: header{settings: settings, self: index},
		nodes: make(map[string]*node), edges: make(map[edgeKey]*edge), at: make(map[string][]*edge), budget: collectKeys}
	row, err := store.GetMeta([]byte(rowHeader))
	if err != nil || row == nil {
		return c, err
	}
	if c.head, err = decodeHeader(row); err != nil {
		return nil, err
	}
	if c.head.self != index || !c.head.settings.equal(&settings) {
		return nil, fmt.Errorf("%w: region %s of %+v is configured, the storage has region %s of %+v", ErrSettings,
			self, settings, c.head.settings.Regions[c.head.self], c.head.settings)
	}
	return c, nil
}

// Status is the region's state as a whole.
type Status struct {
	Settings Settings
	Self     string
	// Applied says what is applied of each region's stream. Applied ⊇ Cut.
	Applied Vector
	// Cut is the stable cut: what all regions are known to have applied.
	Cut Vector
	// Seen is, for each region, what it is known to have applied.
	Seen [MaxRegions]Vector
	// Clock ≥ the time of every own write.
	Clock uint64
	// NeedsMark says that others wait to hear what this region has applied.
	NeedsMark bool
	// Uncollected is how many entries are in the cut and not looked at yet:
	// Collect does.
	Uncollected uint64
	// Rows and Bytes are the metadata of nodes and edges that are not settled.
	Rows, Bytes uint64
	// Conflicting is the number of nodes and edges with open conflicts; manual
	// only. There may be several in a node, and some that nobody can see.
	Conflicting uint64
}

// ReadStatus reads the status outside of a transaction that writes; the zero
// Status where there is none yet.
func ReadStatus(m replication.Meta) (Status, error) {
	row, err := m.GetMeta([]byte(rowHeader))
	if err != nil || row == nil {
		return Status{}, err
	}
	h, err := decodeHeader(row)
	if err != nil {
		return Status{}, err
	}
	return h.status(), nil
}

func (h *header) status() Status {
	s := Status{Settings: h.settings, Self: h.settings.Regions[h.self], Applied: h.applied, Cut: h.cut(), Seen: h.seen,
		Clock: h.lastTime, NeedsMark: h.unmarked, Rows: h.rows, Bytes: h.bytes, Conflicting: h.conflicts}
	s.Seen[h.self] = h.applied
	for i := range s.Cut {
		s.Uncollected += s.Cut[i] - h.collected[i]
	}
	return s
}

// Status is the region's state now.
func (c *Core) Status() Status { return c.head.status() }

// Counts are the counters since Load.
func (c *Core) Counts() Counts { return c.counts }

// cut is the pointwise minimum of what the regions have seen. What they say
// comes with their entries, never beside them.
func (h *header) cut() Vector {
	cut := h.applied
	for i := range h.settings.Regions {
		if i == int(h.self) {
			continue
		}
		if mutants.cutFromAcks {
			cut.meet(&mutants.acks[i])
			continue
		}
		cut.meet(&h.seen[i])
	}
	return cut
}

// maxSpare bounds the nodes kept to be used again.
const maxSpare = 64

func (c *Core) reset() {
	if len(c.nodeList)+len(c.edgeList) > maxSpare { // clearing a map that was large is slow for ever
		c.nodes, c.edges, c.at = make(map[string]*node), make(map[edgeKey]*edge), make(map[string][]*edge)
	}
	c.spare = append(c.spare, c.nodeList[:min(len(c.nodeList), maxSpare-len(c.spare))]...)
	clear(c.nodes)
	clear(c.edges)
	clear(c.at)
	clear(c.nodeList)
	clear(c.edgeList)
	c.nodeList, c.edgeList = c.nodeList[:0], c.edgeList[:0]
}

// Local applies a client's commands as one write, all or none, checked against
// what this region shows. wallMS is the proposing leader's wall reading. The
// entry goes to the region's outbox; it is nil where there was nothing to do.
// A verdict says that nothing was changed, unless it comes with ErrRefused:
// then the transaction must be rolled back first. ErrOpaqueWrite says that a
// command's effects are not known.
func (c *Core) Local(wallMS uint64, cmds ...*replication.Command) (*Entry, error) {
	for _, cmd := range cmds {
		if cmd.Type == replication.CmdCypher || cmd.Type >= replication.CmdEmbedder {
			return nil, fmt.Errorf("%w: %s", replication.ErrOpaqueWrite, cmd.Type)
		}
	}
	return c.own(wallMS, false, func(l *local) error {
		for _, cmd := range cmds {
			if err := replication.Dispatch(l, cmd); err != nil {
				return err
			}
		}
		return nil
	})
}

// own makes an own entry of the effects that fn asks for.
func (c *Core) own(wallMS uint64, fixes bool, fn func(*local) error) (*Entry, error) {
	if c.failed != nil {
		return nil, c.failed
	}
	before, counts := c.head, c.counts
	self := c.head.self
	c.head.lastTime = tick(c.head.lastTime, wallMS)
	c.w = write{dot: Dot{self, c.head.applied[self] + 1}, time: c.head.lastTime, ctx: c.head.applied, fixes: fixes}
	l := &local{c: c, e: &Entry{Dot: c.w.dot, Time: c.w.time, Context: c.w.ctx}}
	c.head.applied[self]++
	err := fn(l)
	if err == nil && len(l.e.ops) > MaxEntryOps {
		err = fmt.Errorf("%w: %d effects, at most %d", replication.ErrInvalidCommand, len(l.e.ops), MaxEntryOps)
	}
	if err != nil || l.e.Mark() && !l.mark {
		c.head, c.counts = before, counts
		c.reset()
		if err == nil || answer(err) {
			return nil, err
		}
		return nil, c.fail(err)
	}
	c.head.unmarked = false
	if err := c.finish(); err != nil {
		return nil, err
	}
	return l.e, nil
}

// answer tells answers, after which nothing was changed, from failures.
func answer(err error) bool {
	_, verdict := replication.Verdict(err)
	return verdict || errors.Is(err, ErrNoConflict) || errors.Is(err, ErrVersionsChanged)
}

// Mark makes a mark: an entry without effects. An idle region streams one each
// second while Status.NeedsMark.
func (c *Core) Mark(wallMS uint64) (*Entry, error) {
	return c.own(wallMS, false, func(l *local) error {
		l.mark = true
		return nil
	})
}

// Collect settles more of what is in the cut than entries do by the way. An idle
// region calls it while Status.Uncollected is not zero.
func (c *Core) Collect() error {
	if c.failed != nil {
		return c.failed
	}
	c.w = write{dot: Dot{Region: c.head.self}}
	c.budget *= collectMore
	defer func() { c.budget /= collectMore }()
	return c.finished(func() error { return nil })
}

// collectMore is how much more Collect does than an entry.
const collectMore = 16

// Remote merges an entry of another region's stream. wallMS is the proposing
// leader's wall reading. fresh is false for a duplicate, which changes nothing.
// ErrGap and ErrInvalidEntry are answers to the sender, ErrAhead is an alarm;
// nothing was changed.
func (c *Core) Remote(wallMS uint64, e *Entry) (fresh bool, err error) {
	if c.failed != nil {
		return false, c.failed
	}
	if err := c.accept(e); err != nil {
		return false, err
	}
	have := c.head.applied[e.Dot.Region]
	if e.Dot.Pos <= have && !mutants.noDedupe {
		c.counts.Duplicate++
		return false, nil
	}
	if e.Dot.Pos > have+1 {
		c.counts.Gaps++
		return false, &GapError{Want: have + 1, Got: e.Dot.Pos}
	}
	if !e.Context.Contains(&c.head.seen[e.Dot.Region]) && !mutants.noDedupe {
		return false, fmt.Errorf("%w: context %v after %v", ErrInvalidEntry, e.Context, c.head.seen[e.Dot.Region])
	}
	clock, ahead := observe(c.head.lastTime, e.Time, wallMS, c.head.settings.MaxClockOffsetMS)
	if ahead {
		c.counts.ClockAhead++
	}
	if !mutants.clockStandsStill {
		c.head.lastTime = clock
	}
	c.w = write{dot: e.Dot, time: e.Time, ctx: e.Context}
	c.head.applied[e.Dot.Region] = max(have, e.Dot.Pos)
	seen := &c.head.seen[e.Dot.Region]
	seen.Join(&e.Context)
	seen[e.Dot.Region] = max(have, e.Dot.Pos)
	if !e.Mark() {
		c.head.unmarked = true
	}
	for i := range e.ops {
		if err := c.merge(&e.ops[i]); err != nil {
			return false, c.fail(err)
		}
	}
	c.counts.Merged++
	return true, c.finish()
}

// accept refuses entries that no correct region sends to this one.
func (c *Core) accept(e *Entry) error {
	if err := e.check(); err != nil {
		return err
	}
	if int(e.Dot.Region) >= len(c.head.settings.Regions) || e.Dot.Region == c.head.self {
		return fmt.Errorf("%w: of region %d", ErrInvalidEntry, e.Dot.Region)
	}
	if err := c.acceptVector(&e.Context); err != nil {
		return err
	}
	for i := range e.ops {
		o := &e.ops[i]
		for b := range o.kind.ends() {
			if err := c.acceptVector(&o.births[b].past); err != nil {
				return err
			}
			if err := c.acceptVector(&o.births[b].dots); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Core) acceptVector(v *Vector) error {
	regions, self := len(c.head.settings.Regions), c.head.self
	for _, u := range v[regions:] {
		if u != 0 {
			return fmt.Errorf("%w: vector %v for %d regions", ErrInvalidEntry, *v, regions)
		}
	}
	if v[self] > c.head.applied[self] {
		return fmt.Errorf("%w: %d, here are %d", ErrAhead, v[self], c.head.applied[self])
	}
	return nil
}

// finish brings Storage and rows in line with the registers.
func (c *Core) finish() error {
	cut := c.head.cut()
	if cut.Covers(c.w.dot) && !mutants.collectNothing {
		return c.finished(func() error { return c.settleTouched(&cut) })
	}
	return c.finished(func() error {
		keys, err := c.saveTouched()
		if err != nil {
			return err
		}
		return c.enqueue(c.w.dot, keys...)
	})
}

// show brings the Storage in line with the registers.
func (c *Core) show() error {
	err := c.materialise()
	if _, verdict := replication.Verdict(err); verdict && c.w.dot.Region == c.head.self {
		err = fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return err
}

// finished is finish; save writes the rows of what was touched.
func (c *Core) finished(save func() error) error {
	err := c.show()
	if err == nil {
		err = save()
	}
	if err == nil {
		err = c.collect(c.budget)
	}
	if c.dirty = true; err == nil && !c.held {
		err = c.save()
	}
	c.reset()
	if err != nil {
		return c.fail(err)
	}
	return nil
}

// Hold puts the rows off that belong to no node or edge, the header and the
// queues, until Save: they are written once for all that a transaction applies.
func (c *Core) Hold() { c.held = true }

// Save writes what Hold has put off. The transaction must not be committed
// without it.
func (c *Core) Save() error {
	if c.failed != nil {
		return c.failed
	}
	if err := c.save(); err != nil {
		return c.fail(err)
	}
	return nil
}

func (c *Core) save() error {
	if !c.dirty {
		return nil
	}
	if err := c.saveBlocks(); err != nil {
		return err
	}
	c.dirty = false
	return c.store.SetMeta([]byte(rowHeader), c.head.encode())
}

// fail makes sure that no error of the Storage passes for a verdict.
func (c *Core) fail(err error) error {
	if _, verdict := replication.Verdict(err); verdict && !errors.Is(err, ErrRefused) {
		err = fmt.Errorf("%w: %v", ErrMismatch, err)
	}
	c.failed = err
	return err
}

func (c *Core) count(f Field, was, is bool) {
	switch {
	case !was && is:
		if c.counts.Conflicts == nil {
			c.counts.Conflicts = make(map[Field]uint64)
		}
		c.counts.Conflicts[f]++
	case was && !is && c.w.fixes:
		c.counts.SettledByResolve++
	case was && !is:
		c.counts.SettledByWrite++
	}
}
