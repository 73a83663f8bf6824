package replication

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// What is below decodes commands by encoding/json and nothing else: what the
// reader of the plain form is compared with.

func slowValue(data []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var raw any
	if err := dec.Decode(&raw); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("data after the value")
	}
	return normalize(raw, 0)
}

func slowProperties(raw map[string]json.RawMessage) (map[string]any, error) {
	props := make(map[string]any)
	for k, r := range raw {
		v, err := slowValue(r)
		if err != nil {
			return nil, err
		}
		if v != nil {
			props[k] = v
		}
	}
	return props, nil
}

func slowNode(data []byte) (Node, error) {
	var d nodeData
	if err := json.Unmarshal(data, &d); err != nil {
		return Node{}, err
	}
	props, err := slowProperties(d.Properties)
	return Node{ID: d.ID, Labels: d.Labels, Properties: props}, err
}

func slowEdge(data []byte) (Edge, error) {
	var d edgeData
	if err := json.Unmarshal(data, &d); err != nil {
		return Edge{}, err
	}
	props, err := slowProperties(d.Properties)
	return Edge{ID: d.ID, StartNode: d.StartNode, EndNode: d.EndNode, Type: d.Type, Properties: props}, err
}

// call is one call of a Storage.
type call struct {
	method string
	args   []any
}

func (c call) String() string { return fmt.Sprintf("%s %#v", c.method, c.args) }

// calls records what is called.
type calls struct {
	Storage
	list []call
}

func (c *calls) add(method string, args ...any) error {
	c.list = append(c.list, call{method, args})
	return nil
}

func (c *calls) CreateNode(n *Node) error                   { return c.add("CreateNode", *n) }
func (c *calls) UpdateNode(n *Node) error                   { return c.add("UpdateNode", *n) }
func (c *calls) DeleteNode(id NodeID) error                 { return c.add("DeleteNode", id) }
func (c *calls) CreateEdge(e *Edge) error                   { return c.add("CreateEdge", *e) }
func (c *calls) UpdateEdge(e *Edge) error                   { return c.add("UpdateEdge", *e) }
func (c *calls) DeleteEdge(from, to NodeID, t string) error { return c.add("DeleteEdge", from, to, t) }
func (c *calls) DeleteEdgeByID(id EdgeID) error             { return c.add("DeleteEdgeByID", id) }
func (c *calls) SetProperty(id NodeID, key string, value any) error {
	return c.add("SetProperty", id, key, value)
}

// slowCalls is what a command calls; an error where it is not valid.
func slowCalls(t CommandType, data []byte) ([]call, error) {
	switch t {
	case CmdCreateNode, CmdUpdateNode, CmdPutNode:
		n, err := slowNode(data)
		method := map[CommandType]string{CmdCreateNode: "CreateNode", CmdUpdateNode: "UpdateNode", CmdPutNode: "UpdateNode"}[t]
		return []call{{method, []any{n}}}, errors.Join(err, checkID("node ID", string(n.ID)))
	case CmdCreateEdge, CmdUpdateEdge, CmdPutEdge:
		e, err := slowEdge(data)
		method := map[CommandType]string{CmdCreateEdge: "CreateEdge", CmdUpdateEdge: "UpdateEdge", CmdPutEdge: "UpdateEdge"}[t]
		return []call{{method, []any{e}}}, errors.Join(err, checkID("start", string(e.StartNode)), checkID("end", string(e.EndNode)), checkID("type", e.Type))
	case CmdDeleteNode:
		return []call{{"DeleteNode", []any{NodeID(data)}}}, checkID("node ID", string(data))
	case CmdDeleteEdge:
		return slowDeleteEdge(data)
	case CmdSetProperty:
		return slowSetProperty(data)
	case CmdBatchWrite:
		return slowBatch(data)
	}
	return nil, errors.New("not a typed command")
}

func slowDeleteEdge(data []byte) ([]call, error) {
	var d deleteEdgeData
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, err
	}
	if d.EdgeID == "" {
		d.EdgeID = d.ID
	}
	if d.EdgeID != "" {
		return []call{{"DeleteEdgeByID", []any{d.EdgeID}}}, nil
	}
	err := errors.Join(checkID("start", string(d.StartNode)), checkID("end", string(d.EndNode)), checkID("type", d.Type))
	return []call{{"DeleteEdge", []any{d.StartNode, d.EndNode, d.Type}}}, err
}

func slowSetProperty(data []byte) ([]call, error) {
	var d setPropertyData
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, err
	}
	var value any
	var err error
	if len(d.Value) > 0 {
		value, err = slowValue(d.Value)
	}
	return []call{{"SetProperty", []any{d.NodeID, d.Key, value}}}, errors.Join(err, checkID("node ID", string(d.NodeID)), checkID("key", d.Key))
}

func slowBatch(data []byte) ([]call, error) {
	var d batchData
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, err
	}
	if len(d.Commands)+len(d.Nodes)+len(d.Edges) > maxBatchCommands {
		return nil, errors.New("too many")
	}
	type part struct {
		t    CommandType
		data []byte
	}
	var parts []part
	for _, c := range d.Commands {
		if c == nil || c.Type == CmdBatchWrite {
			return nil, errors.New("null, or a batch in a batch")
		}
		parts = append(parts, part{c.Type, c.Data})
	}
	for _, n := range d.Nodes {
		parts = append(parts, part{CmdCreateNode, n})
	}
	for _, e := range d.Edges {
		parts = append(parts, part{CmdCreateEdge, e})
	}
	var all []call
	for _, p := range parts {
		one, err := slowCalls(p.t, p.data)
		if err != nil {
			return nil, err
		}
		all = append(all, one...)
	}
	return all, nil
}
