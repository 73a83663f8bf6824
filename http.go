package replication

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ErrHTTPUnauthorized is what HTTPOptions.Authorize wraps where credentials are
// missing or wrong; any other error of it is "forbidden".
var ErrHTTPUnauthorized = errors.New("unauthorized")

// HTTPOptions of NewHTTPHandler.
type HTTPOptions struct {
	// Authorize lets a request to a mutating endpoint pass; nil refuses all.
	Authorize func(*http.Request) error
	// Timeout of one operation; 30 s where zero.
	Timeout time.Duration
}

const maxHTTPBody = 64 << 10

type httpHandler struct {
	r    Replicator
	opts HTTPOptions
}

// NewHTTPHandler makes the health and administration endpoints of a replicator
// (HTTP endpoints and metrics). Bodies and answers are JSON; errors are
// {"error": {"code", "message", "leader_id", "leader_addr", "position"}}.
func NewHTTPHandler(r Replicator, opts HTTPOptions) http.Handler {
	if opts.Timeout <= 0 {
		opts.Timeout = 30 * time.Second
	}
	h := &httpHandler{r: r, opts: opts}
	mux := http.NewServeMux()
	for _, route := range h.routes() {
		mux.HandleFunc(route.pattern, func(w http.ResponseWriter, r *http.Request) {
			if CheckHTTPQuery(w, r, route.query...) {
				route.serve(w, r)
			}
		})
	}
	return HTTPMuxErrors(mux)
}

// HTTPMuxErrors serves mux, and answers in JSON where mux itself refuses a request:
// 404 for an unknown path, 405 for another method.
func HTTPMuxErrors(mux *http.ServeMux) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		own, pattern := mux.Handler(r)
		if pattern == "" {
			own.ServeHTTP(&muxError{ResponseWriter: w, what: r.Method + " " + r.URL.Path}, r)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// muxError puts a JSON body in the place of the text with which a ServeMux refuses
// a request. Headers, Allow among them, stay.
type muxError struct {
	http.ResponseWriter
	what string
}

func (e *muxError) WriteHeader(status int) {
	if status != http.StatusNotFound && status != http.StatusMethodNotAllowed { // a redirect to the clean path
		e.ResponseWriter.WriteHeader(status)
		return
	}
	code := "not_found"
	if status == http.StatusMethodNotAllowed {
		code = "method_not_allowed"
	}
	e.Header().Del("X-Content-Type-Options")
	WriteHTTPJSON(e.ResponseWriter, status, map[string]any{"error": map[string]string{"code": code, "message": e.what + ": " + http.StatusText(status)}})
}

// Write drops the text.
func (e *muxError) Write(text []byte) (int, error) { return len(text), nil }

type httpRoute struct {
	pattern string // method and path
	serve   http.HandlerFunc
	query   []string // the query parameters that it knows
}

// routes of the handler. What changes something is a POST, made by post.
func (h *httpHandler) routes() []httpRoute {
	return []httpRoute{
		{"GET /health", h.health, []string{"ready"}},
		{"GET /admin/cluster/status", h.status, nil},
		{"POST /admin/cluster/add", post(h, h.add), nil},
		{"POST /admin/cluster/remove", post(h, h.remove), nil},
		{"POST /admin/cluster/transfer-leadership", post(h, h.transfer), nil},
		{"POST /admin/cluster/snapshot", post(h, h.snapshot), nil},
		{"POST /admin/solo", post(h, h.solo), nil},
		{"POST /admin/promote", post(h, h.promote), nil},
		{"POST /admin/region/promote", post(h, h.promoteRegion), nil},
		{"POST /admin/region/remove", post(h, h.removeRegion), nil},
		{"GET /admin/region/settings", h.regionSettings, nil},
		{"POST /admin/region/settings", post(h, h.changeRegionSettings), nil},
		{"GET /admin/conflicts", h.conflicts, []string{"field", "node", "after", "limit"}},
		{"POST /admin/conflicts/{id}/resolve", func(w http.ResponseWriter, r *http.Request) {
			post(h, func(ctx context.Context, q *Resolution) error { return h.resolve(ctx, r.PathValue("id"), q) })(w, r)
		}, nil},
	}
}

// HTTPRoutes lists the routes of NewHTTPHandler, each as method and path. All but
// those with GET are reached only through HTTPOptions.Authorize.
func HTTPRoutes() []string {
	var list []string
	for _, route := range new(httpHandler).routes() {
		list = append(list, route.pattern)
	}
	return list
}

// HTTPStatus is the status of an error. An unknown outcome is 504 like a
// timeout; the code in the body tells them apart.
func HTTPStatus(err error) int {
	var notLeader *NotLeaderError
	if errors.As(err, &notLeader) && notLeader.LeaderID == "" && !errors.Is(err, ErrUnknownOutcome) {
		return http.StatusServiceUnavailable // nobody leads
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return http.StatusRequestEntityTooLarge
	}
	for _, row := range []struct {
		status int
		errs   []error
	}{
		{http.StatusGatewayTimeout, []error{ErrUnknownOutcome}},
		{http.StatusBadRequest, []error{ErrInvalidCommand, ErrInvalidTimeout, ErrInvalidConfig}},
		{http.StatusRequestEntityTooLarge, []error{ErrCommandTooLarge}},
		{http.StatusUnauthorized, []error{ErrHTTPUnauthorized}},
		{http.StatusBadGateway, []error{ErrUnauthenticated, ErrWrongPeer}}, // between the nodes
		{http.StatusNotFound, []error{ErrNotFound, ErrNoConflict}},
		{http.StatusConflict, []error{ErrNotLeader, ErrExists, ErrMissingEnd, ErrRequestIDReused, ErrMemberExists, ErrQuorumAtRisk, ErrVersionsChanged}},
		{http.StatusTooManyRequests, []error{ErrOverloaded}},
		{http.StatusServiceUnavailable, []error{ErrNoLeader, ErrNotReady, ErrClockSkew, ErrClosed, ErrStorageFailed}},
		{http.StatusGatewayTimeout, []error{ErrTimeout}},
		{http.StatusNotImplemented, []error{ErrUnsupported, ErrOpaqueWrite}},
	} {
		for _, e := range row.errs {
			if errors.Is(err, e) {
				return row.status
			}
		}
	}
	if _, verdict := Verdict(err); verdict {
		return http.StatusConflict
	}
	return http.StatusInternalServerError
}

// CheckHTTPQuery says whether a request has no query parameters but the known ones,
// each once, and answers one that has others with 400: a misspelt consistency would
// be a read at another level than was asked for.
func CheckHTTPQuery(w http.ResponseWriter, r *http.Request, known ...string) bool {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		WriteHTTPError(w, fmt.Errorf("%w: query: %w", ErrInvalidCommand, err))
		return false
	}
	for _, name := range slices.Sorted(maps.Keys(query)) {
		allowed := "none is known here"
		if len(known) > 0 {
			allowed = "known here: " + strings.Join(known, ", ")
		}
		switch {
		case !slices.Contains(known, name):
			err = fmt.Errorf("%w: query parameter %q is not known; %s", ErrInvalidCommand, name, allowed)
		case len(query[name]) > 1:
			err = fmt.Errorf("%w: query parameter %q is there %d times", ErrInvalidCommand, name, len(query[name]))
		default:
			continue
		}
		WriteHTTPError(w, err)
		return false
	}
	return true
}

// WriteHTTPError answers a request with an error.
func WriteHTTPError(w http.ResponseWriter, err error) { writeHTTPError(w, HTTPStatus(err), err) }

func writeHTTPError(w http.ResponseWriter, status int, err error) {
	type body struct {
		Code       string `json:"code"`
		Message    string `json:"message"`
		LeaderID   string `json:"leader_id,omitempty"`
		LeaderAddr string `json:"leader_addr,omitempty"`
		Position   uint64 `json:"position,omitempty"` // of an unconfirmed write
	}
	b := body{Code: ErrorCode(err), Message: err.Error()}
	switch status { // errors of this handler's, which no message between nodes carries
	case http.StatusUnauthorized:
		b.Code = "unauthorized"
	case http.StatusForbidden:
		b.Code = "forbidden"
	}
	var notLeader *NotLeaderError
	if errors.As(err, &notLeader) {
		b.LeaderID, b.LeaderAddr = notLeader.LeaderID, notLeader.LeaderAddr
	}
	var unconfirmed *UnconfirmedError
	if errors.As(err, &unconfirmed) {
		b.Position = unconfirmed.Position
	}
	WriteHTTPJSON(w, status, map[string]body{"error": b})
}

// WriteHTTPJSON answers a request with a JSON body.
func WriteHTTPJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone, or there is nothing to add
}

// post makes the handler of a mutating endpoint: authorized, with a bounded
// body that has no unknown fields.
func post[T any](h *httpHandler, do func(context.Context, *T) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if !AuthorizeHTTP(w, r, h.opts.Authorize) {
			return
		}
		request := new(T)
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxHTTPBody))
		dec.DisallowUnknownFields()
		err := dec.Decode(request)
		if err == nil && dec.More() {
			err = errors.New("more than one value")
		}
		if err != nil && err != io.EOF { // no body is an empty one
			WriteHTTPError(w, fmt.Errorf("%w: body: %w", ErrInvalidCommand, err))
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), h.opts.Timeout)
		defer cancel()
		if err := do(ctx, request); err != nil {
			WriteHTTPError(w, err)
			return
		}
		WriteHTTPJSON(w, http.StatusOK, map[string]bool{"ok": true})
	}
}

// AuthorizeHTTP says whether authorize lets a request pass, nil none, and answers
// one that it does not: 401 for ErrHTTPUnauthorized, 403 for other errors.
func AuthorizeHTTP(w http.ResponseWriter, r *http.Request, authorize func(*http.Request) error) bool {
	err := errors.New("changes over HTTP are not enabled on this node")
	if authorize != nil {
		err = authorize(r)
	}
	switch {
	case err == nil:
		return true
	case errors.Is(err, ErrHTTPUnauthorized):
		writeHTTPError(w, http.StatusUnauthorized, err)
	default:
		writeHTTPError(w, http.StatusForbidden, err)
	}
	return false
}

type healthView struct {
	Status      string           `json:"status"`
	Replication *replicationView `json:"replication"`
}

type replicationView struct {
	Mode         ReplicationMode `json:"mode"`
	NodeID       string          `json:"node_id"`
	Role         string          `json:"role"`
	IsLeader     bool            `json:"is_leader"`
	State        string          `json:"state"`
	Reasons      []string        `json:"reasons,omitempty"`
	LeaderID     string          `json:"leader_id,omitempty"`
	LeaderAddr   string          `json:"leader_addr,omitempty"`
	CommitIndex  uint64          `json:"commit_index"`
	AppliedIndex uint64          `json:"applied_index"`
	Term         uint64          `json:"term"`
	LagEntries   uint64          `json:"replication_lag"`
	LagSeconds   float64         `json:"replication_lag_seconds"`
	LastContact  *time.Time      `json:"last_contact,omitempty"`
	Peers        []memberView    `json:"peers"`
	*federationView
}

type memberView struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	Voter   bool   `json:"voter"`
	Healthy bool   `json:"healthy"`
	Lag     int64  `json:"lag"`
	State   string `json:"state"`
}

func memberViews(list []PeerHealth) []memberView {
	views := make([]memberView, len(list))
	for i, p := range list {
		views[i] = memberView(p)
	}
	return views
}

func (h *httpHandler) health(w http.ResponseWriter, r *http.Request) {
	s := h.r.Health()
	fine := s.Healthy
	if text := r.URL.Query().Get("ready"); text != "" {
		ready, err := strconv.ParseBool(text)
		if err != nil {
			WriteHTTPError(w, fmt.Errorf("%w: ready=%q; allowed: 1 or 0", ErrInvalidCommand, text))
			return
		}
		if ready {
			fine = s.Ready
		}
	}
	view := healthView{Status: "healthy", Replication: &replicationView{
		Mode: s.Mode, NodeID: s.NodeID, Role: s.Role, IsLeader: s.IsLeader, State: s.State, Reasons: s.Reasons,
		LeaderID: s.LeaderID, LeaderAddr: s.LeaderAddr, CommitIndex: s.CommitIndex, AppliedIndex: s.AppliedIndex,
		Term: s.Term, LagEntries: s.LagEntries, LagSeconds: s.LagSeconds, Peers: memberViews(s.Peers),
		federationView: viewFederation(s.Federation),
	}}
	if !s.LastContact.IsZero() {
		view.Replication.LastContact = &s.LastContact
	}
	status := http.StatusOK
	if !fine {
		view.Status, status = "unhealthy", http.StatusServiceUnavailable
	}
	WriteHTTPJSON(w, status, view)
}

func (h *httpHandler) status(w http.ResponseWriter, r *http.Request) {
	m, ok := h.r.(Membership)
	if !ok {
		WriteHTTPError(w, errNoAbility)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.opts.Timeout)
	defer cancel()
	s, err := m.ClusterStatus(ctx)
	if err != nil {
		WriteHTTPError(w, err)
		return
	}
	WriteHTTPJSON(w, http.StatusOK, &statusView{ClusterID: s.ClusterID, Mode: s.Mode, Leader: leaderView{s.LeaderID, s.LeaderAddr},
		Members: memberViews(s.Members), CommitIndex: s.CommitIndex, Term: s.Term, Source: s.Source, federationView: viewFederation(s.Federation)})
}

type leaderView struct {
	ID      string `json:"id"`
	Address string `json:"address"`
}

type statusView struct {
	ClusterID   string          `json:"cluster_id"`
	Mode        ReplicationMode `json:"mode"`
	Leader      leaderView      `json:"leader"`
	Members     []memberView    `json:"members"`
	CommitIndex uint64          `json:"commit_index"`
	Term        uint64          `json:"term"`
	Source      string          `json:"source"`
	*federationView
}

var errNoAbility = fmt.Errorf("%w in this mode", ErrUnsupported)

type addRequest struct {
	NodeID  string `json:"node_id"`
	Address string `json:"address"`
	Voter   *bool  `json:"voter"`
}

func (h *httpHandler) add(ctx context.Context, q *addRequest) error {
	if m, ok := h.r.(Membership); ok {
		return m.AddMember(ctx, q.NodeID, q.Address, q.Voter == nil || *q.Voter)
	}
	return errNoAbility
}

type removeRequest struct {
	NodeID string `json:"node_id"`
	Force  bool   `json:"force"`
}

func (h *httpHandler) remove(ctx context.Context, q *removeRequest) error {
	if m, ok := h.r.(Membership); ok {
		return m.RemoveMember(ctx, q.NodeID, q.Force)
	}
	return errNoAbility
}

type transferRequest struct {
	NodeID string `json:"node_id"`
}

func (h *httpHandler) transfer(ctx context.Context, q *transferRequest) error {
	if m, ok := h.r.(Membership); ok {
		return m.TransferLeadership(ctx, q.NodeID)
	}
	return errNoAbility
}

func (h *httpHandler) snapshot(ctx context.Context, _ *struct{}) error {
	if s, ok := h.r.(Snapshotter); ok {
		return s.TakeSnapshot(ctx)
	}
	return errNoAbility
}

func (h *httpHandler) solo(ctx context.Context, _ *struct{}) error {
	if s, ok := h.r.(Soloer); ok {
		return s.Solo(ctx)
	}
	return errNoAbility
}

type promoteRequest struct {
	Force bool `json:"force"`
}

func (h *httpHandler) promote(ctx context.Context, q *promoteRequest) error {
	if p, ok := h.r.(Promoter); ok {
		return p.Promote(ctx, q.Force)
	}
	return errNoAbility
}
