package conflict

import (
	"encoding/binary"
	"errors"
	"unicode/utf8"
)

// writer builds rows and entries. Numbers are uvarints, strings have their
// length before them.
type writer []byte

func (w *writer) byte(b byte)     { *w = append(*w, b) }
func (w *writer) uint(u uint64)   { *w = binary.AppendUvarint(*w, u) }
func (w *writer) string(s string) { w.uint(uint64(len(s))); *w = append(*w, s...) }
func (w *writer) dot(d Dot)       { w.byte(d.Region); w.uint(d.Pos) }

// vector writes a bit for each component that is not zero, then those.
func (w *writer) vector(v *Vector) {
	var bits byte
	for i, u := range v {
		if u != 0 {
			bits |= 1 << i
		}
	}
	w.byte(bits)
	for _, u := range v {
		if u != 0 {
			w.uint(u)
		}
	}
}

func (w *writer) register(r *register) {
	if r.stored {
		w.byte(1)
		return
	}
	w.byte(0)
	w.byte(byte(len(r.versions)))
	for i := range r.versions {
		v := &r.versions[i]
		w.dot(v.dot)
		w.uint(v.time)
		w.string(v.value)
	}
	w.vector(&r.pending)
}

func (w *writer) birth(b *birth) {
	w.vector(&b.dots)
	if b.known() {
		w.vector(&b.past)
	}
}

// errShort is what all malformed input comes to; callers wrap it.
var errShort = errors.New("cut short or malformed")

// reader reads what writer wrote. The first fault sticks. Nothing is allocated
// from a length that the input does not back.
type reader struct {
	b    []byte
	text string // the whole input, of which strings are cut; "": each is a copy
	err  error
	slab []version // room for the versions of registers
}

// newReader reads b, which may be changed afterwards.
func newReader(b []byte) *reader { return &reader{b: b, text: string(b)} }

func (r *reader) fail() { r.err, r.b = errShort, nil }

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.fail()
		return 0
	}
	b := r.b[0]
	r.b = r.b[1:]
	return b
}

func (r *reader) uint() uint64 {
	u, n := binary.Uvarint(r.b)
	if n <= 0 || n > 1 && r.b[n-1] == 0 { // not the shortest form
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return u
}

func (r *reader) string() string {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.fail()
		return ""
	}
	var s string
	if at := len(r.text) - len(r.b); at >= 0 {
		s = r.text[at : at+int(n)]
	} else {
		s = string(r.b[:n])
	}
	r.b = r.b[n:]
	if !utf8.ValidString(s) {
		r.fail()
	}
	return s
}

func (r *reader) dot() Dot {
	d := Dot{Region: r.byte(), Pos: r.uint()}
	if d.Region >= MaxRegions {
		r.fail()
		return Dot{}
	}
	return d
}

func (r *reader) vector() (v Vector) {
	bits := r.byte()
	if bits >= 1<<MaxRegions {
		r.fail()
	}
	for i := range v {
		if bits&(1<<i) == 0 {
			continue
		}
		if v[i] = r.uint(); v[i] == 0 {
			r.fail()
		}
	}
	return v
}

func (r *reader) register() (g register) {
	switch r.byte() {
	case 1:
		g.stored = true
		return g
	case 0:
	default:
		r.fail()
	}
	n := int(r.byte())
	if n > MaxRegions {
		r.fail()
	}
	if n == 1 {
		g.versions = r.room(1)[:0]
	}
	for i := 0; i < n && r.err == nil; i++ {
		v := version{dot: r.dot(), time: r.uint(), value: r.string()}
		if i > 0 && g.versions[i-1].dot.Region >= v.dot.Region {
			r.fail()
		}
		g.versions = append(g.versions, v)
	}
	g.pending = r.vector()
	return g
}

// room returns n versions to be filled. Most registers have one: a row's are
// made together.
func (r *reader) room(n int) []version {
	if len(r.slab) < n {
		r.slab = make([]version, max(n, slabVersions))
	}
	v := r.slab[:n:n]
	r.slab = r.slab[n:]
	return v
}

// slabVersions is how many versions are made at once.
const slabVersions = 4

func (r *reader) birth() (b birth) {
	if b.dots = r.vector(); b.known() {
		b.past = r.vector()
	}
	return b
}

// count reads how many items follow, each of at least size bytes.
func (r *reader) count(size int) int {
	n := r.uint()
	if n > uint64(len(r.b)/size) {
		r.fail()
		return 0
	}
	return int(n)
}

// done returns the fault, or that there is data left over.
func (r *reader) done() error {
	if r.err == nil && len(r.b) > 0 {
		r.fail()
	}
	return r.err
}
