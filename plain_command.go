package replication

import (
	"encoding/base64"
	"math"
	"time"
	"unicode/utf8"
)

// node reads the Data of CreateNode, UpdateNode and PutNode.
func (r *plainReader) node() (n Node) {
	var id, labels, properties bool
	r.expect('{')
	for i := 0; r.more('}', i); i++ {
		switch string(r.key()) {
		case "id":
			r.once(&id)
			n.ID = NodeID(r.name())
		case "labels":
			r.once(&labels)
			n.Labels = r.labels()
		case "properties":
			r.once(&properties)
			n.Properties = r.properties()
		default:
			r.odd = true
		}
	}
	if r.odd = r.odd || !id; !properties && !r.check {
		n.Properties = make(map[string]any)
	}
	return n
}

// edge reads the Data of CreateEdge, UpdateEdge and PutEdge.
func (r *plainReader) edge() (e Edge) {
	var id, start, end, relType, properties bool
	r.expect('{')
	for i := 0; r.more('}', i); i++ {
		switch string(r.key()) {
		case "id":
			r.once(&id)
			e.ID = EdgeID(r.str())
		case "startNode":
			r.once(&start)
			e.StartNode = NodeID(r.name())
		case "endNode":
			r.once(&end)
			e.EndNode = NodeID(r.name())
		case "type":
			r.once(&relType)
			e.Type = r.name()
		case "properties":
			r.once(&properties)
			e.Properties = r.properties()
		default:
			r.odd = true
		}
	}
	if r.odd = r.odd || !start || !end || !relType; !properties && !r.check {
		e.Properties = make(map[string]any)
	}
	return e
}

// labels reads a list of strings.
func (r *plainReader) labels() []string {
	if r.null() {
		return nil
	}
	var labels []string
	r.expect('[')
	for n := 0; r.more(']', n); n++ {
		if label := r.term(); !r.check {
			labels = append(labels, label)
		}
	}
	if labels == nil && !r.check {
		labels = []string{}
	}
	return labels
}

// properties reads an object of property values. One that is null is not there;
// of one that comes twice the last value counts.
func (r *plainReader) properties() map[string]any {
	var props map[string]any
	if !r.check {
		props = make(map[string]any)
	}
	if r.null() {
		return props
	}
	r.expect('{')
	for n := 0; r.more('}', n); n++ {
		key := r.term()
		r.expect(':')
		v := r.value(0)
		switch {
		case r.check:
		case v != nil:
			props[key] = v
		default:
			delete(props, key)
		}
	}
	return props
}

// deleteEdge reads the Data of DeleteEdge.
func (r *plainReader) deleteEdge() (d deleteEdgeData) {
	var id, edgeID, start, end, relType bool
	r.expect('{')
	for i := 0; r.more('}', i); i++ {
		switch string(r.key()) {
		case "id":
			r.once(&id)
			d.ID = EdgeID(r.name())
		case "edge_id":
			r.once(&edgeID)
			d.EdgeID = EdgeID(r.name())
		case "startNode":
			r.once(&start)
			d.StartNode = NodeID(r.name())
		case "endNode":
			r.once(&end)
			d.EndNode = NodeID(r.name())
		case "type":
			r.once(&relType)
			d.Type = r.name()
		default:
			r.odd = true
		}
	}
	r.odd = r.odd || !id && !edgeID && !(start && end && relType)
	return d
}

// setProperty reads the Data of SetProperty and the decoded value in it.
func (r *plainReader) setProperty() (d setPropertyData, value any) {
	var id, key, val bool
	r.expect('{')
	for i := 0; r.more('}', i); i++ {
		switch string(r.key()) {
		case "node_id":
			r.once(&id)
			d.NodeID = NodeID(r.name())
		case "key":
			r.once(&key)
			d.Key = r.name()
		case "value":
			r.once(&val)
			value = r.value(0)
		default:
			r.odd = true
		}
	}
	r.odd = r.odd || !id || !key
	return d, value
}

// batch reads the Data of BatchWrite. The lists are odd in another order than
// that in which they are applied.
func (r *plainReader) batch() []operation {
	var ops []operation
	count := 0
	var commands, nodes, edges bool
	r.expect('{')
	for i := 0; r.more('}', i); i++ {
		switch string(r.key()) {
		case "commands":
			r.once(&commands)
			r.odd = r.odd || nodes || edges
			ops = r.commands(ops, &count)
		case "nodes":
			r.once(&nodes)
			r.odd = r.odd || edges
			ops = r.items(ops, &count, CmdCreateNode)
		case "edges":
			r.once(&edges)
			ops = r.items(ops, &count, CmdCreateEdge)
		default:
			r.odd = true
		}
	}
	r.odd = r.odd || count > maxBatchCommands
	return ops
}

// items reads a list of nodes or edges, which are created.
func (r *plainReader) items(ops []operation, count *int, t CommandType) []operation {
	r.expect('[')
	for n := 0; r.more(']', n); n++ {
		*count++
		op := r.create(t)
		if !r.check {
			ops = append(ops, op)
		}
	}
	return ops
}

func (r *plainReader) create(t CommandType) operation {
	if t == CmdCreateNode {
		if n := r.node(); !r.check {
			return &nodeOperation{t, n}
		}
		return nil
	}
	if e := r.edge(); !r.check {
		return &edgeOperation{t, e}
	}
	return nil
}

// commands reads a list of commands. What is odd in one of them is asked of
// encoding/json alone; what is wrong in one makes the list odd.
func (r *plainReader) commands(ops []operation, count *int) []operation {
	var data []byte // of one command after the other, none of which keeps it
	r.expect('[')
	for n := 0; r.more(']', n); n++ {
		*count++
		var c Command
		r.command(&c, data)
		if r.odd || c.Type == CmdBatchWrite || c.Type == CmdCypher {
			r.odd = true
			break
		}
		if cap(c.Data) > 0 {
			data = c.Data
		}
		if r.check && plainCommand(c.Type, c.Data) {
			continue
		}
		op, err := decodeOperation(&c)
		r.odd = err != nil
		ops = append(ops, op)
	}
	return ops
}

// plainCommand says that a command of this type with this data is valid. If it
// does not say so, that is no verdict.
func plainCommand(t CommandType, data []byte) bool {
	r := plainReader{data: data, check: true}
	switch t {
	case CmdCreateNode, CmdUpdateNode, CmdPutNode:
		r.node()
	case CmdCreateEdge, CmdUpdateEdge, CmdPutEdge:
		r.edge()
	case CmdDeleteNode:
		return len(data) > 0 && utf8.Valid(data)
	case CmdDeleteEdge:
		r.deleteEdge()
	case CmdSetProperty:
		r.setProperty()
	case CmdBatchWrite:
		r.batch()
	case CmdCypher:
		r.cypher()
	default:
		return false
	}
	return r.done()
}

// cypher reads the Data of Cypher, without the values.
func (r *plainReader) cypher() {
	var query, params bool
	r.expect('{')
	for i := 0; r.more('}', i); i++ {
		switch string(r.key()) {
		case "query":
			r.once(&query)
			r.name()
		case "params":
			r.once(&params)
			if !r.null() {
				r.object(0)
			}
		default:
			r.odd = true
		}
	}
	r.odd = r.odd || !query
}

// command reads a Command into c. Its Data then lies in scratch, if there is room.
func (r *plainReader) command(c *Command, scratch []byte) {
	var kind, data, timestamp, request bool
	r.expect('{')
	for i := 0; r.more('}', i); i++ {
		switch string(r.key()) {
		case "Type":
			r.once(&kind)
			c.Type = CommandType(r.byte())
		case "Data":
			r.once(&data)
			c.Data = r.base64(scratch)
		case "Timestamp":
			r.once(&timestamp)
			c.Timestamp = r.time()
		case "RequestID":
			r.once(&request)
			c.RequestID = r.str()
		default:
			r.odd = true
		}
	}
}

// applyRequest reads an ApplyRequest into r, which has no commands yet.
func (r *plainReader) applyRequest(a *ApplyRequest) {
	var commands, timeout, hops bool
	r.expect('{')
	for i := 0; r.more('}', i); i++ {
		switch string(r.key()) {
		case "Commands":
			r.once(&commands)
			a.Commands = []*Command{}
			r.expect('[')
			for n := 0; r.more(']', n); n++ {
				c := new(Command)
				r.command(c, nil)
				a.Commands = append(a.Commands, c)
			}
		case "TimeoutMS":
			r.once(&timeout)
			a.TimeoutMS = r.integer()
		case "Hops":
			r.once(&hops)
			n := r.integer()
			a.Hops = int(n)
			r.odd = r.odd || int64(a.Hops) != n
		default:
			r.odd = true
		}
	}
}

func (r *plainReader) integer() int64 {
	r.peek()
	n, ok := r.number().(int64)
	r.odd = r.odd || !ok
	return n
}

// byte reads a number of a byte.
func (r *plainReader) byte() byte {
	r.peek()
	digits := r.digits()
	if r.odd = r.odd || len(digits) == 0 || len(digits) > 3 || digits[0] == '0' && len(digits) > 1; r.odd {
		return 0
	}
	n := 0
	for _, d := range digits {
		n = 10*n + int(d-'0')
	}
	r.odd = n > math.MaxUint8
	return byte(n)
}

// base64 reads bytes, into scratch if there is room; null is nil.
func (r *plainReader) base64(scratch []byte) []byte {
	if r.null() {
		return nil
	}
	raw, escaped := r.text()
	if r.odd = r.odd || escaped; r.odd {
		return nil
	}
	size := base64.StdEncoding.DecodedLen(len(raw))
	if scratch == nil || cap(scratch) < size {
		scratch = make([]byte, size)
	}
	n, err := base64.StdEncoding.Decode(scratch[:size], raw)
	r.odd = err != nil
	return scratch[:n]
}

// time reads a time, as encoding/json has it read.
func (r *plainReader) time() (t time.Time) {
	r.peek()
	start := r.pos
	if r.text(); !r.odd {
		r.odd = t.UnmarshalJSON(r.data[start:r.pos]) != nil
	}
	return t
}
