package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

type benchOptions struct {
	addrs            []string
	embedded         int
	storage, log     string
	writers, readers int
	size, keys       int
	duration         time.Duration
	consistency      string
	asJSON           bool
}

func benchCommand() *cobra.Command {
	var o benchOptions
	cmd := &cobra.Command{
		Use: "bench", Short: "Measure writes and reads", Args: exactArgs(0),
		Long: "Writes and reads nodes with ID bench-0, bench-1, … for a while, through the HTTP addresses\n" +
			"of a running cluster or on one in this process, and prints throughput and latencies.",
		Example: "  nornic-cluster bench --embedded 3 --log wal --writers 64\n" +
			"  nornic-cluster bench --addr http://127.0.0.1:7474,http://127.0.0.1:7475 --writers 16 --readers 64",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			if o.embedded > 0 && cmd.Flags().Changed("addr") {
				return fmt.Errorf("%w: --addr or --embedded, not both", errUsage)
			}
			return bench(cmd.Context(), &o, os.Stdout)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.addrs, "addr", []string{"http://127.0.0.1:7474"}, "the nodes' HTTP addresses")
	f.IntVar(&o.embedded, "embedded", 0, "measure a cluster of so many nodes in this process instead")
	f.StringVar(&o.storage, "storage", "boltgraph", "storage of the embedded nodes: boltgraph or mem")
	f.StringVar(&o.log, "log", "bolt", "log store of the embedded nodes: bolt or wal")
	f.IntVar(&o.writers, "writers", 64, "writes in flight")
	f.IntVar(&o.readers, "readers", 0, "reads in flight")
	f.IntVar(&o.size, "size", 256, "bytes of a write, about")
	f.IntVar(&o.keys, "keys", 10000, "different nodes")
	f.DurationVar(&o.duration, "duration", 10*time.Second, "how long")
	f.StringVar(&o.consistency, "consistency", "QUORUM", "of the reads")
	f.BoolVar(&o.asJSON, "json", false, "print JSON")
	return cmd
}

const maxBenchWorkers = 1 << 14

func (o *benchOptions) check() error {
	switch {
	case o.writers < 0 || o.readers < 0 || o.writers+o.readers < 1 || o.writers+o.readers > maxBenchWorkers:
		return fmt.Errorf("%w: --writers and --readers must be from 1 to %d together", errUsage, maxBenchWorkers)
	case o.size < 1 || o.size > maxBody/2 || o.keys < 1 || o.duration <= 0:
		return fmt.Errorf("%w: --size must be from 1 to %d, --keys and --duration positive", errUsage, maxBody/2)
	case o.embedded < 0 || o.embedded > 9:
		return fmt.Errorf("%w: --embedded must be from 1 to 9", errUsage)
	case o.storage != "boltgraph" && o.storage != "mem":
		return fmt.Errorf("%w: --storage is boltgraph or mem", errUsage)
	case o.log != "bolt" && o.log != walName:
		return fmt.Errorf("%w: --log is bolt or wal", errUsage)
	}
	return nil
}

// benchTarget is what is measured.
type benchTarget interface {
	write(ctx context.Context, id, value string) error
	read(ctx context.Context, id string) error
	io.Closer
}

// benchResult is what one kind of operation did. Latencies are in
// milliseconds, of those that succeeded.
type benchResult struct {
	Operation string  `json:"operation"`
	Workers   int     `json:"workers"`
	Count     int     `json:"count"`
	Errors    int     `json:"errors"`
	PerSecond float64 `json:"per_second"`
	P50       float64 `json:"p50_ms"`
	P99       float64 `json:"p99_ms"`
	P999      float64 `json:"p999_ms"`
	Max       float64 `json:"max_ms"`
}

func bench(ctx context.Context, o *benchOptions, out io.Writer) (err error) {
	target, err := openBench(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	results, err := measure(ctx, o, target)
	if err != nil {
		return err
	}
	if o.asJSON {
		return json.NewEncoder(out).Encode(results)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "OPERATION\tWORKERS\tCOUNT\tERRORS\tPER SECOND\tP50 MS\tP99 MS\tP99.9 MS\tMAX MS\t")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%.0f\t%.2f\t%.2f\t%.2f\t%.2f\t\n", r.Operation, r.Workers, r.Count, r.Errors,
			r.PerSecond, r.P50, r.P99, r.P999, r.Max)
	}
	return w.Flush()
}

func openBench(ctx context.Context, o *benchOptions) (benchTarget, error) {
	if o.embedded > 0 {
		return openEmbedded(ctx, o)
	}
	return openHTTPBench(o)
}

// measure runs writers and readers at once. An operation that failed is counted;
// if none of a kind succeeded that is an error.
func measure(ctx context.Context, o *benchOptions, target benchTarget) ([]benchResult, error) {
	var next atomic.Int64
	id := func() string { return fmt.Sprint("bench-", next.Add(1)%int64(o.keys)) }
	if err := firstWrite(ctx, target); err != nil {
		return nil, err
	}
	value := strings.Repeat("x", max(o.size-64, 1)) // its envelope takes the rest
	ctx, cancel := context.WithTimeout(ctx, o.duration)
	defer cancel()
	writes := &benchKind{name: "write", workers: o.writers, op: func() error { return target.write(ctx, id(), value) }}
	reads := &benchKind{name: "read " + o.consistency, workers: o.readers, op: func() error { return target.read(ctx, "bench-0") }}
	var results []benchResult
	var wg sync.WaitGroup
	start := time.Now()
	for _, k := range []*benchKind{writes, reads} {
		k.start(ctx, &wg)
	}
	wg.Wait()
	took := time.Since(start)
	for _, k := range []*benchKind{writes, reads} {
		if k.workers == 0 {
			continue
		}
		r := k.result(took)
		if r.Count == 0 && k.last != nil {
			return nil, fmt.Errorf("no %s succeeded: %w", k.name, k.last)
		}
		results = append(results, r)
	}
	return results, nil
}

// firstWrite makes the node that is read, and shows within the time of one write
// whether the cluster takes any.
func firstWrite(ctx context.Context, target benchTarget) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	return target.write(ctx, "bench-0", "")
}

// benchKind is one kind of operation being measured.
type benchKind struct {
	name    string
	workers int
	op      func() error

	// mu guards the fields below.
	mu     sync.Mutex
	took   []time.Duration
	errors int
	last   error
}

func (k *benchKind) start(ctx context.Context, wg *sync.WaitGroup) {
	for range k.workers {
		wg.Go(func() {
			var took []time.Duration
			failed := 0
			var last error
			for ctx.Err() == nil {
				start := time.Now()
				err := k.op()
				switch {
				case err == nil:
					took = append(took, time.Since(start))
				case ctx.Err() == nil: // else the end came first
					failed, last = failed+1, err
				}
			}
			k.mu.Lock()
			defer k.mu.Unlock()
			k.took = append(k.took, took...)
			k.errors += failed
			if last != nil {
				k.last = last
			}
		})
	}
}

func (k *benchKind) result(took time.Duration) benchResult {
	slices.Sort(k.took)
	r := benchResult{Operation: k.name, Workers: k.workers, Count: len(k.took), Errors: k.errors,
		PerSecond: float64(len(k.took)) / took.Seconds()}
	if len(k.took) > 0 {
		at := func(part float64) float64 {
			return k.took[min(int(part*float64(len(k.took))), len(k.took)-1)].Seconds() * 1000
		}
		r.P50, r.P99, r.P999, r.Max = at(0.5), at(0.99), at(0.999), at(1)
	}
	return r
}
