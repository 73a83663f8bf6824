package conflict

import (
	"cmp"
	"slices"
)

// version is one write of a thing as it is kept. The value is canonical JSON;
// "" stands for unset and for deleted.
type version struct {
	dot   Dot
	time  uint64
	value string
}

// before is the total order of writes: time, then region, then position.
func (v *version) before(o *version) bool {
	return cmp.Or(cmp.Compare(v.time, o.time), cmp.Compare(v.dot.Region, o.dot.Region),
		cmp.Compare(v.dot.Pos, o.dot.Pos)) < 0
}

// register holds the writes of one thing that no other known write has
// replaced.
type register struct {
	// versions sorted by dot, at most one per region. One with the zero Dot is
	// alone: it is settled.
	versions []version
	// pending is superseded history that has not all arrived; zero when it has.
	pending Vector
	// stored: settled, and the Storage holds the value. versions is empty then
	// and pending is zero.
	stored bool
}

// put merges a write made in the context ctx.
func (r *register) put(w version, ctx *Vector) {
	late := r.pending.Covers(w.dot)
	r.forget(w.dot, ctx)
	if !late {
		r.insert(w)
	}
}

func (r *register) insert(w version) {
	at, _ := slices.BinarySearchFunc(r.versions, w.dot, func(v version, d Dot) int {
		return cmp.Or(cmp.Compare(v.dot.Region, d.Region), cmp.Compare(v.dot.Pos, d.Pos))
	})
	r.versions = slices.Insert(r.versions, at, w)
}

// forget drops what the write d (of the same batch) or its context replaces,
// now and when it arrives later.
func (r *register) forget(d Dot, ctx *Vector) {
	r.stored = false
	r.versions = slices.DeleteFunc(r.versions, func(v version) bool {
		return v.dot == d || ctx.Covers(v.dot)
	})
	if !mutants.pendingForgotten {
		r.pending.Join(ctx)
	}
}

// trim clears pending when all of it has arrived.
func (r *register) trim(applied *Vector) {
	if applied.Contains(&r.pending) {
		r.pending = Vector{}
	}
}

// blank: there is nothing to say about this thing.
func (r *register) blank() bool {
	return len(r.versions) == 0 && !r.stored && r.pending == Vector{}
}

// settled: one value that all regions have, and nothing on its way.
func (r *register) settled() bool {
	return r.stored || len(r.versions) == 1 && r.versions[0].dot == Dot{} && r.pending == Vector{}
}

// has says whether the thing is there. r must have a winner that is known.
func (r *register) has(s Strategy) bool {
	return r.stored || r.winner(s) != ""
}

// winner is the value shown; "" where there is none.
func (r *register) winner(s Strategy) string {
	if w := r.winning(s); w != nil {
		return w.value
	}
	return ""
}

func (r *register) winning(s Strategy) *version {
	var w *version
	for i := range r.versions {
		v := &r.versions[i]
		switch {
		case w == nil:
			w = v
		case mutants.tieBreak && v.time == w.time:
			if v.dot.Region == mutants.self {
				w = v
			}
		case v.before(w) == (s == FirstWriteWins):
			w = v
		}
	}
	return w
}

// conflicting: two versions with different values.
func (r *register) conflicting() bool {
	for i := 1; i < len(r.versions); i++ {
		if r.versions[i].value != r.versions[0].value {
			return true
		}
	}
	return false
}

// any says whether one of the versions is not "".
func (r *register) any() bool {
	return r.stored || slices.ContainsFunc(r.versions, func(v version) bool { return v.value != "" })
}

// waits returns a dot whose arrival in the cut the register waits for before
// it can settle; the zero Dot where it can.
func (r *register) waits(cut, applied *Vector) Dot {
	r.trim(applied)
	for i := range r.versions {
		if d := r.versions[i].dot; !cut.Covers(d) {
			return d
		}
	}
	return r.pending.missing(applied)
}

// settle keeps only the winner, without name and time. The register waits for
// nothing. Conflicts of the manual strategy stay.
func (r *register) settle(s Strategy) {
	if s == Manual && r.conflicting() {
		return
	}
	if w := r.winning(s); w != nil {
		r.versions[0] = version{value: w.value}
		r.versions = r.versions[:1]
	}
}

// holds says whether the write is one of the versions.
func (r *register) holds(d Dot) bool {
	return slices.ContainsFunc(r.versions, func(v version) bool { return v.dot == d })
}

// holdsWithin says whether a version is covered by v.
func (r *register) holdsWithin(v *Vector) bool {
	return slices.ContainsFunc(r.versions, func(o version) bool { return v.Covers(o.dot) })
}

func (r *register) clone() register {
	c := *r
	c.versions = slices.Clone(r.versions)
	return c
}

func (r *register) equal(o *register) bool {
	return r.stored == o.stored && r.pending == o.pending && slices.Equal(r.versions, o.versions)
}
