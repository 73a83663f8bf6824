package region

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region/conflict"
)

// cmdLog is the type of the commands of a region's own log: Data is a kind byte
// and what encode wrote. Clients cannot send it.
const cmdLog replication.CommandType = 34

// cmdResolve, cmdPromote and cmdChange are an operator's requests on their way to
// the region's leader. Data of the first is a resolveRequest, of the last a
// settingsChange.
const (
	cmdResolve replication.CommandType = 35
	cmdPromote replication.CommandType = 36
	cmdChange  replication.CommandType = 37
)

// kind is what an entry of a region's log does.
type kind byte

const (
	kindWrite    kind = 1 // commands of a client, with the leader's wall reading
	kindRemote   kind = 2 // entries of another region's stream
	kindMark     kind = 3 // a mark, if one is called for
	kindCursors  kind = 4 // how far the other regions are
	kindSettings kind = 5 // founds the settings
	kindResolve  kind = 6 // settles a conflict
	kindPromote  kind = 7 // this region becomes the write region
	kindEpoch    kind = 8 // another region has become it
	kindStage    kind = 9 // rows of another region's state
	kindMerge    kind = 10
	kindCollect  kind = 11 // settles more of what all regions have
	kindChange   kind = 12 // changes settings
	kindMeet     kind = 13 // what another region has of this region's stream
)

// logCommand is one entry of a region's log. Which fields it has depends on
// its kind.
type logCommand struct {
	kind     kind
	wallMS   uint64                 // write, remote, mark, resolve, merge
	request  string                 // write: its ID, where the client gave one
	hash     [16]byte               // write: of what the client sent, with an ID
	commands []*replication.Command // write
	entries  []*conflict.Entry      // remote
	encoded  [][]byte               // remote, decoded: each entry as it came
	body     []byte                 // JSON of the other kinds
}

var errBadCommand = fmt.Errorf("%w: malformed entry of a region's log", replication.ErrInvalidCommand)

func (c *logCommand) encode() *replication.Command {
	b := append(make([]byte, 0, c.sizeBound()), byte(c.kind))
	b = binary.AppendUvarint(b, c.wallMS)
	switch c.kind {
	case kindWrite:
		b = appendBytes(b, []byte(c.request))
		if c.request != "" {
			b = append(b, c.hash[:]...)
		}
		for _, cmd := range c.commands {
			b = append(b, byte(cmd.Type))
			b = appendBytes(b, cmd.Data)
		}
	case kindRemote:
		for _, e := range c.entries {
			b = appendBytes(b, e.Encode())
		}
	default:
		b = append(b, c.body...)
	}
	return &replication.Command{Type: cmdLog, Data: b}
}

// writes says whether the entry takes a position of the region's own stream, or
// is a promise that the next ones are taken here.
func (c *logCommand) writes() bool {
	switch c.kind {
	case kindWrite, kindMark, kindResolve, kindPromote:
		return true
	}
	return false
}

// sizeBound is about what encode makes, so that it is not copied as it grows.
func (c *logCommand) sizeBound() int {
	size := 32 + len(c.request) + len(c.body)
	for _, cmd := range c.commands {
		size += 8 + len(cmd.Data)
	}
	for _, e := range c.entries {
		size += 64 + e.SizeHint()
	}
	return size
}

func appendBytes(b, data []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(data)))
	return append(b, data...)
}

func takeBytes(b []byte) (data, rest []byte, ok bool) {
	size, n := binary.Uvarint(b)
	if n <= 0 || size > uint64(len(b)-n) {
		return nil, nil, false
	}
	return b[n : n+int(size)], b[n+int(size):], true
}

// decodeCommand is the inverse of encode; the error is a verdict.
func decodeCommand(data []byte) (*logCommand, error) {
	if len(data) == 0 {
		return nil, errBadCommand
	}
	c := &logCommand{kind: kind(data[0])}
	wall, n := binary.Uvarint(data[1:])
	if n <= 0 {
		return nil, errBadCommand
	}
	c.wallMS = wall
	rest := data[1+n:]
	switch {
	case c.kind == kindWrite:
		return c, c.decodeWrite(rest)
	case c.kind == kindRemote:
		return c, c.decodeRemote(rest)
	case c.kind >= kindMark && c.kind <= kindMeet:
		c.body = rest
		return c, nil
	}
	return nil, errBadCommand
}

func (c *logCommand) decodeWrite(b []byte) error {
	id, b, ok := takeBytes(b)
	if c.request = string(id); !ok || len(id) > 0 && len(b) < len(c.hash) {
		return errBadCommand
	}
	if len(id) > 0 {
		b = b[copy(c.hash[:], b):]
	}
	for len(b) > 0 {
		data, rest, ok := takeBytes(b[1:])
		if !ok {
			return errBadCommand
		}
		c.commands = append(c.commands, &replication.Command{Type: replication.CommandType(b[0]), Data: data})
		b = rest
	}
	return nil
}

func (c *logCommand) decodeRemote(b []byte) error {
	for len(b) > 0 {
		data, rest, ok := takeBytes(b)
		if !ok {
			return errBadCommand
		}
		e, err := conflict.DecodeEntry(data)
		if err != nil {
			return fmt.Errorf("%w: %w", errBadCommand, err)
		}
		c.entries, c.encoded = append(c.entries, e), append(c.encoded, data)
		b = rest
	}
	return nil
}

// cursors is the body of kindCursors: for each other region the position up to
// which its quorum has this region's stream.
type cursors map[string]uint64

// jsonBody encodes a body of this package's own types, which have a JSON form.
func jsonBody(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

func decodeBody(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %v", errBadCommand, err)
	}
	return nil
}

// answer is an answer of the state machine that is not an error of the Storage:
// in the log's terms a verdict, so that it gets back to whoever proposed.
type answer struct {
	code string
	err  error
}

func (a *answer) Error() string     { return a.err.Error() }
func (a *answer) Unwrap() error     { return a.err }
func (a *answer) ErrorCode() string { return a.code }

// answers are the errors of package conflict that are answers.
var answers = []struct {
	code string
	err  error
}{
	{"region_gap", conflict.ErrGap},
	{"region_invalid_entry", conflict.ErrInvalidEntry},
	{"region_ahead", conflict.ErrAhead},
	{"region_settings", conflict.ErrSettings},
}

// asAnswer makes an answer of package conflict a verdict.
func asAnswer(err error) error {
	for _, a := range answers {
		if errors.Is(err, a.err) && !errors.Is(err, conflict.ErrMismatch) {
			return &answer{a.code, err}
		}
	}
	return err
}
