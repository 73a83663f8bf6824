package walstream

import (
	"bytes"
	"encoding/base64"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/nornicdb/replication"
)

// Entries are the payload of a WALBatch or a FetchResponse.
type Entries []*WireEntry

// AppendJSON appends what encoding/json makes of the entries, byte for byte.
func (list Entries) AppendJSON(dst []byte) ([]byte, error) {
	if list == nil {
		return append(dst, "null"...), nil
	}
	dst = slices.Grow(dst, list.sizeBound())
	dst = append(dst, '[')
	for i, w := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		var err error
		if dst, err = w.AppendJSON(dst); err != nil {
			return nil, err
		}
	}
	return append(dst, ']'), nil
}

// sizeBound is what the entries of a log hardly ever exceed.
func (list Entries) sizeBound() int {
	const entry, command = 256, 128 // beside data
	size := 2
	for _, w := range list {
		size += entry
		if w == nil {
			continue
		}
		if w.Command != nil {
			size += command + base64.StdEncoding.EncodedLen(len(w.Command.Data))
		}
		for _, c := range w.Commands {
			if c != nil {
				size += command + base64.StdEncoding.EncodedLen(len(c.Data))
			}
		}
	}
	return size
}

// AppendJSON appends what encoding/json makes of the entry.
func (w *WireEntry) AppendJSON(dst []byte) ([]byte, error) {
	if w == nil {
		return append(dst, "null"...), nil
	}
	dst, err := w.WALEntry.AppendJSON(dst)
	if err != nil {
		return nil, err
	}
	dst = dst[:len(dst)-1] // the object goes on
	for i, c := range w.Commands {
		dst = append(dst, []string{`,"Commands":[`, `,`}[min(i, 1)]...)
		if dst, err = c.AppendJSON(dst); err != nil {
			return nil, err
		}
	}
	if len(w.Commands) > 0 {
		dst = append(dst, ']')
	}
	dst = appendText(dst, `,"RequestID":`, w.RequestID)
	if len(w.Hash) > 0 {
		dst = append(dst, `,"Hash":"`...)
		dst = append(base64.StdEncoding.AppendEncode(dst, w.Hash), '"')
	}
	if w.Conditional {
		dst = append(dst, `,"Conditional":true`...)
	}
	if w.ValidAt != 0 {
		dst = strconv.AppendUint(append(dst, `,"ValidAt":`...), w.ValidAt, 10)
	}
	if w.Checksum != 0 {
		dst = strconv.AppendUint(append(dst, `,"Checksum":`...), uint64(w.Checksum), 10)
	}
	return append(appendText(dst, `,"History":`, w.History), '}'), nil
}

func appendText(dst []byte, key, s string) []byte {
	if s == "" {
		return dst
	}
	dst, _ = replication.AppendValue(append(dst, key...), s) // a string has no error
	return dst
}

// wireReader reads a batch as AppendJSON writes it: the fields in their order, no
// white space, strings of plain ASCII. Where the batch is anything else, it is
// failed, and encoding/json decides. So what is read here must be what
// encoding/json reads.
type wireReader struct {
	data          []byte
	pos           int
	failed        bool
	owner, origin string // the last that came: mostly the next, too
}

// batch reads a whole payload; false: encoding/json has to read it.
func (r *wireReader) batch() ([]*WireEntry, bool) {
	r.want(`[`)
	if r.has(`]`) {
		return nil, !r.failed && r.pos == len(r.data)
	}
	var entries []*WireEntry
	for !r.failed && len(entries) < MaxBatchEntries {
		entries = append(entries, r.entry())
		if r.has(`]`) {
			return entries, !r.failed && r.pos == len(r.data)
		}
		r.want(`,`)
	}
	return nil, false
}

// wireParts are what one entry mostly consists of, made at once.
type wireParts struct {
	entry   WireEntry
	command replication.Command
	epoch   replication.Epoch
}

func (r *wireReader) entry() *WireEntry {
	p := new(wireParts)
	w := &p.entry
	r.want(`{"Position":`)
	w.Position = r.uint()
	r.want(`,"Timestamp":`)
	w.Timestamp = r.time()
	r.want(`,"Command":`)
	if !r.has(`null`) {
		w.Command = &p.command
		r.command(w.Command)
	}
	if r.has(`,"Epoch":`) {
		w.Epoch = &p.epoch
		r.epoch(w.Epoch)
	}
	if r.has(`,"Origin":`) {
		w.Origin = r.same(&r.origin)
	}
	if r.has(`,"Time":`) {
		w.Time = r.uint()
	}
	if r.has(`,"Context":`) {
		w.Context = r.context()
	}
	r.group(w)
	if r.has(`,"Checksum":`) {
		sum := r.uint()
		r.failed = r.failed || sum > math.MaxUint32
		w.Checksum = uint32(sum)
	}
	if r.has(`,"History":`) {
		w.History = string(r.text())
	}
	r.want(`}`)
	return w
}

// group reads what an entry has that is not one plain command.
func (r *wireReader) group(w *WireEntry) {
	if r.has(`,"Commands":[`) {
		for more := true; more && !r.failed; more = r.has(`,`) {
			c := new(replication.Command)
			r.command(c)
			w.Commands = append(w.Commands, c)
		}
		r.want(`]`)
	}
	if r.has(`,"RequestID":`) {
		w.RequestID = string(r.text())
	}
	if r.has(`,"Hash":`) {
		w.Hash = r.bytes()
	}
	w.Conditional = r.has(`,"Conditional":true`)
	if r.has(`,"ValidAt":`) {
		w.ValidAt = r.uint()
	}
}

func (r *wireReader) command(c *replication.Command) {
	r.want(`{"Type":`)
	t := r.uint()
	r.failed = r.failed || t > math.MaxUint8
	c.Type = replication.CommandType(t)
	r.want(`,"Data":`)
	if !r.has(`null`) {
		c.Data = r.bytes()
	}
	r.want(`,"Timestamp":`)
	c.Timestamp = r.time()
	if r.has(`,"RequestID":`) {
		c.RequestID = string(r.text())
	}
	r.want(`}`)
}

func (r *wireReader) epoch(e *replication.Epoch) {
	r.want(`{"Number":`)
	e.Number = r.uint()
	if r.has(`,"Owner":`) {
		e.Owner = r.same(&r.owner)
	}
	r.want(`}`)
}

func (r *wireReader) context() map[string]uint64 {
	m := make(map[string]uint64)
	r.want(`{`)
	for more := true; more && !r.failed; more = r.has(`,`) {
		region := string(r.text())
		r.want(`:`)
		m[region] = r.uint()
	}
	r.want(`}`)
	return m
}

// has reads s, if it comes next.
func (r *wireReader) has(s string) bool {
	end := r.pos + len(s)
	if end > len(r.data) || string(r.data[r.pos:end]) != s {
		return false
	}
	r.pos = end
	return true
}

func (r *wireReader) want(s string) { r.failed = !r.has(s) || r.failed }

func (r *wireReader) uint() uint64 {
	start := r.pos
	for r.pos < len(r.data) && r.data[r.pos]-'0' <= 9 {
		r.pos++
	}
	digits := r.data[start:r.pos]
	if len(digits) > 1 && digits[0] == '0' {
		r.failed = true
	}
	const most = 19 // digits that a uint64 has room for, whichever they are
	if len(digits) == 0 || len(digits) > most {
		n, err := strconv.ParseUint(string(digits), 10, 64)
		r.failed = r.failed || err != nil
		return n
	}
	n := uint64(0)
	for _, d := range digits {
		n = 10*n + uint64(d-'0')
	}
	return n
}

// quoted reads up to the next quote behind the one that comes next.
func (r *wireReader) quoted() []byte {
	r.want(`"`)
	size := bytes.IndexByte(r.data[r.pos:], '"')
	if size < 0 {
		r.failed = true
		return nil
	}
	raw := r.data[r.pos : r.pos+size]
	r.pos += size + 1
	return raw
}

// text reads a string that is written as it is.
func (r *wireReader) text() []byte {
	raw := r.quoted()
	for _, c := range raw {
		if c < ' ' || c > '~' || c == '\\' {
			r.failed = true
		}
	}
	return raw
}

// same is text, mostly the one that came last.
func (r *wireReader) same(last *string) string {
	if raw := r.text(); string(raw) != *last {
		*last = string(raw)
	}
	return *last
}

// bytes reads base64. Its decoder passes over line ends, which JSON does not
// allow in a string.
func (r *wireReader) bytes() []byte {
	raw := r.quoted()
	data := make([]byte, base64.StdEncoding.DecodedLen(len(raw)))
	n, err := base64.StdEncoding.Decode(data, raw)
	r.failed = r.failed || err != nil || bytes.IndexByte(raw, '\n') >= 0 || bytes.IndexByte(raw, '\r') >= 0
	return data[:n]
}

// time reads a time, as encoding/json has it read.
func (r *wireReader) time() (t time.Time) {
	start := r.pos
	r.quoted()
	r.failed = r.failed || t.UnmarshalJSON(r.data[start:r.pos]) != nil
	return t
}
