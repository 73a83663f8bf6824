package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

var regionRounds = flag.Int("region.rounds", 2, "how many faults TestRegionsSurviveKillsPausesAndCuts plays")

// importPart starts the import of a part of a file into a region.
func (r *regionProcesses) importPart(name, file, part string) *process {
	r.t.Helper()
	out, err := os.Create(filepath.Join(r.t.TempDir(), "import"))
	require.NoError(r.t, err)
	r.t.Cleanup(func() { _ = out.Close() })
	p := &process{t: r.t, log: out, args: []string{"import", "--batch", "16", "--writers", "4", "--part", part,
		"--addr", strings.Join(urls(r.nodes[name]), ","), file}}
	p.start()
	r.t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			p.kill9()
		}
	})
	return p
}

// TestRegionsLoadAGraphTogether is the README's section on regions: each loads a
// half of a file; either loses its leader meanwhile, one is gone for a while.
func TestRegionsLoadAGraphTogether(t *testing.T) {
	const nodes, edges = 1000, 6000
	r := startRegions(t)
	file := graphFile(t, nodes, edges)
	imports := []*process{r.importPart("eu", file, "1/2"), r.importPart("us", file, "2/2")}
	at := r.nodes["eu"][0]
	loaded := func(edges uint64) {
		t.Helper()
		until(t, "the import goes on", func() bool {
			var st statsView
			return get(t.Context(), at.url+"/graph/stats", &st) == nil && st.Edges >= edges
		})
	}
	loaded(edges / 12)
	victim := leader(t, r.nodes["us"])
	victim.kill9()
	loaded(edges / 6)
	victim.start()
	loaded(edges / 4)
	r.kill9("us")
	var st statsView
	require.NoError(t, get(t.Context(), at.url+"/graph/stats", &st))
	require.Less(t, st.Edges, uint64(edges), "it was gone in the middle")
	loaded(st.Edges + edges/12)
	at = follower(t, r.nodes["eu"])
	victim = leader(t, r.nodes["eu"])
	victim.kill9()
	r.start("us")
	loaded(edges / 2)
	victim.start()
	for i, p := range imports {
		code := p.exitCode()
		said, err := os.ReadFile(p.log.Name())
		require.NoError(t, err)
		require.Zero(t, code, "%s", said)
		require.Contains(t, string(said), fmt.Sprintf("imported %d nodes and %d edges", nodes/2, edges/2))
		t.Logf("part %d: %s", i+1, said)
	}
	r.same()
	require.NoError(t, get(t.Context(), at.url+"/graph/stats", &st))
	require.Equal(t, [2]uint64{nodes, edges}, [2]uint64{st.Nodes, st.Edges})
}

// conflicting writes a property in both regions while they do not hear of each
// other, in eu later.
func (r *regionProcesses) conflicting() {
	r.t.Helper()
	r.write("eu", `{"type":"node","id":"x","properties":{"k":0}}`+"\n"+`{"type":"node","id":"y","properties":{"k":0}}`)
	r.same()
	r.cut()
	set := func(name, value string) {
		for _, id := range []string{"x", "y"} {
			body := fmt.Sprintf(`{"key":"k","value":%q}`, value)
			r.change(name, http.MethodPatch, "/graph/nodes/"+id, body)
		}
	}
	set("us", "b")
	now := time.Now().UnixMilli()
	until(r.t, "it is later", func() bool { return time.Now().UnixMilli() > now+1 })
	set("eu", "a")
	for name, value := range map[string]string{"eu": "a", "us": "b"} {
		until(r.t, "each shows its own", func() bool { return property(r.t, leader(r.t, r.nodes[name]), "x", "k") == value })
	}
	r.heal()
}

func TestRegionsStrategies(t *testing.T) {
	for strategy, want := range map[string]string{"last_write_wins": "a", "first_write_wins": "b"} {
		t.Run(strategy, func(t *testing.T) {
			r := startRegions(t, clusterPrefix+"CONFLICT_STRATEGY="+strategy)
			r.conflicting()
			r.same()
			for _, p := range r.all() {
				require.Equal(t, want, property(t, p, "x", "k"))
			}
			out, errs, status := runCommand(t, "conflicts", "--addr", r.nodes["us"][0].url)
			require.Zero(t, status, errs)
			require.Equal(t, 1, strings.Count(out, "\n"), "nothing waits: %s", out)
		})
	}
}

// TestRegionsConflictsAreSettledByHand: by command and over HTTP, and what an
// operator sees meanwhile.
func TestRegionsConflictsAreSettledByHand(t *testing.T) {
	r := startRegions(t, clusterPrefix+"CONFLICT_STRATEGY=manual")
	r.conflicting()
	var list []replication.Conflict
	conflicts := func(p *process) int {
		var page struct{ Conflicts []replication.Conflict }
		out, errs, status := runCommand(t, "conflicts", "--json", "--addr", p.url)
		require.Zero(t, status, errs)
		require.NoError(t, json.Unmarshal([]byte(out), &page))
		list = page.Conflicts
		return len(list)
	}
	for _, p := range r.all() {
		until(t, "everybody lists them", func() bool { return conflicts(p) == 2 })
		require.Equal(t, "a", property(t, p, "x", "k"), "the latest is shown")
		require.Contains(t, health(p).Reasons, "2 nodes and edges have conflicts that wait to be resolved")
	}
	r.same()
	eu, us := follower(t, r.nodes["eu"]), follower(t, r.nodes["us"])
	versions := []string{list[0].Versions[0].VersionID.String(), list[0].Versions[1].VersionID.String()}
	table, errs, status := runCommand(t, "conflicts", "--addr", us.url, "--node", "x")
	require.Zero(t, status, errs)
	for _, part := range append(versions, list[0].Key, `property "k" of "x"`, `"a"`, `"b"`, "shown") {
		require.Contains(t, table, part)
	}
	require.NotContains(t, table, list[1].Key)
	r.scrapeBoth()

	_, errs, status, _ = orderAgain(t, "conflicts", "resolve", "--addr", eu.url, list[0].Key, "--keep", versions[0], "--expect", versions[0])
	require.Equal(t, 1, status)
	require.Contains(t, errs, "versions_changed")
	resolve := []string{"conflicts", "resolve", "--addr", eu.url, list[0].Key, "--keep", versions[1]}
	_, errs, status = runCommand(t, append(resolve, "--expect", versions[0])...)
	require.Equal(t, 2, status)
	require.Contains(t, errs, "none of the versions")
	out, errs, status, tries := orderAgain(t, append(resolve, "--expect", strings.Join(versions, ","))...)
	require.True(t, status == 0 && out == "settled\n" || tries > 1 && strings.Contains(errs, "no_conflict"), "%s%s", out, errs)
	body, err := json.Marshal(&replication.Resolution{Expect: []replication.VersionID{list[1].Versions[0].VersionID, list[1].Versions[1].VersionID}, Value: []byte(`"c"`)})
	require.NoError(t, err)
	path := "/admin/conflicts/" + url.PathEscape(list[1].Key) + "/resolve"
	settle := func() (code, tries int) {
		until(t, "it is settled or not", func() bool {
			tries++
			code = ask(t, us, http.MethodPost, path, string(body), nil)
			return code < http.StatusInternalServerError
		})
		return code, tries
	}
	code, tries := settle()
	require.True(t, code == http.StatusOK || tries > 1 && code == http.StatusNotFound, code)
	for _, p := range r.all() {
		until(t, "settled everywhere", func() bool { return conflicts(p) == 0 })
	}
	r.same()
	for _, p := range r.all() {
		require.Equal(t, []any{"b", "c"}, []any{property(t, p, "x", "k"), property(t, p, "y", "k")})
	}
	code, _ = settle()
	require.Equal(t, http.StatusNotFound, code)
	_, errs, status = runCommand(t, "conflicts", "--addr", us.url, "--field", "nonsense")
	require.Equal(t, 1, status)
	require.Contains(t, errs, "nonsense")
	_, errs, status, _ = orderAgain(t, "region", "promote", "--addr", us.url)
	require.Equal(t, 1, status)
	require.Contains(t, errs, "active-active")
	_, errs, status, _ = orderAgain(t, "region", "remove", "eu", "--addr", us.url)
	require.Equal(t, 1, status)
	require.Contains(t, errs, "regions cannot be removed yet (unsupported)")
	out, errs, status, _ = orderAgain(t, "region", "settings", "--addr", us.url, "--outbox-max-entries", "77", "--max-clock-offset", "0")
	require.Zero(t, status, errs)
	require.Contains(t, out, "region              us of eu, us\n")
	require.Contains(t, out, "max clock offset    0s\noutbox max entries  77\n")
	out, errs, status = runCommand(t, "region", "settings", "--addr", eu.url, "--json")
	require.Zero(t, status, errs)
	require.Contains(t, out, `"conflict_strategy":"manual","max_clock_offset":"500ms","outbox_max_entries":1000000,`)
	// Until the bounds are the same, a connection that is lost is refused.
	_, errs, status, _ = orderAgain(t, "region", "settings", "--addr", eu.url, "--max-clock-offset", "0")
	require.Zero(t, status, errs)
	inStep := regexp.MustCompile(`eu +127.0.0.1:[0-9]+ +connected +true +0 +0.0`)
	until(t, "status shows that eu has everything, a mark that is on its way too", func() bool {
		out, errs, status := runCommand(t, "status", "--addr", us.url)
		require.Zero(t, status, errs)
		require.Contains(t, out, "region us; all regions accept writes")
		return inStep.MatchString(out)
	})
}

// TestRegionsPromotion: the write region is lost while it takes writes, another
// is promoted, the lost one comes back with what only it had, and is promoted
// again.
func TestRegionsPromotion(t *testing.T) {
	r := startRegions(t, clusterPrefix+"WRITE_REGION=eu")
	stop := r.believers()
	loads := []*pairLoad{startLoad(t, "us", 3, urls(r.nodes["us"])...), startLoad(t, "eu", 3, urls(r.nodes["eu"])...)}
	for _, l := range loads {
		l.more(50)
	}
	promote := func(name string, epoch uint64) {
		t.Helper()
		out, errs, status := runCommand(t, "region", "promote", "--addr", follower(t, r.nodes[name]).url)
		require.Zero(t, status, errs)
		require.Contains(t, out, "this region accepts the writes")
		until(t, "a follower knows", func() bool {
			v := clusterSays(t, follower(t, r.nodes[name]).url)
			return v.Region == name && v.WriteRegion == name && v.RegionEpoch == epoch
		})
	}
	forwarded := regexp.MustCompile(`\nnornicdb_replication_forwarded_total [1-9]`)
	require.True(t, slices.ContainsFunc(r.nodes["us"], func(p *process) bool { return forwarded.MatchString(scrape(t, p.url)) }))
	// What eu takes now stays there until it is back.
	r.cut()
	loads[1].more(30)
	r.kill9("eu")
	require.Equal(t, "eu", health(r.nodes["us"][0]).WriteRegion, "nobody takes over by itself")
	promote("us", 2)
	r.heal()
	loads[0].more(50)
	r.start("eu")
	loads[1].more(50)
	until(t, "eu has heard of it", func() bool { return health(leader(t, r.nodes["eu"])).WriteRegion == "us" })
	promote("eu", 3)
	for _, l := range loads {
		l.more(50)
	}
	r.checkWrites(loads...)
	until(t, "us has heard of it", func() bool { return health(leader(t, r.nodes["us"])).WriteRegion == "eu" })
	require.Equal(t, map[uint64][]string{1: {"eu"}, 2: {"us"}, 3: {"eu"}}, stop())
}

// TestRegionsSemiSyncSurvivesTheLossOfARegion: for good, disks and all.
func TestRegionsSemiSyncSurvivesTheLossOfARegion(t *testing.T) {
	r := startRegions(t, clusterPrefix+"CROSS_REGION_MODE=semi_sync")
	l := startLoad(t, "eu", 4, urls(r.nodes["eu"])...)
	l.more(100)
	r.kill9("eu")
	for _, p := range r.nodes["eu"] {
		require.NoError(t, os.RemoveAll(p.data))
	}
	acked := l.giveUp()
	_, errs, status := runCommand(t, "verify", "--addr", strings.Join(urls(r.nodes["us"]), ","))
	require.Zero(t, status, errs)
	nodes := graph(t, r.nodes["us"][0])
	for _, id := range acked {
		require.NotEmpty(t, nodes[id], "%s was acknowledged", id)
	}
	t.Logf("%d writes acknowledged, %d nodes", len(acked), len(nodes))
}

// TestRegionsSurviveKillsPausesAndCuts plays faults with writes in both regions,
// of different things and of the same; the outbox does not last for most of them.
func TestRegionsSurviveKillsPausesAndCuts(t *testing.T) {
	r := startRegions(t, clusterPrefix+"LOG_STORE="+walName, clusterPrefix+"OUTBOX_MAX_ENTRIES=40")
	eu, us := urls(r.nodes["eu"]), urls(r.nodes["us"])
	loads := []*pairLoad{startLoad(t, "eu", 3, eu...), startLoad(t, "us", 3, us...)}
	shared := []*pairLoad{startLoad(t, "both", 1, eu...), startLoad(t, "both", 1, us...)}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range *regionRounds {
		name := r.names[rng.IntN(2)]
		for _, l := range loads {
			l.more(20 + rng.Int64N(50))
		}
		steady := loads[0] // writes that go on meanwhile
		if name == "eu" {
			steady = loads[1]
		}
		end := r.fault(name, rng)
		steady.more(50)
		end()
		for _, l := range loads {
			l.more(30)
		}
	}
	for _, l := range shared {
		l.stop()
	}
	for _, p := range r.all() {
		if p.said("beyond the outbox") {
			t.Logf("%s sent its state", p.url)
		}
	}
	r.checkWrites(loads...)
	nodes := graph(t, r.nodes["eu"][1])
	for _, l := range shared {
		for _, id := range l.writes[0] {
			require.NotEmpty(t, nodes[id], "%s was acknowledged", id)
		}
	}
}

// TestRegionsLargeStateSurvivesKill9: a state that is merged in a copy of the
// graph's file; nodes that merge it are killed at that.
func TestRegionsLargeStateSurvivesKill9(t *testing.T) {
	r := startRegions(t, clusterPrefix+"OUTBOX_MAX_ENTRIES=50")
	r.cut()
	r.kill9("eu") // or its stream finds out while there is half of the graph, and sends that
	r.start("eu")
	var lines strings.Builder
	value := strings.Repeat("v", 1000)
	for i := range 12_000 {
		fmt.Fprintf(&lines, `{"type":"node","id":"n%d","labels":["N"],"properties":{"i":%d,"v":%q}}`+"\n", i, i, value)
	}
	file := filepath.Join(t.TempDir(), "graph.jsonl")
	require.NoError(t, os.WriteFile(file, []byte(lines.String()), 0o600))
	_, errs, status := runCommand(t, "import", "--addr", strings.Join(urls(r.nodes["eu"]), ","), file)
	require.Zero(t, status, errs)
	r.write("us", `{"type":"node","id":"n7","labels":["N"],"properties":{"i":-7}}`)
	r.heal()
	var killed []*process
	deadline := time.Now().Add(patience)
	for len(killed) < 2 && time.Now().Before(deadline) { // or all three
		for _, p := range r.nodes["us"] {
			_, err := os.Stat(filepath.Join(p.data, "graph.db.restoring"))
			if err == nil && !slices.Contains(killed, p) {
				p.kill9()
				killed = append(killed, p)
			}
		}
	}
	require.GreaterOrEqual(t, len(killed), 2, "nobody merges a large state")
	for _, p := range killed {
		p.start()
	}
	r.same()
	require.EqualValues(t, -7, property(t, killed[0], "n7", "i"), "written without knowing of the other, and later")
	for _, p := range r.all() {
		_, err := os.Stat(filepath.Join(p.data, "graph.db.restoring"))
		require.ErrorIs(t, err, os.ErrNotExist)
	}
}

// fault does something to a region; end ends it.
func (r *regionProcesses) fault(name string, rng *rand.Rand) (end func()) {
	p := leader(r.t, r.nodes[name])
	if rng.IntN(3) == 0 {
		p = follower(r.t, r.nodes[name])
	}
	switch what := rng.IntN(6); what {
	case 0:
		r.t.Logf("%s: kill -9 of all", name)
		r.kill9(name)
		return func() { r.start(name) }
	case 1, 2:
		r.t.Logf("%s: cut off from the other, in one direction: %t", name, what == 2)
		for way, list := range r.wires {
			for _, w := range list {
				if what == 1 || way[0] == name {
					w.cut()
				}
			}
		}
		return r.heal
	case 3:
		p = r.nodes[name][1+rng.IntN(2)] // the first founds a cluster where there is none
		r.t.Logf("%s: its disk is gone", p.url)
		p.kill9()
		require.NoError(r.t, os.RemoveAll(p.data))
		return func() { p.start(); whole(r.t, r.nodes[name]) }
	case 4:
		r.t.Logf("%s: stopped", p.url)
		p.signal(syscall.SIGSTOP)
		return func() { p.signal(syscall.SIGCONT) }
	default:
		r.t.Logf("%s: kill -9", p.url)
		p.kill9()
		return p.start
	}
}

// TestRegionsPromotionsUnderFaults moves the write region whenever a fault has
// met it.
func TestRegionsPromotionsUnderFaults(t *testing.T) {
	if *regionRounds < 3 {
		t.Skip("plays with -region.rounds=3 and more")
	}
	r := startRegions(t, clusterPrefix+"WRITE_REGION=eu", clusterPrefix+"OUTBOX_MAX_ENTRIES=40")
	stop := r.believers()
	loads := []*pairLoad{startLoad(t, "eu", 2, urls(r.nodes["eu"])...), startLoad(t, "us", 2, urls(r.nodes["us"])...)}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := range *regionRounds {
		old, next, steady := r.names[i%2], r.names[(i+1)%2], loads[(i+1)%2]
		for _, l := range loads {
			l.more(20 + rng.Int64N(30))
		}
		end := r.fault(old, rng)
		if rng.IntN(2) == 0 {
			end() // and it hears of it at once
			end = func() {}
		}
		until(t, next+" is promoted", func() bool {
			return postOrder(r.nodes[next][rng.IntN(demoNodes)], "/admin/region/promote") == nil
		})
		steady.more(30)
		end()
	}
	for _, l := range loads {
		l.more(30)
	}
	r.checkWrites(loads...)
	epochs := stop()
	require.Len(t, epochs, *regionRounds+1)
	for epoch, believers := range epochs {
		require.Len(t, believers, 1, "region epoch %d", epoch)
	}
}

// TestDemoOfRegions is one of the README's commands.
func TestDemoOfRegions(t *testing.T) {
	if testing.Short() {
		t.Skip("runs six nodes")
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	require.NoError(t, err)
	defer out.Close()
	p := &process{t: t, log: out, args: []string{"demo", "--regions", "2", "--import", "testdata/small.jsonl", "--http-port", "0", "--cluster-port", "0"}}
	p.cmd = binary(nil, p.args...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	require.NoError(t, p.cmd.Start())
	defer func() {
		if p.cmd.ProcessState == nil {
			p.kill9()
		}
	}()
	for _, text := range []string{"region region2  http://127.0.0.1:", "12 nodes  30 edges", "all 6 nodes in 2 regions hold the same graph", "leads region1\n", "leads region2\n"} {
		until(t, text, func() bool { return p.said(text) })
	}
	p.signal(os.Interrupt.(syscall.Signal))
	require.Zero(t, p.exitCode())
}
