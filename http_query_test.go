package replication_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// A query parameter that is misspelt, given twice, or not one of the endpoint's is
// refused and named, as an unknown field of a body is.
func TestHTTPQueryIsChecked(t *testing.T) {
	r := startStandalone(t, openStore(t))
	h := replication.NewHTTPHandler(r, replication.HTTPOptions{Authorize: func(*http.Request) error { return nil }})
	for path, says := range map[string]string{
		"GET /health":                             "",
		"GET /health?ready=1":                     "",
		"GET /health?ready=true":                  "",
		"GET /health?ready=yes":                   `ready="yes"`,
		"GET /health?redy=1":                      `"redy" is not known; known here: ready`,
		"GET /health?ready=1&ready=0":             `"ready" is there 2 times`,
		"GET /health?a;b":                         "query",
		"GET /admin/cluster/status?x=1":           `"x" is not known; none is known here`,
		"GET /admin/conflicts?limits=3":           "known here: field, node, after, limit",
		"POST /admin/promote?force=true":          `"force" is not known`,
		"POST /admin/cluster/remove?node_id=n1":   `"node_id" is not known`,
		"POST /admin/conflicts/k/resolve?keep=eu": `"keep" is not known`,
	} {
		method, target, _ := strings.Cut(path, " ")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, target, nil))
		if says == "" {
			require.Equal(t, http.StatusOK, w.Code, path)
			continue
		}
		require.Equal(t, http.StatusBadRequest, w.Code, path)
		require.Contains(t, strings.ReplaceAll(w.Body.String(), `\"`, `"`), says, path)
	}
}
