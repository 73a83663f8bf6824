package raftnode_test

import (
	"flag"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nornicdb/replication/internal/bubble"
	th "github.com/nornicdb/replication/testharness"
)

var (
	chaosSchedules = flag.Int("chaos.schedules", 0, "schedules of each TestChaos test; 0: as many as fit a normal run")
	chaosSeed      = flag.Uint64("chaos.seed", 0, "the first seed; with 1 schedule, the one to replay")
)

// chaosPart is how many schedules run one after the other; parts run beside each
// other, as a schedule by itself keeps one core busy.
const chaosPart = 10

// chaosTotal sums up the schedules of one test.
type chaosTotal struct {
	mu sync.Mutex
	th.ChaosReport
	schedules int
}

func (c *chaosTotal) add(r th.ChaosReport) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.schedules++
	c.Operations += r.Operations
	c.Done += r.Done
	c.Failed += r.Failed
	c.Unknown += r.Unknown
	c.Terms += r.Terms
	c.Virtual += r.Virtual
	c.Recovered = max(c.Recovered, r.Recovered)
}

func runChaos(t *testing.T, schedules int, faults ...th.FaultKind) {
	runChaosOn(t, schedules, th.RaftConfig(0), faults...)
}

func runChaosOn(t *testing.T, schedules int, cluster th.ClusterConfig, faults ...th.FaultKind) {
	t.Parallel()
	if testing.Short() {
		schedules = max(schedules/10, 1)
	}
	if *chaosSchedules > 0 {
		schedules = *chaosSchedules
	}
	var total chaosTotal
	start := time.Now()
	t.Cleanup(func() { // when all parts have ended
		t.Logf("%d schedules, %d operations (%d done, %d failed, %d unknown), %d terms, slowest recovery %v; %v virtual in %v",
			total.schedules, total.Operations, total.Done, total.Failed, total.Unknown, total.Terms, total.Recovered,
			total.Virtual.Round(time.Second), time.Since(start).Round(time.Millisecond))
		if !t.Failed() && total.Done < 30*schedules {
			t.Errorf("only %d operations were done: the checks had little to look at", total.Done)
		}
	})
	for first := 0; first < schedules; first += chaosPart {
		t.Run(fmt.Sprint("from ", *chaosSeed+uint64(first)), func(t *testing.T) {
			t.Parallel()
			for i := first; i < min(first+chaosPart, schedules) && !t.Failed(); i++ {
				bubble.Test(t, func(t *testing.T) {
					x := th.Chaos{Cluster: cluster, Seed: *chaosSeed + uint64(i), Faults: faults, Pictures: "testdata/pictures"}
					report, err := x.Run(t)
					if err != nil {
						t.Error(err)
					}
					total.add(report)
				})
			}
		})
	}
}

// A thousand schedules in all, and a hundred where -short is asked for.

func TestChaos_Raft_PacketLoss(t *testing.T)  { runChaos(t, 60, th.FaultLoss) }
func TestChaos_Raft_HighLatency(t *testing.T) { runChaos(t, 60, th.FaultLatency) }
func TestChaos_Raft_Drops(t *testing.T)       { runChaos(t, 60, th.FaultDrops) }
func TestChaos_Raft_Corruption(t *testing.T)  { runChaos(t, 60, th.FaultCorruption) }
func TestChaos_Raft_Duplication(t *testing.T) { runChaos(t, 60, th.FaultDuplication) }
func TestChaos_Raft_Reordering(t *testing.T)  { runChaos(t, 60, th.FaultReordering) }
func TestChaos_Raft_Byzantine(t *testing.T)   { runChaos(t, 60, th.FaultByzantine) }
func TestChaos_Raft_Partitions(t *testing.T)  { runChaos(t, 100, th.FaultPartition) }
func TestChaos_Raft_Crashes(t *testing.T)     { runChaos(t, 100, th.FaultCrash) }
func TestChaos_Raft_CrashesAndDisks(t *testing.T) {
	runChaos(t, 100, th.FaultCrash, th.FaultDisk, th.FaultFull, th.FaultWipe)
}
func TestChaos_Raft_Everything(t *testing.T) { runChaos(t, 200, th.AllFaults...) }

// TestChaos_Raft_DeferringStorages: a crash takes back what a node's storage has
// not flushed, never what was acknowledged.
func TestChaos_Raft_DeferringStorages(t *testing.T) {
	cluster := th.RaftConfig(0)
	cluster.Deferring = true
	runChaosOn(t, 80, cluster, th.FaultCrash, th.FaultDisk, th.FaultFull, th.FaultWipe, th.FaultPartition)
}
