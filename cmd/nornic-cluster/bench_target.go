package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/raftnode"
)

// httpBench measures a running cluster through its REST interface. A write goes
// to the node that answered last, a read to each in turn.
type httpBench struct {
	o      *benchOptions
	client *client
	run    string // random: the request IDs of this run
	next   atomic.Int64
}

func openHTTPBench(o *benchOptions) (benchTarget, error) {
	c, err := newClient(o.addrs)
	if err != nil {
		return nil, err
	}
	c.http.Transport = &http.Transport{MaxIdleConnsPerHost: o.writers + o.readers, MaxConnsPerHost: 0}
	return &httpBench{o: o, client: c, run: rand.Text()}, nil
}

func (h *httpBench) write(ctx context.Context, id, value string) error {
	body := fmt.Appendf(nil, `{"type":"node","id":%q,"properties":{"v":%q}}`, id, value)
	return h.client.post(ctx, "/graph/batch", fmt.Sprint(h.run, "-", h.next.Add(1)), body)
}

func (h *httpBench) read(ctx context.Context, id string) error {
	addr := h.client.addrs[int(h.next.Add(1))%len(h.client.addrs)]
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, addr+"/graph/nodes/"+url.PathEscape(id)+"?consistency="+url.QueryEscape(h.o.consistency), nil)
	if err != nil {
		return err
	}
	resp, err := h.client.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, bytes.TrimSpace(text))
	}
	return err
}

func (h *httpBench) Close() error {
	h.client.http.CloseIdleConnections()
	return nil
}

// embeddedBench measures a cluster in this process, without HTTP: writes go to
// its leader, reads to its other nodes in turn.
type embeddedBench struct {
	o      *benchOptions
	dir    string
	repls  []replication.Replicator // the leader first, once they are started
	stores []io.Closer
	next   atomic.Int64
}

func openEmbedded(ctx context.Context, o *benchOptions) (_ benchTarget, err error) {
	e := &embeddedBench{o: o}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	if e.dir, err = os.MkdirTemp("", "nornic-bench-"); err != nil {
		return nil, err
	}
	addrs, err := freeLoopback(o.embedded)
	if err != nil {
		return nil, err
	}
	for i := range addrs {
		cfg := demoConfig(i, addrs, e.dir)
		cfg.LogStore = o.log
		if err := e.open(cfg); err != nil {
			return nil, err
		}
	}
	return e, e.start(ctx)
}

func (e *embeddedBench) open(cfg *replication.Config) error {
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return err
	}
	var store replication.Storage = newBenchStore()
	if e.o.storage == "boltgraph" {
		graph, err := boltgraph.Open(filepath.Join(cfg.DataDir, "graph.db"))
		if err != nil {
			return err
		}
		store = graph
		e.stores = append(e.stores, graph)
	}
	repl, err := replication.New(cfg, store, replication.Modes{
		replication.ModeRaft: raftnode.Mode(raftnode.WithLogStore(walName, openWAL)),
	}, replication.WithLogger(slog.New(slog.DiscardHandler)))
	if err == nil {
		e.repls = append(e.repls, repl)
	}
	return err
}

func (e *embeddedBench) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	errs := make([]error, len(e.repls))
	var wg sync.WaitGroup
	for i, r := range e.repls {
		wg.Go(func() { errs[i] = r.Start(ctx) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for {
		leader := slices.IndexFunc(e.repls, replication.Replicator.IsLeader)
		if leader >= 0 {
			e.repls[0], e.repls[leader] = e.repls[leader], e.repls[0]
			return nil
		}
		timer := time.NewTimer(5 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w: %w", replication.ErrNoLeader, context.Cause(ctx))
		}
	}
}

func (e *embeddedBench) write(ctx context.Context, id, value string) error {
	cmd, err := replication.NewNodeCommand(replication.CmdPutNode,
		&replication.Node{ID: replication.NodeID(id), Properties: map[string]any{"v": value}})
	if err == nil {
		_, err = e.repls[0].(replication.BatchApplier).ApplyBatch(ctx, []*replication.Command{cmd})
	}
	return err
}

func (e *embeddedBench) read(ctx context.Context, _ string) error {
	reader := e.repls[0]
	if n := len(e.repls) - 1; n > 0 {
		reader = e.repls[1+int(e.next.Add(1))%n]
	}
	_, err := reader.(replication.ConsistentReader).ReadBarrier(ctx, replication.Consistency(e.o.consistency))
	return err
}

func (e *embeddedBench) Close() error {
	var errs []error
	for _, r := range e.repls {
		errs = append(errs, r.Shutdown())
	}
	for _, s := range e.stores {
		errs = append(errs, s.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(e.dir))...)
}

func freeLoopback(n int) (addrs []string, err error) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // all are held until all are known
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}
