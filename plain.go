package replication

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"strconv"
	"unicode/utf8"
)

// plainReader reads JSON in the form in which this project and NornicDB write
// it, in one pass: keys as they are documented and once each, values of the
// documented types. Everything else is odd, which is no verdict: it says that
// encoding/json has to read the data, whose word counts alone. So what is read
// here must be what encoding/json reads, and whatever it might refuse is odd.
//
// After something odd the methods return anything, and no loop goes on.
type plainReader struct {
	data []byte
	pos  int
	// check: the data is only checked. Methods return zero values, and nothing is
	// allocated.
	check bool
	odd   bool
}

// done says whether all of the data was read and none of it was odd.
func (r *plainReader) done() bool { return r.peek() == 0 && r.pos == len(r.data) && !r.odd }

// peek is the next byte behind white space; 0 at the end.
func (r *plainReader) peek() byte {
	for ; r.pos < len(r.data); r.pos++ {
		switch c := r.data[r.pos]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

func (r *plainReader) expect(c byte) {
	if r.peek() != c {
		r.odd = true
		return
	}
	r.pos++
}

// more says whether the list or object that end closes has an item after the
// first n. It reads what separates the items, or closes them.
func (r *plainReader) more(end byte, n int) bool {
	c := r.peek()
	switch {
	case r.odd:
		return false
	case c == end:
		r.pos++
		return false
	case n > 0 && c != ',':
		r.odd = true
		return false
	case n > 0:
		r.pos++
	}
	return true
}

// once notes that a key was seen.
func (r *plainReader) once(seen *bool) {
	r.odd = r.odd || *seen
	*seen = true
}

// null reads null, if it comes next.
func (r *plainReader) null() bool {
	if r.peek() != 'n' {
		return false
	}
	r.literal("null")
	return true
}

func (r *plainReader) literal(s string) {
	if end := r.pos + len(s); end <= len(r.data) && string(r.data[r.pos:end]) == s {
		r.pos = end
		return
	}
	r.odd = true
}

// key reads a documented key, none of which has an escape, and its colon.
func (r *plainReader) key() []byte {
	raw, escaped := r.text()
	r.odd = r.odd || escaped
	r.expect(':')
	return raw
}

// text reads a string and returns what stands between its quotes.
func (r *plainReader) text() (raw []byte, escaped bool) {
	r.expect('"')
	start := r.pos
	ascii := true
	for !r.odd {
		end, plain := runEnd(r.data, r.pos)
		ascii = ascii && plain
		r.pos = end
		switch {
		case end == len(r.data) || r.data[end] < ' ':
			r.odd = true
		case r.data[end] == '\\':
			escaped = true
			r.escape()
		default:
			raw = r.data[start:end]
			r.pos++
			r.odd = !ascii && !utf8.Valid(raw)
			return raw, escaped
		}
	}
	return nil, false
}

// escape reads an escape.
func (r *plainReader) escape() {
	_, size := unescape(r.data[r.pos:])
	r.odd = size == 0
	r.pos += size
}

// unescape reads the escape with which b begins; size is 0 where it is odd. Halves
// of surrogate pairs are.
func unescape(b []byte) (c rune, size int) {
	if len(b) < 2 {
		return 0, 0
	}
	switch b[1] {
	case '"', '\\', '/':
		return rune(b[1]), 2
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	case 'u':
	default:
		return 0, 0
	}
	const whole = len(`\u0000`)
	if len(b) < whole {
		return 0, 0
	}
	for _, d := range b[2:whole] {
		switch {
		case d >= '0' && d <= '9':
			d -= '0'
		case d >= 'a' && d <= 'f':
			d -= 'a' - 10
		case d >= 'A' && d <= 'F':
			d -= 'A' - 10
		default:
			return 0, 0
		}
		c = c<<4 | rune(d)
	}
	if c >= 0xd800 && c < 0xe000 {
		return 0, 0
	}
	return c, whole
}

// str reads a string.
func (r *plainReader) str() string { return r.build(r.text()) }

// name reads a string that has to be there: an empty one is odd.
func (r *plainReader) name() string {
	raw, escaped := r.text()
	r.odd = r.odd || len(raw) == 0
	return r.build(raw, escaped)
}

// term is str for what many commands have in common: see recentNames.
func (r *plainReader) term() string {
	raw, escaped := r.text()
	if r.odd || r.check || escaped {
		return r.build(raw, escaped)
	}
	return names.of(raw)
}

// build makes a string of what text returned.
func (r *plainReader) build(raw []byte, escaped bool) string {
	if r.odd || r.check {
		return ""
	}
	if !escaped {
		return string(raw)
	}
	s := make([]byte, 0, len(raw))
	for {
		i := bytes.IndexByte(raw, '\\')
		if i < 0 {
			return string(append(s, raw...))
		}
		c, size := unescape(raw[i:])
		s = utf8.AppendRune(append(s, raw[:i]...), c)
		raw = raw[i+size:]
	}
}

// value reads a property value, as DecodeValue does.
func (r *plainReader) value(depth int) any {
	if depth > maxValueDepth {
		r.odd = true
		return nil
	}
	switch c := r.peek(); c {
	case '"':
		return r.str()
	case '{':
		return r.object(depth)
	case '[':
		return r.list(depth)
	case 't':
		r.literal("true")
		return true
	case 'f':
		r.literal("false")
		return false
	case 'n':
		r.literal("null")
		return nil
	default:
		return r.number()
	}
}

func (r *plainReader) list(depth int) any {
	var list []any
	if !r.check {
		list = []any{}
	}
	r.expect('[')
	for n := 0; r.more(']', n); n++ {
		if v := r.value(depth + 1); !r.check {
			list = append(list, v)
		}
	}
	if r.check {
		return nil
	}
	return list
}

// object reads an object. Of a key that comes twice the last value counts.
func (r *plainReader) object(depth int) any {
	var m map[string]any
	if !r.check {
		m = make(map[string]any)
	}
	r.expect('{')
	for n := 0; r.more('}', n); n++ {
		key := r.str()
		r.expect(':')
		if v := r.value(depth + 1); !r.check {
			m[key] = v
		}
	}
	if r.check {
		return nil
	}
	return m
}

// number reads a number. An integer of many digits is odd, as is what
// strconv refuses.
func (r *plainReader) number() any {
	start := r.pos
	if r.next() == '-' {
		r.pos++
	}
	whole := r.digits()
	r.odd = r.odd || len(whole) == 0 || whole[0] == '0' && len(whole) > 1
	float := false
	if r.next() == '.' {
		float = true
		r.pos++
		r.odd = r.odd || len(r.digits()) == 0
	}
	if c := r.next(); c == 'e' || c == 'E' {
		float = true
		r.pos++
		if c := r.next(); c == '+' || c == '-' {
			r.pos++
		}
		r.odd = r.odd || len(r.digits()) == 0
	}
	if float {
		f, err := strconv.ParseFloat(string(r.data[start:r.pos]), 64)
		if r.odd = r.odd || err != nil; r.odd || r.check {
			return nil
		}
		return f
	}
	const most = 18 // digits that an int64 has room for, whichever they are
	if r.odd = r.odd || len(whole) > most; r.odd || r.check {
		return nil
	}
	i := int64(0)
	for _, d := range whole {
		i = 10*i + int64(d-'0')
	}
	if r.data[start] == '-' {
		i = -i
	}
	return i
}

// next is the next byte; 0 at the end.
func (r *plainReader) next() byte {
	if r.pos < len(r.data) {
		return r.data[r.pos]
	}
	return 0
}

func (r *plainReader) digits() []byte {
	start := r.pos
	for r.pos < len(r.data) && r.data[r.pos]-'0' <= 9 {
		r.pos++
	}
	return r.data[start:r.pos]
}

const (
	eachByte = 0x0101010101010101
	topBits  = 0x80 * eachByte
)

// runEnd is where the text that begins at i meets a quote, a backslash or a
// control character, or else the end of data. It looks at eight bytes at once.
func runEnd(data []byte, i int) (end int, ascii bool) {
	var seen uint64
	for ; i+8 <= len(data); i += 8 {
		w := binary.LittleEndian.Uint64(data[i:])
		if special := specialBytes(w); special != 0 {
			n := bits.TrailingZeros64(special) / 8
			seen |= w & (1<<(8*n) - 1)
			return i + n, seen&topBits == 0
		}
		seen |= w
	}
	for ; i < len(data); i++ {
		c := data[i]
		if c < ' ' || c == '"' || c == '\\' {
			break
		}
		seen |= uint64(c)
	}
	return i, seen&topBits == 0
}

// specialBytes sets the top bit of each byte that ends a run of text. A bit above
// the lowest that is set may be set wrongly: a subtraction borrowed from there.
func specialBytes(w uint64) uint64 {
	quote, backslash := w^'"'*eachByte, w^'\\'*eachByte
	return ((w-' '*eachByte)&^w | (quote-eachByte)&^quote | (backslash-eachByte)&^backslash) & topBits
}
