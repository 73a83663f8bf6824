package transport

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"

	"github.com/nornicdb/replication"
)

// maxEpochNumber bounds epoch numbers: what every JSON reader keeps exact.
const maxEpochNumber = 1 << 53

var errTooLarge = fmt.Errorf("%w: does not fit a frame", replication.ErrCommandTooLarge)

// envelope is a message (wire protocol, "Envelope").
type envelope struct {
	Type    int
	Node    string
	Payload json.RawMessage
	ID      uint64 // valid if HasID
	HasID   bool
	Epoch   replication.Epoch
	Prev    *replication.Epoch
	Failure *failure
}

// failure is the x of a response.
type failure struct {
	Code    string `json:"code"`
	Message string `json:"message,omitempty"`
	// The leader, where the code is not_leader.
	LeaderID   string `json:"leader_id,omitempty"`
	LeaderAddr string `json:"leader_addr,omitempty"`
}

type wireEnvelope struct {
	T *int               `json:"t"`
	N string             `json:"n"`
	P json.RawMessage    `json:"p"`
	I *uint64            `json:"i"`
	E uint64             `json:"e"`
	O string             `json:"o"`
	Q *replication.Epoch `json:"q"`
	X *failure           `json:"x"`
}

// decodeEnvelope decodes a frame. Unknown keys are ignored.
func decodeEnvelope(frame []byte) (*envelope, error) {
	if first := bytes.TrimLeft(frame, " \t\r\n"); len(first) == 0 || first[0] != '{' {
		return nil, fmt.Errorf("%w: not a JSON object", errFrame)
	}
	var w wireEnvelope
	if err := json.Unmarshal(frame, &w); err != nil {
		return nil, fmt.Errorf("%w: %v", errFrame, err)
	}
	if w.T == nil || *w.T < 1 || *w.T > math.MaxInt32 {
		return nil, fmt.Errorf("%w: no message code", errFrame)
	}
	if w.E >= maxEpochNumber || w.Q != nil && w.Q.Number >= maxEpochNumber {
		return nil, fmt.Errorf("%w: epoch out of range", errFrame)
	}
	e := &envelope{Type: *w.T, Node: w.N, Payload: w.P, Prev: w.Q, Failure: w.X,
		Epoch: replication.Epoch{Number: w.E, Owner: w.O}}
	if w.I != nil {
		e.ID, e.HasID = *w.I, true
	}
	return e, nil
}

// appendEnvelope appends the JSON of e. The payload is taken as it is: it was
// encoded once and is not looked at again.
func appendEnvelope(dst []byte, e *envelope) []byte {
	dst = append(dst, `{"t":`...)
	dst = strconv.AppendInt(dst, int64(e.Type), 10)
	dst = append(dst, `,"n":`...)
	dst = appendJSON(dst, e.Node)
	if e.HasID {
		dst = append(dst, `,"i":`...)
		dst = strconv.AppendUint(dst, e.ID, 10)
	}
	if !e.Epoch.IsZero() {
		dst = append(dst, `,"e":`...)
		dst = strconv.AppendUint(dst, e.Epoch.Number, 10)
		dst = append(dst, `,"o":`...)
		dst = appendJSON(dst, e.Epoch.Owner)
	}
	if e.Prev != nil {
		dst = append(dst, `,"q":`...)
		dst = appendJSON(dst, e.Prev)
	}
	switch {
	case e.Failure != nil:
		dst = append(dst, `,"x":`...)
		dst = appendJSON(dst, e.Failure)
	case len(e.Payload) > 0:
		dst = append(dst, `,"p":`...)
		dst = append(dst, e.Payload...)
	}
	return append(dst, '}')
}

func appendJSON(dst []byte, v any) []byte {
	b, err := json.Marshal(v)
	if err != nil { // strings and flat structs of this package have no error path
		panic(err)
	}
	return append(dst, b...)
}

// encodeFrame makes a whole frame of at most limit payload bytes.
func encodeFrame(e *envelope, limit int) ([]byte, error) {
	buf := beginFrame(make([]byte, 0, frameHeadBytes+96+len(e.Node)+len(e.Payload)))
	return endFrame(appendEnvelope(buf, e), limit)
}

// failureOf turns a handler's error into what crosses the wire. Verdicts are
// codes without text.
func failureOf(err error) *failure {
	f := &failure{Code: replication.ErrorCode(err)}
	if _, verdict := replication.Verdict(err); !verdict {
		f.Message = limitText(err.Error())
	}
	var notLeader *replication.NotLeaderError
	if errors.As(err, &notLeader) && f.Code == "not_leader" {
		f.LeaderID, f.LeaderAddr = notLeader.LeaderID, notLeader.LeaderAddr
	}
	return f
}

// err is the inverse of failureOf.
func (f *failure) err() error {
	if f.Code == "not_leader" {
		return &replication.NotLeaderError{LeaderID: f.LeaderID, LeaderAddr: f.LeaderAddr}
	}
	if f.Code == "" {
		return replication.ErrorFromCode("internal", f.Message)
	}
	return replication.ErrorFromCode(f.Code, f.Message)
}

func limitText(s string) string {
	const maxBytes = 1024
	if len(s) > maxBytes {
		return s[:maxBytes] + "…"
	}
	return s
}
