package replication

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// metaOutcome prefixes the rows of request outcomes; an 8-byte big-endian
// sequence number follows, so that new rows are appended and old ones cut.
var metaOutcome = []byte(metaPrefix + "outcome/")

// outcome is what is remembered of a request.
type outcome struct {
	id       string
	hash     [16]byte
	position uint64
	code     string // ErrorCode of the verdict; empty: done
}

// result is what is answered to a request with this ID and hash at a position.
func (o *outcome) result(hash [16]byte, position uint64) Result {
	if o.hash != hash {
		return Result{Position: position, Err: ErrRequestIDReused}
	}
	return Result{Position: o.position, Err: ErrorFromCode(o.code, "")}
}

// RequestOutcome is what became of a request, for another log to remember.
type RequestOutcome struct {
	ID   string
	Hash [16]byte // CommandHash of what the client sent
	Code string   // ErrorCode of the verdict; empty: done
}

// Check refuses what no outcome is: ErrInvalidCommand. The outcome may come from
// outside.
func (o *RequestOutcome) Check() error {
	if o.ID == "" || len(o.ID) > MaxRequestIDBytes || len(o.Code) > maxOutcomeCodeBytes {
		return fmt.Errorf("%w: outcome of request %.80q", ErrInvalidCommand, o.ID)
	}
	if _, verdict := Verdict(ErrorFromCode(o.Code, "")); o.Code != "" && !verdict {
		return fmt.Errorf("%w: outcome %.80q", ErrInvalidCommand, o.Code)
	}
	return nil
}

// maxOutcomeCodeBytes bounds the code of a verdict that comes from outside.
const maxOutcomeCodeBytes = 1 << 10

// Answer is what a request with this ID and hash is answered: nil, the verdict,
// or ErrRequestIDReused.
func (o *RequestOutcome) Answer(hash [16]byte) error {
	if o.Hash != hash {
		return ErrRequestIDReused
	}
	return ErrorFromCode(o.Code, "")
}

// RequestTx is a Tx that knows of requests that were answered elsewhere: in
// another region, whose writes come here on their own way.
type RequestTx interface {
	// Request returns what became of a request; nil: it is not known.
	Request(id string) (*RequestOutcome, error)
}

// ReadOutcomes calls fn for the outcomes that a storage remembers, oldest
// first: those of verdicts and of what is done.
func ReadOutcomes(m Meta, fn func(RequestOutcome) error) error {
	return m.ScanMeta(metaOutcome, func(_, row []byte) error {
		o, err := decodeOutcome(row)
		if err != nil {
			return err
		}
		out := RequestOutcome{ID: o.id, Hash: o.hash, Code: o.code}
		if out.Check() != nil { // of a restart without rows: unknown
			return nil
		}
		return fn(out)
	})
}

var errDamagedOutcome = errors.New("request outcome row is damaged")

func (o *outcome) encode() []byte {
	b := make([]byte, 0, 16+binary.MaxVarintLen64*2+len(o.code)+len(o.id))
	b = append(b, o.hash[:]...)
	b = binary.AppendUvarint(b, o.position)
	b = binary.AppendUvarint(b, uint64(len(o.code)))
	b = append(b, o.code...)
	return append(b, o.id...)
}

func decodeOutcome(b []byte) (outcome, error) {
	var o outcome
	if len(b) < len(o.hash) {
		return o, errDamagedOutcome
	}
	copy(o.hash[:], b)
	b = b[len(o.hash):]
	var n int
	if o.position, n = binary.Uvarint(b); n <= 0 {
		return o, errDamagedOutcome
	}
	b = b[n:]
	size, n := binary.Uvarint(b)
	if n <= 0 || size > uint64(len(b)-n) {
		return o, errDamagedOutcome
	}
	b = b[n:]
	o.code, o.id = string(b[:size]), string(b[size:])
	if o.id == "" || len(o.id) > MaxRequestIDBytes {
		return o, errDamagedOutcome
	}
	return o, nil
}

// outcomeTable holds the outcomes of the last limit requests, as the metadata
// rows hold them. The n-th oldest has sequence number first+n.
type outcomeTable struct {
	limit int
	first uint64
	order []outcome      // len(order) ≤ limit
	byID  map[string]int // ID → index into order, less base
	base  int            // outcomes dropped from the front of order so far
}

func newOutcomeTable() *outcomeTable {
	return &outcomeTable{limit: defaultRequestLimit, byID: make(map[string]int)}
}

// load reads the rows.
func (t *outcomeTable) load(m Meta) error {
	limit, err := getMetaUint(m, metaLimit)
	if err != nil {
		return err
	}
	if limit > 0 {
		t.limit = int(min(limit, 1<<24))
	}
	return m.ScanMeta(metaOutcome, func(k, v []byte) error {
		if len(k) != len(metaOutcome)+8 {
			return errDamagedOutcome
		}
		seq := binary.BigEndian.Uint64(k[len(metaOutcome):])
		o, err := decodeOutcome(v)
		if err != nil {
			return err
		}
		if len(t.order) == 0 {
			t.first = seq
		} else if seq != t.first+uint64(len(t.order)) {
			return fmt.Errorf("%w: sequence %d", errDamagedOutcome, seq)
		}
		t.append(o)
		return nil
	})
}

func (t *outcomeTable) append(o outcome) {
	t.byID[o.id] = t.base + len(t.order)
	t.order = append(t.order, o)
}

func (t *outcomeTable) dropOldest(n int) {
	for i, o := range t.order[:n] {
		if t.byID[o.id] == t.base+i { // not remembered anew since
			delete(t.byID, o.id)
		}
	}
	t.order = t.order[n:]
	t.base += n
	t.first += uint64(n)
}

// outcomeRun collects the outcomes of one transaction over a table, which
// changes only when the transaction is committed.
type outcomeRun struct {
	table   *outcomeTable
	tx      Tx // nil: nothing is stored
	added   []outcome
	byID    map[string]int
	evicted int // oldest outcomes, of table and then of added, to be dropped
}

func newOutcomeRun(t *outcomeTable, tx Tx) *outcomeRun { return &outcomeRun{table: t, tx: tx} }

// lookup finds the outcome of a request ID that was seen before.
func (r *outcomeRun) lookup(id string) (*outcome, bool) {
	if id == "" {
		return nil, false
	}
	if i, ok := r.byID[id]; ok && len(r.table.order)+i >= r.evicted {
		return &r.added[i], true
	}
	if i, ok := r.table.byID[id]; ok && i-r.table.base >= r.evicted {
		return &r.table.order[i-r.table.base], true
	}
	return nil, false
}

// add remembers the outcome of a group that has a request ID.
func (r *outcomeRun) add(g *Group, res Result) error {
	if g.RequestID == "" {
		return nil
	}
	o := outcome{id: g.RequestID, hash: g.hash(), position: res.Position, code: ErrorCode(res.Err)}
	total := len(r.table.order) + len(r.added)
	if err := r.set(r.table.first+uint64(total), o.encode()); err != nil {
		return err
	}
	if r.byID == nil {
		r.byID = make(map[string]int)
	}
	r.byID[o.id] = len(r.added)
	r.added = append(r.added, o)
	if total+1-r.evicted <= r.table.limit {
		return nil
	}
	r.evicted++
	return r.set(r.table.first+uint64(r.evicted-1), nil)
}

func (r *outcomeRun) set(seq uint64, value []byte) error {
	if r.tx == nil {
		return nil
	}
	key := binary.BigEndian.AppendUint64(append([]byte(nil), metaOutcome...), seq)
	return r.tx.SetMeta(key, value)
}

// commit makes the table what the rows now are.
func (r *outcomeRun) commit() {
	for _, o := range r.added {
		r.table.append(o)
	}
	if r.evicted > 0 {
		r.table.dropOldest(r.evicted)
	}
}

// ExportOutcomes returns the request outcomes, oldest first, for a snapshot of
// a storage that keeps no metadata rows; nil where it does.
func (a *StorageApplier) ExportOutcomes() [][]byte {
	if a.tx != nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	rows := make([][]byte, len(a.outcomes.order))
	for i := range a.outcomes.order {
		rows[i] = a.outcomes.order[i].encode()
	}
	return rows
}

// ImportOutcomes replaces the request outcomes by those of a snapshot. With
// metadata rows it does nothing.
func (a *StorageApplier) ImportOutcomes(rows [][]byte) error {
	if a.tx != nil {
		return nil
	}
	table := newOutcomeTable()
	for _, row := range rows {
		o, err := decodeOutcome(row)
		if err != nil {
			return err
		}
		table.append(o)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.setOutcomes(table)
	return nil
}
