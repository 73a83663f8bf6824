package standby_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	"github.com/nornicdb/replication/standby"
	th "github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

var (
	chaosSchedules = flag.Int("chaos.schedules", 0, "schedules of each mode in each TestChaos test; 0: as many as fit a normal run")
	chaosSeed      = flag.Uint64("chaos.seed", 0, "the first seed; with 1 schedule, the one to replay")
)

const (
	chaosHeartbeat = 100 * time.Millisecond
	chaosFailover  = time.Second
)

// pairMode is one way to run a pair.
type pairMode struct {
	sync   replication.SyncMode
	policy string
}

func (m pairMode) String() string { return string(m.sync) + "/" + m.policy }

// lossless: no acknowledged write is lost whatever happens to one node.
func (m pairMode) lossless() bool { return m.sync == replication.SyncFull }

var pairModes = []pairMode{{replication.SyncFull, "availability"}, {replication.SyncFull, "consistency"},
	{replication.SyncSemi, "availability"}, {replication.SyncSemi, "consistency"}, {replication.SyncAsync, "availability"}}

// pairConfig is a harness cluster of two nodes, of which the first founds. Its
// logs are on the members' disks. The bubble's clock stands for the boot clock.
func pairConfig(mode pairMode) th.ClusterConfig {
	began := time.Now().Add(-time.Hour)
	return th.ClusterConfig{Nodes: 2,
		Configure: func(m *th.Member, cfg *replication.Config) {
			cfg.Mode = replication.ModeHAStandby
			cfg.Secret = "a secret of the test harness"
			cfg.HA.Role = map[string]string{"n1": "primary", "n2": "standby"}[m.ID]
			cfg.HA.PeerAddr = map[string]string{"n1": "n2:7688", "n2": "n1:7688"}[m.ID]
			cfg.HA.SyncMode, cfg.HA.PartitionPolicy = mode.sync, mode.policy
			cfg.HA.Heartbeat, cfg.HA.FailoverTimeout = chaosHeartbeat, chaosFailover
			cfg.HA.ReconnectInterval, cfg.HA.MaxReconnectBackoff = 200*time.Millisecond, time.Second
		},
		Modes: func(m *th.Member) replication.Modes {
			return replication.Modes{replication.ModeHAStandby: standby.Mode(
				standby.WithLogStore(m.Config.LogStore, func(string) (raft.LogStore, error) { return m.Disk().OpenLog(), nil }),
				standby.WithStates(func() standby.StateDisk { return m.Disk().OpenLog() }),
				standby.WithBootClock(func() time.Duration { return time.Since(began) }))}
		},
	}
}

// primaryOf is the member that is primary with an admitted standby; nil: none.
func primaryOf(c *th.Cluster) *th.Member {
	for _, m := range c.Members {
		if h := m.Health(); h.IsLeader && len(h.Peers) == 1 && h.Peers[0].State == "admitted" {
			return m
		}
	}
	return nil
}

// waitAdmitted waits until the pair is whole.
func waitAdmitted(c *th.Cluster, within time.Duration) error {
	for deadline := time.Now().Add(within); ; {
		if primaryOf(c) != nil {
			<-time.After(2 * chaosHeartbeat) // the standby hears of it
			return nil
		}
		if time.Now().After(deadline) {
			var text []string
			for _, m := range c.Members {
				h := m.Health()
				text = append(text, fmt.Sprintf("%s is %s in epoch %d, %s %v", m.ID, h.Role, h.Term, h.State, h.Reasons))
			}
			return fmt.Errorf("%w of %v: the pair is not whole: %s", th.ErrNoProgress, within, strings.Join(text, "; "))
		}
		<-time.After(10 * time.Millisecond)
	}
}

// operator does what a node that waits asks for: it promotes it with force. A
// node asks for that only where the owner of the epoch lost its disk.
func operator(wiped bool, asked *int) func(context.Context, *th.Cluster) error {
	return func(ctx context.Context, c *th.Cluster) error {
		err := waitAdmitted(c, 10*time.Second)
		if err == nil || !wiped {
			return err
		}
		for _, m := range c.Members {
			if strings.Contains(fmt.Sprint(m.Health().Reasons), "with force") {
				*asked++
				if err := m.Replicator().(replication.Promoter).Promote(ctx, true); err != nil {
					return err
				}
				return waitAdmitted(c, 10*time.Second)
			}
		}
		return err
	}
}

var errTwoAccept = errors.New("two nodes accept writes at once")

func oneAccepts(c *th.Cluster) error {
	a, b := c.Members[0].Replicator(), c.Members[1].Replicator()
	if a != nil && b != nil && a.IsLeader() && b.IsLeader() {
		return errTwoAccept
	}
	return nil
}

// lostOrKept: what was acknowledged is in the graph, or in a file of diverged
// entries (hot standby, invariant 6).
func lostOrKept(kept *int) func(*th.Cluster, []th.Operation) error {
	return func(c *th.Cluster, ops []th.Operation) error {
		var tails strings.Builder
		for _, m := range c.Members {
			files, err := filepath.Glob(filepath.Join(m.Config.DataDir, "diverged", "*.jsonl"))
			if err != nil {
				return err
			}
			for _, f := range files {
				data, err := os.ReadFile(f)
				if err != nil {
					return err
				}
				tails.Write(data)
			}
		}
		var errs []error
		text, has := tails.String(), th.Has(c.Members[0].Store())
		for _, op := range ops {
			if op.Kind != th.KindCreate || op.Outcome != th.OutcomeDone {
				continue
			}
			if there, err := has(op.NodeID); err != nil {
				return err
			} else if !there && !strings.Contains(text, `"`+op.RequestID+`"`) {
				errs = append(errs, fmt.Errorf("%w, and in no file: %s", th.ErrLost, op))
			} else if !there {
				*kept++
			}
		}
		return errors.Join(errs...)
	}
}

func runChaos(t *testing.T, schedules int, faults ...th.FaultKind) {
	t.Parallel()
	runChaosOn(t, pairConfig, schedules, faults...)
}

func runChaosOn(t *testing.T, config func(pairMode) th.ClusterConfig, schedules int, faults ...th.FaultKind) {
	t.Helper()
	if testing.Short() {
		schedules = (schedules + 9) / 10
	}
	if *chaosSchedules > 0 {
		schedules = *chaosSchedules
	}
	for _, mode := range pairModes {
		if slices.Contains(faults, th.FaultWipe) && !mode.lossless() {
			continue // a disk that is gone takes acknowledged writes, and the files, with it
		}
		t.Run(mode.String(), func(t *testing.T) {
			var total chaosTotal
			start := time.Now()
			for i := range schedules {
				bubble.Test(t, func(t *testing.T) { total.run(t, config(mode), mode, *chaosSeed+uint64(i), faults) })
				if t.Failed() {
					return
				}
			}
			t.Logf("%d schedules, %d operations (%d done, %d unknown), slowest recovery %v, %d lost writes kept in files, %d forced promotions, %v",
				schedules, total.Operations, total.Done, total.Unknown, total.Recovered, total.kept, total.asked, time.Since(start).Round(time.Millisecond))
			if total.Done < 30*schedules {
				t.Errorf("only %d operations were done: the checks had little to look at", total.Done)
			}
		})
	}
}

// chaosTotal is what schedules amount to.
type chaosTotal struct {
	th.ChaosReport
	kept  int // acknowledged writes in files of diverged entries
	asked int // forced promotions that a node asked for
}

// run runs a schedule with the checks that its mode, and its faults, leave.
func (total *chaosTotal) run(t *testing.T, cluster th.ClusterConfig, mode pairMode, seed uint64, faults []th.FaultKind) {
	overruled := slices.Contains(faults, th.FaultOverrule)
	lossless := mode.lossless() && !overruled
	x := th.Chaos{Cluster: cluster, Seed: seed, Faults: faults, Recovery: time.Minute,
		Except: th.Exceptions{Terms: true, Loss: !lossless}, Pictures: "testdata/pictures",
		Prepare: func(c *th.Cluster) error { return waitAdmitted(c, time.Minute) },
		Repair:  operator(overruled || slices.Contains(faults, th.FaultWipe), &total.asked)}
	if mode.policy == "consistency" && !overruled {
		x.Watch = oneAccepts
	}
	if !lossless {
		x.Check = lostOrKept(&total.kept)
	}
	report, err := x.Run(t)
	if err != nil {
		t.Error(err)
	}
	total.Operations += report.Operations
	total.Done += report.Done
	total.Unknown += report.Unknown
	total.Recovered = max(total.Recovered, report.Recovered)
}

// A thousand schedules in all, a tenth of them in a short run.

func TestChaos_HAStandby_Network(t *testing.T) {
	runChaos(t, 12, th.FaultLoss, th.FaultLatency, th.FaultDrops, th.FaultReordering)
}
func TestChaos_HAStandby_Hostile(t *testing.T) {
	runChaos(t, 12, th.FaultCorruption, th.FaultDuplication, th.FaultByzantine)
}
func TestChaos_HAStandby_Partitions(t *testing.T) { runChaos(t, 25, th.FaultPartition) }
func TestChaos_HAStandby_Crashes(t *testing.T)    { runChaos(t, 25, th.FaultCrash) }
func TestChaos_HAStandby_CrashesAndPartitions(t *testing.T) {
	runChaos(t, 30, th.FaultCrash, th.FaultPartition, th.FaultPause)
}
func TestChaos_HAStandby_Disks(t *testing.T) {
	runChaos(t, 20, th.FaultCrash, th.FaultDisk, th.FaultFull)
}
func TestChaos_HAStandby_Wipes(t *testing.T) {
	runChaos(t, 40, th.FaultWipe, th.FaultCrash, th.FaultPartition)
}
func TestChaos_HAStandby_Overruled(t *testing.T) {
	runChaos(t, 20, th.FaultOverrule, th.FaultPartition, th.FaultCrash, th.FaultOperator)
}
func TestChaos_HAStandby_Everything(t *testing.T) {
	runChaos(t, 40, th.FaultLoss, th.FaultLatency, th.FaultDrops, th.FaultCorruption, th.FaultDuplication, th.FaultReordering,
		th.FaultPartition, th.FaultCrash, th.FaultPause, th.FaultDisk, th.FaultFull, th.FaultByzantine, th.FaultOperator, th.FaultClock)
}

// A crash takes back what a node's storage has not flushed; it is applied again from
// the log.
func TestChaos_HAStandby_DeferringStorages(t *testing.T) {
	t.Parallel()
	runChaosOn(t, func(mode pairMode) th.ClusterConfig {
		cfg := pairConfig(mode)
		cfg.Deferring = true
		return cfg
	}, 20, th.FaultCrash, th.FaultPartition, th.FaultPause)
}

// TestChaosChecksSeeLoss: the checks that sync passes fail for async, whose writes
// a failover can lose; and where the files of diverged entries are not there, what
// is lost without a trace is named.
func TestChaosChecksSeeLoss(t *testing.T) {
	run := func(change func(*th.Chaos)) (found error) {
		for seed := uint64(0); seed < 40 && found == nil; seed++ {
			bubble.Test(t, func(t *testing.T) {
				x := th.Chaos{Cluster: pairConfig(pairMode{replication.SyncAsync, "availability"}), Seed: seed, Recovery: time.Minute,
					Faults: []th.FaultKind{th.FaultPartition, th.FaultCrash}, Except: th.Exceptions{Terms: true},
					Prepare: func(c *th.Cluster) error { return waitAdmitted(c, time.Minute) }, Repair: operator(false, new(int))}
				change(&x)
				_, found = x.Run(t)
			})
		}
		return found
	}
	err := run(func(*th.Chaos) {})
	require.Error(t, err)
	t.Log(strings.SplitN(err.Error(), "\n", 2)[0])
	err = run(func(x *th.Chaos) {
		x.Except.Loss = true
		x.Check = func(c *th.Cluster, ops []th.Operation) error {
			for _, m := range c.Members {
				if err := os.RemoveAll(filepath.Join(m.Config.DataDir, "diverged")); err != nil {
					return err
				}
			}
			return lostOrKept(new(int))(c, ops)
		}
	})
	require.ErrorIs(t, err, th.ErrLost)
}
