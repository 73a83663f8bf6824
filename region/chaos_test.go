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
	"github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

var (
	chaosFrom  = flag.Uint64("chaos.from", 1, "first seed of TestChaos")
	chaosCount = flag.Uint64("chaos.count", 6, "number of seeds of TestChaos")
)

// storm is faults in and between regions, and clients that write meanwhile.
type storm struct {
	*federation
	rng   *rand.Rand
	wiped map[string]bool

	// mu guards the fields below.
	mu      sync.Mutex
	created map[string]error // node ID → what the client was told
}

// TestChaos: after faults in and between the regions every acknowledged write
// is everywhere, every refused one nowhere, all hold the same, and nothing is
// left unsettled.
func TestChaos(t *testing.T) {
	if testing.Short() { // two: one with each number of regions
		*chaosCount = min(*chaosCount, 2)
	}
	strategies := []string{"last_write_wins", "first_write_wins", "manual"}
	for seed := *chaosFrom; seed < *chaosFrom+*chaosCount; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			virtually(t, func(t *testing.T) {
				regions := [][]string{two, {"ap", "eu", "us"}}[seed%2]
				f := newFederation(t, seed, regions, func(_ string, cfg *replication.Config) {
					cfg.Region.ConflictStrategy = strategies[seed%3]
					cfg.Raft.SnapshotThreshold, cfg.Raft.TrailingLogs, cfg.Raft.SnapshotInterval = 20, 10, time.Second
					if seed%4 == 0 {
						cfg.Region.OutboxMaxEntries = 10
					}
				})
				s := &storm{federation: f, rng: rand.New(rand.NewPCG(seed, 0)), created: make(map[string]error), wiped: make(map[string]bool)}
				s.run(seed, 20*time.Second)
				s.calm()
				s.check(seed%3 == 2, 20)
			})
		})
	}
}

func (s *storm) run(seed uint64, d time.Duration) {
	for i := range 3 {
		s.apply(s.regions[0], put(s.t, fmt.Sprint("r", i), nil))
	}
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var wg sync.WaitGroup
	for i, name := range s.regions {
		for j := range 2 {
			wg.Go(func() { s.client(ctx, name, rand.New(rand.NewPCG(seed, uint64(10*i+j+1))), fmt.Sprint(name, j)) })
		}
	}
	for ctx.Err() == nil {
		s.fault()
		sleep(ctx, time.Duration(s.rng.Float64()*float64(2*time.Second)))
	}
	wg.Wait()
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// fault begins one fault, or ends some.
func (s *storm) fault() {
	m := s.Members[s.rng.IntN(len(s.Members))]
	name, _ := regionOf(m, s.regions)
	switch s.rng.IntN(11) {
	case 0:
		s.Crash(m)
	case 1:
		s.CrashAt(m, 1+s.rng.IntN(20))
	case 2:
		if l := s.anyLeader(name); l != nil {
			s.Crash(l)
		}
	case 3:
		other := s.regions[s.rng.IntN(len(s.regions))]
		if other != name {
			s.Net.Partition(s.ids(name), s.ids(other))
		}
	case 4:
		s.Net.Isolate(m.ID)
	case 5:
		s.Net.SetDefaultFaults(testharness.Faults{Latency: time.Duration(s.rng.IntN(100)) * time.Millisecond, Jitter: 50 * time.Millisecond,
			Drop: 0.001, Corrupt: 0.001, Duplicate: 0.001})
	case 6:
		m.SetClockOffset(time.Duration(s.rng.IntN(7200)-3600) * time.Second)
	case 7:
		s.wipe(m, name)
	case 8:
		s.Net.Heal()
	case 9:
		s.Net.ClearFaults()
	}
	for _, m := range s.Members { // what is down comes back, sooner or later
		if !m.Running() && s.rng.IntN(3) == 0 {
			go func() { _ = s.Start(context.Background(), m) }() // calm says whether it does
		}
	}
}

func (s *storm) anyLeader(name string) *testharness.Member {
	for _, m := range s.nodes[name] {
		if r := m.Replicator(); r != nil && r.IsLeader() {
			return m
		}
	}
	return nil
}

// wipe takes one disk of a region away, once, and while all its nodes are up.
func (s *storm) wipe(m *testharness.Member, name string) {
	for _, o := range s.nodes[name] {
		if s.wiped[name] || !o.Running() {
			return
		}
	}
	s.wiped[name] = true
	s.Crash(m)
	s.Wipe(m)
}

// client writes through nodes of its region until its time is over.
func (s *storm) client(ctx context.Context, name string, rng *rand.Rand, id string) {
	for i := 0; ctx.Err() == nil; i++ {
		m := s.nodes[name][rng.IntN(perRegion)]
		register := fmt.Sprint("r", rng.IntN(3))
		cmd := set(s.t, register, fmt.Sprint("k", rng.IntN(2)), fmt.Sprint(id, "-", i))
		created := ""
		switch rng.IntN(8) {
		case 0, 1, 2:
			created = fmt.Sprint("node-", id, "-", i)
			cmd = put(s.t, created, nil)
			cmd.Type = replication.CmdCreateNode
		case 3:
			cmd = replication.NewDeleteNode(replication.NodeID(register))
		case 4:
			cmd = put(s.t, register, map[string]any{"whole": i})
		case 5:
			cmd = edge(s.t, register, fmt.Sprint("r", rng.IntN(3)))
		}
		if rng.IntN(2) == 0 {
			cmd.RequestID = fmt.Sprint(id, "/", i)
		}
		if r := m.Replicator(); r != nil {
			err := r.Apply(cmd, time.Duration(100+rng.IntN(3000))*time.Millisecond)
			if created != "" {
				s.mu.Lock()
				s.created[created] = err
				s.mu.Unlock()
			}
		}
		sleep(ctx, time.Duration(rng.IntN(200))*time.Millisecond)
	}
}

func edge(t *testing.T, from, to string) *replication.Command {
	cmd, err := replication.NewEdgeCommand(replication.CmdPutEdge, &replication.Edge{StartNode: replication.NodeID(from), EndNode: replication.NodeID(to), Type: "T"})
	require.NoError(t, err)
	return cmd
}

// calm ends every fault and brings every node up.
func (s *storm) calm() {
	s.Net.ClearFaults()
	s.Net.Heal()
	errs := make(chan error, len(s.Members))
	for _, m := range s.Members {
		m.Disk().CrashAt(0, nil)
		m.SetClockOffset(0)
		go func() { errs <- s.Start(context.Background(), m) }()
	}
	for range s.Members {
		require.NoError(s.t, <-errs)
	}
}

// check looks for what was promised; least is how many nodes a member must have
// been made, or the run says nothing.
func (s *storm) check(manual bool, least int) {
	t := s.t
	s.converged(5 * time.Minute)
	done := 0
	for _, m := range s.Members {
		for id, err := range s.created {
			_, missing := m.Store().Node(replication.NodeID(id))
			switch _, verdict := replication.Verdict(err); {
			case err == nil:
				done++
				require.NoError(t, missing, "%s was acknowledged", id)
			case verdict || !errors.Is(err, replication.ErrUnknownOutcome):
				require.ErrorIs(t, missing, replication.ErrNotFound, "%s was refused: %v", id, err)
			}
		}
	}
	require.Greater(t, done, least*len(s.Members), "hardly anything succeeded: the run says nothing")
	stamps := node(s.Members[0]).Stamps()
	for _, m := range s.Members {
		require.Equal(t, stamps, node(m).Stamps(), "the same entries have the same stamps")
	}
	for _, name := range s.regions {
		require.NotZero(t, stamps[name])
	}
	if manual {
		return
	}
	s.Eventually(time.Minute, "everything is settled", func() bool {
		for _, m := range s.Members {
			if node(m).Status().Rows != 0 {
				return false
			}
		}
		return true
	})
}
