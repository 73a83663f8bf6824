package conflict

// MaxRegions bounds the regions of a federation.
const MaxRegions = 5

// Dot names one write: the Pos-th entry of the stream of a region. Region is
// the index in the sorted region list. The zero Dot stands for a write that
// all regions have; every vector covers it.
type Dot struct {
	Region uint8
	Pos    uint64
}

// Vector says for each region how long a prefix of its stream is meant.
type Vector [MaxRegions]uint64

// Covers says whether the write belongs to the prefixes.
func (v *Vector) Covers(d Dot) bool { return d.Pos <= v[d.Region] }

// Contains says whether all of o's prefixes are within v's.
func (v *Vector) Contains(o *Vector) bool {
	for i := range v {
		if v[i] < o[i] {
			return false
		}
	}
	return true
}

// Join makes v the union of both.
func (v *Vector) Join(o *Vector) {
	for i := range v {
		v[i] = max(v[i], o[i])
	}
}

// meet makes v the intersection of both.
func (v *Vector) meet(o *Vector) {
	for i := range v {
		v[i] = min(v[i], o[i])
	}
}

// missing returns a dot that v names and have does not cover; the zero Dot
// where there is none.
func (v *Vector) missing(have *Vector) Dot {
	for i := range v {
		if v[i] > have[i] {
			return Dot{Region: uint8(i), Pos: v[i]}
		}
	}
	return Dot{}
}
