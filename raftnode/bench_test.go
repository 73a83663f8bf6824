package raftnode_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/raftnode"
	"github.com/stretchr/testify/require"
)

// The benchmarks of this file compare two things on one machine in one run:
// the one and the other take turns, several times, and the medians are divided.
const (
	benchRounds = 15
	benchSlice  = 400 * time.Millisecond
)

// contender is one side of a comparison.
type contender struct {
	name    string
	workers int
	op      func(i int64) error
}

// compare lets contenders take turns and reports their median rates and, by
// round, the median ratio of the first to each of the others.
func compare(b *testing.B, list ...contender) {
	for b.Loop() {
		rates := make([][]float64, len(list))
		ratios := make([][]float64, len(list))
		cpu := make([][]float64, len(list))
		for range benchRounds {
			for k, c := range list {
				before := cpuTime()
				r := rate(b, c.workers, benchSlice, c.op)
				cpu[k] = append(cpu[k], (cpuTime()-before).Seconds()/r/benchSlice.Seconds()*1e6)
				rates[k] = append(rates[k], r)
			}
			for k := range list {
				ratios[k] = append(ratios[k], rates[0][len(rates[0])-1]/rates[k][len(rates[k])-1])
			}
		}
		for k, c := range list {
			b.ReportMetric(median(rates[k]), c.name+"/s")
			b.ReportMetric(median(cpu[k]), "us_"+c.name)
			if k > 0 {
				b.ReportMetric(median(ratios[k]), "x_"+c.name)
			}
		}
	}
	b.ReportMetric(0, "ns/op") // means nothing here
}

func writer(r replication.Replicator) func(i int64) error {
	return func(i int64) error { return r.Apply(putCommand(i), patience) }
}

func boltgraphStorage(tb testing.TB) func(dir string) replication.Storage {
	return func(dir string) replication.Storage {
		store, err := boltgraph.Open(filepath.Join(dir, "graph.db"))
		require.NoError(tb, err)
		return store
	}
}

// BenchmarkApplyAgainstPlainRaft: 256-byte commands, Storage in memory, against
// hashicorp/raft alone.
func BenchmarkApplyAgainstPlainRaft(b *testing.B) {
	ours, plain := benchMemNodes(b)[0], plainRaft(b)
	for _, writers := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			compare(b, contender{"ours", writers, writer(ours)}, contender{"plain", writers, func(i int64) error {
				return plain.Apply(putCommand(i).Data, patience).Error()
			}})
		})
	}
}

// BenchmarkApplyBoltgraph: the embedded graph store against a Storage in
// memory.
func BenchmarkApplyBoltgraph(b *testing.B) {
	mem, bolt := benchMemNodes(b)[0], benchNodes(b, boltgraphStorage(b), raftnode.New, nil)[0]
	for _, writers := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			compare(b, contender{"boltgraph", writers, writer(bolt)}, contender{"memory", writers, writer(mem)})
		})
	}
}

// BenchmarkFollowerReads: linearizable reads through a follower, against the
// rate of writes.
func BenchmarkFollowerReads(b *testing.B) {
	nodes := benchMemNodes(b)
	reader := nodes[1].(replication.ConsistentReader)
	compare(b, contender{"reads", 64, func(int64) error {
		_, err := reader.ReadBarrier(b.Context(), replication.ConsistencyQuorum)
		return err
	}}, contender{"writes", 64, writer(nodes[0])})
}
