package region

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region/conflict"
)

// staged names the transfer from a region whose rows are staged.
type staged struct {
	ID    string
	Next  uint64 // number of the next part
	Bytes uint64 // of all rows, about
}

// stagedRows are the staged rows of a region under the keys that they have there.
type stagedRows struct {
	m      replication.Meta
	prefix []byte
}

func (t *txn) stagedRows(region string) stagedRows {
	return stagedRows{t.Tx, append([]byte(rowStaged), byte(t.settings.index(region)))}
}

func (s stagedRows) key(key []byte) []byte { return append(bytes.Clone(s.prefix), key...) }

// GetMeta implements replication.Meta.
func (s stagedRows) GetMeta(key []byte) ([]byte, error) { return s.m.GetMeta(s.key(key)) }

// ScanMeta implements replication.Meta.
func (s stagedRows) ScanMeta(prefix []byte, fn func(k, v []byte) error) error {
	return s.m.ScanMeta(s.key(prefix), func(k, v []byte) error { return fn(k[len(s.prefix):], v) })
}

// stagedSeeker are staged rows in a Storage whose scans can begin in the middle.
type stagedSeeker struct {
	stagedRows
	from replication.MetaSeeker
}

var _ replication.MetaSeeker = stagedSeeker{}

// ScanMetaFrom implements replication.MetaSeeker.
func (s stagedSeeker) ScanMetaFrom(prefix, from []byte, fn func(k, v []byte) error) error {
	return s.from.ScanMetaFrom(s.key(prefix), s.key(from), func(k, v []byte) error { return fn(k[len(s.prefix):], v) })
}

// part is the body of kindStage and kindMerge: some rows of a transfer from a
// region. The first part of a transfer drops the rows of another one from there.
type part struct {
	Region string // the sender
	ID     string
	Number uint64
	Rows   []row
	Stamps map[string]uint64 `json:",omitempty"` // kindMerge: the sender's
}

// decode checks who the part is said to be from.
func (p *part) decode(body []byte, s *settings) error {
	if err := decodeBody(body, p); err != nil {
		return err
	}
	if p.ID == "" || p.Region == s.Self || s.index(p.Region) < 0 {
		return fmt.Errorf("%w: part of region %.80q", errBadCommand, p.Region)
	}
	return nil
}

// row is a row of the sender's, or with More what follows of the one before.
type row struct {
	K, V []byte
	More bool `json:",omitempty"`
}

// maxRowKeyBytes is more than the key of any row has: three IDs and the prefix.
const maxRowKeyBytes = 4 * conflict.MaxIDBytes

// check refuses rows that no region sends and the Storage might not take. What
// rows of package conflict say is checked when all are there.
func (r *row) check() error {
	if len(r.K) > maxRowKeyBytes || len(r.V) == 0 {
		return fmt.Errorf("%w: row with a key of %d and a value of %d bytes", errBadCommand, len(r.K), len(r.V))
	}
	if bytes.HasPrefix(r.K, []byte(rowRequestAt)) && !r.More {
		_, err := decodeRequest(r.V)
		return err
	}
	if !bytes.HasPrefix(r.K, []byte(conflict.RowPrefix)) {
		return fmt.Errorf("%w: row %.80q", errBadCommand, r.K)
	}
	return nil
}

// stage keeps the rows of a part. A part that came before is passed over.
func (t *txn) stage(body []byte) error {
	var p part
	if err := p.decode(body, t.settings); err != nil {
		return err
	}
	at := t.head.Staged[p.Region]
	if p.Number == 0 && p.ID != at.ID {
		if err := t.dropStaged(p.Region); err != nil {
			return err
		}
		at = staged{ID: p.ID}
	}
	if p.ID != at.ID || p.Number > at.Next {
		return &answer{"region_transfer", fmt.Errorf("%w: part %d of transfer %s, here is %+v", replication.ErrNotReady, p.Number, p.ID, at)}
	}
	if p.Number < at.Next {
		return nil
	}
	for i := range p.Rows {
		if err := p.Rows[i].check(); err != nil {
			return err
		}
	}
	rows := t.stagedRows(p.Region)
	for i := range p.Rows {
		if err := t.stageRow(rows.key(p.Rows[i].K), &p.Rows[i]); err != nil {
			return err
		}
		at.Bytes += uint64(len(p.Rows[i].K) + len(p.Rows[i].V))
	}
	at.Next++
	t.setStaged(p.Region, at)
	return nil
}

// setStaged replaces the map, which readers outside of the transaction may have.
func (t *txn) setStaged(region string, s staged) {
	t.head.Staged = maps.Clone(t.head.Staged)
	if t.head.Staged == nil {
		t.head.Staged = make(map[string]staged)
	}
	if t.head.Staged[region] = s; s == (staged{}) {
		delete(t.head.Staged, region)
	}
}

func (t *txn) stageRow(key []byte, r *row) error {
	value := r.V
	if r.More {
		begin, err := t.GetMeta(key)
		if err != nil {
			return err
		}
		value = append(begin, value...)
	}
	return t.SetMeta(key, value)
}

// merge merges the staged state. The rows are checked before anything changes.
func (t *txn) merge(c *logCommand) error {
	var p part
	if err := p.decode(c.body, t.settings); err != nil {
		return err
	}
	if at := t.head.Staged[p.Region]; p.ID != at.ID || p.Number != at.Next {
		return &answer{"region_transfer", fmt.Errorf("%w: transfer %s of %d parts, here is %+v", replication.ErrNotReady, p.ID, p.Number, at)}
	}
	if err := t.atMost(t.head.Staged[p.Region].Bytes + t.core.Status().Bytes); err != nil {
		return err
	}
	before := t.core.Status().Applied
	err := t.told(t.settings.index(p.Region), t.mergeStaged(c.wallMS, p.Region))
	after := t.core.Status().Applied
	for i, r := range t.settings.Conflict.Regions {
		if after[i] > before[i] { // to where the sender is
			t.head.setStamp(r, p.Stamps[r])
		}
	}
	if _, verdict := replication.Verdict(asAnswer(err)); err == nil || verdict {
		if dropped := t.dropStaged(p.Region); dropped != nil {
			return dropped
		}
	}
	return err
}

func (t *txn) mergeStaged(wallMS uint64, region string) error {
	rows := t.stagedRows(region)
	if of, err := conflict.ReadStatus(rows); errors.Is(err, conflict.ErrDamagedRow) || err == nil && of.Self != region {
		return fmt.Errorf("%w: the state is not that of region %q", errBadCommand, region)
	} else if err != nil {
		return err
	}
	var state replication.Meta = rows
	if seeker, ok := t.Tx.(replication.MetaSeeker); ok {
		state = stagedSeeker{rows, seeker}
	}
	if err := t.core.MergeState(wallMS, state); err != nil {
		return err
	}
	return t.mergeRequests(rows)
}

// dropStaged drops what is staged of a region, some rows at a time.
func (t *txn) dropStaged(region string) error {
	if err := t.atMost(t.head.Staged[region].Bytes); err != nil {
		return err
	}
	prefix := t.stagedRows(region).prefix
	for more := true; more; {
		var keys [][]byte
		err := t.ScanMeta(prefix, func(k, _ []byte) error {
			keys = append(keys, bytes.Clone(k))
			if len(keys) == dropRows {
				return errEnough
			}
			return nil
		})
		if more = errors.Is(err, errEnough); err != nil && !more {
			return err
		}
		for _, k := range keys {
			if err := t.SetMeta(k, nil); err != nil {
				return err
			}
		}
	}
	t.setStaged(region, staged{})
	return nil
}

// dropRows is how many rows are dropped at a time.
const dropRows = 1024

// errEnough ends a scan that is made again.
var errEnough = errors.New("there may be more rows")

// transferRequest is the payload of code 31: a part of a region's state for
// another one; the answer is empty. The last one asks for the merge.
type transferRequest struct {
	Part  part
	Merge bool `json:",omitempty"`
}

// transfer brings this region's state to another one whose cursor is beyond the
// outbox. It is collected first, as of one moment: what is not settled.
func (n *Node) transfer(ctx context.Context, region string) error {
	s, err := n.collect()
	if err != nil {
		return fmt.Errorf("collecting the state: %w", err)
	}
	defer s.close()
	for number := range s.parts {
		p := part{Region: n.settings.Self, ID: s.id, Number: number}
		if err := s.read(&p); err != nil {
			return err
		}
		if err := n.sendPart(ctx, region, &transferRequest{Part: p}); err != nil {
			return fmt.Errorf("part %d of %d: %w", number+1, s.parts, err)
		}
	}
	last := part{Region: n.settings.Self, ID: s.id, Number: s.parts, Stamps: s.stamps}
	return n.sendPart(ctx, region, &transferRequest{Part: last, Merge: true})
}

// partPatience is for how long a part is sent again before the whole state is.
const partPatience = time.Minute

// sendPart sends a part, again where the connection breaks or the other region
// has no leader for a moment: a part that came twice is passed over.
func (n *Node) sendPart(ctx context.Context, region string, req *transferRequest) error {
	for start := time.Now(); ; pause(ctx, markInterval) {
		callCtx, cancel := context.WithTimeout(ctx, 2*proposeTimeout)
		err := n.call(callCtx, region, replication.MsgRegionState, req, nil)
		cancel()
		if _, verdict := replication.Verdict(err); err == nil || verdict || ctx.Err() != nil || time.Since(start) > partPatience {
			return err
		}
		n.rt.Logger.Debug("a part of the state is sent again", "region", region, "part", req.Part.Number, "error", err)
	}
}

// handleTransfer serves code 31 of another region, which sends its own state.
func (n *Node) handleTransfer(ctx context.Context, req *replication.Request) (any, error) {
	q, err := decodeTransfer(req)
	if err == nil && q.Part.Region != req.Peer.Region {
		err = fmt.Errorf("%w: region %q sends a state of %.80q", replication.ErrInvalidCommand, req.Peer.Region, q.Part.Region)
	}
	if err != nil {
		return nil, err
	}
	if n.inner.IsLeader() {
		return n.takePart(ctx, q)
	}
	return struct{}{}, n.atLeader(ctx, replication.MsgRegionState, req.Payload, nil)
}

// handleOwnTransfer serves code 31 of a node of this region.
func (n *Node) handleOwnTransfer(ctx context.Context, req *replication.Request) (any, error) {
	if !req.Peer.Hello {
		return nil, fmt.Errorf("%w: states come from nodes of this project", replication.ErrUnsupported)
	}
	q, err := decodeTransfer(req)
	if err != nil {
		return nil, err
	}
	return n.takePart(ctx, q)
}

func decodeTransfer(req *replication.Request) (*transferRequest, error) {
	var q transferRequest
	if err := json.Unmarshal(req.Payload, &q); err != nil {
		return nil, fmt.Errorf("%w: %v", replication.ErrInvalidCommand, err)
	}
	return &q, nil
}

func (n *Node) takePart(ctx context.Context, q *transferRequest) (any, error) {
	c := &logCommand{kind: kindStage, wallMS: n.wallMS(), body: jsonBody(&q.Part)}
	if q.Merge {
		c.kind = kindMerge
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	return struct{}{}, n.propose(ctx, c)
}
