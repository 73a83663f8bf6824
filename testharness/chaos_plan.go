package testharness

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// FaultKind is one kind of thing that a schedule does to a cluster.
type FaultKind string

// The kinds.
const (
	FaultLoss        FaultKind = "loss"        // packets are lost, and come late
	FaultLatency     FaultKind = "latency"     // up to 300 ms, with spikes of 2 to 3 s
	FaultDrops       FaultKind = "drops"       // connections are reset
	FaultCorruption  FaultKind = "corruption"  // bits flip
	FaultDuplication FaultKind = "duplication" // chunks come twice
	FaultReordering  FaultKind = "reordering"  // chunks overtake each other
	FaultPartition   FaultKind = "partition"   // one node, one way, a bridge, flapping
	FaultCrash       FaultKind = "crash"       // at once, or in the middle of a write; a restart follows
	FaultPause       FaultKind = "pause"       // a node stands still
	FaultDisk        FaultKind = "disk"        // a disk hangs, or is slow
	FaultFull        FaultKind = "full"        // a disk is full
	FaultWipe        FaultKind = "wipe"        // a node loses its disk, at most once in a schedule
	FaultByzantine   FaultKind = "byzantine"   // a stranger replays, forges and lies
	FaultOperator    FaultKind = "operator"    // leadership is transferred, snapshots are taken
	FaultClock       FaultKind = "clock"       // wall clocks are off, by up to an hour
	// FaultOverrule: a node is promoted by force, or told that its peer is down,
	// whether that is so or not. Not one of AllFaults: what it loses is the
	// operator's doing.
	FaultOverrule FaultKind = "overrule"
)

// AllFaults are all kinds.
var AllFaults = []FaultKind{FaultLoss, FaultLatency, FaultDrops, FaultCorruption, FaultDuplication, FaultReordering, FaultPartition,
	FaultCrash, FaultPause, FaultDisk, FaultFull, FaultWipe, FaultByzantine, FaultOperator, FaultClock}

// Step is one thing that a schedule does, from At on, for a time.
type Step struct {
	At, For time.Duration
	Kind    FaultKind
	Member  int        // index of the node it is done to, where it is done to one
	Roll    [3]float64 // what else there is to choose, each in [0, 1)
}

func (s Step) String() string {
	return fmt.Sprintf("at %v for %v: %s (node %d, %.3f)", s.At.Round(time.Millisecond), s.For.Round(time.Millisecond), s.Kind, s.Member+1, s.Roll)
}

// PlanChaos draws the steps of a schedule from a seed: the same seed, kinds,
// nodes and duration give the same steps. One to three of each kind, fewer of
// each where there are many kinds.
func PlanChaos(seed uint64, kinds []FaultKind, nodes int, duration time.Duration) []Step {
	rng := rand.New(rand.NewPCG(seed, uint64(len(kinds))))
	var plan []Step
	for _, kind := range kinds {
		most := 3
		if len(kinds) > 4 {
			most = 2
		}
		count := 1 + rng.IntN(most)
		if len(kinds) > 4 && rng.IntN(2) == 0 {
			count = 0
		}
		if kind == FaultWipe {
			count = min(count, 1)
		}
		for range count {
			s := Step{Kind: kind, Member: rng.IntN(nodes), At: time.Duration(rng.Float64() * 0.8 * float64(duration)),
				For: time.Duration((0.02 + 0.25*rng.Float64()) * float64(duration))}
			for i := range s.Roll {
				s.Roll[i] = rng.Float64()
			}
			plan = append(plan, s)
		}
	}
	slices.SortStableFunc(plan, func(a, b Step) int { return cmp.Compare(a.At, b.At) })
	return plan
}

// linkFaults adds to f what a step does to every link.
func (s Step) linkFaults(f *Faults) {
	small := 0.001 + 0.02*s.Roll[0]*s.Roll[0]
	switch s.Kind {
	case FaultLoss:
		f.Loss = max(f.Loss, 0.005+0.15*s.Roll[0])
	case FaultLatency:
		f.Latency = max(f.Latency, time.Duration(s.Roll[0]*float64(100*time.Millisecond)))
		f.Jitter = max(f.Jitter, time.Duration(s.Roll[1]*float64(200*time.Millisecond)))
		f.Spike = max(f.Spike, 0.01*s.Roll[2])
	case FaultDrops:
		f.Drop = max(f.Drop, small)
	case FaultCorruption:
		f.Corrupt = max(f.Corrupt, small)
	case FaultDuplication:
		f.Duplicate = max(f.Duplicate, small)
	case FaultReordering:
		f.Reorder = max(f.Reorder, small)
	}
}
