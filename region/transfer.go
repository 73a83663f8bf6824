package region

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region/conflict"
)

// staged names the transfer whose rows are staged.
type staged struct {
	ID   string
	Next uint64 // number of the next part
}

// stagedRows are the staged rows under the keys that they have at the sender.
type stagedRows struct{ m replication.Meta }

// GetMeta implements replication.Meta.
func (s stagedRows) GetMeta(key []byte) ([]byte, error) {
	return s.m.GetMeta(append([]byte(rowStaged), key...))
}

// ScanMeta implements replication.Meta.
func (s stagedRows) ScanMeta(prefix []byte, fn func(k, v []byte) error) error {
	return s.m.ScanMeta(append([]byte(rowStaged), prefix...), func(k, v []byte) error {
		return fn(k[len(rowStaged):], v)
	})
}

// part is the body of kindStage and kindMerge: some rows of a transfer. The
// first part of a transfer drops the rows of another.
type part struct {
	ID     string
	Number uint64
	Rows   []row
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
	if err := decodeBody(body, &p); err != nil {
		return err
	}
	if p.Number == 0 && p.ID != t.head.Staged.ID {
		if err := t.dropStaged(); err != nil {
			return err
		}
		t.head.Staged = staged{ID: p.ID}
	}
	if p.ID != t.head.Staged.ID || p.Number > t.head.Staged.Next {
		return &answer{"region_transfer", fmt.Errorf("%w: part %d of transfer %s, here is %+v", replication.ErrNotReady, p.Number, p.ID, t.head.Staged)}
	}
	if p.Number < t.head.Staged.Next {
		return nil
	}
	for i := range p.Rows {
		if err := p.Rows[i].check(); err != nil {
			return err
		}
	}
	for i := range p.Rows {
		if err := t.stageRow(&p.Rows[i]); err != nil {
			return err
		}
	}
	t.head.Staged.Next++
	return nil
}

func (t *txn) stageRow(r *row) error {
	key, value := append([]byte(rowStaged), r.K...), r.V
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
	if err := decodeBody(c.body, &p); err != nil {
		return err
	}
	if p.ID == "" || p.ID != t.head.Staged.ID || p.Number != t.head.Staged.Next {
		return &answer{"region_transfer", fmt.Errorf("%w: transfer %s of %d parts, here is %+v", replication.ErrNotReady, p.ID, p.Number, t.head.Staged)}
	}
	err := t.core.MergeState(c.wallMS, stagedRows{t.Tx})
	if err == nil {
		err = t.mergeRequests(stagedRows{t.Tx})
	}
	if asAnswer(err) != err || err == nil {
		if dropped := t.dropStaged(); dropped != nil {
			return dropped
		}
		t.head.Staged = staged{}
	}
	return err
}

func (t *txn) dropStaged() error {
	var keys [][]byte
	err := t.ScanMeta([]byte(rowStaged), func(k, _ []byte) error {
		keys = append(keys, append([]byte(nil), k...))
		return nil
	})
	for _, k := range keys {
		if err == nil {
			err = t.SetMeta(k, nil)
		}
	}
	return err
}

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
		p := part{ID: s.id, Number: number}
		if err := s.read(&p); err != nil {
			return err
		}
		if err := n.sendPart(ctx, region, &transferRequest{Part: p}); err != nil {
			return fmt.Errorf("part %d of %d: %w", number+1, s.parts, err)
		}
	}
	return n.sendPart(ctx, region, &transferRequest{Part: part{ID: s.id, Number: s.parts}, Merge: true})
}

func (n *Node) sendPart(ctx context.Context, region string, req *transferRequest) error {
	ctx, cancel := context.WithTimeout(ctx, 2*proposeTimeout)
	defer cancel()
	return n.call(ctx, region, replication.MsgRegionState, req, nil)
}

// handleTransfer serves code 31 of another region.
func (n *Node) handleTransfer(ctx context.Context, req *replication.Request) (any, error) {
	if n.inner.IsLeader() {
		return n.takePart(ctx, req)
	}
	return struct{}{}, n.atLeader(ctx, replication.MsgRegionState, req.Payload, nil)
}

// handleOwnTransfer serves code 31 of a node of this region.
func (n *Node) handleOwnTransfer(ctx context.Context, req *replication.Request) (any, error) {
	if !req.Peer.Hello {
		return nil, fmt.Errorf("%w: states come from nodes of this project", replication.ErrUnsupported)
	}
	return n.takePart(ctx, req)
}

func (n *Node) takePart(ctx context.Context, req *replication.Request) (any, error) {
	var q transferRequest
	if err := json.Unmarshal(req.Payload, &q); err != nil {
		return nil, fmt.Errorf("%w: %v", replication.ErrInvalidCommand, err)
	}
	c := &logCommand{kind: kindStage, wallMS: n.wallMS(), body: jsonBody(&q.Part)}
	if q.Merge {
		c.kind = kindMerge
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	err := n.propose(ctx, c)
	if errors.Is(err, conflict.ErrAhead) {
		n.alarmed(err)
	}
	return struct{}{}, err
}
