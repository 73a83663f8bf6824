package standby_test

import (
	"fmt"
	"maps"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// powerStore is a log store in memory that a power failure sets back to what had
// been synced: a StoreLogs under way leaves nothing.
type powerStore struct {
	mu      sync.Mutex
	durable map[uint64]*raft.Log
	off     bool
}

func (s *powerStore) each(better func(a, b uint64) uint64) (best uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range maps.Keys(s.durable) {
		if best == 0 {
			best = p
		}
		best = better(best, p)
	}
	return best, nil
}

func (s *powerStore) FirstIndex() (uint64, error) {
	return s.each(func(a, b uint64) uint64 { return min(a, b) })
}

func (s *powerStore) LastIndex() (uint64, error) {
	return s.each(func(a, b uint64) uint64 { return max(a, b) })
}

func (s *powerStore) GetLog(i uint64, out *raft.Log) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.durable[i]
	if l == nil {
		return raft.ErrLogNotFound
	}
	*out = *l
	return nil
}

func (s *powerStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

func (s *powerStore) StoreLogs(logs []*raft.Log) error {
	<-time.After(20 * time.Millisecond) // a slow disk, so that power fails within
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.off {
		return fmt.Errorf("the power is off")
	}
	for _, l := range logs {
		s.durable[l.Index] = l
	}
	return nil
}

func (s *powerStore) DeleteRange(first, last uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.off {
		return fmt.Errorf("the power is off")
	}
	for i := first; i <= last; i++ {
		delete(s.durable, i)
	}
	return nil
}

// Power fails under load, again and again, at either node: what was acknowledged
// under sync is there afterwards, whichever node goes on.
func TestPowerFailureLosesNothingAcknowledged(t *testing.T) {
	inBubble(t, func(c *replication.Config) { c.HA.SyncMode = replication.SyncFull }, func(t *testing.T, p *pair) {
		for _, n := range []*node{p.a, p.b} {
			n.power = &powerStore{durable: make(map[uint64]*raft.Log)}
		}
		p.start(p.a, p.b)
		p.admitted(p.a)
		acked := 0
		for round := range 4 {
			victim := p.a
			if round%2 == 1 {
				victim = p.b
			}
			writer := p.other(victim)
			var mu sync.Mutex
			var ids []string
			var wg sync.WaitGroup
			for c := range 8 {
				wg.Go(func() {
					for i := range 40 {
						id := fmt.Sprintf("r%d-c%d-%d", round, c, i)
						if writer.repl.Apply(putNode(t, id, i), 30*time.Second) == nil {
							mu.Lock()
							ids = append(ids, id)
							mu.Unlock()
						}
					}
				})
			}
			<-time.After(time.Duration(100+round*130) * time.Millisecond)
			victim.power.mu.Lock()
			victim.power.off = true // nothing reaches the disk from here on
			victim.power.mu.Unlock()
			p.net.isolate(victim.addr, true)
			p.stop(victim)
			victim.power.mu.Lock()
			victim.power.off = false
			victim.power.mu.Unlock()
			p.net.isolate(victim.addr, false)
			if round >= 2 {
				<-time.After(2 * failover) // the other takes over meanwhile, where it can
			}
			p.start(victim)
			wg.Wait()
			p.until("one primary, whole", func() bool {
				for _, n := range []*node{p.a, p.b} {
					if h := n.repl.Health(); h.Role == "primary" && h.Peers[0].State == "admitted" {
						return true
					}
				}
				return false
			})
			<-time.After(2 * heartbeat)
			p.same()
			require.NotEmpty(t, ids)
			for _, id := range ids {
				require.True(t, p.has(p.a, id) && p.has(p.b, id), "%s was acknowledged and is lost", id)
			}
			acked += len(ids)
		}
		require.Greater(t, acked, 100)
	})
}
