package transport

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	"github.com/nornicdb/replication"
)

const readBufferBytes = 64 << 10

// Options of a Transport. Zero fields get the defaults named beside them.
type Options struct {
	NodeID    string // required
	ClusterID string
	Region    string
	// Secret is the cluster secret; empty: nothing is proven with one.
	Secret       []byte
	MaxFrameSize int // bytes, 64 MiB
	// TLS is nil for plain TCP.
	TLS *TLS
	// PlainDial makes Connect skip the handshake, for peers that know only
	// the documented messages. It excludes Secret.
	PlainDial bool
	Logger    replication.Logger // slog.Default()

	// Listen and Dial are the network; a test puts another in their place.
	// Dial resolves the address anew each time.
	Listen func(ctx context.Context, addr string) (net.Listener, error)
	Dial   func(ctx context.Context, addr string) (net.Conn, error)

	DialTimeout      time.Duration // one dial with its handshake, 5 s
	HandshakeTimeout time.Duration // an accepted connection's handshake, 5 s
	FrameTimeout     time.Duration // from a frame's first byte to its last, 60 s and 1 s for each 64 KiB
	WriteTimeout     time.Duration // one frame to the network, 30 s and 1 s for each 64 KiB
	AnswerTimeout    time.Duration // an answer without request ID, 30 s
	SilenceTimeout   time.Duration // nothing from a peer that owes an answer, not even to a probe, 15 s
	BackoffMin       time.Duration // first wait after a failed dial, 50 ms
	BackoffMax       time.Duration // longest, 2 s
	MaxConnections   int           // accepted at once, 1024
	MaxUnproven      int           // of these without finished handshake, 128
	MaxRequests      int           // being handled at once on one connection, 1024; more are refused
	MaxPending       int           // sent and not answered on one connection, 512; more wait

	skipsChecksums bool // a mutant: a test sees that its fault is found
}

func defaultTo[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (o *Options) setDefaults() {
	defaultTo(&o.MaxFrameSize, 64<<20)
	defaultTo(&o.DialTimeout, 5*time.Second)
	defaultTo(&o.HandshakeTimeout, 5*time.Second)
	defaultTo(&o.FrameTimeout, 60*time.Second)
	defaultTo(&o.WriteTimeout, 30*time.Second)
	defaultTo(&o.AnswerTimeout, 30*time.Second)
	defaultTo(&o.SilenceTimeout, 15*time.Second)
	defaultTo(&o.BackoffMin, 50*time.Millisecond)
	defaultTo(&o.BackoffMax, 2*time.Second)
	defaultTo(&o.MaxConnections, 1024)
	defaultTo(&o.MaxUnproven, 128)
	defaultTo(&o.MaxRequests, 1024)
	defaultTo(&o.MaxPending, 512)
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Listen == nil {
		o.Listen = func(ctx context.Context, addr string) (net.Listener, error) {
			var lc net.ListenConfig
			return lc.Listen(ctx, "tcp", addr)
		}
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		}
	}
}

func (o *Options) validate() error {
	switch {
	case o.NodeID == "":
		return fmt.Errorf("%w: transport without node ID", replication.ErrInvalidConfig)
	case o.MaxFrameSize < maxUnprovenFrameBytes*2 || o.MaxFrameSize > 1<<30:
		return fmt.Errorf("%w: MaxFrameSize %d", replication.ErrInvalidConfig, o.MaxFrameSize)
	case len(o.Secret) > 0 && len(o.Secret) < 16:
		return fmt.Errorf("%w: the cluster secret needs 16 bytes", replication.ErrInvalidConfig)
	case o.PlainDial && len(o.Secret) > 0:
		return fmt.Errorf("%w: PlainDial proves no secret", replication.ErrInvalidConfig)
	}
	return nil
}

// OptionsFromConfig makes Options of a validated Config: it reads the secret
// and the TLS files, and says what is wrong with them.
func OptionsFromConfig(cfg *replication.Config, logger replication.Logger) (Options, error) {
	o := Options{
		NodeID: cfg.NodeID, ClusterID: cfg.Raft.ClusterID, Region: cfg.Region.RegionID,
		Secret: []byte(cfg.Secret), MaxFrameSize: cfg.MaxFrameSize, Logger: logger,
	}
	// Whoever sets long timeouts for a slow network means connecting too, which
	// takes several round trips.
	patience := max(5*time.Second, cfg.Raft.ElectionTimeout)
	if cfg.Mode == replication.ModeHAStandby {
		patience = max(5*time.Second, cfg.HA.FailoverTimeout)
	}
	o.DialTimeout, o.HandshakeTimeout = patience, patience
	if cfg.SecretFile != "" {
		data, err := os.ReadFile(cfg.SecretFile)
		if err != nil {
			return o, fmt.Errorf("%w: NORNICDB_CLUSTER_SECRET_FILE: %w", replication.ErrInvalidConfig, err)
		}
		o.Secret = []byte(strings.TrimRight(string(data), "\r\n"))
		if len(o.Secret) < 16 {
			return o, fmt.Errorf("%w: NORNICDB_CLUSTER_SECRET_FILE=%q: the secret needs at least 16 bytes", replication.ErrInvalidConfig, cfg.SecretFile)
		}
	}
	if cfg.TLS.Enabled {
		var err error
		if o.TLS, err = NewTLS(cfg.TLS, logger); err != nil {
			return o, err
		}
	}
	return o, nil
}
