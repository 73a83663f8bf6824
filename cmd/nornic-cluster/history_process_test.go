package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

var faultRounds = flag.Int("fault.rounds", 4, "how many faults TestHistoriesOnProcesses plays")

// webNode is a serve process as a client sees it: a replication.Replicator over
// HTTP, as far as a testharness.Client asks one.
type webNode struct {
	replication.Replicator // nil: nothing else is asked
	id, url                string
	http                   *http.Client
}

func (w *webNode) NodeID() string { return w.id }

// call sends a request. Where no answer came, nobody knows what became of it.
func (w *webNode) call(ctx context.Context, method, path, requestID string, body, answer any) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, w.url+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Request-Id", requestID)
	resp, err := w.http.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", replication.ErrUnknownOutcome, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("%w: %w", replication.ErrUnknownOutcome, err)
	}
	if resp.StatusCode == http.StatusOK {
		return json.Unmarshal(text, answer)
	}
	var failure struct {
		Error struct{ Code, Message string }
	}
	if err := json.Unmarshal(text, &failure); err != nil {
		return fmt.Errorf("%w: %s: %s", replication.ErrUnknownOutcome, resp.Status, text)
	}
	return replication.ErrorFromCode(failure.Error.Code, failure.Error.Message)
}

// ApplyBatch implements replication.BatchApplier for one command: a property
// that is set, or a node that is put.
func (w *webNode) ApplyBatch(ctx context.Context, cmds []*replication.Command) (uint64, error) {
	var c struct {
		ID     string          `json:"id"`
		NodeID string          `json:"node_id"`
		Key    string          `json:"key"`
		Value  json.RawMessage `json:"value"`
	}
	if err := json.Unmarshal(cmds[0].Data, &c); err != nil {
		return 0, err
	}
	var answer struct{ Position uint64 }
	var err error
	if cmds[0].Type == replication.CmdSetProperty {
		err = w.call(ctx, http.MethodPatch, "/graph/nodes/"+url.PathEscape(c.NodeID), cmds[0].RequestID, map[string]any{"key": c.Key, "value": c.Value}, &answer)
	} else {
		err = w.call(ctx, http.MethodPut, "/graph/nodes/"+url.PathEscape(c.ID), cmds[0].RequestID, map[string]any{}, &answer)
	}
	return answer.Position, err
}

// ReadBarrier implements replication.ConsistentReader: property asks for the
// level itself.
func (w *webNode) ReadBarrier(context.Context, replication.Consistency) (uint64, error) {
	return 0, nil
}

func (w *webNode) WaitApplied(context.Context, uint64) error { return nil }

func (w *webNode) node(ctx context.Context, id replication.NodeID, level string) (map[string]any, error) {
	var n struct{ Properties map[string]any }
	err := w.call(ctx, http.MethodGet, "/graph/nodes/"+url.PathEscape(string(id))+"?consistency="+level, "", nil, &n)
	return n.Properties, err
}

func (w *webNode) target() testharness.Target {
	return testharness.Target{Replicator: w, Property: func(id replication.NodeID, key string) (any, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		props, err := w.node(ctx, id, "QUORUM")
		return props[key], err
	}}
}

// faults that a process can meet. Each returns what ends it.
func processFaults(t *testing.T, list []*process) map[string]func(p *process) (end func()) {
	faults := map[string]func(p *process) func(){
		"kill -9": func(p *process) func() { p.kill9(); return p.start },
		"stopped and continued": func(p *process) func() {
			require.NoError(t, p.cmd.Process.Signal(syscall.SIGSTOP))
			return func() { require.NoError(t, p.cmd.Process.Signal(syscall.SIGCONT)) }
		},
	}
	if list[0].namespace != "" {
		faults["cut off"] = func(p *process) func() {
			p.link(t, "down")
			return func() { p.link(t, "up") }
		}
	}
	if list[0].small {
		faults["disk full"] = func(p *process) func() {
			filler := filepath.Join(p.data, "filler")
			f, err := os.Create(filler)
			require.NoError(t, err)
			_, full := io.Copy(f, io.LimitReader(zeros{}, 1<<30))
			require.ErrorIs(t, full, syscall.ENOSPC)
			require.NoError(t, f.Close())
			return func() { // an operator makes room and starts the node anew
				require.NoError(t, os.Remove(filler))
				p.kill9()
				p.start()
			}
		}
	}
	return faults
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestHistoriesOnProcesses records what clients of three real processes see
// while these are killed, stopped, cut off and out of disk, and checks it like
// the simulated clusters' histories. Where the test runs as root each process
// has a network of its own, which can be cut, and a small disk.
func TestHistoriesOnProcesses(t *testing.T) {
	if testing.Short() {
		t.Skip("three processes and several faults take a while")
	}
	list := isolatedProcesses(t)
	historyOn(t, list, processFaults(t, list))
}

// historyOn plays faults under load, one after the other, and checks what the
// clients saw.
func historyOn(t *testing.T, list []*process, faults map[string]func(p *process) (end func())) {
	t.Helper()
	defer http.DefaultClient.CloseIdleConnections()
	leader(t, list)
	client := &http.Client{Timeout: 10 * time.Second, Transport: tokenSender{&http.Transport{DisableKeepAlives: true}}}
	var nodes []*webNode
	for i, p := range list {
		nodes = append(nodes, &webNode{id: fmt.Sprint("n", i), url: p.url, http: client})
	}
	h := testharness.NewHistory("processes")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	all := []testharness.Target{nodes[0].target(), nodes[1].target(), nodes[2].target()}
	register, err := replication.NewNodeCommand(replication.CmdPutNode, &replication.Node{ID: "register"})
	require.NoError(t, err)
	require.Equal(t, testharness.OutcomeDone, h.Client(all...).Do(ctx, register).Outcome)

	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() { work(ctx, stop, h, all, i) })
	}
	for name, fault := range faults {
		for round := range max(1, *faultRounds/4) {
			victim := list[rand.IntN(3)]
			if round%2 == 0 {
				victim = leader(t, list)
			}
			t.Logf("%s: %s", victim.url, name)
			end := fault(victim)
			timer := time.NewTimer(2 * time.Second) // the fault lasts
			<-timer.C
			end()
			require.Eventually(t, func() bool {
				create := h.Client(all...).Create(ctx)
				return create.Outcome == testharness.OutcomeDone
			}, patience, 10*time.Millisecond, "writes go on after: %s", name)
		}
	}
	close(stop)
	wg.Wait()
	require.NoError(t, verify(ctx, urls(list), patience, true))
	ops := h.Operations()
	counts := map[testharness.Outcome]int{}
	for _, op := range ops {
		counts[op.Outcome]++
	}
	t.Logf("%d operations: %v", len(ops), counts)
	require.Greater(t, counts[testharness.OutcomeDone], 50, "of any use")
	require.NoError(t, testharness.CheckLinearizable(ops, t.TempDir()))
	require.NoError(t, testharness.CheckOutcomes(ops, func(id replication.NodeID) (bool, error) {
		_, err := nodes[0].node(ctx, id, "ONE")
		if replication.ErrorCode(err) == "not_found" {
			return false, nil
		}
		return err == nil, err
	}))
}

// work does operations until stop.
func work(ctx context.Context, stop <-chan struct{}, h *testharness.History, all []testharness.Target, number int) {
	client := h.Client()
	for i := 0; ; i++ {
		timer := time.NewTimer(time.Duration(rand.IntN(60)) * time.Millisecond)
		select {
		case <-stop:
			timer.Stop()
			return
		case <-timer.C:
		}
		first := rand.IntN(3)
		client.Use(all[first], all[(first+1)%3], all[(first+2)%3])
		ctx, cancel := context.WithTimeout(ctx, 4*time.Second)
		switch i % 3 {
		case 0:
			client.Set(ctx, "register", "v", fmt.Sprintf("%d-%d", number, i))
		case 1:
			client.Get(ctx, replication.ConsistencyQuorum, "register", "v")
		default:
			client.Create(ctx)
		}
		cancel()
	}
}
