package transport

import (
	"bytes"
	"crypto/tls"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/testca"
	"github.com/stretchr/testify/require"
)

// authority issues certificates in files.
type authority struct {
	*testca.Authority
	t    *testing.T
	file string
}

func newAuthority(t *testing.T) *authority {
	a := &authority{Authority: testca.New(t), t: t, file: filepath.Join(t.TempDir(), "ca.pem")}
	require.NoError(t, os.WriteFile(a.file, a.PEM, 0o600))
	return a
}

// issue writes a certificate for 127.0.0.1 into a directory.
func (a *authority) issue(dir string, serial int64, notAfter time.Time) replication.TLSConfig {
	cfg := replication.TLSConfig{Enabled: true, CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem"),
		CAFile: a.file, VerifyClient: true, MinVersion: "1.3"}
	cert, key := a.Issue(serial, notAfter)
	require.NoError(a.t, os.WriteFile(cfg.CertFile, cert, 0o600))
	require.NoError(a.t, os.WriteFile(cfg.KeyFile, key, 0o600))
	return cfg
}

func withTLS(t *testing.T, cfg replication.TLSConfig) func(*Options) {
	return func(o *Options) {
		var err error
		o.TLS, err = NewTLS(cfg, o.Logger)
		require.NoError(t, err)
	}
}

func TestMutualTLS(t *testing.T) {
	ca, hour := newAuthority(t), time.Now().Add(time.Hour)
	serverDir := t.TempDir()
	serverTLS := ca.issue(serverDir, 2, hour)
	server := newTransport(t, "s", withTLS(t, serverTLS))
	server.Handle(replication.MsgFetch, echo)
	addr := serve(t, server, "127.0.0.1:0")
	dialer := newTransport(t, "d", withTLS(t, ca.issue(t.TempDir(), 3, hour)))
	c := connect(t, dialer, addr)
	require.True(t, c.Peer().Proven)
	require.NoError(t, c.Call(t.Context(), replication.MsgFetch, map[string]any{}, nil))

	// Another authority's certificate, and plain TCP, are refused and counted.
	stranger := newTransport(t, "x", func(o *Options) {
		cfg := newAuthority(t).issue(t.TempDir(), 4, hour)
		cfg.CAFile = ca.file
		withTLS(t, cfg)(o)
	})
	_, err := stranger.Connect(t.Context(), addr)
	require.ErrorIs(t, err, replication.ErrUnauthenticated)
	require.ErrorContains(t, err, "refuses this node's certificate")
	_, err = newTransport(t, "p", nil).Connect(t.Context(), addr)
	require.Error(t, err)
	require.Eventually(t, func() bool { return server.Stats().HandshakesRejected["tls"] == 2 }, patience, time.Millisecond)

	// The server's certificate is exchanged without a restart.
	old, _ := server.opts.TLS.current()
	ca.issue(serverDir, 5, hour)
	require.NoError(t, os.Chtimes(serverTLS.CertFile, time.Now(), time.Now().Add(time.Minute)))
	fresh, _ := server.opts.TLS.current()
	require.Equal(t, int64(2), old.Leaf.SerialNumber.Int64())
	require.Equal(t, int64(5), fresh.Leaf.SerialNumber.Int64())
	late := newTransport(t, "l", withTLS(t, ca.issue(t.TempDir(), 6, hour)))
	require.NoError(t, connect(t, late, addr).Call(t.Context(), replication.MsgFetch, map[string]any{}, nil))

	// A file that is broken meanwhile leaves the certificate in use.
	require.NoError(t, os.WriteFile(serverTLS.CertFile, []byte("half a cert"), 0o600))
	kept, _ := server.opts.TLS.current()
	require.Equal(t, int64(5), kept.Leaf.SerialNumber.Int64())
}

func TestExpiredCertificateIsRefusedAndSaid(t *testing.T) {
	ca := newAuthority(t)
	_, err := NewTLS(ca.issue(t.TempDir(), 2, time.Now().Add(-time.Hour)), newTransport(t, "s", nil).opts.Logger)
	require.ErrorIs(t, err, replication.ErrInvalidConfig)
	require.ErrorContains(t, err, "valid from")
}

// TestMissingTLSFilesAreNamed: all of them, with their variables.
func TestMissingTLSFilesAreNamed(t *testing.T) {
	_, err := NewTLS(replication.TLSConfig{Enabled: true, CertFile: "/none/c", KeyFile: "/none/k", CAFile: "/none/a"}, newTransport(t, "s", nil).opts.Logger)
	require.ErrorIs(t, err, replication.ErrInvalidConfig)
	for _, part := range []string{"NORNICDB_CLUSTER_TLS_CERT_FILE: stat /none/c", "NORNICDB_CLUSTER_TLS_KEY_FILE: stat /none/k", "NORNICDB_CLUSTER_TLS_CA_FILE: stat /none/a"} {
		require.ErrorContains(t, err, part)
	}
}

// TestTLSSettingsAreObeyed: least version, cipher suites and server name.
func TestTLSSettingsAreObeyed(t *testing.T) {
	ca, hour := newAuthority(t), time.Now().Add(time.Hour)
	config := func(change func(*replication.TLSConfig)) func(*Options) {
		cfg := ca.issue(t.TempDir(), 2, hour)
		cfg.MinVersion = "1.2"
		if change != nil {
			change(&cfg)
		}
		return withTLS(t, cfg)
	}
	const suite = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"
	server := newTransport(t, "s", config(func(c *replication.TLSConfig) { c.CipherSuites = []string{suite} }))
	server.Handle(replication.MsgFetch, echo)
	addr := serve(t, server, "127.0.0.1:0")
	strict := newTransport(t, "s13", config(func(c *replication.TLSConfig) { c.MinVersion = "1.3" }))
	strictAddr := serve(t, strict, "127.0.0.1:0")

	dial12 := func(addr string, suites ...uint16) (tls.ConnectionState, error) {
		tr := newTransport(t, "x", config(nil))
		c := tr.opts.TLS.client(addr)
		c.MaxVersion, c.CipherSuites = tls.VersionTLS12, suites
		conn, err := tls.Dial("tcp", addr, c)
		if err != nil {
			return tls.ConnectionState{}, err
		}
		defer conn.Close()
		return conn.ConnectionState(), nil
	}
	state, err := dial12(addr)
	require.NoError(t, err)
	require.Equal(t, suite, tls.CipherSuiteName(state.CipherSuite))
	_, err = dial12(addr, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)
	require.Error(t, err, "no suite in common")
	_, err = dial12(strictAddr)
	require.Error(t, err, "TLS 1.2 where 1.3 is the least")

	// The certificate is for 127.0.0.1.
	other := newTransport(t, "d", config(func(c *replication.TLSConfig) { c.ServerName = "db.example" }))
	_, err = other.Connect(t.Context(), addr)
	require.ErrorIs(t, err, replication.ErrUnauthenticated)
	require.ErrorContains(t, err, "db.example")
	named := newTransport(t, "n", config(func(c *replication.TLSConfig) { c.ServerName = "127.0.0.1" }))
	require.NoError(t, connect(t, named, addr).Call(t.Context(), replication.MsgFetch, map[string]any{}, nil))
}

// TestProofIsBoundToItsTLSSession: somebody who holds a certificate of the same
// authority cannot relay the proof of the cluster secret through himself.
func TestProofIsBoundToItsTLSSession(t *testing.T) {
	ca, hour := newAuthority(t), time.Now().Add(time.Hour)
	both := func() func(*Options) {
		tls := withTLS(t, ca.issue(t.TempDir(), 2, hour))
		return func(o *Options) { tls(o); o.Secret = []byte(secret) }
	}
	server, dialer := newTransport(t, "s", both()), newTransport(t, "d", both())
	server.Handle(replication.MsgFetch, echo)
	addr := serve(t, server, "127.0.0.1:0")
	require.NoError(t, connect(t, dialer, addr).Call(t.Context(), replication.MsgFetch, map[string]any{}, nil), "straight, it works")

	middle, err := NewTLS(ca.issue(t.TempDir(), 3, hour), server.opts.Logger)
	require.NoError(t, err)
	l, err := tls.Listen("tcp", "127.0.0.1:0", middle.server())
	require.NoError(t, err)
	defer l.Close()
	relayed := make(chan struct{})
	go func() {
		defer close(relayed)
		in, err := l.Accept()
		if err != nil {
			return
		}
		defer in.Close()
		out, err := tls.Dial("tcp", addr, middle.client(addr))
		if err != nil {
			return
		}
		defer out.Close()
		go func() { _, _ = io.Copy(out, in); _ = out.CloseWrite() }()
		_, _ = io.Copy(in, out)
	}()
	_, err = dialer.Connect(t.Context(), l.Addr().String())
	require.ErrorIs(t, err, replication.ErrUnauthenticated)
	<-relayed
}

// lockedBuffer holds a log.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// TestOneSideWithoutTLSIsSaid: on both sides, whichever it is that dials.
func TestOneSideWithoutTLSIsSaid(t *testing.T) {
	cfg := newAuthority(t).issue(t.TempDir(), 2, time.Now().Add(time.Hour))
	for _, c := range []struct {
		name                string
		server, dialer      bool // with TLS
		serverSays, dialing string
	}{
		{"server", false, true, "the peer speaks TLS: TLS_ENABLED must be", "the peer hung up in the TLS handshake"},
		{"dialer", true, false, "TLS_ENABLED must be", "handshake refused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var says lockedBuffer
			side := func(id string, secure bool) *Transport {
				return newTransport(t, id, func(o *Options) {
					if id == "s" {
						o.Logger = slog.New(slog.NewTextHandler(&says, nil))
					}
					if secure {
						withTLS(t, cfg)(o)
					}
				})
			}
			addr := serve(t, side("s", c.server), "127.0.0.1:0")
			_, err := side("d", c.dialer).Connect(t.Context(), addr)
			require.ErrorIs(t, err, replication.ErrUnauthenticated, "a peer that is there and refuses, not a silent one")
			require.ErrorContains(t, err, c.dialing)
			require.ErrorContains(t, err, bothOrNone)
			require.Eventually(t, func() bool { return strings.Contains(says.String(), c.serverSays) }, patience, time.Millisecond)
		})
	}
}
