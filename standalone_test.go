package replication_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

func startStandalone(t *testing.T, s replication.Storage) replication.Replicator {
	t.Helper()
	r, err := replication.New(replication.DefaultConfig(), s, nil, replication.WithLogger(quiet()))
	require.NoError(t, err)
	require.ErrorIs(t, r.Apply(node(t, replication.CmdPutNode, "early", ""), time.Second), replication.ErrNotReady)
	require.NoError(t, r.Start(context.Background()))
	t.Cleanup(func() { require.NoError(t, r.Shutdown()) })
	return r
}

func TestStandaloneConcurrentWritersEachApplyOnce(t *testing.T) {
	s := openStore(t)
	r := startStandalone(t, s)
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 50 {
				id := fmt.Sprintf("%d-%d", w, i)
				for range 2 { // the second is a retry
					if err := r.Apply(node(t, replication.CmdCreateNode, id, id), time.Minute); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	st, err := s.Stats()
	require.NoError(t, err)
	require.Equal(t, uint64(800), st.Nodes)
	require.Equal(t, uint64(1600), st.Position)
}

func TestStandaloneLeavesAReplicatedHistory(t *testing.T) {
	s := openStore(t)
	a := newApplier(t, s)
	require.NoError(t, a.Found(replication.Identity{History: "h", Base: 1}))
	startStandalone(t, s)
	require.Equal(t, replication.Identity{}, newApplier(t, s).Identity())
}

func TestNewNamesAMissingMode(t *testing.T) {
	cfg := replication.DefaultConfig()
	cfg.Mode, cfg.BindAddr = replication.ModeRaft, "127.0.0.1:7688"
	_, err := replication.New(cfg, openStore(t), nil)
	require.ErrorIs(t, err, replication.ErrModeUnavailable)
}

func TestEventHubTellsSlowReadersWhatTheyLost(t *testing.T) {
	var hub replication.EventHub
	events, cancel := hub.Subscribe(4)
	defer cancel()
	for i := range 10 {
		hub.Publish(replication.Event{Type: replication.EventLeaderChanged, Term: uint64(i)})
	}
	hub.Close()
	seen, lost := 0, 0
	last := uint64(0)
	for e := range events {
		if e.Type == replication.EventsLost {
			lost += e.Lost
			continue
		}
		seen++
		last = e.Term
	}
	require.Equal(t, 10, seen+lost)
	require.Equal(t, uint64(9), last)
}

func TestStandaloneGivesEveryLevelThatThereIs(t *testing.T) {
	r := startStandalone(t, openStore(t)).(replication.ConsistentReader)
	for _, level := range []replication.Consistency{"ONE", "LOCAL_ONE", "QUORUM", "LOCAL_QUORUM", "ALL"} {
		_, err := r.ReadBarrier(t.Context(), level)
		require.NoError(t, err)
	}
	_, err := r.ReadBarrier(t.Context(), "MOST")
	require.ErrorIs(t, err, replication.ErrUnsupported)
}

func TestHTTPHandler(t *testing.T) {
	r := startStandalone(t, openStore(t))
	ask := func(h http.Handler, method, path, body string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
		return w
	}
	closed := replication.NewHTTPHandler(r, replication.HTTPOptions{})
	require.Equal(t, 200, ask(closed, "GET", "/health?ready=1", "").Code)
	require.Contains(t, ask(closed, "GET", "/admin/cluster/status", "").Body.String(), `"members":[{"id"`)
	require.Equal(t, 403, ask(closed, "POST", "/admin/cluster/snapshot", "").Code)
	require.Contains(t, ask(closed, "POST", "/admin/cluster/snapshot", "").Body.String(), `"code":"forbidden"`)
	require.Equal(t, 405, ask(closed, "GET", "/admin/cluster/snapshot", "").Code)
	guarded := replication.NewHTTPHandler(r, replication.HTTPOptions{Authorize: func(q *http.Request) error {
		if q.Header.Get("Authorization") == "" {
			return replication.ErrHTTPUnauthorized
		}
		return nil
	}})
	require.Equal(t, 401, ask(guarded, "POST", "/admin/cluster/add", "{}").Code)
	require.Contains(t, ask(guarded, "POST", "/admin/cluster/add", "{}").Body.String(), `"code":"unauthorized"`)
	open := replication.NewHTTPHandler(r, replication.HTTPOptions{Authorize: func(*http.Request) error { return nil }})
	require.Equal(t, 501, ask(open, "POST", "/admin/cluster/snapshot", "").Code)
	require.Equal(t, 501, ask(open, "GET", "/admin/conflicts", "").Code)
	require.Equal(t, 501, ask(open, "POST", "/admin/region/remove", `{"region_id":"eu"}`).Code)
	require.Equal(t, 403, ask(closed, "POST", "/admin/region/promote", "").Code)
	require.Equal(t, 400, ask(open, "POST", "/admin/cluster/add", `{"unknown":1}`).Code)
	require.NoError(t, r.Shutdown())
	require.Equal(t, 503, ask(open, "GET", "/health", "").Code)
}
