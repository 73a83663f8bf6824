package transport

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

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
	Size    int // bytes of the frame it came in
}

// failure is the x of a response.
type failure struct {
	Code    string `json:"code"`
	Message string `json:"message,omitempty"`
	// The leader, where the code is not_leader.
	LeaderID   string `json:"leader_id,omitempty"`
	LeaderAddr string `json:"leader_addr,omitempty"`
	// The write's, where the code is unconfirmed.
	Position uint64 `json:"position,omitempty"`
}

// decodeEnvelope decodes a frame. Keys are matched as they are written, unlike
// encoding/json, which takes "T" for "t"; unknown ones are ignored, a known one
// that comes twice is an error. The result refers to frame.
func decodeEnvelope(frame []byte) (*envelope, error) {
	e := &envelope{Size: len(frame)}
	seen := ""
	err := eachMember(frame, func(key string, value []byte) error {
		if len(key) != 1 || !strings.Contains("tnpieoqx", key) {
			return nil
		}
		if strings.Contains(seen, key) {
			return fmt.Errorf("key %q twice", key)
		}
		seen += key
		return e.set(key, value)
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %v", errFrame, err)
	}
	if e.Type < 1 || e.Type > math.MaxInt32 {
		return nil, fmt.Errorf("%w: no message code", errFrame)
	}
	if e.Epoch.Number >= maxEpochNumber || e.Prev != nil && e.Prev.Number >= maxEpochNumber {
		return nil, fmt.Errorf("%w: epoch out of range", errFrame)
	}
	return e, nil
}

// set takes the value of a known key.
func (e *envelope) set(key string, value []byte) error {
	switch key {
	case "t":
		var code uint64
		err := decodeUint(value, &code)
		e.Type = int(min(code, math.MaxInt32+1))
		return err
	case "n":
		return decodeText(value, &e.Node)
	case "p":
		e.Payload = value
	case "i":
		if string(value) == "null" {
			return nil
		}
		e.HasID = true
		return decodeUint(value, &e.ID)
	case "e":
		return decodeUint(value, &e.Epoch.Number)
	case "o":
		return decodeText(value, &e.Epoch.Owner)
	case "q":
		return json.Unmarshal(value, &e.Prev)
	case "x":
		return json.Unmarshal(value, &e.Failure)
	}
	return nil
}

// appendEnvelope appends the JSON of e. The payload is taken as it is: it was
// encoded once and is not looked at again.
func appendEnvelope(dst []byte, e *envelope) []byte {
	dst = append(dst, `{"t":`...)
	dst = strconv.AppendInt(dst, int64(e.Type), 10)
	dst = append(dst, `,"n":`...)
	dst = appendText(dst, e.Node)
	if e.HasID {
		dst = append(dst, `,"i":`...)
		dst = strconv.AppendUint(dst, e.ID, 10)
	}
	if !e.Epoch.IsZero() {
		dst = append(dst, `,"e":`...)
		dst = strconv.AppendUint(dst, e.Epoch.Number, 10)
		dst = append(dst, `,"o":`...)
		dst = appendText(dst, e.Epoch.Owner)
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

func appendText(dst []byte, s string) []byte {
	dst, _ = replication.AppendValue(dst, s) // a string has no error
	return dst
}

// encodePayload makes the JSON of a message. Those that carry the data write it
// themselves: the same bytes, with less work.
func encodePayload(v any) ([]byte, error) {
	if m, ok := v.(interface {
		AppendJSON(dst []byte) ([]byte, error)
	}); ok {
		return m.AppendJSON(nil)
	}
	return json.Marshal(v)
}

// walEntries are a WALBatch of documented fields.
type walEntries []*replication.WALEntry

// AppendJSON appends what encoding/json makes of the entries.
func (list walEntries) AppendJSON(dst []byte) ([]byte, error) {
	if list == nil {
		return append(dst, "null"...), nil
	}
	dst = append(dst, '[')
	for i, e := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		var err error
		if dst, err = e.AppendJSON(dst); err != nil {
			return nil, err
		}
	}
	return append(dst, ']'), nil
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
	var unconfirmed *replication.UnconfirmedError
	if errors.As(err, &unconfirmed) && f.Code == "unconfirmed" {
		f.Position = unconfirmed.Position
	}
	return f
}

// err is the inverse of failureOf.
func (f *failure) err() error {
	if f.Code == "not_leader" {
		return &replication.NotLeaderError{LeaderID: f.LeaderID, LeaderAddr: f.LeaderAddr}
	}
	if f.Code == "unconfirmed" && f.Position > 0 {
		own := (&replication.UnconfirmedError{Position: f.Position}).Error() + ": "
		return &replication.UnconfirmedError{Position: f.Position, Reason: strings.TrimPrefix(f.Message, own)}
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
