package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/internal/report"
)

const (
	// maxBatchBody bounds the body of POST /graph/batch.
	maxBatchBody = 8 << 20
	maxBody      = 1 << 20
	writeTimeout = 30 * time.Second
)

// rest is the graph's REST interface on a node.
type rest struct {
	repl      replication.Replicator
	store     *boltgraph.Store
	authorize func(*http.Request) error // guards what changes the graph
	level     replication.Consistency   // of reads that name none
}

type restRoute struct {
	pattern string // method and path
	serve   http.HandlerFunc
	query   []string // the query parameters that it knows
}

// routes of the interface. All but those with GET change the graph.
func (s *rest) routes() []restRoute {
	level := []string{"consistency"}
	return []restRoute{
		{"PUT /graph/nodes/{id}", s.putNode, nil},
		{"GET /graph/nodes/{id}", s.getNode, level},
		{"PATCH /graph/nodes/{id}", s.patchNode, nil},
		{"DELETE /graph/nodes/{id}", s.deleteNode, nil},
		{"GET /graph/nodes/{id}/edges", s.nodeEdges, []string{"direction", "consistency"}},
		{"PUT /graph/edges/{from}/{type}/{to}", s.putEdge, nil},
		{"GET /graph/edges/{from}/{type}/{to}", s.getEdge, level},
		{"DELETE /graph/edges/{from}/{type}/{to}", s.deleteEdge, nil},
		{"POST /graph/batch", s.batch, nil},
		{"GET /graph/stats", s.stats, level},
		{"GET /graph/export", s.export, level},
	}
}

func (s *rest) mount(mux *http.ServeMux) {
	for _, route := range s.routes() {
		mux.HandleFunc(route.pattern, func(w http.ResponseWriter, r *http.Request) {
			if !strings.HasPrefix(route.pattern, "GET ") && !replication.AuthorizeHTTP(w, r, s.authorize) {
				return
			}
			if replication.CheckHTTPQuery(w, r, route.query...) {
				route.serve(w, r)
			}
		})
	}
}

// write applies commands as one group and answers its position.
func (s *rest) write(w http.ResponseWriter, r *http.Request, cmds ...*replication.Command) {
	if len(cmds) > 0 {
		cmds[0].RequestID = r.Header.Get("Request-Id")
	}
	ctx, cancel := context.WithTimeout(r.Context(), writeTimeout)
	defer cancel()
	start := time.Now()
	position, err := s.repl.(replication.BatchApplier).ApplyBatch(ctx, cmds)
	if s.repl.Mode() == replication.ModeStandalone { // the other modes report themselves
		report.Apply(start, err)
	}
	if err != nil {
		replication.WriteHTTPError(w, err)
		return
	}
	replication.WriteHTTPJSON(w, http.StatusOK, map[string]uint64{"position": position})
}

// decode reads a bounded JSON body without unknown fields.
func decode(w http.ResponseWriter, r *http.Request, v any) bool {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if err == nil && dec.More() {
		err = errors.New("more than one value")
	}
	if err != nil {
		replication.WriteHTTPError(w, fmt.Errorf("%w: body: %w", replication.ErrInvalidCommand, err))
		return false
	}
	return true
}

// send applies a command that was made with err.
func (s *rest) send(w http.ResponseWriter, r *http.Request, cmd *replication.Command, err error) {
	if err != nil {
		replication.WriteHTTPError(w, err)
		return
	}
	s.write(w, r, cmd)
}

func (s *rest) putNode(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Labels     []string        `json:"labels"`
		Properties json.RawMessage `json:"properties"`
	}
	if !decode(w, r, &body) {
		return
	}
	props, err := properties(body.Properties)
	if err != nil {
		replication.WriteHTTPError(w, err)
		return
	}
	cmd, err := replication.NewNodeCommand(replication.CmdPutNode,
		&replication.Node{ID: replication.NodeID(r.PathValue("id")), Labels: body.Labels, Properties: props})
	s.send(w, r, cmd, err)
}

// properties decodes an object of property values; nothing is none.
func properties(raw json.RawMessage) (map[string]any, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	v, err := replication.DecodeValue(raw)
	if err != nil {
		return nil, err
	}
	props, ok := v.(map[string]any)
	if !ok && v != nil {
		return nil, fmt.Errorf("%w: properties are not an object", replication.ErrInvalidCommand)
	}
	return props, nil
}

// read makes this node as fresh as the request's consistency asks.
func (s *rest) read(w http.ResponseWriter, r *http.Request) bool {
	level := replication.Consistency(r.URL.Query().Get("consistency"))
	if level == "" {
		level = s.level
	}
	ctx, cancel := context.WithTimeout(r.Context(), writeTimeout)
	defer cancel()
	if _, err := s.repl.(replication.ConsistentReader).ReadBarrier(ctx, level); err != nil {
		replication.WriteHTTPError(w, err)
		return false
	}
	return true
}

func respond(w http.ResponseWriter, v any, err error) {
	if err != nil {
		replication.WriteHTTPError(w, err)
		return
	}
	replication.WriteHTTPJSON(w, http.StatusOK, v)
}

func (s *rest) getNode(w http.ResponseWriter, r *http.Request) {
	if s.read(w, r) {
		n, err := s.store.Node(replication.NodeID(r.PathValue("id")))
		respond(w, n, err)
	}
}

func (s *rest) patchNode(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Key   string          `json:"key"`
		Value json.RawMessage `json:"value"`
	}
	if !decode(w, r, &body) {
		return
	}
	var value any
	var err error
	if len(body.Value) > 0 {
		value, err = replication.DecodeValue(body.Value)
	}
	if err != nil {
		replication.WriteHTTPError(w, err)
		return
	}
	cmd, err := replication.NewSetProperty(replication.NodeID(r.PathValue("id")), body.Key, value)
	s.send(w, r, cmd, err)
}

func (s *rest) deleteNode(w http.ResponseWriter, r *http.Request) {
	s.write(w, r, replication.NewDeleteNode(replication.NodeID(r.PathValue("id"))))
}

func edgeOf(r *http.Request) *replication.Edge {
	return &replication.Edge{StartNode: replication.NodeID(r.PathValue("from")), Type: r.PathValue("type"),
		EndNode: replication.NodeID(r.PathValue("to"))}
}

func (s *rest) putEdge(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Properties json.RawMessage `json:"properties"`
	}
	if !decode(w, r, &body) {
		return
	}
	e := edgeOf(r)
	var err error
	if e.Properties, err = properties(body.Properties); err != nil {
		replication.WriteHTTPError(w, err)
		return
	}
	cmd, err := replication.NewEdgeCommand(replication.CmdPutEdge, e)
	s.send(w, r, cmd, err)
}

func (s *rest) getEdge(w http.ResponseWriter, r *http.Request) {
	if s.read(w, r) {
		e := edgeOf(r)
		found, err := s.store.Edge(e.StartNode, e.Type, e.EndNode, "")
		respond(w, found, err)
	}
}

func (s *rest) deleteEdge(w http.ResponseWriter, r *http.Request) {
	e := edgeOf(r)
	cmd, err := replication.NewDeleteEdge(e.StartNode, e.EndNode, e.Type)
	s.send(w, r, cmd, err)
}

func (s *rest) nodeEdges(w http.ResponseWriter, r *http.Request) {
	dir := boltgraph.Out
	switch r.URL.Query().Get("direction") {
	case "", "out":
	case "in":
		dir = boltgraph.In
	default:
		replication.WriteHTTPError(w, fmt.Errorf("%w: direction is out or in", replication.ErrInvalidCommand))
		return
	}
	if !s.read(w, r) {
		return
	}
	edges := []*replication.Edge{}
	err := s.store.Edges(replication.NodeID(r.PathValue("id")), dir, func(e *replication.Edge) error {
		edges = append(edges, e)
		return nil
	})
	respond(w, edges, err)
}

// batch applies APOC JSON lines, at most maxBatchBody bytes, all or nothing.
func (s *rest) batch(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBatchBody))
	if err != nil {
		kind := replication.ErrInvalidCommand // cut short
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			kind = replication.ErrCommandTooLarge
		}
		replication.WriteHTTPError(w, fmt.Errorf("%w: a batch, of at most %d bytes: %w", kind, maxBatchBody, err))
		return
	}
	var cmds []*replication.Command
	lines := newAPOCReader(bytes.NewReader(data))
	for {
		rec, err := lines.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			replication.WriteHTTPError(w, err)
			return
		}
		cmd, err := rec.command()
		if err != nil {
			replication.WriteHTTPError(w, err)
			return
		}
		cmds = append(cmds, cmd)
	}
	s.write(w, r, cmds...)
}

type statsView struct {
	Nodes    uint64 `json:"nodes"`
	Edges    uint64 `json:"edges"`
	Position uint64 `json:"position"`
	Digest   string `json:"digest"`
	Region   string `json:"region,omitempty"` // whose position it is
}

func (s *rest) stats(w http.ResponseWriter, r *http.Request) {
	if !s.read(w, r) {
		return
	}
	st, err := s.store.Stats()
	v := &statsView{Nodes: st.Nodes, Edges: st.Edges, Position: st.Position, Digest: st.Digest}
	if f := s.repl.Health().Federation; f != nil {
		v.Region = f.Region
	}
	respond(w, v, err)
}

// export streams the graph from one read transaction. An error in the middle
// ends the connection without the last chunk, so that it is not taken for the
// end.
func (s *rest) export(w http.ResponseWriter, r *http.Request) {
	if !s.read(w, r) {
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := newAPOCWriter(w)
	_, err := s.store.Walk(out.node, out.edge)
	if err == nil {
		err = out.flush()
	}
	if err != nil {
		panic(http.ErrAbortHandler)
	}
}
