package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// fakeStats is a node that says what it holds.
func fakeStats(t *testing.T, answer func() statsView) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		replication.WriteHTTPJSON(w, http.StatusOK, answer())
	}))
	t.Cleanup(s.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	return s.URL
}

func fixed(v statsView) func() statsView { return func() statsView { return v } }

func TestVerifyTellsNodesThatDiffer(t *testing.T) {
	base := statsView{Nodes: 2, Edges: 1, Position: 9, Digest: "aa"}
	same := fakeStats(t, fixed(base))
	require.NoError(t, verify(t.Context(), []string{same, fakeStats(t, fixed(base))}, time.Minute, false))
	for name, change := range map[string]func(*statsView){
		"digest": func(s *statsView) { s.Digest = "ab" }, "nodes": func(s *statsView) { s.Nodes++ }, "edges": func(s *statsView) { s.Edges++ },
	} {
		other := base
		change(&other)
		require.ErrorIs(t, verify(t.Context(), []string{same, fakeStats(t, fixed(other))}, time.Minute, true), errDiffer, name)
	}
}

func TestVerifyWaitsForOnePosition(t *testing.T) {
	base := statsView{Position: 9, Digest: "aa"}
	asked := new(atomic.Int64)
	late := fakeStats(t, func() statsView {
		if asked.Add(1) < 3 {
			return statsView{Position: 8, Digest: "old"}
		}
		return base
	})
	require.NoError(t, verify(t.Context(), []string{fakeStats(t, fixed(base)), late}, time.Minute, false))
	never := fakeStats(t, fixed(statsView{Position: 8}))
	err := verify(t.Context(), []string{fakeStats(t, fixed(base)), never}, 300*time.Millisecond, false)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, errDiffer, "it is not known")
}

// TestClientRepeatsWithTheSameRequestID: on what may pass, and on nothing else.
func TestClientRepeatsWithTheSameRequestID(t *testing.T) {
	for name, tc := range map[string]struct {
		first error
		tries int
	}{
		"no leader": {replication.ErrNoLeader, 2}, "overloaded": {replication.ErrOverloaded, 2}, "unknown": {replication.ErrUnknownOutcome, 2},
		"not leader": {&replication.NotLeaderError{}, 2}, "bad": {replication.ErrInvalidCommand, 1}, "missing end": {replication.ErrMissingEnd, 1},
	} {
		t.Run(name, func(t *testing.T) {
			var ids []string
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if ids = append(ids, r.Header.Get("Request-Id")); len(ids) == 1 {
					replication.WriteHTTPError(w, fmt.Errorf("first: %w", tc.first))
					return
				}
				replication.WriteHTTPJSON(w, http.StatusOK, map[string]int{})
			}))
			defer s.Close()
			c, err := newClient([]string{s.URL})
			require.NoError(t, err)
			defer c.http.CloseIdleConnections()
			err = c.post(t.Context(), "/graph/batch", "the-id", nil)
			require.Equal(t, tc.tries == 1, err != nil, "%v", err)
			require.Len(t, ids, tc.tries)
			for _, id := range ids {
				require.Equal(t, "the-id", id)
			}
		})
	}
}

// TestParallelRelationshipsAreKeptApart: the same ends and type twice in a file
// are two edges, told apart by the file's IDs; a single one needs none.
func TestParallelRelationshipsAreKeptApart(t *testing.T) {
	line := func(id, label, start, end string) string {
		return fmt.Sprintf(`{"type":"relationship","id":%q,"label":%q,"start":{"id":%q},"end":{"id":%q}}`+"\n", id, label, start, end)
	}
	s := &batchSource{most: 100, lines: newAPOCReader(strings.NewReader(line("1", "R", "a", "b") + line("2", "R", "a", "b") + line("3", "R", "b", "a") +
		line("4", "S", "a", "b") + line("5", "R", "a", "b")))}
	b, _, err := s.next()
	require.NoError(t, err)
	require.Equal(t, 2, s.parallel)
	r := newAPOCReader(strings.NewReader(string(b.body)))
	var ids []string
	for range 5 {
		rec, err := r.next()
		require.NoError(t, err)
		cmd, err := rec.command()
		require.NoError(t, err)
		id := "none"
		for _, candidate := range []string{"2", "5"} {
			if strings.Contains(string(cmd.Data), `"id":"`+candidate+`"`) {
				id = candidate
			}
		}
		ids = append(ids, id)
	}
	require.Equal(t, []string{"none", "2", "none", "none", "5"}, ids)
}
