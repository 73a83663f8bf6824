package region_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/nornicdb/replication"
)

var (
	wildFrom  = flag.Uint64("wild.from", 1, "first seed of TestWildChaos")
	wildCount = flag.Uint64("wild.count", 8, "number of seeds of TestWildChaos")
)

// wild is a storm with what operators do in one, and with links and regions that
// come and go as a whole.
type wild struct {
	*storm
	promotes bool
	silent   string // a region that is away for the whole run; "": none
}

// TestWildChaos: with tiny outboxes, so that most of what arrives after a fault
// is a state, what TestChaos promises holds also while regions are promoted,
// conflicts resolved, links flap, whole regions die, and one of
// up to five is away all the time.
func TestWildChaos(t *testing.T) {
	if testing.Short() {
		*wildCount = min(*wildCount, 2)
	}
	strategies := []string{"last_write_wins", "first_write_wins", "manual"}
	for seed := *wildFrom; seed < *wildFrom+*wildCount; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			virtually(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(seed, 1))
				regions := []string{"ap", "eu", "me", "sa", "us"}[:2+rng.IntN(4)]
				strategy, promotes, outbox := strategies[rng.IntN(3)], rng.IntN(2) == 0, 1+rng.IntN(12)
				t.Logf("%d regions, %s, promotions %v, %d entries in the outbox", len(regions), strategy, promotes, outbox)
				f := newFederation(t, seed, regions, func(_ string, cfg *replication.Config) {
					cfg.Region.ConflictStrategy = strategy
					cfg.Raft.SnapshotThreshold, cfg.Raft.TrailingLogs, cfg.Raft.SnapshotInterval = 20, 10, time.Second
					cfg.Region.OutboxMaxEntries = outbox
					if promotes {
						cfg.Region.WriteRegion = regions[0]
					}
				})
				w := &wild{storm: &storm{federation: f, rng: rng, created: make(map[string]error), wiped: make(map[string]bool)}, promotes: promotes}
				if len(regions) > 2 && rng.IntN(2) == 0 {
					w.silent = regions[len(regions)-1]
				}
				w.run(seed, 15*time.Second, strategy == "manual")
				w.calm()
				w.check(strategy == "manual", 5)
			})
		})
	}
}

func (w *wild) run(seed uint64, d time.Duration, resolves bool) {
	for i := range 3 {
		w.apply(w.regions[0], put(w.t, fmt.Sprint("r", i), nil))
	}
	w.converged(time.Minute)
	if w.silent != "" {
		w.crashAll(w.silent)
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var wg sync.WaitGroup
	for i, name := range w.regions {
		for j := range 2 {
			wg.Go(func() { w.client(ctx, name, rand.New(rand.NewPCG(seed, uint64(10*i+j+1))), fmt.Sprint(name, j)) })
		}
		if resolves {
			wg.Go(func() { w.operator(ctx, name, rand.New(rand.NewPCG(seed, uint64(100+i)))) })
		}
	}
	for ctx.Err() == nil {
		if w.rng.IntN(2) == 0 {
			w.fault()
		} else {
			w.deed(ctx)
		}
		if w.silent != "" {
			w.crashAll(w.silent)
		}
		sleep(ctx, time.Duration(w.rng.Float64()*float64(time.Second)))
	}
	wg.Wait()
}

// deed is something that storm's faults do not have.
func (w *wild) deed(ctx context.Context) {
	name, other := w.regions[w.rng.IntN(len(w.regions))], w.regions[w.rng.IntN(len(w.regions))]
	switch w.rng.IntN(4) {
	case 0:
		if w.promotes {
			w.promote(name)
			w.promote(other)
		}
	case 1:
		for range 5 { // the link flaps
			if name != other {
				w.Net.Partition(w.ids(name), w.ids(other))
			}
			sleep(ctx, time.Duration(w.rng.IntN(300))*time.Millisecond)
			w.Net.Heal()
			sleep(ctx, time.Duration(w.rng.IntN(300))*time.Millisecond)
		}
	case 2:
		w.crashAll(name)
	case 3: // the leaders of both sides, at some write
		for _, m := range []string{name, other} {
			if l := w.anyLeader(m); l != nil {
				w.CrashAt(l, 1+w.rng.IntN(6))
			}
		}
	}
}

// promote promotes a region, or not: it may have no leader.
func (w *wild) promote(name string) {
	if r := w.nodes[name][w.rng.IntN(perRegion)].Replicator(); r != nil {
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			_ = r.(replication.RegionPromoter).PromoteRegion(ctx)
		}()
	}
}

// operator resolves conflicts of its region as it sees them.
func (w *wild) operator(ctx context.Context, name string, rng *rand.Rand) {
	for ctx.Err() == nil {
		if r := w.nodes[name][rng.IntN(perRegion)].Replicator(); r != nil {
			resolver := r.(replication.ConflictResolver)
			list, err := resolver.Conflicts(ctx, replication.ConflictFilter{})
			if err == nil && len(list) > 0 {
				w.decide(resolver, &list[rng.IntN(len(list))], rng)
			}
		}
		sleep(ctx, time.Duration(rng.IntN(500))*time.Millisecond)
	}
}

func (w *wild) decide(r replication.ConflictResolver, c *replication.Conflict, rng *rand.Rand) {
	decision := replication.Resolution{}
	for _, v := range c.Versions {
		decision.Expect = append(decision.Expect, v.VersionID)
	}
	if rng.IntN(4) == 0 {
		decision.Deleted = true
	} else {
		decision.Keep = &decision.Expect[rng.IntN(len(decision.Expect))]
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if err := r.Resolve(ctx, c.Key, decision); errors.Is(err, replication.ErrInvalidCommand) {
		w.t.Errorf("%s of %v: %v", c.Key, c.Versions, err)
	}
}
