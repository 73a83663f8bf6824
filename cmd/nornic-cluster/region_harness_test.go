package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// regionProcesses are regions of three processes each. A region reaches each
// node of another one by a wire of its own.
type regionProcesses struct {
	t     *testing.T
	names []string
	nodes map[string][]*process
	wires map[[2]string][]*wire // from, to
}

// startRegions starts the regions eu and us; env is in every node's environment.
func startRegions(t *testing.T, env ...string) *regionProcesses {
	t.Helper()
	if testing.Short() {
		t.Skip("six processes and failovers take a while")
	}
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	r := &regionProcesses{t: t, names: []string{"eu", "us"}, nodes: make(map[string][]*process), wires: make(map[[2]string][]*wire)}
	addrs := freeAddrs(t, demoNodes*len(r.names))
	dir := t.TempDir()
	own := func(region int) []string { return addrs[demoNodes*region : demoNodes*(region+1)] }
	for i, name := range r.names {
		var remote []string
		for j, other := range r.names {
			for k := 0; j != i && k < demoNodes; k++ {
				w := newWire(t, own(j)[k])
				r.wires[[2]string{name, other}] = append(r.wires[[2]string{name, other}], w)
				remote = append(remote, other+":"+w.listener.Addr().String())
			}
		}
		for k, addr := range own(i) {
			var peers []string
			for j, peer := range own(i) {
				if j != k {
					peers = append(peers, fmt.Sprintf("%s%d:%s", name, j, peer))
				}
			}
			p := newProcess(t, dir, fmt.Sprint(name, k), addr, peers)
			p.env = append(p.env, clusterPrefix+"MODE=multi_region", clusterPrefix+"RAFT_BOOTSTRAP="+fmt.Sprint(k == 0), clusterPrefix+"RAFT_CLUSTER_ID="+name,
				clusterPrefix+"REGION_ID="+name, clusterPrefix+"REMOTE_REGIONS="+strings.Join(remote, ","))
			p.env = append(p.env, env...)
			p.start()
			r.nodes[name] = append(r.nodes[name], p)
		}
	}
	for _, name := range r.names {
		whole(t, r.nodes[name])
	}
	return r
}

func (r *regionProcesses) all() (list []*process) {
	for _, name := range r.names {
		list = append(list, r.nodes[name]...)
	}
	return list
}

func (r *regionProcesses) each(do func(w *wire)) {
	for _, list := range r.wires {
		for _, w := range list {
			do(w)
		}
	}
}

func (r *regionProcesses) cut()  { r.each((*wire).cut) }
func (r *regionProcesses) heal() { r.each((*wire).heal) }

// kill9 kills a whole region at once.
func (r *regionProcesses) kill9(name string) {
	var wg sync.WaitGroup
	for _, p := range r.nodes[name] {
		wg.Go(p.kill9)
	}
	wg.Wait()
}

func (r *regionProcesses) start(name string) {
	for _, p := range r.nodes[name] {
		p.start()
	}
}

// same waits until all nodes of all regions hold the same, as an operator does.
func (r *regionProcesses) same() {
	r.t.Helper()
	out, errs, status := runCommand(r.t, "verify", "--addr", strings.Join(urls(r.all()), ","))
	require.Zero(r.t, status, "%s%s", out, errs)
	require.Contains(r.t, out, "all 6 nodes in 2 regions hold the same graph")
}

// write puts a node at a region, until it is acknowledged.
func (r *regionProcesses) write(name, lines string) {
	r.t.Helper()
	c, err := newClient(urls(r.nodes[name]))
	require.NoError(r.t, err)
	defer c.http.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	require.NoError(r.t, c.post(ctx, "/graph/batch", fmt.Sprint(name, time.Now().UnixNano()), []byte(lines)))
}

// ask sends a request to a node and reads its answer.
func ask(t *testing.T, p *process, method, path, body string, answer any) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, p.url+path, strings.NewReader(body))
	require.NoError(t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	if answer != nil {
		require.NoError(t, json.Unmarshal(text, answer), "%s", text)
	}
	return resp.StatusCode
}

// change sends a change to any node of a region, until it is acknowledged.
func (r *regionProcesses) change(name, method, path, body string) {
	r.t.Helper()
	id := fmt.Sprint(name, time.Now().UnixNano())
	last := 0
	until(r.t, "the change is acknowledged", func() bool {
		req, err := http.NewRequestWithContext(r.t.Context(), method, follower(r.t, r.nodes[name]).url+path, strings.NewReader(body))
		if err != nil {
			return false
		}
		req.Header.Set("Request-Id", id)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		if last = resp.StatusCode; last == http.StatusOK {
			return true
		}
		var a *answer
		return errors.As(refusal(resp), &a) && a.final()
	})
	require.Equal(r.t, http.StatusOK, last)
}

// property of a node as a process shows it; nil: there is none.
func property(t *testing.T, p *process, node, key string) any {
	t.Helper()
	var n struct{ Properties map[string]any }
	if ask(t, p, http.MethodGet, "/graph/nodes/"+node, "", &n) != http.StatusOK {
		return nil
	}
	return n.Properties[key]
}

// checkWrites stops loads and looks for all that was acknowledged to them: every
// node, and in each register the writer's last value.
func (r *regionProcesses) checkWrites(loads ...*pairLoad) {
	r.t.Helper()
	var acked int64
	for _, l := range loads {
		l.stop()
		acked += l.acked.Load()
	}
	r.same()
	nodes := graph(r.t, r.nodes["us"][1])
	for _, l := range loads {
		for _, ids := range l.writes {
			for i, id := range ids {
				require.NotEmpty(r.t, nodes[id], "%s was acknowledged", id)
				if register := id[:strings.LastIndexByte(id, '-')]; i == len(ids)-1 {
					require.Contains(r.t, nodes[register], fmt.Sprintf(`"v":%d}`, i), "%s: an earlier write has won", register)
				}
			}
		}
	}
	r.t.Logf("%d writes acknowledged", acked)
}

// graphFile writes a graph to a file, in which the nodes of an edge are far apart.
func graphFile(t *testing.T, nodes, edges int) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "graph.jsonl")
	var text bytes.Buffer
	for i := range nodes {
		fmt.Fprintf(&text, `{"type":"node","id":"n%d","labels":["N"],"properties":{"i":%d}}`+"\n", i, i)
	}
	for i := range edges {
		fmt.Fprintf(&text, `{"type":"relationship","label":"R%d","start":{"id":"n%d"},"end":{"id":"n%d"}}`+"\n", i/nodes, i%nodes, (i*7+1)%nodes)
	}
	require.NoError(t, os.WriteFile(name, text.Bytes(), 0o600))
	return name
}

// believers watches which regions take themselves for the write region, and in
// which region epoch. stop says what it saw: epoch → regions.
func (r *regionProcesses) believers() (stop func() map[uint64][]string) {
	seen := make(map[uint64][]string)
	done := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	for _, p := range r.all() {
		wg.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for {
				if h := health(p); h.Region != "" && h.Region == h.WriteRegion {
					mu.Lock()
					if !slices.Contains(seen[h.RegionEpoch], h.Region) {
						seen[h.RegionEpoch] = append(seen[h.RegionEpoch], h.Region)
					}
					mu.Unlock()
				}
				select {
				case <-tick.C:
				case <-done:
					return
				}
			}
		})
	}
	return func() map[uint64][]string { close(done); wg.Wait(); return seen }
}

// scrapeBoth looks for all metrics of regions with one conflict each of two
// properties, at the leaders.
func (r *regionProcesses) scrapeBoth() {
	r.t.Helper()
	for name, other := range map[string]string{"eu": "us", "us": "eu"} {
		sent := `nornicdb_replication_wal_entries_sent_total{peer="` + other + `"} `
		label := `{region="` + other + `"} `
		want := append(slices.Clone(everywhere), `nornicdb_replication_mode{mode="multi_region"} 1`, `nornicdb_replication_role{role="leader"} 1`,
			`nornicdb_replication_epoch 0`, `nornicdb_replication_lag_entries{peer="`+name, `nornicdb_replication_peer_healthy{peer="`+name,
			`nornicdb_replication_wal_bytes `, sent, `nornicdb_replication_conflicts_open 2`,
			`nornicdb_replication_region_lag_seconds`+label+"0", `nornicdb_replication_region_lag_entries`+label+"0", `nornicdb_replication_region_clock_offset_seconds`+label,
			`nornicdb_replication_region_silent_seconds`+label, `nornicdb_replication_region_cut_lag_entries `, `nornicdb_replication_region_outbox_entries 0`,
			`nornicdb_replication_region_outbox_bytes 0`, `nornicdb_replication_region_unsettled_rows 2`, `nornicdb_replication_region_unsettled_bytes `,
			`nornicdb_replication_region_entries_merged_total `, `nornicdb_replication_region_entries_duplicate_total `, `nornicdb_replication_region_gaps_total `,
			`nornicdb_replication_region_clock_ahead_total `, `nornicdb_replication_region_merge_seconds_count `, `nornicdb_replication_conflicts_by_field_total{field="property"} 2`,
			`nornicdb_replication_conflicts_settled_by_write_total 0`, `nornicdb_replication_conflicts_settled_by_resolve_total 0`)
		want[slices.Index(want, `nornicdb_replication_conflicts_total{strategy="manual"} 0`)] = `nornicdb_replication_conflicts_total{strategy="manual"} 2`
		var missing []string
		if !assert.Eventually(r.t, func() bool {
			text := scrape(r.t, leader(r.t, r.nodes[name]).url) // it may change
			if strings.Contains(text, `role{role="leader"} 1`) && !strings.Contains(text, "\n"+sent) {
				r.write(name, `{"type":"node","id":"sent"}`) // one that leads since just now has sent nothing yet
			}
			missing = slices.DeleteFunc(slices.Clone(want), func(line string) bool { return strings.Contains(text, "\n"+line) })
			return len(missing) == 0
		}, patience, 100*time.Millisecond) {
			require.Empty(r.t, missing)
		}
	}
}
