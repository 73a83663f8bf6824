package main

import (
	"crypto/sha256"
	"crypto/tls"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/testca"
	"github.com/stretchr/testify/require"
)

// filesBelow is a hash of every file below a directory.
func filesBelow(t *testing.T, dir string) map[string][32]byte {
	t.Helper()
	files := make(map[string][32]byte)
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files[path] = sha256.Sum256(data)
		return err
	}))
	return files
}

// scrape reads /metrics.
func scrape(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url + "/metrics")
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, "%s", text)
	return string(text)
}

// everywhere are the metrics that a node of any mode shows from the start.
var everywhere = []string{
	`nornicdb_replication_is_leader 1`, `nornicdb_replication_term `, `nornicdb_replication_commit_index `, `nornicdb_replication_applied_index `,
	`nornicdb_replication_lag_seconds `, `nornicdb_replication_apply_seconds_count `, `nornicdb_replication_apply_errors_total{code="timeout"} 0`,
	`nornicdb_replication_forwarded_total `, `nornicdb_replication_snapshots_total{direction="taken"} `, `nornicdb_replication_degraded 0`,
	`nornicdb_replication_fenced_total 0`, `nornicdb_replication_failovers_total `, `nornicdb_replication_diverged_entries_total 0`,
	`nornicdb_replication_conflicts_total{strategy="manual"} 0`, `nornicdb_replication_handshake_rejected_total{reason="wrong_proof"} 0`,
	`nornicdb_replication_frames_rejected_total{reason="record"} 0`,
}

func TestMetricsOfStandalone(t *testing.T) {
	defer http.DefaultClient.CloseIdleConnections()
	web := freeAddrs(t, demoNodes)
	p := &process{t: t, url: "http://" + web[0], args: []string{"serve", "--http", web[0], "--data", filepath.Join(t.TempDir(), "n")}}
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	defer log.Close()
	p.log = log
	p.start()
	defer p.kill9()
	require.Eventually(t, func() bool { return strings.Contains(scrape(t, p.url), "is_leader 1") }, patience, 20*time.Millisecond)
	c, err := newClient([]string{p.url})
	require.NoError(t, err)
	defer c.http.CloseIdleConnections()
	require.NoError(t, c.post(t.Context(), "/graph/batch", "r", []byte(`{"type":"node","id":"a"}`)))
	text := scrape(t, p.url)
	for _, line := range append(everywhere, `nornicdb_replication_mode{mode="standalone"} 1`, `nornicdb_replication_role{role="standalone"} 1`,
		`nornicdb_replication_apply_seconds_count 1`, `nornicdb_replication_applied_index 1`) {
		require.Contains(t, text, "\n"+line)
	}
}

func TestMetricsOfRaft(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three processes")
	}
	defer http.DefaultClient.CloseIdleConnections()
	list := threeProcesses(t)
	c, err := newClient(urls(list))
	require.NoError(t, err)
	defer c.http.CloseIdleConnections()
	require.NoError(t, c.post(t.Context(), "/graph/batch", "r", []byte(`{"type":"node","id":"a"}`)))
	lead := leader(t, list)
	_, errs, status := runCommand(t, "snapshot", "--addr", lead.url)
	require.Zero(t, status, errs)
	want := append(everywhere, `nornicdb_replication_mode{mode="raft"} 1`, `nornicdb_replication_role{role="leader"} 1`, `nornicdb_replication_role{role="follower"} 0`,
		`nornicdb_replication_lag_entries{peer="n`, `nornicdb_replication_peer_healthy{peer="n`, `nornicdb_replication_wal_bytes `,
		`nornicdb_replication_snapshots_total{direction="taken"} 1`, `nornicdb_raft_apply `, `nornicdb_raft_commitTime`, `nornicdb_raft_state_leader 1`,
		`nornicdb_raft_boltdb_`)
	require.Eventually(t, func() bool {
		text := scrape(t, lead.url)
		for _, line := range want {
			if !strings.Contains(text, "\n"+line) {
				return false
			}
		}
		return true
	}, patience, 50*time.Millisecond, "all of %v", want)
	text := scrape(t, follower(t, list).url)
	require.Contains(t, text, "\nnornicdb_replication_is_leader 0")
	require.NotRegexp(t, `_(entries|healthy){peer="n[0-9]"} NaN`, text)
}

// TestEveryChangeNeedsTheToken goes through the lists of routes that the node
// serves.
func TestEveryChangeNeedsTheToken(t *testing.T) {
	t.Setenv("NORNIC_ADMIN_TOKEN", "the-token")
	cfg := replication.DefaultConfig()
	cfg.DataDir = t.TempDir()
	n, err := openNode(cfg, "127.0.0.1:0", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer func() { require.NoError(t, n.stop()) }()
	require.NoError(t, n.start(t.Context()))
	routes := replication.HTTPRoutes()
	for _, r := range new(rest).routes() {
		routes = append(routes, r.pattern)
	}
	closed, err := n.handler(nil)
	require.NoError(t, err)
	ask := func(h http.Handler, pattern, token string) int {
		method, path, _ := strings.Cut(pattern, " ")
		req := httptest.NewRequest(method, strings.NewReplacer("{", "", "}", "").Replace(path), nil)
		if token != "" {
			req.Header.Set("Authorization", token)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		return w.Code
	}
	changes := 0
	for _, pattern := range routes {
		if strings.HasPrefix(pattern, "GET ") {
			require.NotContains(t, []int{401, 403}, ask(n.server.Handler, pattern, ""), pattern)
			continue
		}
		changes++
		for _, token := range []string{"", "Bearer wrong", "Bearer the-token2", "the-token"} {
			require.Equal(t, http.StatusUnauthorized, ask(n.server.Handler, pattern, token), "%s with %q", pattern, token)
		}
		require.Equal(t, http.StatusForbidden, ask(closed, pattern, "Bearer the-token"), pattern)
		require.NotContains(t, []int{401, 403}, ask(n.server.Handler, pattern, "Bearer the-token"), pattern)
	}
	require.Equal(t, 16, changes, "a new route that changes something is to be counted here")
	require.Equal(t, 200, ask(n.server.Handler, "GET /metrics", ""))
	st, err := n.store.Stats()
	require.NoError(t, err)
	require.Zero(t, st.Nodes+st.Edges)

	_, err = authorizer(&net.TCPAddr{IP: net.IPv4zero})
	require.NoError(t, err)
	t.Setenv("NORNIC_ADMIN_TOKEN", "")
	open, err := authorizer(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)})
	require.NoError(t, err)
	require.ErrorContains(t, open(httptest.NewRequest("POST", "/", nil)), "NORNIC_ADMIN_TOKEN", "without a token nothing is changed from elsewhere")
	empty := filepath.Join(t.TempDir(), "token")
	require.NoError(t, os.WriteFile(empty, []byte("\n"), 0o600))
	t.Setenv("NORNIC_ADMIN_TOKEN_FILE", empty)
	_, err = authorizer(&net.TCPAddr{IP: net.IPv4zero})
	require.ErrorIs(t, err, replication.ErrInvalidConfig)
}

// shake makes a TLS handshake with a node's cluster port and returns the serial
// number of the certificate that it showed.
func shake(t *testing.T, addr string, a *testca.Authority, serial int64, notAfter time.Time) (int64, error) {
	t.Helper()
	certPEM, keyPEM := a.Issue(serial, notAfter)
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	require.NoError(t, err)
	raw, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return 0, err
	}
	defer raw.Close()
	// Which authority signed the node's certificate is not looked at here.
	c := tls.Client(raw, &tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true})
	if err := c.Handshake(); err != nil {
		return 0, err
	}
	return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64(), nil
}

// TestCertificatesOfRunningNodes: exchanged, authority and all, while writes go
// on; and one that has expired is refused, in the log and in a counter.
func TestCertificatesOfRunningNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three processes")
	}
	defer http.DefaultClient.CloseIdleConnections()
	old, hour := testca.New(t), time.Now().Add(time.Hour)
	write := func(p *process, ca []byte, a *testca.Authority, serial int64) {
		cert, key := a.Issue(serial, hour)
		for name, data := range map[string][]byte{"ca.pem": ca, "cert.pem": cert, "key.pem": key} {
			path := filepath.Join(filepath.Dir(p.data), filepath.Base(p.data)+"-"+name)
			require.NoError(t, os.WriteFile(path+".new", data, 0o600))
			require.NoError(t, os.Rename(path+".new", path))
		}
	}
	addrs := make(map[*process]string)
	list := threeProcesses(t, func(i int, p *process) {
		files := filepath.Join(filepath.Dir(p.data), filepath.Base(p.data)+"-")
		p.env = append(p.env, clusterPrefix+"TLS_ENABLED=true", clusterPrefix+"TLS_CERT_FILE="+files+"cert.pem",
			clusterPrefix+"TLS_KEY_FILE="+files+"key.pem", clusterPrefix+"TLS_CA_FILE="+files+"ca.pem")
		write(p, old.PEM, old, int64(10+i))
		for _, e := range p.env {
			if addr, is := strings.CutPrefix(e, clusterPrefix+"BIND_ADDR="); is {
				addrs[p] = addr
			}
		}
	})
	leader(t, list)
	progress, stop := load(t, urls(list))
	progress()
	serial, err := shake(t, addrs[list[0]], old, 99, hour)
	require.NoError(t, err)
	require.Equal(t, int64(10), serial)

	// Another authority: first all trust both, then all show the new one's.
	next := testca.New(t)
	both := append(append([]byte(nil), old.PEM...), next.PEM...)
	for i, p := range list {
		write(p, both, old, int64(20+i))
	}
	progress()
	for i, p := range list {
		write(p, both, next, int64(30+i))
		progress()
		serial, err := shake(t, addrs[p], next, 99, hour)
		require.NoError(t, err)
		require.Equal(t, int64(30+i), serial)
	}
	for i, p := range list { // and nobody trusts the old one any more
		write(p, next.PEM, next, int64(40+i))
	}
	victim := leader(t, list)
	victim.kill9() // not for the certificates: so that new connections are made
	progress()
	victim.start()
	progress()
	writes := stop()
	holds(t, list, writes)

	p := list[0]
	_, _ = shake(t, addrs[p], next, 98, time.Now().Add(-time.Minute)) // TLS 1.3 refuses it after the client is done
	require.Eventually(t, func() bool {
		return p.said("expired_certificate") && strings.Contains(scrape(t, p.url), `nornicdb_replication_handshake_rejected_total{reason="expired_certificate"} 1`)
	}, patience, 20*time.Millisecond)

	// A node does not start with one.
	p.kill9()
	cert, key := next.Issue(50, time.Now().Add(-time.Minute))
	base := filepath.Join(filepath.Dir(p.data), filepath.Base(p.data)+"-")
	require.NoError(t, os.WriteFile(base+"cert.pem", cert, 0o600))
	require.NoError(t, os.WriteFile(base+"key.pem", key, 0o600))
	cmd := binary(p.env, p.args...)
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Equal(t, 2, cmd.ProcessState.ExitCode())
	require.Contains(t, string(out), "the certificate is valid from")
}

// TestWithoutATokenAWebPageChangesNothing: a browser on the node's machine sends to
// a loopback address what any page asks of it, and says whose page it is.
func TestWithoutATokenAWebPageChangesNothing(t *testing.T) {
	t.Setenv("NORNIC_ADMIN_TOKEN", "")
	local, err := authorizer(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	req := httptest.NewRequest("POST", "http://127.0.0.1:7474/admin/cluster/remove", strings.NewReader(`{"node_id":"n2","force":true}`))
	require.NoError(t, local(req), "a command, curl")
	req.Header.Set("Origin", "http://127.0.0.1:7474")
	require.NoError(t, local(req), "a page of the node's own")
	req.Header.Set("Origin", "https://elsewhere.example")
	require.Error(t, local(req))
	req.Header.Set("Sec-Fetch-Site", "cross-site")
	require.Error(t, local(req))
}
