package standby_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/standby"
	"github.com/stretchr/testify/require"
)

// Partitions, stops and promotions at random under load: under consistency never
// two accept, nothing acknowledged under sync is lost, nothing that was refused
// shows up, and when the faults end the pair is whole again.
func TestNemesis(t *testing.T) {
	seeds := uint64(4)
	if testing.Short() {
		seeds = 1
	}
	for _, policy := range []string{"availability", "consistency"} {
		for _, mode := range syncModes {
			if policy == "consistency" && mode == replication.SyncAsync {
				continue
			}
			for seed := range seeds {
				t.Run(fmt.Sprintf("%s/%s/%d", policy, mode, seed), func(t *testing.T) {
					inBubble(t, func(c *replication.Config) { c.HA.SyncMode, c.HA.PartitionPolicy = mode, policy }, func(t *testing.T, p *pair) {
						runNemesis(t, p, rand.New(rand.NewPCG(seed, 3)), policy == "consistency")
					})
				})
			}
		}
	}
}

// ledger is what clients were told.
type ledger struct {
	mu      sync.Mutex
	written map[string]bool // acknowledged
	refused map[string]bool // certainly not
}

func runNemesis(t *testing.T, p *pair, rng *rand.Rand, consistency bool) {
	p.start(p.a, p.b)
	p.admitted(p.a)
	l := &ledger{written: make(map[string]bool), refused: make(map[string]bool)}
	var nodes sync.RWMutex // stopped and started under the lock
	done := make(chan struct{})
	var wg sync.WaitGroup
	for c := range 3 {
		order := rand.New(rand.NewPCG(rng.Uint64(), 1))
		wg.Go(func() { client(t, p, l, &nodes, done, c, order) })
	}
	if consistency {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(50 * time.Millisecond):
				}
				nodes.RLock()
				if p.a.repl != nil && p.b.repl != nil {
					if p.a.repl.IsLeader() && p.b.repl.IsLeader() {
						t.Error("two nodes accept writes")
					}
				}
				nodes.RUnlock()
			}
		})
	}
	for range 12 {
		<-time.After(time.Duration(rng.IntN(15000)) * time.Millisecond)
		fault(t, p, &nodes, rng)
	}
	nodes.Lock()
	for _, n := range []*node{p.a, p.b} {
		p.net.isolate(n.addr, false)
		if n.repl == nil {
			p.start(n)
		}
	}
	nodes.Unlock()
	p.until("the pair is whole", func() bool {
		for _, n := range []*node{p.a, p.b} {
			if h := n.repl.Health(); h.Role == "primary" && len(h.Peers) > 0 && h.Peers[0].State == "admitted" {
				return true
			}
		}
		return false
	})
	close(done)
	wg.Wait()
	p.same()
	l.check(t, p)
}

func fault(t *testing.T, p *pair, nodes *sync.RWMutex, rng *rand.Rand) {
	nodes.Lock()
	defer nodes.Unlock()
	n := p.a
	if rng.IntN(2) == 0 {
		n = p.b
	}
	switch rng.IntN(5) {
	case 0, 1:
		p.net.isolate(n.addr, rng.IntN(2) == 0)
	case 2:
		p.stop(n)
	case 3, 4:
		if n.repl == nil {
			p.start(n)
		} else if rng.IntN(2) == 0 {
			promoter := n.repl.(replication.Promoter)
			ctx := t.Context()
			go func() { _ = promoter.Promote(ctx, false) }()
		}
	}
}

// client writes new nodes through either node, again and again.
func client(t *testing.T, p *pair, l *ledger, nodes *sync.RWMutex, done chan struct{}, c int, order *rand.Rand) {
	for i := 0; ; i++ {
		select {
		case <-done:
			return
		case <-time.After(time.Duration(50+order.IntN(200)) * time.Millisecond):
		}
		nodes.RLock()
		repl := p.a.repl
		if order.IntN(2) == 0 {
			repl = p.b.repl
		}
		nodes.RUnlock()
		if repl == nil {
			continue
		}
		id := fmt.Sprintf("c%d-%d", c, i)
		err := repl.Apply(putNode(t, id, i), 2*time.Second)
		l.mu.Lock()
		switch {
		case err == nil:
			l.written[id] = true
		case !errors.Is(err, replication.ErrUnknownOutcome):
			l.refused[id] = true
		default:
			var u *standby.UnconfirmedError
			if errors.As(err, &u) && u.Position == 0 {
				t.Error("an unconfirmed write without position")
			}
		}
		l.mu.Unlock()
	}
}

func (l *ledger) check(t *testing.T, p *pair) {
	require.NotEmpty(t, l.written)
	if p.a.cfg.HA.SyncMode == replication.SyncFull {
		for id := range l.written {
			require.True(t, p.has(p.a, id), "%s was acknowledged and is lost", id)
		}
	}
	for id := range l.refused {
		require.False(t, p.has(p.a, id), "%s was refused and is there", id)
	}
}
