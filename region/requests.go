package region

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/nornicdb/replication"
)

// maxRequests is how many requests of other regions are remembered. They have
// rows of their own: they do not push out what this region answered itself.
const maxRequests = 1 << 16

// requests is the part of the header that counts their rows.
type requests struct{ First, Next uint64 }

var _ replication.RequestTx = (*txn)(nil)

func requestRow(id string) []byte { return append([]byte(rowRequest), id...) }

func requestAtRow(number uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte(rowRequestAt), number)
}

// Request implements replication.RequestTx: what became of a request in another
// region, as far as its stream or its state has told.
func (t *txn) Request(id string) (*replication.RequestOutcome, error) {
	at, err := t.GetMeta(requestRow(id))
	if err != nil || at == nil {
		return nil, err
	}
	row, err := t.GetMeta(append([]byte(rowRequestAt), at...))
	if err != nil {
		return nil, err
	}
	o, err := decodeRequest(row)
	if err != nil {
		return nil, fmt.Errorf("metadata row of request %q: %v", id, err)
	}
	return o, nil
}

// remember notes what became of a request elsewhere, and forgets the oldest. Of
// two outcomes "done" is kept: a refusal has changed nothing.
func (t *txn) remember(o *replication.RequestOutcome) error {
	known, err := t.Request(o.ID)
	if err != nil || known != nil && (known.Code == "" || o.Code != "") {
		return err
	}
	if known != nil {
		at, err := t.GetMeta(requestRow(o.ID))
		if err != nil {
			return err
		}
		return t.SetMeta(append([]byte(rowRequestAt), at...), encodeRequest(o))
	}
	h := &t.head.Requests
	at := requestAtRow(h.Next)
	if err := t.SetMeta(at, encodeRequest(o)); err != nil {
		return err
	}
	if err := t.SetMeta(requestRow(o.ID), at[len(rowRequestAt):]); err != nil {
		return err
	}
	if h.Next++; h.Next-h.First <= maxRequests {
		return nil
	}
	oldest := requestAtRow(h.First)
	h.First++
	row, err := t.GetMeta(oldest)
	if err != nil {
		return err
	}
	old, err := decodeRequest(row)
	if err != nil {
		return fmt.Errorf("metadata row of request %d: %v", h.First-1, err)
	}
	if err := t.SetMeta(requestRow(old.ID), nil); err != nil {
		return err
	}
	return t.SetMeta(oldest, nil)
}

func encodeRequest(o *replication.RequestOutcome) []byte {
	return append(appendBytes(bytes.Clone(o.Hash[:]), []byte(o.Code)), o.ID...)
}

// decodeRequest is the inverse of encodeRequest. The row may come from another
// region: ErrInvalidCommand.
func decodeRequest(row []byte) (*replication.RequestOutcome, error) {
	var o replication.RequestOutcome
	if len(row) < len(o.Hash) {
		return nil, errBadCommand
	}
	rest := row[copy(o.Hash[:], row):]
	code, id, ok := takeBytes(rest)
	if !ok {
		return nil, errBadCommand
	}
	o.Code, o.ID = string(code), string(id)
	return &o, o.Check()
}

// exportRequests calls fn for what this region remembers of requests, its own
// last, in the form in which another one stages them.
func exportRequests(m replication.Meta, fn func(k, v []byte) error) error {
	number := uint64(0)
	give := func(v []byte) error {
		number++
		return fn(requestAtRow(number), v)
	}
	err := m.ScanMeta([]byte(rowRequestAt), func(_, v []byte) error { return give(v) })
	if err != nil {
		return err
	}
	return replication.ReadOutcomes(m, func(o replication.RequestOutcome) error { return give(encodeRequest(&o)) })
}

// mergeRequests remembers what another region does; stage has checked the rows.
func (t *txn) mergeRequests(staged replication.Meta) error {
	var list []*replication.RequestOutcome
	err := staged.ScanMeta([]byte(rowRequestAt), func(_, v []byte) error {
		o, err := decodeRequest(v)
		if list = append(list, o); len(list) > maxRequests {
			list = list[1:]
		}
		return err
	})
	for _, o := range list {
		if err == nil {
			err = t.remember(o)
		}
	}
	return err
}
