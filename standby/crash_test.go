package standby_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	th "github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// A node loses its power at its first write, its second, and so on, through
// founding, joining, a failover, a partition in which both write, a rejoin with a
// tail, a planned switch and a rebuild: between any two things that a step does,
// each of which is durable before the next. It always comes back by itself, and
// every acknowledged write is in the graph or in a file.
func TestCrashAtEveryWrite(t *testing.T) {
	every := 1
	if testing.Short() {
		every = 5
	}
	for victim, name := range []string{"founder", "joiner", "rebuilt"} {
		for _, mode := range []pairMode{{replication.SyncFull, "availability"}, {replication.SyncSemi, "availability"}} {
			t.Run(name+"/"+mode.String(), func(t *testing.T) {
				t.Parallel()
				kept, crashes := 0, 0
				for at := 1; ; at += every {
					crashed := false
					bubble.Test(t, func(t *testing.T) { crashed = crashAt(t, mode, min(victim, 1), victim == 2, at, &kept) })
					if t.Failed() || !crashed {
						break
					}
					crashes++
				}
				t.Logf("%d crashes, %d writes kept in files", crashes, kept)
				require.Greater(t, crashes, 35/every)
			})
		}
	}
}

// crashAt runs the story with one crash, of a node that has lost its disk before,
// where it is wiped; false: it was over before.
func crashAt(t *testing.T, mode pairMode, victim int, wiped bool, write int, kept *int) (crashed bool) {
	cfg := pairConfig(mode)
	cfg.Deferring = true // what was applied can be gone, and is applied again
	c := th.NewCluster(t, cfg)
	h := th.NewHistory("crash")
	v := c.Members[victim]
	if !wiped {
		c.CrashAt(v, write)
	}
	up := func() {
		for _, m := range c.Members {
			if !m.Running() {
				crashed = crashed || m == v
				require.NoError(t, c.Start(t.Context(), m), "crash at write %d", write)
			}
		}
	}
	writes := func(from int) {
		for i := range 4 {
			if r := c.Members[(from+i)%2].Replicator(); r != nil {
				client := h.Client(th.Target{Replicator: r})
				client.Create(timeout(t, time.Second))
			}
		}
	}
	whole := func() {
		for deadline := time.Now().Add(time.Minute); primaryOf(c) == nil; {
			up()
			require.True(t, time.Now().Before(deadline), "crash at write %d: %s", write, states(c))
			<-time.After(50 * time.Millisecond)
		}
		<-time.After(2 * chaosHeartbeat)
	}
	for _, m := range c.Members {
		_ = c.Start(t.Context(), m) // it can crash within
	}
	if wiped {
		whole()
		writes(0)
		c.Crash(v)
		c.Wipe(v)
		c.CrashAt(v, write)
		_ = c.Start(t.Context(), v)
	}
	for _, story := range []func(){
		func() {},
		func() { c.Net.Isolate("n1"); <-time.After(2 * chaosFailover); writes(0); c.Net.Heal() },
		func() {
			if p, ok := c.Members[0].Replicator().(replication.Promoter); ok {
				_ = p.Promote(timeout(t, 3*time.Second), false)
			}
		},
		func() {
			if other := c.Members[1-victim]; v.Running() && primaryOf(c) == v {
				c.Crash(other)
				c.Wipe(other)
			}
		},
		func() { c.Net.Isolate("n2"); <-time.After(2 * chaosFailover); writes(1); c.Net.Heal() },
	} {
		whole()
		writes(0)
		story()
	}
	whole()
	v.Disk().CrashAt(0, nil)
	_, same := c.WaitSame(time.Minute)
	require.True(t, same)
	if err := lostOrKept(kept)(c, h.Operations()); err != nil {
		require.NoError(t, err, "crash at write %d", write)
	}
	return crashed
}

// states says how the members are.
func states(c *th.Cluster) string {
	var text []string
	for _, m := range c.Members {
		h := m.Health()
		text = append(text, fmt.Sprintf("%s is %s in epoch %d, %s %v", m.ID, h.Role, h.Term, h.State, h.Reasons))
	}
	slices.Sort(text)
	return strings.Join(text, "; ")
}

// timeout is a context that ends after d, at the latest with the test.
func timeout(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
