package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

type importOptions struct {
	addrs          []string
	file           string
	writers, batch int
	patience       time.Duration
	part           string // "K/N"; empty: all
}

func importCommand() *cobra.Command {
	var o importOptions
	cmd := &cobra.Command{
		Use: "import FILE", Short: "Load APOC JSON lines through the cluster", Args: exactArgs(1),
		Long: "Loads APOC JSON lines, plain or gzip, - for standard input. Nodes are put first, then\n" +
			"relationships; a relationship is known by its ends and type. It is safe to run again.\n\n" +
			"--addr names nodes of one cluster, or of one region. Several regions can each load a part of a\n" +
			"file at once: --part 1/2 here, --part 2/2 there. A relationship whose nodes are in another part\n" +
			"waits until they have come from that region, for as long as --patience says; a file that is a\n" +
			"part itself is loaded with --part 1/1.",
		Example: "  nornic-cluster import --addr http://127.0.0.1:7474,http://127.0.0.1:7475 graph.jsonl.gz\n" +
			"  nornic-cluster import --addr http://127.0.0.1:7477 --part 2/2 graph.jsonl.gz",
		RunE: func(cmd *cobra.Command, args []string) error {
			o.file = args[0]
			return importFile(cmd.Context(), &o)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.addrs, "addr", []string{"http://127.0.0.1:7474"}, "the nodes' HTTP addresses")
	f.IntVar(&o.writers, "writers", 16, "batches in flight")
	f.IntVar(&o.batch, "batch", 64, "records a batch")
	f.DurationVar(&o.patience, "patience", 5*time.Minute, "how long one batch is tried again")
	f.StringVar(&o.part, "part", "", "K/N: only every Nth node and relationship, from the Kth on")
	return cmd
}

// importer sends batches with several writers.
type importer struct {
	o       *importOptions
	client  *client
	run     string // random: the request IDs of this run
	records atomic.Int64
	waits   atomic.Int64 // tries that lacked a node of another part
}

type importBatch struct {
	id      string
	body    []byte
	records int
}

// filePart is every nth record of a kind, from the kth on: 1 ≤ k ≤ n. The zero
// value is all.
type filePart struct{ k, n int }

func parsePart(s string) (p filePart, err error) {
	if s == "" {
		return p, nil
	}
	k, n, _ := strings.Cut(s, "/")
	p.k, err = strconv.Atoi(k)
	if err == nil {
		p.n, err = strconv.Atoi(n)
	}
	if err != nil || p.k < 1 || p.k > p.n {
		return p, fmt.Errorf("%w: --part=%q is not K/N with 1 ≤ K ≤ N", errUsage, s)
	}
	return p, nil
}

// has says whether the part has a record, of which count of its kind were before.
func (p filePart) has(count int) bool { return p.n <= 1 || count%p.n == p.k-1 }

func importFile(ctx context.Context, o *importOptions) error {
	c, err := newClient(o.addrs)
	if err != nil {
		return err
	}
	if o.writers < 1 || o.batch < 1 {
		return fmt.Errorf("%w: --writers and --batch must be positive", errUsage)
	}
	if o.patience <= 0 {
		o.patience = 5 * time.Minute
	}
	part, err := parsePart(o.part)
	if err != nil {
		return err
	}
	in, err := openGraph(o.file)
	if err != nil {
		return err
	}
	defer in.Close()
	c.http.Timeout = 0
	im := &importer{o: o, client: c, run: rand.Text()}
	start := time.Now()
	stop := im.showProgress()
	nodes, edges, err := im.load(ctx, in, part)
	stop()
	if err != nil {
		return err
	}
	seconds := time.Since(start).Seconds()
	fmt.Fprintf(os.Stderr, "imported %d nodes and %d edges with %d retries in %.1f s (%.0f records/s)\n",
		nodes, edges, c.retries.Load(), seconds, float64(nodes+edges)/seconds)
	if o.part != "" {
		fmt.Fprintf(os.Stderr, "part %s; a batch waited %d times for nodes of another part\n", o.part, im.waits.Load())
	}
	return nil
}

// openGraph opens a file, or standard input, plain or gzip.
func openGraph(name string) (io.ReadCloser, error) {
	file := os.Stdin
	if name != "-" {
		var err error
		if file, err = os.Open(name); err != nil {
			return nil, err
		}
	}
	r := bufio.NewReaderSize(file, 64<<10)
	if head, _ := r.Peek(2); !bytes.Equal(head, []byte{0x1f, 0x8b}) {
		return readCloser{r, file}, nil
	}
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return readCloser{z, file}, nil
}

type readCloser struct {
	io.Reader
	io.Closer
}

// load reads records and sends them in batches. An edge needs its nodes, so all
// nodes are in before the first edge goes out; a node after an edge waits for
// the edges before it in the same way.
func (im *importer) load(ctx context.Context, in io.Reader, part filePart) (nodes, edges int, err error) {
	src := &batchSource{lines: newAPOCReader(in), run: im.run, most: im.o.batch, part: part}
	for !src.done {
		err := im.sendAll(ctx, func(send func(importBatch) error) error {
			for {
				b, phaseEnds, err := src.next()
				if err == nil && b.records > 0 {
					err = send(b)
				}
				if err != nil || phaseEnds {
					return err
				}
			}
		})
		if err != nil {
			return src.nodes, src.edges, err
		}
	}
	return src.nodes, src.edges, nil
}

// batchSource cuts a file into batches of one kind of record each.
type batchSource struct {
	lines        *apocReader
	run          string
	most         int
	part         filePart
	number       int
	nodes, edges int                 // that are in the part
	passed       map[string]int      // kind → records read, of all parts
	pending      *apocRecord         // read already: the first of the next phase
	seen         map[uint64]struct{} // hashes of the ends and types of relationships
	parallel     int                 // relationships that are told apart by their IDs
	done         bool
}

// next returns a batch, which may be empty, and whether its kind ends with it.
func (s *batchSource) next() (b importBatch, phaseEnds bool, err error) {
	s.number++
	b.id = fmt.Sprintf("%s-%d", s.run, s.number)
	kind := ""
	for b.records < s.most && len(b.body) <= maxBatchBody/4 {
		rec := s.pending
		s.pending = nil
		if rec == nil {
			if rec, err = s.read(); err == io.EOF {
				s.done = true
				return b, true, nil
			} else if err != nil {
				return b, false, err
			}
		}
		if kind != "" && rec.Type != kind {
			s.pending = rec
			return b, true, nil
		}
		kind = rec.Type
		if err := s.add(&b, rec); err != nil {
			return b, false, err
		}
	}
	// The batch is full; whether the kind ends shows with the next record.
	if s.pending, err = s.read(); err == io.EOF {
		s.done = true
		return b, true, nil
	} else if err != nil {
		return b, false, err
	}
	return b, s.pending.Type != kind, nil
}

// read returns the next record of the part. Parallel relationships are told apart
// in the file as a whole, so that every part knows them by the same IDs.
func (s *batchSource) read() (*apocRecord, error) {
	for {
		rec, err := s.lines.next()
		if err != nil {
			return nil, err
		}
		s.tellApart(rec)
		if s.passed == nil {
			s.passed = make(map[string]int)
		}
		count := s.passed[rec.Type]
		s.passed[rec.Type]++
		if s.part.has(count) {
			return rec, nil
		}
	}
}

func (s *batchSource) add(b *importBatch, rec *apocRecord) error {
	if _, err := rec.command(); err != nil {
		return fmt.Errorf("line %d: %w", s.lines.line, err)
	}
	line, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	b.body = append(append(b.body, line...), '\n')
	b.records++
	if rec.Type == "node" {
		s.nodes++
	} else {
		s.edges++
	}
	return nil
}

// tellApart marks a relationship as parallel whose ends and type were there
// before in the file: it keeps the file's ID, or it would replace the other. One
// hash in 2^64 that collides costs no more than an ID that was not needed.
func (s *batchSource) tellApart(rec *apocRecord) {
	if rec.Type == "node" || rec.Start == nil || rec.End == nil {
		return
	}
	h := fnv.New64a()
	for _, part := range []string{rec.Start.ID, rec.Label, rec.End.ID} {
		_, _ = fmt.Fprintf(h, "%d:%s", len(part), part) // a hash takes everything
	}
	if _, before := s.seen[h.Sum64()]; before && rec.ID != "" {
		rec.Parallel = true
		s.parallel++
	}
	if s.seen == nil {
		s.seen = make(map[uint64]struct{})
	}
	s.seen[h.Sum64()] = struct{}{}
}

// sendAll runs the writers over what produce gives them and waits for all.
func (im *importer) sendAll(ctx context.Context, produce func(send func(importBatch) error) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	batches := make(chan importBatch)
	var wg sync.WaitGroup
	for range im.o.writers {
		wg.Go(func() {
			for b := range batches {
				if err := im.send(ctx, b); err != nil {
					cancel(err)
					return
				}
				im.records.Add(int64(b.records))
			}
		})
	}
	err := produce(func(b importBatch) error {
		select {
		case batches <- b:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	close(batches)
	wg.Wait()
	if err == nil {
		err = context.Cause(ctx)
	}
	return err
}

// send sends a batch until it is in. Where the file is a part, one that lacks a
// node waits for it. That verdict is remembered under the batch's request ID, so
// the next try, which certainly is the first to have an effect, gets another.
func (im *importer) send(ctx context.Context, b importBatch) error {
	ctx, cancel := context.WithTimeout(ctx, im.o.patience)
	defer cancel()
	wait := 50 * time.Millisecond
	for try := 0; ; try++ {
		id := b.id
		if try > 0 {
			id = fmt.Sprintf("%s-%d", b.id, try)
		}
		err := im.client.post(ctx, "/graph/batch", id, b.body)
		var a *answer
		if im.o.part == "" || !errors.As(err, &a) || a.code != "missing_end" {
			return err
		}
		im.waits.Add(1)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("a relationship's nodes have not come from another part: %w", err)
		}
		wait = min(2*wait, time.Second)
	}
}

// progress says how many records are in, and where that is no more than was said
// before, what keeps the others.
func (im *importer) progress(said *int64) string {
	records, still := im.records.Load(), ""
	if err := im.client.failing.Swap(nil); err != nil && records == *said {
		still = fmt.Sprintf("; trying again: %v", *err)
	}
	*said = records
	return fmt.Sprintf("%d records%s", records, still)
}

// showProgress shows a bar on a terminal and a line every few seconds elsewhere.
func (im *importer) showProgress() (stop func()) {
	var bar *progressbar.ProgressBar
	every := 5 * time.Second
	if term.IsTerminal(int(os.Stderr.Fd())) {
		every = 200 * time.Millisecond
		bar = progressbar.NewOptions64(-1, progressbar.OptionSetWriter(os.Stderr), progressbar.OptionSetDescription("importing"),
			progressbar.OptionShowIts(), progressbar.OptionShowCount(), progressbar.OptionSetItsString("records"))
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	said := int64(0)
	wg.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			if bar != nil {
				_ = bar.Set64(im.records.Load())
			} else {
				fmt.Fprintln(os.Stderr, im.progress(&said))
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
		if bar != nil {
			_ = bar.Clear()
		}
	}
}
