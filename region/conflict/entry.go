package conflict

import (
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/nornicdb/replication"
)

// CmdEffects is the type of the Command in which an Entry's effects cross the
// wire; Data is encoded by this package. Clients cannot send it: Validate
// refuses it.
const CmdEffects replication.CommandType = 33

// MaxEntryOps bounds the effects of one entry.
const MaxEntryOps = 1 << 21

// Versions of the encoding of entries: without and with a client's request.
const (
	entryVersion     = 1
	entryWithRequest = 2
)

// Entry is one entry of a region's outgoing stream: a committed write, or a
// mark, which has no effects and only tells what the region has applied.
type Entry struct {
	Dot Dot
	// Time of the write. Within a stream it ascends.
	Time uint64
	// Context is what the origin had applied before the write;
	// Context[Dot.Region] = Dot.Pos-1.
	Context Vector
	// RequestID and RequestHash name the client's request, where it had an ID.
	// This package carries them.
	RequestID   string
	RequestHash [16]byte
	ops         []op
	encoded     []byte // of the ops, where they came encoded; nil: it is to be made
}

// Mark says whether the entry has no effects.
func (e *Entry) Mark() bool { return len(e.ops) == 0 }

// Ops is the number of effects.
func (e *Entry) Ops() int { return len(e.ops) }

// Encode encodes the whole entry: an outbox row, or a command of the region's log.
func (e *Entry) Encode() []byte { return e.Append(nil) }

// Append appends what Encode returns.
func (e *Entry) Append(dst []byte) []byte {
	w := writer(dst)
	e.writeVersion(&w)
	if e.RequestID != "" {
		w.string(e.RequestID)
	}
	w.dot(e.Dot)
	w.uint(e.Time)
	w.vector(&e.Context)
	e.writeOps(&w)
	return w
}

// SizeHint is about what Encode makes of an entry that came over the wire.
func (e *Entry) SizeHint() int { return 64 + len(e.RequestID) + len(e.encoded) }

// writeVersion begins an encoding: the version and the hash of the request.
func (e *Entry) writeVersion(w *writer) {
	if e.RequestID == "" {
		w.byte(entryVersion)
		return
	}
	w.byte(entryWithRequest)
	*w = append(*w, e.RequestHash[:]...)
}

// readVersion is the inverse of writeVersion; it says whether there is a request.
func (e *Entry) readVersion(r *reader) (request bool, err error) {
	switch r.byte() {
	case entryVersion:
		return false, nil
	case entryWithRequest:
		if len(r.b) < len(e.RequestHash) {
			return false, fmt.Errorf("%w: %v", ErrInvalidEntry, errShort)
		}
		r.b = r.b[copy(e.RequestHash[:], r.b):]
		return true, nil
	}
	return false, fmt.Errorf("%w: unknown version", ErrInvalidEntry)
}

// DecodeEntry is the inverse of Encode. Data may be hostile: the error wraps
// ErrInvalidEntry.
func DecodeEntry(data []byte) (*Entry, error) {
	r := newReader(data)
	e := new(Entry)
	if err := e.readHead(r); err != nil {
		return nil, err
	}
	if err := e.readOps(r); err != nil {
		return nil, err
	}
	return e, e.check()
}

// readHead reads what stands before the effects.
func (e *Entry) readHead(r *reader) error {
	request, err := e.readVersion(r)
	if err != nil {
		return err
	}
	if request {
		if e.RequestID = r.string(); e.RequestID == "" {
			r.fail()
		}
	}
	e.Dot, e.Time, e.Context = r.dot(), r.uint(), r.vector()
	return nil
}

func (e *Entry) writeOps(w *writer) {
	if e.encoded != nil {
		*w = append(*w, e.encoded...)
		return
	}
	w.uint(uint64(len(e.ops)))
	for i := range e.ops {
		w.op(&e.ops[i])
	}
}

func (e *Entry) readOps(r *reader) error {
	n := r.count(2)
	if n > MaxEntryOps {
		return fmt.Errorf("%w: %d effects, at most %d", ErrInvalidEntry, n, MaxEntryOps)
	}
	if n > 0 {
		e.ops = make([]op, 0, min(n, 16))
	}
	for i := 0; i < n && r.err == nil; i++ {
		e.ops = append(e.ops, op{})
		o := &e.ops[i]
		if r.op(o); r.err != nil {
			break
		}
		if err := o.check(); err != nil {
			return err
		}
	}
	if err := r.done(); err != nil {
		return fmt.Errorf("%w: %v", ErrInvalidEntry, err)
	}
	return nil
}

// check verifies what can be verified without state.
func (e *Entry) check() error {
	switch {
	case e.Dot.Pos == 0 || int(e.Dot.Region) >= MaxRegions:
		return fmt.Errorf("%w: position %d", ErrInvalidEntry, e.Dot.Pos)
	case e.Context[e.Dot.Region] != e.Dot.Pos-1:
		return fmt.Errorf("%w: context %v at position %d", ErrInvalidEntry, e.Context, e.Dot.Pos)
	case e.Time == 0 || e.Time >= maxTime:
		return fmt.Errorf("%w: time %d", ErrInvalidEntry, e.Time)
	case len(e.RequestID) > replication.MaxRequestIDBytes || !utf8.ValidString(e.RequestID):
		return fmt.Errorf("%w: request ID of %d bytes", ErrInvalidEntry, len(e.RequestID))
	}
	return nil
}

func (w *writer) op(o *op) {
	w.byte(byte(o.kind))
	w.string(o.node)
	switch o.kind {
	case opCreateNode, opUpdateNode:
		w.string(o.value)
		w.uint(uint64(len(o.props)))
		for _, p := range o.props {
			w.string(p.name)
			w.string(p.value)
		}
	case opSetProperty, opFixProperty:
		w.string(o.key)
		w.string(o.value)
	case opFixLabels:
		w.string(o.value)
	case opPutEdge, opFixEdge:
		w.string(o.relType)
		w.string(o.to)
		w.string(o.value)
	case opDeleteEdge:
		w.string(o.relType)
		w.string(o.to)
	}
	for i := range o.kind.ends() {
		w.birth(&o.births[i])
	}
}

func (r *reader) op(o *op) {
	o.kind, o.node = opKind(r.byte()), r.string()
	switch o.kind {
	case opCreateNode, opUpdateNode:
		o.value = r.string()
		n := r.count(2)
		if n > 0 {
			o.props = make([]prop, 0, min(n, 16))
		}
		for ; n > 0 && r.err == nil; n-- {
			o.props = append(o.props, prop{name: r.string(), value: r.string()})
		}
	case opSetProperty, opFixProperty:
		o.key, o.value = r.string(), r.string()
	case opFixLabels:
		o.value = r.string()
	case opPutEdge, opFixEdge:
		o.relType, o.to, o.value = r.string(), r.string(), r.string()
	case opDeleteEdge:
		o.relType, o.to = r.string(), r.string()
	}
	for i := range o.kind.ends() {
		o.births[i] = r.birth()
	}
}

// ToWAL gives an entry the form in which it crosses the wire.
func (s *Settings) ToWAL(e *Entry) *replication.WALEntry {
	at := time.UnixMilli(int64(WallMS(e.Time))).UTC()
	w := &replication.WALEntry{Position: e.Dot.Pos, Timestamp: at, Origin: s.Regions[e.Dot.Region],
		Time: e.Time, Context: make(map[string]uint64, len(s.Regions))}
	for i, u := range e.Context[:len(s.Regions)] {
		if u != 0 {
			w.Context[s.Regions[i]] = u
		}
	}
	data := make(writer, 0, 24+len(e.encoded))
	e.writeVersion(&data)
	e.writeOps(&data)
	w.Command = &replication.Command{Type: CmdEffects, Data: data, Timestamp: at, RequestID: e.RequestID}
	return w
}

// DecodeOwn decodes what this region has encoded itself, an outbox row, as far as
// ToWAL needs it: the effects stay as they are encoded.
func DecodeOwn(row []byte) (*Entry, error) {
	r := &reader{b: row}
	e := new(Entry)
	if err := e.readHead(r); err != nil {
		return nil, err
	}
	if r.err != nil {
		return nil, fmt.Errorf("%w: %v", ErrInvalidEntry, r.err)
	}
	e.encoded = r.b
	return e, e.check()
}

// FromWAL is the inverse of ToWAL. The entry may be hostile: the error wraps
// ErrInvalidEntry.
func (s *Settings) FromWAL(w *replication.WALEntry) (*Entry, error) {
	if w == nil || w.Command == nil || w.Command.Type != CmdEffects {
		return nil, fmt.Errorf("%w: no effects", ErrInvalidEntry)
	}
	origin, ok := s.index(w.Origin)
	if !ok {
		return nil, fmt.Errorf("%w: unknown region %.80q", ErrInvalidEntry, w.Origin)
	}
	e := &Entry{Dot: Dot{Region: origin, Pos: w.Position}, Time: w.Time}
	for name, u := range w.Context {
		i, ok := s.index(name)
		if !ok {
			return nil, fmt.Errorf("%w: unknown region %.80q", ErrInvalidEntry, name)
		}
		e.Context[i] = u
	}
	r := newReader(w.Command.Data)
	request, err := e.readVersion(r)
	if err != nil {
		return nil, err
	}
	if e.RequestID = w.Command.RequestID; request != (e.RequestID != "") {
		return nil, fmt.Errorf("%w: half a request", ErrInvalidEntry)
	}
	encoded := r.b
	if err := e.readOps(r); err != nil {
		return nil, err
	}
	e.encoded = encoded // there is one encoding only
	return e, e.check()
}
