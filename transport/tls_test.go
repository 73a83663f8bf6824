package transport

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// authority issues certificates for the tests.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, file: filepath.Join(t.TempDir(), "ca.pem")}
	var err error
	a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	require.NoError(t, err)
	a.cert, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

// issue writes a certificate for 127.0.0.1 into a directory.
func (a *authority) issue(dir string, serial int64, notAfter time.Time) replication.TLSConfig {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: notAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	require.NoError(a.t, err)
	keyDER, err := x509.MarshalECPrivateKey(key)
	require.NoError(a.t, err)
	cfg := replication.TLSConfig{Enabled: true, CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem"),
		CAFile: a.file, VerifyClient: true, MinVersion: "1.3"}
	writePEM(a.t, cfg.CertFile, "CERTIFICATE", der)
	writePEM(a.t, cfg.KeyFile, "EC PRIVATE KEY", keyDER)
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
	require.Error(t, err)
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
