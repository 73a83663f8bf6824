package transport

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/nornicdb/replication"
)

// TLS makes the tls.Config of each connection from files that are read again
// when they change. Safe for concurrent use.
type TLS struct {
	cfg    replication.TLSConfig
	logger replication.Logger

	// mu guards the fields below.
	mu     sync.Mutex
	stamps [3]fileStamp
	cert   *tls.Certificate
	pool   *x509.CertPool // nil: the system's
	// expired: that cert has expired was said.
	expired bool
}

type fileStamp struct {
	modified time.Time
	size     int64
}

// NewTLS reads the files once, so that a mistake in them is found at start.
func NewTLS(cfg replication.TLSConfig, logger replication.Logger) (*TLS, error) {
	t := &TLS{cfg: cfg, logger: logger}
	if err := t.load(); err != nil {
		return nil, fmt.Errorf("%w: TLS: %w", replication.ErrInvalidConfig, err)
	}
	if cfg.InsecureSkipVerify {
		logger.Warn("TLS certificates of peers are not verified: NORNICDB_CLUSTER_TLS_INSECURE_SKIP_VERIFY is for tests only")
	}
	return t, nil
}

func (t *TLS) stat() (stamps [3]fileStamp, err error) {
	var missing []error
	for i, file := range []struct{ variable, name string }{{"CERT", t.cfg.CertFile}, {"KEY", t.cfg.KeyFile}, {"CA", t.cfg.CAFile}} {
		if file.name == "" {
			continue
		}
		info, err := os.Stat(file.name)
		if err != nil {
			missing = append(missing, fmt.Errorf("NORNICDB_CLUSTER_TLS_%s_FILE: %w", file.variable, err))
			continue
		}
		stamps[i] = fileStamp{info.ModTime(), info.Size()}
	}
	return stamps, errors.Join(missing...)
}

// load reads the files. t.mu is held, or t is not shared yet.
func (t *TLS) load() error {
	stamps, err := t.stat()
	if err != nil {
		return err
	}
	cert, err := tls.LoadX509KeyPair(t.cfg.CertFile, t.cfg.KeyFile)
	if err != nil {
		return fmt.Errorf("%s, %s: %w", t.cfg.CertFile, t.cfg.KeyFile, err)
	}
	if now := time.Now(); now.After(cert.Leaf.NotAfter) || now.Before(cert.Leaf.NotBefore) {
		return fmt.Errorf("%s: the certificate is valid from %s to %s, not now", t.cfg.CertFile,
			cert.Leaf.NotBefore.Format(time.RFC3339), cert.Leaf.NotAfter.Format(time.RFC3339))
	}
	var pool *x509.CertPool
	if t.cfg.CAFile != "" {
		pem, err := os.ReadFile(t.cfg.CAFile)
		if err != nil {
			return err
		}
		pool = x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s: no certificate in it", t.cfg.CAFile)
		}
	}
	t.stamps, t.cert, t.pool = stamps, &cert, pool
	return nil
}

// current returns certificate and CAs, reading the files again where they
// changed. While they cannot be read, the old ones stay in use.
func (t *TLS) current() (*tls.Certificate, *x509.CertPool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	stamps, err := t.stat()
	if err == nil && stamps != t.stamps {
		if err = t.load(); err == nil {
			t.logger.Info("TLS certificate was read again", "valid_until", t.cert.Leaf.NotAfter)
		}
	}
	if err != nil {
		t.logger.Error("TLS files cannot be read again, the old certificate stays in use", "error", err)
	}
	if expired := time.Now().After(t.cert.Leaf.NotAfter); expired != t.expired {
		if t.expired = expired; expired {
			t.logger.Error("this node's own TLS certificate has expired: peers refuse it", "valid_until", t.cert.Leaf.NotAfter)
		}
	}
	return t.cert, t.pool
}

// tlsReason is the label under which a failed TLS handshake is counted.
func tlsReason(err error) string {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return "expired_certificate"
	}
	return "tls"
}

func (t *TLS) base() *tls.Config {
	cert, _ := t.current()
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*cert}}
	if t.cfg.MinVersion == "1.3" {
		c.MinVersion = tls.VersionTLS13
	}
	for _, name := range t.cfg.CipherSuites {
		for _, suite := range tls.CipherSuites() {
			if suite.Name == name {
				c.CipherSuites = append(c.CipherSuites, suite.ID)
			}
		}
	}
	return c
}

func (t *TLS) server() *tls.Config {
	c := t.base()
	if t.cfg.VerifyClient {
		_, c.ClientCAs = t.current()
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c
}

func (t *TLS) client(addr string) *tls.Config {
	c := t.base()
	_, c.RootCAs = t.current()
	c.InsecureSkipVerify = t.cfg.InsecureSkipVerify
	c.ServerName = t.cfg.ServerName
	if c.ServerName == "" {
		c.ServerName, _, _ = net.SplitHostPort(addr)
	}
	return c
}

// certificateShown: the accepted connection's client showed a certificate that
// was verified.
func (t *Transport) certificateShown(c net.Conn) bool {
	tc, ok := c.(*tls.Conn)
	return ok && len(tc.ConnectionState().VerifiedChains) > 0
}

// tlsRecord is how a TLS handshake starts on the wire.
var tlsRecord = []byte{22, 3}

const bothOrNone = "TLS_ENABLED must be set on both nodes or on neither"

// plainDialer is a dialer without TLS, and the Hello that is answered: it has to hear
// that it is refused. A peer that only hung up on it would look dead, and a standby
// that starts with the wrong setting would take over from it. What it sent is lost in
// the TLS connection, but for the length of its first frame, which is enough.
func plainDialer(err error) (net.Conn, *envelope) {
	var other tls.RecordHeaderError
	if !errors.As(err, &other) || other.Conn == nil {
		return nil, nil
	}
	if size := binary.BigEndian.Uint32(other.RecordHeader[:]); size == 0 || size > maxUnprovenFrameBytes {
		return nil, nil // it speaks something else
	}
	return other.Conn, &envelope{Type: int(replication.MsgHello)}
}

// tlsError is the failure of a TLS handshake. A peer without TLS either sends what is
// none, or reads a frame of an absurd length and hangs up.
func tlsError(err error) error {
	var other tls.RecordHeaderError
	switch {
	case errors.As(err, &other):
		return fmt.Errorf("%w: %w: %s", replication.ErrUnauthenticated, err, bothOrNone)
	case errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("%w: the peer hung up in the TLS handshake: %w: it has just died, or %s", replication.ErrUnauthenticated, err, bothOrNone)
	}
	return fmt.Errorf("%w: %w", replication.ErrUnauthenticated, err)
}

// alerted marks an alert of the server's: in TLS 1.3 it refuses the dialer's
// certificate only when the dialer's handshake is over.
func alerted(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" {
		return fmt.Errorf("%w: the peer refuses this node's certificate: %w", replication.ErrUnauthenticated, err)
	}
	return err
}
