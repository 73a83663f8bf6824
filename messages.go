package replication

import (
	"cmp"
	"encoding/json"
	"fmt"
	"time"
)

// MessageType is a code of the cluster protocol (wire protocol, "Messages").
// A response's code is its request's plus one.
type MessageType uint8

// Message codes. 1 to 12 are NornicDB's documented ones.
const (
	MsgVoteRequest           MessageType = 1
	MsgVoteResponse          MessageType = 2
	MsgAppendEntries         MessageType = 3
	MsgAppendEntriesResponse MessageType = 4
	MsgWALBatch              MessageType = 5
	MsgWALBatchResponse      MessageType = 6
	MsgHeartbeat             MessageType = 7
	MsgHeartbeatResponse     MessageType = 8
	MsgFence                 MessageType = 9
	MsgFenceResponse         MessageType = 10
	MsgPromote               MessageType = 11
	MsgPromoteResponse       MessageType = 12
	MsgJoin                  MessageType = 13
	MsgJoinResponse          MessageType = 14
	MsgLeave                 MessageType = 15
	MsgLeaveResponse         MessageType = 16
	MsgStatus                MessageType = 17
	MsgStatusResponse        MessageType = 18
	MsgApply                 MessageType = 19
	MsgApplyResponse         MessageType = 20
	MsgHello                 MessageType = 21
	MsgHelloResponse         MessageType = 22
	MsgReadIndex             MessageType = 23
	MsgReadIndexResponse     MessageType = 24
	MsgState                 MessageType = 25
	MsgStateResponse         MessageType = 26
	MsgFetch                 MessageType = 27
	MsgFetchResponse         MessageType = 28
	MsgTransfer              MessageType = 29
	MsgTransferResponse      MessageType = 30
	MsgRegionState           MessageType = 31
	MsgRegionStateResponse   MessageType = 32
)

// Response is the code of the answer to a request of this type.
func (t MessageType) Response() MessageType { return t + 1 }

// IsRequest: requests have odd codes.
func (t MessageType) IsRequest() bool { return t%2 == 1 }

func (t MessageType) String() string { return fmt.Sprintf("message %d", uint8(t)) }

// Epoch is a fencing epoch: compared by number, then by owner, so that two
// nodes that choose at once still choose different ones (hot standby, "Identity").
// The zero Epoch is that of a node that never had one.
type Epoch struct {
	Number uint64
	Owner  string `json:",omitempty"`
}

// Compare returns -1, 0 or +1.
func (e Epoch) Compare(other Epoch) int {
	if c := cmp.Compare(e.Number, other.Number); c != 0 {
		return c
	}
	return cmp.Compare(e.Owner, other.Owner)
}

// IsZero: no epoch was ever stored.
func (e Epoch) IsZero() bool { return e.Number == 0 }

func (e Epoch) String() string { return fmt.Sprintf("%d/%s", e.Number, e.Owner) }

// RaftVoteRequest is the payload of code 1.
type RaftVoteRequest struct {
	Term         uint64
	CandidateID  string
	LastLogIndex uint64
	LastLogTerm  uint64
}

// RaftVoteResponse is the payload of code 2.
type RaftVoteResponse struct {
	Term        uint64
	VoteGranted bool
	VoterID     string
}

// RaftLogEntry is one entry of a RaftAppendEntriesRequest.
type RaftLogEntry struct {
	Index   uint64
	Term    uint64
	Command *Command
}

// RaftAppendEntriesRequest is the payload of code 3.
type RaftAppendEntriesRequest struct {
	Term         uint64
	LeaderID     string
	LeaderAddr   string
	PrevLogIndex uint64
	PrevLogTerm  uint64
	Entries      []*RaftLogEntry
	LeaderCommit uint64
}

// RaftAppendEntriesResponse is the payload of code 4.
type RaftAppendEntriesResponse struct {
	Term          uint64
	Success       bool
	MatchIndex    uint64
	ConflictIndex uint64
	ConflictTerm  uint64
}

// WALEntry is one entry of a WALBatch (code 5). Epoch is sent between hot
// standby nodes of this project; Origin, Time and Context across regions.
type WALEntry struct {
	Position  uint64
	Timestamp time.Time
	Command   *Command
	Epoch     *Epoch            `json:",omitempty"`
	Origin    string            `json:",omitempty"`
	Time      uint64            `json:",omitempty"`
	Context   map[string]uint64 `json:",omitempty"`
}

// WALBatchResponse is the payload of code 6: AckedPosition is durable at the
// receiver, ReceivedPosition has arrived there. Received ≥ acked.
type WALBatchResponse struct {
	AckedPosition    uint64
	ReceivedPosition uint64
}

// HeartbeatRequest is the payload of code 7. Timestamp is in Unix nanoseconds.
type HeartbeatRequest struct {
	NodeID      string
	Role        string
	WALPosition uint64
	Timestamp   int64
}

// HeartbeatResponse is the payload of code 8. Lag is in entries.
type HeartbeatResponse struct {
	NodeID      string
	Role        string
	WALPosition uint64
	Lag         int64
}

// FenceRequest is the payload of code 9.
type FenceRequest struct {
	Reason    string
	RequestID string
}

// FenceResponse is the payload of code 10.
type FenceResponse struct {
	Fenced      bool
	WALPosition uint64
	Epoch       *Epoch `json:",omitempty"`
}

// PromoteRequest is the payload of code 11.
type PromoteRequest struct {
	Reason string
	Force  bool `json:",omitempty"`
}

// PromoteResponse is the payload of code 12.
type PromoteResponse struct {
	Ready bool
	Error string `json:",omitempty"`
}

// JoinRequest is the payload of code 13: take this node into the cluster. With
// Operator it is an operator's order, to add a node or to change its address,
// which a member sends on to the leader; TimeoutMS then bounds it.
type JoinRequest struct {
	NodeID    string
	Address   string
	Voter     bool
	Operator  bool  `json:",omitempty"`
	TimeoutMS int64 `json:",omitempty"`
}

// JoinResponse is the payload of code 14. History is that of the log which the
// node is to take part in.
type JoinResponse struct {
	Accepted   bool
	LeaderID   string
	LeaderAddr string
	History    string `json:",omitempty"`
}

// LeaveRequest is the payload of code 15: a node leaves the cluster. With
// Operator it is an operator's order, which a member sends on to the leader.
type LeaveRequest struct {
	NodeID    string
	Force     bool  `json:",omitempty"`
	Operator  bool  `json:",omitempty"`
	TimeoutMS int64 `json:",omitempty"`
}

// LeaveResponse is the payload of code 16.
type LeaveResponse struct{ Removed bool }

// TransferRequest is the payload of code 29: an operator's order, sent on to the
// leader by a member, to hand leadership to the node, or to any if NodeID is "".
type TransferRequest struct {
	NodeID    string
	TimeoutMS int64
}

// TransferResponse is the payload of code 30.
type TransferResponse struct{ LeaderID string }

// StatusRequest is the payload of code 17; the answer is a HealthStatus.
type StatusRequest struct{}

// ApplyRequest is the payload of code 19: a forwarded write. Several commands
// are one atomic group. Hops counts the forwards so far.
type ApplyRequest struct {
	Commands  []*Command
	TimeoutMS int64
	Hops      int
}

// UnmarshalJSON does what encoding/json does, which has the word on all but the
// plain form.
func (r *ApplyRequest) UnmarshalJSON(data []byte) error {
	if r.Commands == nil {
		plain, in := *r, plainReader{data: data}
		if in.applyRequest(&plain); in.done() {
			*r = plain
			return nil
		}
	}
	type fields ApplyRequest
	return json.Unmarshal(data, (*fields)(r))
}

// ApplyResponse is the payload of code 20: the position of the write.
type ApplyResponse struct{ Index uint64 }

// HelloRequest is the payload of code 21, first frame (wire protocol,
// "Handshake and streams"). With MAC alone it is the dialer's proof.
type HelloRequest struct {
	Version      int        `json:",omitempty"`
	ClusterID    string     `json:",omitempty"`
	NodeID       string     `json:",omitempty"`
	Stream       StreamKind `json:",omitempty"`
	Nonce        []byte     `json:",omitempty"`
	MaxFrameSize int        `json:",omitempty"`
	Region       string     `json:",omitempty"`
	SettingsHash string     `json:",omitempty"`
	History      string     `json:",omitempty"`
	MAC          []byte     `json:",omitempty"`
}

// HelloResponse is the payload of code 22.
type HelloResponse = HelloRequest

// ReadIndexRequest is the payload of code 23.
type ReadIndexRequest struct{ Level Consistency }

// ReadIndexResponse is the payload of code 24: the position a reader must have
// applied before it answers.
type ReadIndexResponse struct{ Index uint64 }

// StateRequest is the payload of code 25.
type StateRequest struct{}

// FetchRequest is the payload of code 27; the answer is a list of WALEntry.
type FetchRequest struct {
	From uint64
	Max  int
}

// Request is a message as a Handler gets it.
type Request struct {
	Type MessageType
	Peer Peer
	// Epoch is the sender's (envelope keys e and o); zero where it sent none.
	Epoch Epoch
	// PrevEpoch is the epoch of the entry before a WALBatch's first (q); nil
	// where the sender gave none.
	PrevEpoch *Epoch
	Payload   json.RawMessage
}
