package replication

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"
)

// CommandType says what a Command does (wire protocol, "Commands").
type CommandType uint8

// Command types. 1 to 8 are NornicDB's own; from CmdEmbedder upwards they
// belong to the embedding server and are carried without being looked into.
const (
	CmdCreateNode  CommandType = 1
	CmdUpdateNode  CommandType = 2
	CmdDeleteNode  CommandType = 3
	CmdCreateEdge  CommandType = 4
	CmdDeleteEdge  CommandType = 5
	CmdSetProperty CommandType = 6
	CmdBatchWrite  CommandType = 7
	CmdCypher      CommandType = 8
	CmdPutNode     CommandType = 16
	CmdPutEdge     CommandType = 17
	CmdUpdateEdge  CommandType = 18
	// CmdSettings changes replicated settings. It is proposed by the
	// replication layer, never accepted from a client.
	CmdSettings CommandType = 32
	CmdEmbedder CommandType = 64
)

var commandNames = map[CommandType]string{
	CmdCreateNode: "CreateNode", CmdUpdateNode: "UpdateNode", CmdDeleteNode: "DeleteNode",
	CmdCreateEdge: "CreateEdge", CmdDeleteEdge: "DeleteEdge", CmdSetProperty: "SetProperty",
	CmdBatchWrite: "BatchWrite", CmdCypher: "Cypher", CmdPutNode: "PutNode", CmdPutEdge: "PutEdge",
	CmdUpdateEdge: "UpdateEdge", CmdSettings: "Settings",
}

func (t CommandType) String() string {
	if name, ok := commandNames[t]; ok {
		return name
	}
	return fmt.Sprintf("CommandType(%d)", uint8(t))
}

// MaxRequestIDBytes bounds a request ID.
const MaxRequestIDBytes = 128

// Command is one change of the graph. Its JSON form has the Go field names,
// Data as base64 (wire protocol, "Commands").
type Command struct {
	Type      CommandType
	Data      []byte
	Timestamp time.Time
	// RequestID, if not empty, makes a retry safe: the same ID with the same
	// Type and Data is applied once, and later tries return the first outcome.
	RequestID string `json:",omitempty"`
}

// nodeData is the Data of CreateNode, UpdateNode and PutNode.
type nodeData struct {
	ID         NodeID                     `json:"id"`
	Labels     []string                   `json:"labels"`
	Properties map[string]json.RawMessage `json:"properties"`
}

type edgeData struct {
	ID         EdgeID                     `json:"id,omitempty"`
	StartNode  NodeID                     `json:"startNode"`
	EndNode    NodeID                     `json:"endNode"`
	Type       string                     `json:"type"`
	Properties map[string]json.RawMessage `json:"properties"`
}

type deleteEdgeData struct {
	StartNode NodeID `json:"startNode,omitempty"`
	EndNode   NodeID `json:"endNode,omitempty"`
	Type      string `json:"type,omitempty"`
	ID        EdgeID `json:"id,omitempty"`
	EdgeID    EdgeID `json:"edge_id,omitempty"`
}

type setPropertyData struct {
	NodeID NodeID          `json:"node_id"`
	Key    string          `json:"key"`
	Value  json.RawMessage `json:"value"`
}

type batchData struct {
	Commands []*Command        `json:"commands"`
	Nodes    []json.RawMessage `json:"nodes"`
	Edges    []json.RawMessage `json:"edges"`
}

// MarshalJSON writes the canonical form: keys in fixed order, floats marked.
func (n *Node) MarshalJSON() ([]byte, error) {
	b := append([]byte(nil), `{"id":`...)
	b = appendString(b, string(n.ID))
	b = append(b, `,"labels":`...)
	b = appendLabels(b, n.Labels)
	b = append(b, `,"properties":`...)
	return appendProperties(b, n.Properties)
}

// UnmarshalJSON reads the form of CreateNode.
func (n *Node) UnmarshalJSON(data []byte) error {
	r := plainReader{data: data}
	if plain := r.node(); r.done() {
		*n = plain
		return nil
	}
	var d nodeData
	if err := json.Unmarshal(data, &d); err != nil {
		return fmt.Errorf("%w: node: %v", ErrInvalidCommand, err)
	}
	props, err := decodeProperties(d.Properties)
	if err != nil {
		return err
	}
	*n = Node{ID: d.ID, Labels: d.Labels, Properties: props}
	return nil
}

// MarshalJSON writes the canonical form.
func (e *Edge) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	if e.ID != "" {
		b = append(b, `"id":`...)
		b = appendString(b, string(e.ID))
		b = append(b, ',')
	}
	b = append(b, `"startNode":`...)
	b = appendString(b, string(e.StartNode))
	b = append(b, `,"endNode":`...)
	b = appendString(b, string(e.EndNode))
	b = append(b, `,"type":`...)
	b = appendString(b, e.Type)
	b = append(b, `,"properties":`...)
	return appendProperties(b, e.Properties)
}

// UnmarshalJSON reads the form of CreateEdge.
func (e *Edge) UnmarshalJSON(data []byte) error {
	r := plainReader{data: data}
	if plain := r.edge(); r.done() {
		*e = plain
		return nil
	}
	var d edgeData
	if err := json.Unmarshal(data, &d); err != nil {
		return fmt.Errorf("%w: edge: %v", ErrInvalidCommand, err)
	}
	props, err := decodeProperties(d.Properties)
	if err != nil {
		return err
	}
	*e = Edge{ID: d.ID, StartNode: d.StartNode, EndNode: d.EndNode, Type: d.Type, Properties: props}
	return nil
}

func appendLabels(b []byte, labels []string) []byte {
	b = append(b, '[')
	for i, l := range labels {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, l)
	}
	return append(b, ']')
}

// appendProperties also writes the brace that closes the enclosing object.
func appendProperties(b []byte, props map[string]any) ([]byte, error) {
	if props == nil {
		return append(b, `{}}`...), nil
	}
	b, err := AppendValue(b, props)
	if err != nil {
		return nil, err
	}
	return append(b, '}'), nil
}

// decodeProperties drops null values: a property that is null is not there.
func decodeProperties(raw map[string]json.RawMessage) (map[string]any, error) {
	props := make(map[string]any, len(raw))
	for k, r := range raw {
		v, err := DecodeValue(r)
		if err != nil {
			return nil, fmt.Errorf("property %q: %w", k, err)
		}
		if v != nil {
			props[k] = v
		}
	}
	return props, nil
}

func newCommand(t CommandType, v any) (*Command, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrInvalidCommand, err)
	}
	return &Command{Type: t, Data: data, Timestamp: time.Now()}, nil
}

// NewNodeCommand makes a CreateNode, UpdateNode or PutNode (which is both: it creates
// the node or replaces it, whichever it meets). Another type, or no node, is
// [ErrInvalidCommand]; the node itself is checked by [Command.Validate].
func NewNodeCommand(t CommandType, n *Node) (*Command, error) {
	switch {
	case t != CmdCreateNode && t != CmdUpdateNode && t != CmdPutNode:
		return nil, fmt.Errorf("%w: %s is not about a node", ErrInvalidCommand, t)
	case n == nil:
		return nil, fmt.Errorf("%w: no node", ErrInvalidCommand)
	}
	return newCommand(t, n)
}

// NewEdgeCommand makes a CreateEdge, UpdateEdge or PutEdge (which is both). Another
// type, or no edge, is [ErrInvalidCommand].
func NewEdgeCommand(t CommandType, e *Edge) (*Command, error) {
	switch {
	case t != CmdCreateEdge && t != CmdUpdateEdge && t != CmdPutEdge:
		return nil, fmt.Errorf("%w: %s is not about an edge", ErrInvalidCommand, t)
	case e == nil:
		return nil, fmt.Errorf("%w: no edge", ErrInvalidCommand)
	}
	return newCommand(t, e)
}

// NewDeleteNode makes a DeleteNode.
func NewDeleteNode(id NodeID) *Command {
	return &Command{Type: CmdDeleteNode, Data: []byte(id), Timestamp: time.Now()}
}

// NewDeleteEdge makes a DeleteEdge for the edge of this type between two nodes.
func NewDeleteEdge(from, to NodeID, relType string) (*Command, error) {
	return newCommand(CmdDeleteEdge, deleteEdgeData{StartNode: from, EndNode: to, Type: relType})
}

// NewDeleteEdgeByID makes a DeleteEdge for the edge with this ID.
func NewDeleteEdgeByID(id EdgeID) (*Command, error) {
	return newCommand(CmdDeleteEdge, deleteEdgeData{EdgeID: id})
}

// NewSetProperty makes a SetProperty; a nil value removes the property.
func NewSetProperty(id NodeID, key string, value any) (*Command, error) {
	v, err := AppendValue(nil, value)
	if err != nil {
		return nil, err
	}
	return newCommand(CmdSetProperty, setPropertyData{NodeID: id, Key: key, Value: v})
}

// NewBatchWrite makes one command of several: all or none.
func NewBatchWrite(cmds []*Command) (*Command, error) {
	return newCommand(CmdBatchWrite, struct {
		Commands []*Command `json:"commands"`
	}{cmds})
}

// Validate decodes the command and says with an error that wraps
// [ErrInvalidCommand] what is wrong with it. The proposing node calls it, so
// that a malformed command is refused before it is replicated. It does not
// check sizes of Data.
func (c *Command) Validate() error {
	if c == nil {
		return fmt.Errorf("%w: nil", ErrInvalidCommand)
	}
	if len(c.RequestID) > MaxRequestIDBytes {
		return fmt.Errorf("%w: request ID of %d bytes, at most %d", ErrInvalidCommand, len(c.RequestID), MaxRequestIDBytes)
	}
	// Both cross the wire as JSON and the log as nanoseconds, on some ways and
	// not on others; what changes on the way would be another request.
	if !utf8.ValidString(c.RequestID) {
		return fmt.Errorf("%w: request ID is not UTF-8", ErrInvalidCommand)
	}
	if year := c.Timestamp.UTC().Year(); !c.Timestamp.IsZero() && (year < 1678 || year > 2261) {
		return fmt.Errorf("%w: timestamp of the year %d", ErrInvalidCommand, year)
	}
	if c.Type >= CmdEmbedder || plainCommand(c.Type, c.Data) {
		return nil
	}
	var err error
	switch c.Type {
	case CmdCypher:
		err = validateCypher(c.Data)
	case CmdBatchWrite:
		_, err = decodeBatch(c.Data)
	default:
		_, err = decodeOperation(c)
	}
	return err
}

func validateCypher(data []byte) error {
	var d struct {
		Query  string         `json:"query"`
		Params map[string]any `json:"params"`
	}
	if err := json.Unmarshal(data, &d); err != nil {
		return fmt.Errorf("%w: Cypher: %v", ErrInvalidCommand, err)
	}
	if d.Query == "" {
		return fmt.Errorf("%w: Cypher without a query", ErrInvalidCommand)
	}
	return nil
}

// CommandHash identifies the content of a group of commands: types and data,
// not timestamps, so that a retry made later has the same hash.
func CommandHash(cmds []*Command) (hash [16]byte) {
	h := sha256.New()
	var head [9]byte
	for _, c := range cmds {
		head[0] = byte(c.Type)
		binary.BigEndian.PutUint64(head[1:], uint64(len(c.Data)))
		h.Write(head[:])
		h.Write(c.Data)
	}
	copy(hash[:], h.Sum(nil))
	return hash
}

func checkID(what, id string) error {
	if id == "" {
		return fmt.Errorf("%w: empty %s", ErrInvalidCommand, what)
	}
	if !utf8.ValidString(id) {
		return fmt.Errorf("%w: %s is not UTF-8", ErrInvalidCommand, what)
	}
	return nil
}
