package standby

import (
	"encoding/json"
	"fmt"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/walstream"
)

// The documented payloads with what nodes of this project add. The epoch itself
// is in the envelope.

type heartbeatRequest struct {
	replication.HeartbeatRequest
	Peer   Peer
	Commit uint64 // the standby's Storage may go that far
	Admit  bool   // the standby is admitted into the epoch
}

type heartbeatResponse struct {
	replication.HeartbeatResponse
	Peer    Peer
	Follows bool // it follows the epoch of the request
}

type fenceRequest struct {
	replication.FenceRequest
	Peer Peer
}

type fenceResponse struct {
	replication.FenceResponse
	Peer Peer
}

// snapshotHead stands before a snapshot stream.
type snapshotHead struct {
	Mark   walstream.Mark // where the snapshot stands
	Epoch  replication.Epoch
	Epochs []EpochStart
	Error  string `json:",omitempty"` // there is none
}

const maxHeadBytes = 1 << 20

// decode reads a payload that holds a Peer, and checks what it says.
func decode[T any](payload []byte, peer func(*T) *Peer) (*T, error) {
	v := new(T)
	if err := json.Unmarshal(payload, v); err != nil {
		return nil, fmt.Errorf("%w: %v", replication.ErrInvalidCommand, err)
	}
	return v, peer(v).check()
}

// check refuses what no node can truthfully say of itself.
func (p *Peer) check() error {
	if err := checkEpochs(p.Epoch, p.Epochs); err != nil {
		return err
	}
	if p.Last.Epoch.Number >= maxEpochNumber || p.Durable > p.Last.Position {
		return fmt.Errorf("%w: a log that ends at %s, durable to %d", replication.ErrInvalidCommand, p.Last, p.Durable)
	}
	return nil
}

func (p *Peer) ack() walstream.Ack {
	return walstream.Ack{Received: p.Last.Position, Persisted: p.Durable, Applied: p.Applied}
}
