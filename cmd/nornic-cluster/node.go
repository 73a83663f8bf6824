package main

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/raftnode"
	"github.com/nornicdb/replication/region"
	"github.com/nornicdb/replication/standby"
)

const stopTimeout = 9 * time.Second // of ten that are promised

// node is a replicator over a graph store, with its HTTP address.
type node struct {
	repl   replication.Replicator
	store  *boltgraph.Store
	server *http.Server
	url    string
	// readLevel is that of reads which name none.
	readLevel replication.Consistency
	done      chan error // the HTTP server's end
}

// openNode opens store, replicator and HTTP address; start makes it take part.
func openNode(cfg *replication.Config, httpAddr string, logger *slog.Logger, opts ...raftnode.Option) (*node, error) {
	if err := errors.Join(cfg.Validate(), checkWAL(cfg)); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, err
	}
	store, err := boltgraph.Open(filepath.Join(cfg.DataDir, "graph.db"))
	if err != nil {
		return nil, err
	}
	opts = append([]raftnode.Option{raftnode.WithLogStore(walName, openWAL)}, opts...)
	repl, err := replication.New(cfg, store, replication.Modes{
		replication.ModeRaft: raftnode.Mode(opts...), replication.ModeHAStandby: standby.Mode(standby.WithLogStore(walName, func(dir string) (raft.LogStore, error) { return openWAL(dir) })),
		replication.ModeMultiRegion: region.Mode(opts...),
	}, replication.WithLogger(logger))
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	l, err := net.Listen("tcp", httpAddr)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("HTTP address: %w", err), store.Close())
	}
	n := &node{repl: repl, store: store, url: "http://" + l.Addr().String(), done: make(chan error, 1), readLevel: cfg.ReadConsistency}
	authorize, err := authorizer(l.Addr())
	if err != nil {
		return nil, errors.Join(err, l.Close(), store.Close())
	}
	handler, err := n.handler(authorize)
	if err != nil {
		return nil, errors.Join(err, l.Close(), store.Close())
	}
	n.server = &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute}
	go func() { n.done <- n.server.Serve(l) }()
	return n, nil
}

// handler serves everything that this node has on its HTTP address.
func (n *node) handler(authorize func(*http.Request) error) (http.Handler, error) {
	metrics, err := n.metricsHandler()
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	admin := replication.NewHTTPHandler(n.repl, replication.HTTPOptions{Authorize: authorize})
	mux.Handle("/health", admin)
	mux.Handle("/admin/", admin)
	mux.Handle("GET /metrics", metrics)
	(&rest{repl: n.repl, store: n.store, authorize: authorize, level: n.readLevel}).mount(mux)
	return replication.HTTPMuxErrors(mux), nil
}

// adminToken is the bearer token of NORNIC_ADMIN_TOKEN, or of the file that
// NORNIC_ADMIN_TOKEN_FILE names; "" where there is none.
func adminToken() (string, error) {
	token, name := os.Getenv("NORNIC_ADMIN_TOKEN"), os.Getenv("NORNIC_ADMIN_TOKEN_FILE")
	if token != "" || name == "" {
		return token, nil
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("%w: NORNIC_ADMIN_TOKEN_FILE: %w", replication.ErrInvalidConfig, err)
	}
	if token = strings.TrimSpace(string(data)); token == "" {
		return "", fmt.Errorf("%w: NORNIC_ADMIN_TOKEN_FILE: %s is empty", replication.ErrInvalidConfig, name)
	}
	return token, nil
}

// authorizer guards the endpoints that change something: by the bearer token, and
// without one by a loopback address, where a browser's request on behalf of some
// other site is refused.
func authorizer(addr net.Addr) (func(*http.Request) error, error) {
	token, err := adminToken()
	if err != nil {
		return nil, err
	}
	if token != "" {
		want := []byte("Bearer " + token)
		return func(r *http.Request) error {
			if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), want) != 1 {
				return fmt.Errorf("%w: a bearer token is needed", replication.ErrHTTPUnauthorized)
			}
			return nil
		}, nil
	}
	if tcp, ok := addr.(*net.TCPAddr); ok && tcp.IP.IsLoopback() {
		return http.NewCrossOriginProtection().Check, nil
	}
	return func(*http.Request) error { return errNoToken }, nil
}

var errNoToken = errors.New("changes want a bearer token on an address that is not loopback, and this node was started without " +
	"NORNIC_ADMIN_TOKEN or NORNIC_ADMIN_TOKEN_FILE")

func (n *node) start(ctx context.Context) error { return n.repl.Start(ctx) }

// leave hands the primary's part on, where there is one, and closes everything:
// what the standby takes to answer is no longer there for the closing.
func (n *node) leave(logger *slog.Logger) error {
	start := time.Now()
	n.handOver(logger)
	return n.stopWithin(stopTimeout - time.Since(start))
}

func (n *node) stop() error { return n.stopWithin(stopTimeout) }

// stopWithin closes everything, in order. What takes longer, a disk that hangs, is
// left to the end of the process.
func (n *node) stopWithin(limit time.Duration) error {
	done := make(chan error, 1)
	go func() { done <- n.close(limit / 2) }()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return fmt.Errorf("%w: not everything was closed within %s; what was acknowledged is on the disk", replication.ErrTimeout, limit.Round(time.Second))
	}
}

// close gives HTTP requests in flight until patience is over.
func (n *node) close(patience time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var errs []error
	errs = append(errs, n.repl.Shutdown())
	if err := n.server.Shutdown(ctx); err != nil {
		errs = append(errs, n.server.Close())
	}
	if err := <-n.done; !errors.Is(err, http.ErrServerClosed) {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, n.store.Close())...)
}
