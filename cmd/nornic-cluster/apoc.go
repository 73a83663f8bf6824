package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strconv"

	"github.com/nornicdb/replication"
)

// maxLineBytes bounds one line of a graph file.
const maxLineBytes = 8 << 20

// apocRecord is one line of APOC's JSON export: a node or a relationship.
type apocRecord struct {
	Type       string          `json:"type"`
	ID         string          `json:"id"`
	Labels     []string        `json:"labels,omitempty"`
	Label      string          `json:"label,omitempty"`
	Properties json.RawMessage `json:"properties,omitempty"`
	Start      *apocEnd        `json:"start,omitempty"`
	End        *apocEnd        `json:"end,omitempty"`
	// Parallel: ends and type do not identify the relationship, its ID does too.
	Parallel bool `json:"parallel,omitempty"`
}

type apocEnd struct {
	ID     string   `json:"id"`
	Labels []string `json:"labels,omitempty"`
}

// command makes PutNode or PutEdge of a record: repeating it changes nothing.
// A relationship is known by its ends and type; the file's own ID for it, a
// running number usually, is kept only where it is marked as parallel.
func (r *apocRecord) command() (*replication.Command, error) {
	props, err := properties(r.Properties)
	if err != nil {
		return nil, err
	}
	switch {
	case r.Type == "node":
		return replication.NewNodeCommand(replication.CmdPutNode,
			&replication.Node{ID: replication.NodeID(r.ID), Labels: r.Labels, Properties: props})
	case r.Type == "relationship" && r.Start != nil && r.End != nil:
		edge := &replication.Edge{StartNode: replication.NodeID(r.Start.ID), EndNode: replication.NodeID(r.End.ID), Type: r.Label, Properties: props}
		if r.Parallel {
			edge.ID = replication.EdgeID(r.ID)
		}
		return replication.NewEdgeCommand(replication.CmdPutEdge, edge)
	default:
		return nil, fmt.Errorf("%w: a record is a node, or a relationship with start and end", replication.ErrInvalidCommand)
	}
}

// apocReader reads records line by line.
type apocReader struct {
	scan *bufio.Scanner
	line int
}

func newAPOCReader(r io.Reader) *apocReader {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), maxLineBytes)
	return &apocReader{scan: s}
}

// next returns the next record, or io.EOF.
func (r *apocReader) next() (*apocRecord, error) {
	for r.scan.Scan() {
		r.line++
		if len(r.scan.Bytes()) == 0 {
			continue
		}
		rec := new(apocRecord)
		if err := json.Unmarshal(r.scan.Bytes(), rec); err != nil {
			if cut := r.scan.Err(); cut != nil { // the line is what came before that
				return nil, fmt.Errorf("line %d: %w", r.line, cut)
			}
			return nil, fmt.Errorf("%w: line %d: %w", replication.ErrInvalidCommand, r.line, err)
		}
		return rec, nil
	}
	if err := r.scan.Err(); err != nil {
		return nil, fmt.Errorf("line %d: %w", r.line+1, err)
	}
	return nil, io.EOF
}

// apocWriter writes nodes and edges as records. Relationships are numbered as
// they come.
type apocWriter struct {
	w     *bufio.Writer
	edges int
}

func newAPOCWriter(w io.Writer) *apocWriter { return &apocWriter{w: bufio.NewWriterSize(w, 64<<10)} }

func (a *apocWriter) write(rec *apocRecord, props map[string]any) error {
	if props == nil {
		props = map[string]any{}
	}
	var err error
	if rec.Properties, err = replication.AppendValue(nil, props); err != nil {
		return err
	}
	line, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	_, err = a.w.Write(append(line, '\n'))
	return err
}

func (a *apocWriter) node(n *replication.Node) error {
	return a.write(&apocRecord{Type: "node", ID: string(n.ID), Labels: n.Labels}, n.Properties)
}

func (a *apocWriter) edge(e *replication.Edge) error {
	id := string(e.ID)
	if id == "" {
		id = "r" + strconv.Itoa(a.edges)
	}
	a.edges++
	return a.write(&apocRecord{Type: "relationship", ID: id, Label: e.Type, Parallel: e.ID != "",
		Start: &apocEnd{ID: string(e.StartNode)}, End: &apocEnd{ID: string(e.EndNode)}}, e.Properties)
}

func (a *apocWriter) flush() error { return a.w.Flush() }
