package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
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
	ctx, cancel := context.WithCancel(t.Context())
	asked.Store(0)
	behind := fakeStats(t, func() statsView {
		if asked.Add(1) == 2 {
			cancel() // as the timeout does
		}
		return statsView{Position: 8, Digest: "aa"}
	})
	err = verify(ctx, []string{fakeStats(t, fixed(base)), behind}, time.Hour, false)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorContains(t, err, "each cluster has positions of its own", "a copy in another cluster")
}

// TestVerifyOfRegions: positions are each region's own; regions are waited for,
// nodes of one region that differ are not.
func TestVerifyOfRegions(t *testing.T) {
	eu, us := statsView{Position: 9, Digest: "aa", Region: "eu"}, statsView{Position: 4, Digest: "aa", Region: "us"}
	old := us
	old.Digest = "old"
	asked := new(atomic.Int64)
	late := fakeStats(t, func() statsView {
		if asked.Add(1) < 3 {
			return old
		}
		return us
	})
	require.NoError(t, verify(t.Context(), []string{fakeStats(t, fixed(eu)), fakeStats(t, fixed(eu)), late}, time.Minute, false))
	require.EqualValues(t, 3, asked.Load())
	ctx, cancel := context.WithCancel(t.Context())
	asked.Store(0)
	never := fakeStats(t, func() statsView {
		if asked.Add(1) == 3 {
			cancel() // as the timeout does
		}
		return old
	})
	err := verify(ctx, []string{fakeStats(t, fixed(eu)), never}, time.Hour, true)
	require.ErrorIs(t, err, errDiffer, "it did not come")
	err = verify(t.Context(), []string{fakeStats(t, fixed(eu)), fakeStats(t, fixed(us)), fakeStats(t, fixed(old))}, time.Hour, true)
	require.ErrorIs(t, err, errDiffer, "two nodes of us at one position")
}

// TestPartsMakeTheWhole: each record is in one part, and a relationship whose
// node another part has waits for it, with a request ID of its own each time.
func TestPartsMakeTheWhole(t *testing.T) {
	var text strings.Builder
	for i := range 7 {
		fmt.Fprintf(&text, `{"type":"node","id":"n%d"}`+"\n", i)
	}
	for i := range 5 {
		fmt.Fprintf(&text, `{"type":"relationship","label":"R","start":{"id":"n%d"},"end":{"id":"n%d"}}`+"\n", i, i+1)
	}
	file := filepath.Join(t.TempDir(), "graph.jsonl")
	require.NoError(t, os.WriteFile(file, []byte(text.String()), 0o600))
	got := make(map[string]int)
	var refused atomic.Int64
	ids := make(map[string]bool)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		require.False(t, ids[r.Header.Get("Request-Id")], "the verdict is remembered under it")
		ids[r.Header.Get("Request-Id")] = true
		body, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		if strings.Contains(string(body), "relationship") && refused.Add(1) <= 2 {
			replication.WriteHTTPError(w, replication.ErrMissingEnd)
			return
		}
		for line := range strings.Lines(string(body)) {
			got[line]++
		}
		replication.WriteHTTPJSON(w, http.StatusOK, map[string]int{})
	}))
	defer s.Close()
	o := &importOptions{addrs: []string{s.URL}, file: file, writers: 1, batch: 2}
	require.ErrorContains(t, importFile(t.Context(), o), "missing_end", "the whole file has all nodes there are")
	clear(got)
	for _, part := range []string{"1/3", "2/3", "3/3"} {
		o.part = part
		refused.Store(0)
		require.NoError(t, importFile(t.Context(), o))
		require.GreaterOrEqual(t, refused.Load(), int64(3))
	}
	require.Len(t, got, 12)
	for line, count := range got {
		require.Equal(t, 1, count, line)
	}
	for _, part := range []string{"0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3"} {
		o.part = part
		require.ErrorIs(t, importFile(t.Context(), o), errUsage, part)
	}
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

// TestAnOrderWhoseAnswerIsLostIsOfUnknownOutcome, and one that was never sent is not.
func TestAnOrderWhoseAnswerIsLostIsOfUnknownOutcome(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	require.ErrorIs(t, postAdmin(t.Context(), s.URL, "/admin/cluster/remove", nil), replication.ErrUnknownOutcome)
	s.Close()
	err := postAdmin(t.Context(), s.URL, "/admin/cluster/remove", nil)
	require.ErrorContains(t, err, "refused")
	require.NotErrorIs(t, err, replication.ErrUnknownOutcome)
}

// endsAfter ends what it is used for when a number of requests have got nowhere.
type endsAfter struct {
	http.Transport
	tries int
	end   func()
}

func (e *endsAfter) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := e.Transport.RoundTrip(req)
	if e.tries--; e.tries == 0 {
		e.end()
	}
	return resp, err
}

// TestAWriteThatReachedNoNodeHasFailed, and one that reached one before it was away
// may have been carried out.
func TestAWriteThatReachedNoNodeHasFailed(t *testing.T) {
	var s *httptest.Server
	s = httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		_ = s.Listener.Close()
		panic(http.ErrAbortHandler)
	}))
	defer s.Close()
	c, err := newClient([]string{s.URL})
	require.NoError(t, err)
	write := func() error {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c.http.Transport = &endsAfter{tries: 3, end: cancel}
		return c.post(ctx, "/graph/batch", "id", nil)
	}
	require.ErrorIs(t, write(), replication.ErrUnknownOutcome)
	err = write()
	require.ErrorContains(t, err, "no node could be reached")
	require.NotErrorIs(t, err, replication.ErrUnknownOutcome)
}

// TestErrorsSayWhatTheNodeSaid, and not only that time ran out.
func TestErrorsSayWhatTheNodeSaid(t *testing.T) {
	asked, end := 0, func() {}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked++; asked == 2 {
			end() // as a timeout does
		}
		replication.WriteHTTPError(w, fmt.Errorf("%w: the disk is full", replication.ErrStorageFailed))
	}))
	defer s.Close()
	defer http.DefaultClient.CloseIdleConnections()
	c, err := newClient([]string{s.URL})
	require.NoError(t, err)
	defer c.http.CloseIdleConnections()
	ended := func() context.Context {
		ctx, cancel := context.WithCancel(t.Context())
		asked, end = 0, cancel
		return ctx
	}
	err = c.post(ended(), "/graph/batch", "id", nil)
	require.ErrorIs(t, err, replication.ErrUnknownOutcome)
	require.ErrorContains(t, err, "the disk is full")
	require.ErrorContains(t, verify(ended(), []string{s.URL}, time.Hour, false), "the disk is full")
	asked, end = 0, func() {}
	require.ErrorContains(t, get(t.Context(), s.URL, nil), "the disk is full (storage_failed)")
}

// TestTheOutcomeOfAWriteThatWasTriedAgain: it has failed where every try was refused,
// and is unknown where one had no answer, whatever a node that does not let it in
// says after that.
func TestTheOutcomeOfAWriteThatWasTriedAgain(t *testing.T) {
	vanish := func(http.ResponseWriter) { panic(http.ErrAbortHandler) }
	refuse := func(err error) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { replication.WriteHTTPError(w, err) }
	}
	unauthorized := refuse(replication.ErrHTTPUnauthorized)
	for name, tc := range map[string]struct {
		tries   []func(http.ResponseWriter) // the last one again and again
		unknown bool
		says    string
	}{
		"no quorum":                {[]func(http.ResponseWriter){refuse(replication.ErrNoLeader)}, false, "nothing was written"},
		"no standby":               {[]func(http.ResponseWriter){refuse(replication.ErrNoLease)}, false, "nothing was written"},
		"unconfirmed":              {[]func(http.ResponseWriter){refuse(replication.ErrUnconfirmed), refuse(replication.ErrNoLeader)}, true, "no leader"},
		"no token":                 {[]func(http.ResponseWriter){unauthorized}, false, "unauthorized"},
		"no answer, then no token": {[]func(http.ResponseWriter){vanish, unauthorized}, true, "unauthorized"},
		"bad":                      {[]func(http.ResponseWriter){refuse(replication.ErrInvalidCommand)}, false, "invalid"},
		"no answer, then bad":      {[]func(http.ResponseWriter){vanish, refuse(replication.ErrInvalidCommand)}, true, "invalid"}, // to a node of an older version, say
		"no answer, then exists":   {[]func(http.ResponseWriter){vanish, refuse(replication.ErrExists)}, false, "exists"},
	} {
		t.Run(name, func(t *testing.T) {
			tried := new(atomic.Int64)
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				tc.tries[min(int(tried.Add(1)), len(tc.tries))-1](w)
			}))
			defer s.Close()
			c, err := newClient([]string{s.URL})
			require.NoError(t, err)
			defer c.http.CloseIdleConnections()
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			err = c.post(ctx, "/graph/batch", "id", nil)
			require.ErrorContains(t, err, tc.says)
			require.Equal(t, tc.unknown, errors.Is(err, replication.ErrUnknownOutcome), err)
		})
	}
}

// TestImportSaysWhatKeepsIt where it does not move.
func TestImportSaysWhatKeepsIt(t *testing.T) {
	im := &importer{client: new(client)}
	said := int64(0)
	err := fmt.Errorf("no leader")
	im.client.failing.Store(&err)
	require.Equal(t, "0 records; trying again: no leader", im.progress(&said))
	im.client.failing.Store(&err)
	im.records.Add(64)
	require.Equal(t, "64 records", im.progress(&said), "it moves")
	require.Equal(t, "64 records", im.progress(&said), "nothing is tried again")
}

// TestAQueryThatIsNotKnownIsRefused: a misspelt consistency is no read of another
// level.
func TestAQueryThatIsNotKnownIsRefused(t *testing.T) {
	s := &rest{}
	mux := http.NewServeMux()
	s.authorize = func(*http.Request) error { return nil }
	s.mount(mux)
	for _, r := range s.routes() {
		method, path, _ := strings.Cut(r.pattern, " ")
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(method, path+"?consistancy=QUORUM", nil))
		require.Equal(t, http.StatusBadRequest, w.Code, r.pattern)
		require.Contains(t, w.Body.String(), "consistancy", r.pattern)
	}
}

// TestAFileThatIsCutOffIsSaidToBe, and not to have a wrong line.
func TestAFileThatIsCutOffIsSaidToBe(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	for i := range 500 {
		_, err := fmt.Fprintf(z, `{"type":"node","id":"%d","labels":["%x"]}`+"\n", i, rand.Text())
		require.NoError(t, err)
	}
	require.NoError(t, z.Close())
	name := filepath.Join(t.TempDir(), "cut.gz")
	require.NoError(t, os.WriteFile(name, packed.Bytes()[:packed.Len()/2], 0o600))
	in, err := openGraph(name)
	require.NoError(t, err)
	defer in.Close()
	for r := newAPOCReader(in); err == nil; {
		_, err = r.next()
	}
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

// TestExportAsksForTheLevel: without one it leaves it to the node.
func TestExportAsksForTheLevel(t *testing.T) {
	node := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s", r.URL.RequestURI())
	}))
	t.Cleanup(node.Close)
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	for want, args := range map[string][]string{"/graph/export": nil, "/graph/export?consistency=QUORUM": {"--consistency", "QUORUM"}} {
		out := new(bytes.Buffer)
		cmd := exportCommand()
		cmd.SetArgs(append(args, "--addr", node.URL))
		cmd.SetOut(out)
		require.NoError(t, cmd.ExecuteContext(t.Context()))
		require.Equal(t, want, out.String())
	}
}
