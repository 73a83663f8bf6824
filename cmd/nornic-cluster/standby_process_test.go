package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/testca"
	"github.com/stretchr/testify/require"
)

var standbyRounds = flag.Int("standby.rounds", 3, "rounds of each mode in TestHotStandbySurvivesKillsAndPauses")

func skipProcesses(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("two processes and failovers take a while")
	}
}

// TestHotStandbyImportSurvivesTheLossOfThePrimary is the README's section on hot
// standby.
func TestHotStandbyImportSurvivesTheLossOfThePrimary(t *testing.T) {
	skipProcesses(t)
	const nodes, edges = 2000, 8000
	file := graphFile(t, nodes, edges)
	p := startPair(t, replication.SyncSemi, "availability")
	old, next := p.whole()
	out, err := os.Create(file + ".log")
	require.NoError(t, err)
	defer out.Close()
	imp := &process{t: t, log: out, args: []string{"import", "--batch", "16", "--writers", "4", "--addr", next.url + "," + old.url, file}}
	imp.start()
	var st statsView
	until(t, "the import is under way", func() bool { return get(t.Context(), old.url+"/graph/stats", &st) == nil && st.Nodes > nodes/4 })
	old, next = p.whole() // a pair that stood still with the machine degrades for a moment
	require.NoError(t, get(t.Context(), old.url+"/graph/stats", &st))
	old.kill9()
	killed := time.Now()
	require.Less(t, st.Edges, uint64(edges), "it was killed in the middle")
	until(t, "the standby takes over", func() bool { return health(next).IsLeader })
	t.Logf("killed at %d nodes, %d edges; the standby is primary after %v (failover timeout %v)", st.Nodes, st.Edges, time.Since(killed), testFailover)
	old.start()
	code := imp.exitCode()
	said, err := os.ReadFile(out.Name())
	require.NoError(t, err)
	require.Zero(t, code, "%s", said)
	require.Contains(t, string(said), fmt.Sprintf("imported %d nodes and %d edges", nodes, edges))
	primary, _ := p.whole()
	require.Equal(t, next, primary, "the old primary came back as standby")
	require.NoError(t, verify(t.Context(), urls(p.list), patience, true))
	require.NoError(t, get(t.Context(), old.url+"/graph/stats", &st))
	require.Equal(t, [2]uint64{nodes, edges}, [2]uint64{st.Nodes, st.Edges})
}

// TestHotStandbySurvivesKillsAndPauses kills and stops processes of real pairs at
// random moments under load.
func TestHotStandbySurvivesKillsAndPauses(t *testing.T) {
	skipProcesses(t)
	for _, mode := range []struct {
		sync     replication.SyncMode
		policy   string
		lossless bool
	}{
		{replication.SyncFull, "availability", true}, {replication.SyncFull, "consistency", true},
		{replication.SyncSemi, "availability", false}, {replication.SyncSemi, "consistency", false}, {replication.SyncAsync, "availability", false},
	} {
		t.Run(string(mode.sync)+"/"+mode.policy, func(t *testing.T) {
			p := startPair(t, mode.sync, mode.policy)
			l := startLoad(t, "w", 4, urls(p.list)...)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			for range *standbyRounds {
				p.round(l, rng)
			}
			p.check(l, mode.lossless)
		})
	}
}

// round does something to one of the processes of a whole pair under load.
func (p *twoProcesses) round(l *pairLoad, rng *rand.Rand) {
	p.t.Helper()
	l.more(30 + rng.Int64N(100))
	primary, standby := p.whole()
	victim, other := primary, standby
	what, long := rng.IntN(5), rng.IntN(2) == 0
	if what == 4 {
		victim, other = standby, primary
	}
	if what < 3 || what == 4 && long {
		victim.kill9()
		defer func() { p.t.Logf("killed %s, for long: %t", victim.url, long) }()
	} else {
		victim.signal(syscall.SIGSTOP)
		defer func() { p.t.Logf("paused %s, for long: %t", victim.url, long) }()
	}
	if long {
		began := time.Now()
		// It need not accept writes: under consistency a primary does not without the standby it has admitted.
		until(p.t, "the other is primary", func() bool { return health(other).Role == "primary" && time.Since(began) > testFailover })
	}
	if victim.cmd.ProcessState != nil {
		victim.start()
	} else {
		victim.signal(syscall.SIGCONT)
	}
	p.whole()
	l.more(30)
}

// TestHotStandbyPlannedSwitchUnderLoad also stops the primary with SIGTERM, which
// is a planned switch, too. No write is lost or doubled in any mode.
func TestHotStandbyPlannedSwitchUnderLoad(t *testing.T) {
	skipProcesses(t)
	for _, mode := range []replication.SyncMode{replication.SyncAsync, replication.SyncSemi, replication.SyncFull} {
		t.Run(string(mode), func(t *testing.T) {
			p := startPair(t, mode, "availability")
			l := startLoad(t, "w", 4, urls(p.list)...)
			still := watchStandstill(t)
			for range 4 {
				l.more(100)
				primary, standby := p.whole()
				l.pause()
				still.since()
				start := time.Now()
				until(t, "it is promoted", func() bool { // just admitted, it may not have heard of that
					err := postOrder(standby, "/admin/promote")
					if err != nil {
						require.ErrorContains(t, err, `"not_ready"`)
					}
					return err == nil
				})
				took := time.Since(start)
				require.True(t, health(standby).IsLeader)
				require.False(t, health(primary).IsLeader)
				l.more(20)
				pause, stood := l.pause(), still.since()
				t.Logf("promoted in %v, no write was acknowledged for %v, of which the machine stood still for %v", took, pause, stood)
				require.Less(t, pause-stood, testFailover)
			}
			primary, standby := p.whole()
			l.more(20)
			l.pause()
			start := time.Now()
			primary.signal(syscall.SIGTERM)
			require.Zero(t, primary.exitCode())
			stopped := time.Since(start)
			require.True(t, health(standby).IsLeader, "it was handed over")
			primary.start()
			l.more(20)
			p.whole()
			t.Logf("stopped in %v, no write was acknowledged for %v", stopped, l.pause())
			require.Less(t, stopped, 10*time.Second)
			p.check(l, true)
			_, entries := p.tails(p.list...)
			require.Zero(t, entries)
		})
	}
}

// TestHotStandbyWipedStandbyIsRebuilt takes the standby's whole disk away while
// the primary goes on writing.
func TestHotStandbyWipedStandbyIsRebuilt(t *testing.T) {
	skipProcesses(t)
	p := startPair(t, replication.SyncSemi, "availability")
	l := startLoad(t, "w", 4, urls(p.list)...)
	l.more(500)
	primary, standby := p.whole()
	standby.kill9()
	require.NoError(t, os.RemoveAll(p.dir(standby)))
	until(t, "the primary goes on alone", func() bool { return health(primary).State == "degraded" })
	l.more(200)
	standby.start()
	again, _ := p.whole()
	require.Equal(t, primary, again)
	l.more(200)
	p.whole()
	primary.kill9()
	until(t, "it has everything, and takes over", func() bool { return health(standby).IsLeader })
	primary.start()
	p.check(l, false)
	_, entries := p.tails(p.list...)
	t.Logf("%d entries in files", entries)
}

// TestHotStandbyPartitionUnderAvailability lets both sides write.
func TestHotStandbyPartitionUnderAvailability(t *testing.T) {
	skipProcesses(t)
	p := startPair(t, replication.SyncSemi, "availability")
	before := startLoad(t, "before", 2, urls(p.list)...)
	before.more(50)
	before.stop()
	old, next := p.whole()
	p.cut()
	loads := []*pairLoad{startLoad(t, "old", 2, old.url), startLoad(t, "next", 2, next.url)}
	until(t, "both accept writes", func() bool { return health(old).IsLeader && health(next).IsLeader })
	for _, l := range loads {
		l.more(50)
		l.stop()
	}
	p.heal()
	primary, loser := p.whole()
	require.NoError(t, verify(t.Context(), urls(p.list), patience, true))
	winning, losing := loads[0], loads[1]
	if primary == next {
		winning, losing = losing, winning
	}
	nodes := graph(t, primary)
	tail, entries := p.tails(loser)
	_, others := p.tails(primary)
	require.Zero(t, others)
	for _, l := range []*pairLoad{before, winning} {
		for _, ids := range l.writes {
			for _, id := range ids {
				require.NotEmpty(t, nodes[id], id)
			}
		}
	}
	for _, ids := range losing.writes {
		for _, id := range ids {
			require.Empty(t, nodes[id], id)
			require.Contains(t, tail, `"request-`+id+`"`)
		}
	}
	counted := fmt.Sprintf("%d diverged entries were put aside", entries)
	require.Contains(t, strings.Join(health(loser).Reasons, "; "), counted)
	t.Logf("%d acknowledged on the losing side, %d entries in its file", losing.acked.Load(), entries)

	loser.kill9()
	loser.start()
	p.whole()
	require.Contains(t, strings.Join(health(loser).Reasons, "; "), counted, "it says so until somebody has taken the file away")
}

// TestHotStandbyPartitionUnderConsistency: the primary that is cut off refuses
// writes before the standby takes over.
func TestHotStandbyPartitionUnderConsistency(t *testing.T) {
	skipProcesses(t)
	for _, mode := range []replication.SyncMode{replication.SyncSemi, replication.SyncFull} {
		t.Run(string(mode), func(t *testing.T) {
			p := startPair(t, mode, "consistency")
			l := startLoad(t, "w", 2, urls(p.list)...)
			l.more(50)
			old, next := p.whole()
			p.cut()
			cut := time.Now()
			var refused time.Duration
			took := until(t, "the standby takes over", func() bool {
				leads := health(next).IsLeader // asked first: the old one cannot come back after it
				if mine := health(old); mine.IsLeader {
					require.False(t, leads, "both accept writes")
				} else if refused == 0 && mine.State == "no_lease" {
					refused = time.Since(cut)
				}
				return leads
			})
			require.NotZero(t, refused, "it said so before")
			ctx, cancel := context.WithTimeout(t.Context(), 2*testFailover)
			err := new(client).try(ctx, old.url+"/graph/batch", "", []byte(`{"type":"node","id":"refused"}`))
			cancel()
			require.Error(t, err, "it waits for a lease that it does not get")
			t.Logf("the old primary refused writes after %v, the standby took over after %v", refused, took)
			p.heal()
			l.more(50)
			p.check(l, mode == replication.SyncFull)
			require.Empty(t, graph(t, next)["refused"])
		})
	}
}

// TestHotStandbyWithoutTLSTakesNothingOver: a primary that refuses a node which was
// started without TLS is not one that has died.
func TestHotStandbyWithoutTLSTakesNothingOver(t *testing.T) {
	skipProcesses(t)
	authority, dir := testca.New(t), t.TempDir()
	cert, key := authority.Issue(1, time.Now().Add(time.Hour))
	encrypted := []string{clusterPrefix + "TLS_ENABLED=true"}
	for name, data := range map[string][]byte{"CA": authority.PEM, "CERT": cert, "KEY": key} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, data, 0o600))
		encrypted = append(encrypted, clusterPrefix+"TLS_"+name+"_FILE="+path)
	}
	p := startPair(t, replication.SyncSemi, "availability", encrypted...)
	primary, standby := p.whole()
	standby.kill9()
	right := standby.env
	standby.env = right[:len(right)-len(encrypted)]
	standby.start()
	until(t, "it says what is wrong", func() bool {
		return strings.Contains(strings.Join(health(standby).Reasons, "\n"), "TLS_ENABLED")
	})
	require.Never(t, func() bool { return health(standby).IsLeader || !health(primary).IsLeader }, 3*testFailover, 50*time.Millisecond)
	standby.kill9()
	standby.env = right
	standby.start()
	again, _ := p.whole()
	require.Equal(t, primary, again)
}
