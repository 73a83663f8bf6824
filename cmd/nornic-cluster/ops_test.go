package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// runCommand runs the binary and returns what it printed and its exit status.
func runCommand(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := binary(nil, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil {
		require.True(t, errors.As(err, &exit), "%v", err)
		status = exit.ExitCode()
	}
	return out.String(), errs.String(), status
}

var orderIsOpen = regexp.MustCompile(`outcome unknown|\((unknown_outcome|not_leader|no_leader|not_ready|timeout)\)`)

// orderAgain gives an order as an operator does: again, where an election in the
// middle leaves it open. tries: one before the last may have taken effect.
func orderAgain(t *testing.T, args ...string) (stdout, stderr string, status, tries int) {
	t.Helper()
	until(t, strings.Join(args, " "), func() bool {
		tries++
		stdout, stderr, status = runCommand(t, args...)
		return status == 0 || !orderIsOpen.MatchString(stderr)
	})
	return stdout, stderr, status, tries
}

// clusterSays is the cluster as status --json prints it.
func clusterSays(t *testing.T, url string) clusterView {
	t.Helper()
	out, _, status := runCommand(t, "status", "--json", "--addr", url)
	var v clusterView
	if status == 0 {
		require.NoError(t, json.Unmarshal([]byte(out), &v))
	}
	return v
}

func voters(v clusterView) (ids []string) {
	for _, m := range v.Members {
		if m.Voter {
			ids = append(ids, m.ID)
		}
	}
	return ids
}

// load writes through a client until stop is called; no write may fail.
func load(t *testing.T, addrs []string) (progress func(), stop func() int) {
	t.Helper()
	c, err := newClient(addrs)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	var acked atomic.Int64
	end := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-end:
					return
				default:
				}
				id := fmt.Sprintf("w%d-%d", w, i)
				if err := c.post(ctx, "/graph/batch", "run-"+id, []byte(`{"type":"node","id":"`+id+`"}`)); err != nil {
					t.Errorf("%s: %v", id, err)
					return
				}
				acked.Add(1)
			}
		})
	}
	return func() {
			t.Helper()
			target := acked.Load() + 50
			require.Eventually(t, func() bool { return acked.Load() >= target }, patience, time.Millisecond, "writes go on")
		}, func() int {
			close(end)
			wg.Wait()
			cancel()
			c.http.CloseIdleConnections()
			return int(acked.Load())
		}
}

// holds checks that every node has exactly the writes that were acknowledged.
func holds(t *testing.T, list []*process, writes int) {
	t.Helper()
	require.NoError(t, verify(t.Context(), urls(list), patience, true))
	var st statsView
	require.NoError(t, get(t.Context(), list[0].url+"/graph/stats", &st))
	require.Equal(t, writes, int(st.Nodes))
}

func follower(t *testing.T, list []*process) *process {
	t.Helper()
	lead := leader(t, list)
	for _, p := range list {
		if p != lead {
			return p
		}
	}
	return nil
}

// TestMembershipByTheBinary: a fourth node comes, leadership moves, a node goes,
// one is replaced, all ordered at a follower while writes go on.
func TestMembershipByTheBinary(t *testing.T) {
	if testing.Short() {
		t.Skip("starts four processes")
	}
	defer http.DefaultClient.CloseIdleConnections()
	list := threeProcesses(t)
	at := follower(t, list).url
	progress, stop := load(t, urls(list))
	progress()
	says := func(what string, holds func(v clusterView) bool) (v clusterView) {
		t.Helper()
		until(t, what, func() bool { v = clusterSays(t, at); return holds(v) })
		return v
	}
	ok := func(holds func(v clusterView) bool, args ...string) {
		t.Helper()
		_, errs, status, _ := orderAgain(t, append(args, "--addr", at)...)
		require.True(t, status == 0 || holds(clusterSays(t, at)), "%v: %s", args, errs)
	}
	cluster := freeAddrs(t, demoNodes)
	members := says("who the members are", func(v clusterView) bool { return len(v.Members) == 3 }).Members
	fourth := newProcess(t, t.TempDir(), "n3", cluster[0], []string{members[0].ID + ":" + members[0].Address, members[1].Address})
	fourth.start()
	require.Eventually(t, func() bool { return len(voters(clusterSays(t, at))) == 4 }, patience, 50*time.Millisecond)
	progress()

	leads := func(v clusterView) bool { return v.Leader.ID == "n3" }
	ok(leads, "transfer", "n3")
	says("it leads", leads)
	ok(func(clusterView) bool { return false }, "snapshot")
	progress()
	gone := func(v clusterView) bool { return len(v.Members) == 3 && !slices.Contains(voters(v), "n3") }
	ok(gone, "remove", "n3")
	says("it is no member", gone)
	progress()
	fourth.kill9()

	// The leader's disk is gone.
	victim := leader(t, list)
	var id string
	for i, p := range list {
		if p == victim {
			id = fmt.Sprint("n", i)
		}
	}
	victim.kill9()
	require.NoError(t, os.RemoveAll(victim.data))
	victim.start()
	if at == victim.url {
		at = follower(t, list).url
	}
	rejoined := func() bool {
		v := clusterSays(t, at)
		for _, m := range v.Members {
			if m.ID == id {
				return m.Voter && m.Healthy
			}
		}
		return false
	}
	require.Eventually(t, rejoined, patience, 50*time.Millisecond)
	progress()
	holds(t, list, stop())

	_, errs, status := runCommand(t, "remove", "--addr", at, "n9")
	require.Equal(t, 1, status)
	require.Contains(t, errs, "not_found")
	for _, args := range [][]string{{"add", "n9"}, {"add", "n9", "no-port"}, {"remove"}, {"transfer", "a", "b"}, {"snapshot", "x"}, {"region"}, {"region", "remove"},
		{"conflicts", "resolve", "k"}, {"conflicts", "resolve", "k", "--expect", "eu:1"}, {"conflicts", "resolve", "k", "--deleted"},
		{"conflicts", "resolve", "k", "--expect", "eu", "--deleted"}, {"conflicts", "resolve", "k", "--expect", "eu:1", "--keep", "1"},
		{"conflicts", "resolve", "k", "--expect", "eu:1,us:2", "--keep", "us:1"},
		{"conflicts", "resolve", "k", "--expect", "eu:1", "--value", "x"}, {"conflicts", "resolve", "k", "--expect", "eu:1", "--value", "1", "--deleted"},
		{"import", "--part", "3/2", "testdata/small.jsonl"}, {"demo", "--regions", "6"}, {"demo", "--http-port", "-3"}, {"demo", "--cluster-port", "65534"}, {"region", "promote", "eu"}, {"recover"}, {"solo", "--nonsense"}, {"promote", "x"}} {
		_, errs, status := runCommand(t, args...)
		require.Equal(t, 2, status, "%v: %s", args, errs)
	}
	for _, args := range [][]string{{"solo"}, {"promote"}, {"conflicts"}, {"conflicts", "resolve", "k", "--expect", "eu:1", "--deleted"}, {"region", "promote"}, {"region", "remove", "eu"}} {
		_, errs, status := runCommand(t, append(args, "--addr", at)...)
		require.Equal(t, 1, status, args)
		require.Contains(t, errs, "unsupported", "no such thing in Raft mode")
	}
}

// TestRollingRestartUnderLoad: every node is stopped as an operator stops it and
// started again, one by one; no write fails at the client, and none at all that
// is sent to a node that stays.
func TestRollingRestartUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("restarts three processes")
	}
	defer http.DefaultClient.CloseIdleConnections()
	list := threeProcesses(t)
	leader(t, list)
	progress, stop := load(t, urls(list))
	progress()
	steady := 0
	for i, p := range list {
		other := list[(i+1)%3]
		stayed, stopStayed := onceEach(t, other.url, fmt.Sprint("steady", i))
		stayed()
		took := p.terminate()
		require.Less(t, took, 10*time.Second)
		progress()
		stayed()
		p.start()
		require.Eventually(t, func() bool {
			var h struct{}
			return get(t.Context(), p.url+"/health?ready=1", &h) == nil
		}, patience, 20*time.Millisecond, "it comes back")
		progress()
		stayed()
		steady += stopStayed()
		t.Logf("%s stopped within %s", p.url, took.Round(time.Millisecond))
	}
	writes := stop()
	holds(t, list, writes+steady)
	t.Logf("%d writes by a client of all nodes, %d to nodes that stayed", writes, steady)
}

// onceEach writes to one node without ever trying again.
func onceEach(t *testing.T, url, name string) (progress func(), stop func() int) {
	t.Helper()
	c, err := newClient([]string{url})
	require.NoError(t, err)
	end := make(chan struct{})
	var acked atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-end:
				return
			default:
			}
			id := fmt.Sprintf("%s-%d", name, i)
			if err := c.try(t.Context(), c.addrs[0]+"/graph/batch", id, []byte(`{"type":"node","id":"`+id+`"}`)); err != nil {
				t.Errorf("%s: %v", id, err)
				return
			}
			acked.Add(1)
		}
	})
	return func() {
			t.Helper()
			target := acked.Load() + 20
			require.Eventually(t, func() bool { return acked.Load() >= target }, patience, time.Millisecond, "writes to %s go on", url)
		}, func() int {
			close(end)
			wg.Wait()
			c.http.CloseIdleConnections()
			return int(acked.Load())
		}
}

// TestRecoverByTheBinary: two of three are gone for good.
func TestRecoverByTheBinary(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three processes")
	}
	defer http.DefaultClient.CloseIdleConnections()
	list := threeProcesses(t)
	leader(t, list)
	progress, stop := load(t, urls(list))
	progress()
	writes := stop()
	holds(t, list, writes)
	left := list[1]
	_, errs, status := runCommand(t, "recover", "--data", left.data, "--lost", "n0,n2")
	require.Equal(t, 1, status)
	require.Contains(t, errs, "locked", "it is running")
	for _, p := range list {
		p.terminate()
	}
	before := filesBelow(t, left.data)
	for _, args := range [][]string{{}, {"--lost", "n0"}, {"--lost", "n0,n2,n7"}, {"--lost", "n0,n2", "--node", "n0"}, {"--lost", "n0,n2", "--address", "x"}} {
		_, errs, status := runCommand(t, append([]string{"recover", "--data", left.data}, args...)...)
		require.Equal(t, 2, status, "%v: %s", args, errs)
		require.Equal(t, before, filesBelow(t, left.data), args)
	}
	out, errs, status := runCommand(t, "recover", "--data", left.data, "--lost", "n0,n2", "--node", "n1")
	require.Zero(t, status, errs)
	require.Contains(t, out, "n1 is a cluster of one")

	left.start()
	leader(t, list[1:2])
	for _, i := range []int{0, 2} {
		p := list[i]
		p.env = append(p.env, clusterPrefix+"RAFT_BOOTSTRAP=false")
		p.start() // as it was
		require.Eventually(t, func() bool { return p.said("recovered without this node") }, patience, 20*time.Millisecond)
		p.kill9()
		require.NoError(t, os.RemoveAll(p.data))
		p.start()
	}
	require.Eventually(t, func() bool { return len(voters(clusterSays(t, left.url))) == 3 }, patience, 50*time.Millisecond)
	holds(t, list, writes)
}

// A node that waits for its peers says so where an operator looks first.
func TestStatusSaysWhatANodeWaitsFor(t *testing.T) {
	addrs := freeAddrs(t, 2)
	p := newProcess(t, t.TempDir(), "n0", addrs[0], []string{"n1:" + addrs[1]})
	p.start()
	var out string
	until(t, "status names the peer that cannot be asked", func() bool {
		out, _, _ = runCommand(t, "status", "--addr", p.url)
		return strings.Contains(out, "n0 (starting): ") && strings.Contains(out, addrs[1])
	})
	v := clusterSays(t, p.url)
	require.Equal(t, "starting", v.Node.State)
	require.NotEmpty(t, v.Node.Reasons)
	c, err := newClient([]string{p.url})
	require.NoError(t, err)
	defer c.http.CloseIdleConnections()
	err = c.try(t.Context(), p.url+"/graph/batch", "", []byte(`{"type":"node","id":"early"}`))
	require.ErrorContains(t, err, addrs[1], "so does a write that is refused")
	p.terminate()
}

// A node that cannot start never says that it serves.
func TestServeSaysServingWhenItServes(t *testing.T) {
	env := []string{"NORNICDB_CLUSTER_MODE=raft", "NORNICDB_CLUSTER_BIND_ADDR=" + freeAddrs(t, 1)[0], "NORNICDB_CLUSTER_RAFT_BOOTSTRAP=true", "NORNICDB_CLUSTER_TLS_ENABLED=true"}
	for _, file := range []string{"CERT", "KEY", "CA"} {
		env = append(env, "NORNICDB_CLUSTER_TLS_"+file+"_FILE="+filepath.Join(t.TempDir(), "none.pem"))
	}
	out, err := binary(env, "serve", "--http", "127.0.0.1:0", "--data", t.TempDir()).CombinedOutput()
	var exit *exec.ExitError
	require.True(t, errors.As(err, &exit), "%v", err)
	require.Equal(t, 2, exit.ExitCode())
	require.Contains(t, string(out), "NORNICDB_CLUSTER_TLS_CERT_FILE")
	require.NotContains(t, string(out), "serving")
}

// A node of a cluster whose environment was forgotten stays what it is.
func TestANodeIsNotTakenOutOfItsClusterByAnEmptyEnvironment(t *testing.T) {
	dir, addr := t.TempDir(), freeAddrs(t, 1)[0]
	p := newProcess(t, dir, "n0", addr, nil)
	p.env = append(p.env, "NORNICDB_CLUSTER_RAFT_BOOTSTRAP=true")
	p.start()
	until(t, "it serves", func() bool { return p.said("msg=serving") })
	p.terminate()
	require.True(t, p.said("msg=stopped"))
	out, err := binary(nil, p.args...).CombinedOutput()
	var exit *exec.ExitError
	require.True(t, errors.As(err, &exit), "%v", err)
	require.Equal(t, 2, exit.ExitCode(), string(out))
	require.Contains(t, string(out), "NORNICDB_CLUSTER_MODE is not set")
	require.NotContains(t, string(out), "leaves the history")
}

// TestAModeThatCannotBeReadIsNotGuessed: in mode standalone nobody else reads the
// file, and the storage would leave its history.
func TestAModeThatCannotBeReadIsNotGuessed(t *testing.T) {
	t.Setenv("NORNICDB_CLUSTER_MODE", "")
	cfg := replication.DefaultConfig()
	cfg.DataDir = t.TempDir()
	require.NoError(t, checkModeIsMeant(cfg), "it is new")
	path := filepath.Join(cfg.DataDir, "node.json")
	for _, text := range []string{"", `{"mode":"ra`, `{"mode":"raft"}`, `{}`} {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		require.ErrorIs(t, checkModeIsMeant(cfg), replication.ErrInvalidConfig, text)
	}
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Mkdir(path, 0o700)) // it is there and cannot be read
	require.ErrorIs(t, checkModeIsMeant(cfg), replication.ErrInvalidConfig)
	t.Setenv("NORNICDB_CLUSTER_MODE", "standalone")
	require.NoError(t, checkModeIsMeant(cfg))
}

// TestHelpHasAnExampleForEveryCommand.
func TestHelpHasAnExampleForEveryCommand(t *testing.T) {
	for _, args := range [][]string{{"add"}, {"remove"}, {"transfer"}, {"snapshot"}, {"solo"}, {"promote"}, {"conflicts"}, {"conflicts", "resolve"},
		{"region", "promote"}, {"region", "remove"}, {"recover"}, {"status"}} {
		out, _, status := runCommand(t, append(args, "--help")...)
		require.Zero(t, status)
		require.Contains(t, out, "Examples:\n  nornic-cluster "+strings.Join(args, " "), args)
	}
}

// TestWrongCommandsEndWithStatusTwo: bad usage, as wrong flags and arguments are.
func TestWrongCommandsEndWithStatusTwo(t *testing.T) {
	for _, args := range [][]string{{"frob"}, {"region", "frob"}, {"conflicts", "frob"}, {"status", "--frob"}, {"remove"},
		{"region", "settings", "--outbox-max-entries", "0"}, {"serve", "--http", ""}, {"serve", "--http", "7474"}, {"serve", "--http", "127.0.0.1:99999"},
		{"serve", "--http", "127.0.0.1:"}, {"serve", "--data", ""},
		{"export", "--addr", "http://127.0.0.1:1,http://127.0.0.1:2"}, {"status", "--addr", "ftp://127.0.0.1:1"}, {"verify", "--addr", "http://"},
		{"bench", "--addr", "http://127.0.0.1:1", "--embedded", "1"}} {
		_, errs, status := runCommand(t, args...)
		require.Equal(t, 2, status, args)
		require.Contains(t, errs, "bad usage", args)
	}
	_, errs, _ := runCommand(t, "verfy")
	require.Contains(t, errs, "did you mean verify?")
	out, _, status := runCommand(t)
	require.Zero(t, status)
	require.Contains(t, out, "Available Commands")
}
