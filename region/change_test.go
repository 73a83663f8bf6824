package region_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// change changes settings over HTTP, at a node that does not lead.
func (f *federation) change(name, body string) (status int, answer string) {
	follower := f.nodes[name][0]
	if follower == f.leader(name) {
		follower = f.nodes[name][1]
	}
	h := replication.NewHTTPHandler(node(follower), replication.HTTPOptions{Authorize: func(*http.Request) error { return nil }})
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("POST", "/admin/region/settings", strings.NewReader(body)))
	return w.Code, w.Body.String()
}

// settings waits until every node of a region shows them so.
func (f *federation) settings(name string, want func(*replication.RegionSettings) bool) {
	f.t.Helper()
	f.Eventually(time.Minute, name+" has other settings", func() bool {
		for _, m := range f.nodes[name] {
			h := replication.NewHTTPHandler(node(m), replication.HTTPOptions{})
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", "/admin/region/settings", nil))
			var s replication.RegionSettings
			if w.Code != 200 || json.Unmarshal(w.Body.Bytes(), &s) != nil || !want(&s) {
				return false
			}
		}
		return true
	})
}

// TestSettingsChange: an operator changes them by a command of the region's log:
// all nodes have them, over a restart, and a node starts with the new environment
// alone.
func TestSettingsChange(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 61, two, func(_ string, cfg *replication.Config) { cfg.Region.OutboxMaxEntries = 1000 })
		f.apply("eu", put(t, "x", nil))
		f.converged(time.Minute)
		code, answer := f.change("eu", `{"outbox_max_entries": 5}`)
		require.Equal(t, 200, code, answer)
		f.settings("eu", func(s *replication.RegionSettings) bool {
			return s.OutboxMaxEntries == 5 && s.MaxClockOffset == "500ms" && s.Region == "eu"
		})
		restarted := f.nodes["eu"][2]
		f.Crash(restarted)
		require.ErrorContains(t, f.Start(t.Context(), restarted), "NORNICDB_CLUSTER_OUTBOX_MAX_ENTRIES: \"1000\" here, the region has \"5\"")
		restarted.Config.Region.OutboxMaxEntries = 5
		require.NoError(t, f.Start(t.Context(), restarted))
		require.Contains(t, fmt.Sprint(f.nodes["eu"][0].Health().Reasons), "OUTBOX_MAX_ENTRIES: \"1000\" here")
		require.NotContains(t, fmt.Sprint(restarted.Health().Reasons), "OUTBOX")
		empty := f.nodes["eu"][1]
		f.Crash(empty)
		f.Wipe(empty)
		empty.Config.Region.OutboxMaxEntries = 5 // which is not what the log says first
		require.NoError(t, f.Start(t.Context(), empty))
		f.settings("eu", func(s *replication.RegionSettings) bool { return s.OutboxMaxEntries == 5 })
		require.NoError(t, empty.Replicator().Apply(put(t, "x", nil), time.Minute))
		require.NotEqual(t, "region_stopped", empty.Replicator().Health().State)
		f.Net.Partition(f.ids("eu"), f.ids("us"))
		for i := range 20 {
			f.apply("eu", put(t, fmt.Sprint("n", i), nil))
		}
		f.Net.Heal()
		f.converged(time.Minute)
		require.Contains(t, f.Transcript.String(), "beyond the outbox", "the new cap counts")
	})
}

// TestClockBoundChange: regions with another bound refuse each other's
// connections, and go on where they were when both have it.
func TestClockBoundChange(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 62, two, nil)
		f.apply("eu", put(t, "x", nil))
		f.converged(time.Minute)
		code, answer := f.change("eu", `{"max_clock_offset": "2s"}`)
		require.Equal(t, 200, code, answer)
		f.settings("eu", func(s *replication.RegionSettings) bool { return s.MaxClockOffset == "2s" })
		f.Net.Partition(f.ids("eu"), f.ids("us"))
		f.apply("eu", put(t, "y", nil))
		<-time.After(time.Minute) // virtual: the connections are gone
		f.Net.Heal()
		f.Eventually(time.Minute, "eu says why it does not reach us", func() bool {
			return strings.Contains(fmt.Sprint(f.leader("eu").Replicator().Health().Reasons), "settings")
		})
		_, err := f.leader("us").Store().Node("y")
		require.ErrorIs(t, err, replication.ErrNotFound)
		code, answer = f.change("us", `{"max_clock_offset": "2s"}`)
		require.Equal(t, 200, code, answer)
		f.converged(time.Minute)
		_, err = f.leader("us").Store().Node("y")
		require.NoError(t, err)
		for _, m := range f.Members {
			require.Equal(t, uint64(2000), node(m).Status().Settings.MaxClockOffsetMS)
		}
	})
}

// TestSettingsThatCannotBeChanged: the answer says why.
func TestSettingsThatCannotBeChanged(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 63, two, nil)
		f.apply("eu", put(t, "x", nil))
		for body, want := range map[string]struct {
			code int
			text string
		}{
			`{"conflict_strategy": "manual"}`: {501, "differs for good"},
			`{"regions": ["ap", "eu", "us"]}`: {501, "places in it"},
			`{"write_region": ""}`:            {501, "founded"},
			`{}`:                              {400, "nothing to change"},
			`{"max_clock_offset": "-1s"}`:     {400, "whole milliseconds"},
			`{"max_clock_offset": "1500us"}`:  {400, "whole milliseconds"},
			`{"outbox_max_entries": -1}`:      {400, "body"},
			`{"outbox_max_entries": 1` + strings.Repeat("0", 19) + `}`: {400, "at most"}, // no environment says so
			`{"outbox_max_bytes": 9223372036854775808}`:                {400, "at most"},
			`{"max_clock_offset": "2562047h47m0s"}`:                    {200, "ok"},
		} {
			code, answer := f.change("eu", body)
			require.Equal(t, want.code, code, body+answer)
			require.Contains(t, answer+"ok", want.text)
		}
	})
}
