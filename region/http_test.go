package region_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// TestConflictsOverHTTP: what an operator sees and does.
func TestConflictsOverHTTP(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 13, two, func(_ string, cfg *replication.Config) {
			cfg.Region.ConflictStrategy, cfg.Region.WriteRegion = "manual", "eu"
		})
		f.apply("eu", put(t, "x", map[string]any{"k": 0}))
		f.converged(time.Minute)
		f.Net.Partition(f.ids("eu"), f.ids("us"))
		us := replication.NewHTTPHandler(node(f.nodes["us"][1]), replication.HTTPOptions{Authorize: func(*http.Request) error { return nil }})
		ask := func(method, path, body string, into any) int {
			w := httptest.NewRecorder()
			us.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
			if into != nil {
				require.NoError(t, json.Unmarshal(w.Body.Bytes(), into), w.Body.String())
			}
			return w.Code
		}
		require.Equal(t, 200, ask("POST", "/admin/region/promote", "", nil))
		f.apply("us", set(t, "x", "k", "b"))
		f.apply("eu", set(t, "x", "k", "a"))
		f.Net.Heal()
		f.converged(time.Minute)
		var page struct {
			Conflicts []replication.Conflict
			Next      string
		}
		require.Equal(t, 200, ask("GET", "/admin/conflicts?limit=1", "", &page))
		require.Len(t, page.Conflicts, 1)
		require.Equal(t, page.Conflicts[0].Key, page.Next)
		c := page.Conflicts[0]
		require.Equal(t, "property", c.Field)
		require.Equal(t, 200, ask("GET", "/admin/conflicts?after="+page.Next, "", &page))
		require.Empty(t, page.Conflicts)
		require.Equal(t, 400, ask("GET", "/admin/conflicts?limit=x", "", nil))
		require.Equal(t, 400, ask("POST", "/admin/conflicts/nonsense/resolve", `{"expect":[],"deleted":true}`, nil))
		require.Equal(t, 409, ask("POST", "/admin/conflicts/"+c.Key+"/resolve", `{"expect":[],"deleted":true}`, nil))
		keep := c.Versions[0].VersionID
		body, err := json.Marshal(replication.Resolution{Expect: []replication.VersionID{keep, c.Versions[1].VersionID}, Keep: &keep})
		require.NoError(t, err)
		require.Equal(t, 200, ask("POST", "/admin/conflicts/"+c.Key+"/resolve", string(body), nil))
		require.Equal(t, 404, ask("POST", "/admin/conflicts/"+c.Key+"/resolve", string(body), nil))
		f.converged(time.Minute)
		require.Equal(t, "a", property(t, f.nodes["eu"][2], "x", "k"), "eu's version, the first, was kept")
	})
}
