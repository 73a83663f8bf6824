package replication_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// Over HTTP a write that is not confirmed says where it stands, and one that was
// not appended for want of a lease says so.
func TestHTTPErrorsOfHotStandby(t *testing.T) {
	for _, tc := range []struct {
		err      error
		status   int
		code     string
		position uint64
	}{
		{fmt.Errorf("there: %w", &replication.UnconfirmedError{Position: 7, Reason: "no standby"}), http.StatusGatewayTimeout, "unconfirmed", 7},
		{fmt.Errorf("%w: %w", replication.ErrTimeout, replication.ErrNoLease), http.StatusServiceUnavailable, "no_lease", 0},
	} {
		w := httptest.NewRecorder()
		replication.WriteHTTPError(w, tc.err)
		require.Equal(t, tc.status, w.Code)
		var body struct {
			Error struct {
				Code     string
				Position uint64
			}
		}
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &body))
		require.Equal(t, tc.code, body.Error.Code)
		require.Equal(t, tc.position, body.Error.Position)
	}
}

// What the mux itself refuses has the body of every other error; a body that is
// too large is told from one that is wrong.
func TestHTTPErrorsAreJSON(t *testing.T) {
	r := startStandalone(t, openStore(t))
	h := replication.NewHTTPHandler(r, replication.HTTPOptions{Authorize: func(*http.Request) error { return nil }})
	for _, tc := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"GET", "/admin/nothing", "", http.StatusNotFound, "not_found"},
		{"GET", "/admin/cluster/add", "", http.StatusMethodNotAllowed, "method_not_allowed"},
		{"POST", "/admin/cluster/add", `{"node_id": 1}`, http.StatusBadRequest, "invalid_command"},
		{"POST", "/admin/cluster/add", `{"node_id": "` + strings.Repeat("x", 64<<10) + `"}`, http.StatusRequestEntityTooLarge, "invalid_command"},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(tc.method, tc.path, strings.NewReader(tc.body)))
		require.Equal(t, tc.status, w.Code, tc.path)
		require.Equal(t, "application/json", w.Header().Get("Content-Type"), tc.path)
		var body struct {
			Error struct{ Code, Message string }
		}
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &body), w.Body.String())
		require.Equal(t, tc.code, body.Error.Code)
		require.NotEmpty(t, body.Error.Message)
		require.Equal(t, tc.status == http.StatusMethodNotAllowed, w.Header().Get("Allow") != "")
	}
}
