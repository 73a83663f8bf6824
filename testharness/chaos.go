package testharness

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nornicdb/replication"
)

// Chaos is a schedule of faults under load, with all checks. Zero fields get
// what stands beside them.
type Chaos struct {
	Cluster ClusterConfig
	Seed    uint64
	Faults  []FaultKind
	// Duration of the faults and the load, 15 s.
	Duration time.Duration
	// Clients that work at once, 5; Operations of all of them together, at
	// most, 500; Registers that they share, 4.
	Clients, Operations, Registers int
	// Recovery bounds the time from the end of the faults until a write
	// succeeds, 30 s.
	Recovery time.Duration
	// Prepare, if not nil, is called when the cluster serves, before any fault.
	Prepare func(c *Cluster) error
	// Repair, if not nil, is what an operator does after the faults, when all
	// nodes are up.
	Repair func(ctx context.Context, c *Cluster) error
	// Level of the reads, QUORUM.
	Level replication.Consistency
	// Except names the checks that the mode does not promise to pass.
	Except Exceptions
	// Watch, if not nil, looks at the cluster again and again; what it finds is
	// a failure. Check, if not nil, looks at it at the end, when all nodes hold
	// the same.
	Watch func(c *Cluster) error
	Check func(c *Cluster, ops []Operation) error
	// Pictures is the directory for the picture of a history that is not
	// linearizable.
	Pictures string
}

// Exceptions are checks that are not made.
type Exceptions struct {
	// Terms: leaders of one term are not compared: an epoch is a number with an
	// owner, and two may have one number.
	Terms bool
	// Loss: acknowledged writes may be lost, so that a position is given anew.
	// Presence, order, linearizability, digests and single execution are not
	// looked at; that failed writes took no effect is.
	Loss bool
}

// ChaosReport says what a schedule amounted to.
type ChaosReport struct {
	Operations, Done, Failed, Unknown int
	Terms                             int
	Recovered                         time.Duration // until the first write after the faults
	Virtual                           time.Duration
}

func (x *Chaos) setDefaults() {
	if x.Duration == 0 {
		x.Duration = 15 * time.Second
	}
	if x.Clients == 0 {
		x.Clients = 5
	}
	if x.Operations == 0 {
		x.Operations = 500
	}
	if x.Registers == 0 {
		x.Registers = 4
	}
	if x.Recovery == 0 {
		x.Recovery = 30 * time.Second
	}
	if x.Level == "" {
		x.Level = replication.ConsistencyQuorum
	}
	x.Cluster.Seed = x.Seed
}

// chaosRun is a schedule that runs.
type chaosRun struct {
	*Chaos
	c    *Cluster
	hist *History
	obs  Observations
	apps Applications

	// mu guards errs.
	mu   sync.Mutex
	errs []error
}

// Run runs the schedule in the caller's bubble and says what its checks found.
// The plan of faults, and of each client's operations, depends on the seed
// alone; how they interleave with the cluster's own goroutines does not. The
// transcript begins with the plan.
func (x Chaos) Run(tb testing.TB) (report ChaosReport, err error) {
	tb.Helper()
	x.setDefaults()
	start := time.Now()
	r := &chaosRun{Chaos: &x, c: NewCluster(tb, x.Cluster), hist: NewHistory("chaos")}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := r.setUp(ctx); err != nil {
		return report, fmt.Errorf("seed %d: before any fault: %w", x.Seed, err)
	}
	stop := r.observe()
	r.storm(ctx)
	recovered, err := r.recover(ctx)
	stop()
	r.check(err)
	ops := r.hist.Operations()
	for _, op := range ops {
		report.Operations++
		switch op.Outcome {
		case OutcomeDone:
			report.Done++
		case OutcomeFailed:
			report.Failed++
		default:
			report.Unknown++
		}
	}
	report.Terms, report.Recovered, report.Virtual = r.obs.Terms(), recovered, time.Since(start)
	if err = errors.Join(r.errs...); err != nil {
		r.c.Transcript.Add("check", "%v", err)
		for _, op := range ops {
			r.c.Transcript.Add("history", "%v to %v, %d tries: %s", op.Called.Sub(start), op.Returned.Sub(start), op.Tries, op)
		}
		err = fmt.Errorf("seed %d, faults %v: %w", x.Seed, x.Faults, err)
	}
	return report, err
}

func (r *chaosRun) failed(err error) {
	if err == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.errs = append(r.errs, err)
}

func registerNode(i int) replication.NodeID { return replication.NodeID(fmt.Sprint("register-", i)) }

// setUp starts the cluster and makes the registers' nodes.
func (r *chaosRun) setUp(ctx context.Context) error {
	for _, m := range r.c.Members {
		r.apps.Watch(m.ID, m.Store())
	}
	r.c.StartAll(ctx)
	client := r.hist.Client()
	if r.Prepare != nil {
		if err := r.Prepare(r.c); err != nil {
			return err
		}
	}
	for i := range r.Registers {
		cmd, err := replication.NewNodeCommand(replication.CmdPutNode, &replication.Node{ID: registerNode(i)})
		if err != nil {
			return err
		}
		if err := r.everywhere(ctx, client, cmd, r.Recovery); err != nil {
			return err
		}
	}
	return nil
}

// everywhere applies a command through whichever node takes it.
func (r *chaosRun) everywhere(ctx context.Context, client *Client, cmd *replication.Command, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		if targets := r.targets(); len(targets) > 0 {
			client.Use(targets...)
			if op := client.Do(ctx, cmd); op.Outcome == OutcomeDone {
				return nil
			} else if ctx.Err() != nil {
				return fmt.Errorf("%w of %s: %w", ErrNoProgress, within, op.Err)
			}
		}
		if !pauseFor(ctx, retryPause) {
			return fmt.Errorf("%w of %s: no node is up", ErrNoProgress, within)
		}
	}
}

// targets are the nodes that are up.
func (r *chaosRun) targets() (list []Target) {
	for _, m := range r.c.Members {
		if repl := m.Replicator(); repl != nil {
			list = append(list, Target{Replicator: repl, Property: m.Store().Property})
		}
	}
	return list
}

// observe looks at every node until the function it returns is called.
func (r *chaosRun) observe() (stop func()) {
	return r.obs.every(100*time.Millisecond, func() {
		for _, m := range r.c.Members {
			r.look(m)
		}
		if r.Watch != nil {
			r.failed(r.Watch(r.c))
		}
	})
}

// look notes what a node shows.
func (r *chaosRun) look(m *Member) {
	repl := m.Replicator()
	if r.Cluster.Deferring { // a crash takes a node back
		r.obs.Forget(m.ID)
	}
	switch {
	case r.Except.Loss:
		return
	case repl == nil:
	case !r.Except.Terms:
		r.obs.Health(repl)
	default:
		if h := repl.Health(); h.State != "closed" && h.State != "starting" {
			r.obs.Position(h.NodeID, h.AppliedIndex)
		}
	}
	s := m.Store().Stats()
	r.obs.State(m.ID, s.Position, s.Digest)
}

// storm runs faults and clients side by side until both have ended.
func (r *chaosRun) storm(ctx context.Context) {
	plan := PlanChaos(r.Seed, r.Faults, len(r.c.Members), r.Duration)
	for _, s := range plan {
		r.c.Transcript.Add("plan", "%s", s)
	}
	d := &director{c: r.c, seed: r.Seed, active: make(map[int]Step), failed: r.failed,
		corrupts: slices.ContainsFunc(plan, func(s Step) bool { return s.Kind == FaultCorruption }),
		onWipe: func(m *Member) {
			r.obs.Forget(m.ID)
			r.apps.Watch(m.ID+" (wiped)", m.Store())
		}}
	d.setLinks()
	until, cancel := context.WithTimeout(ctx, r.Duration)
	defer cancel()
	var wg sync.WaitGroup
	for i := range r.Clients {
		wg.Go(func() { r.client(until, uint64(i)) })
	}
	r.perform(until, ctx, d, plan)
	wg.Wait()
}

// perform begins and ends the steps of a plan at their times.
func (r *chaosRun) perform(until, ctx context.Context, d *director, plan []Step) {
	start := time.Now()
	type ending struct {
		at  time.Duration
		end func()
	}
	var endings []ending
	for next := 0; ; {
		at := r.Duration // of what comes next
		ends := -1
		for i, e := range endings {
			if e.at < at {
				at, ends = e.at, i
			}
		}
		begins := next < len(plan) && plan[next].At < at
		if begins {
			at = plan[next].At
		}
		if !pauseFor(until, at-time.Since(start)) && until.Err() != nil {
			break
		}
		switch {
		case begins:
			s := plan[next]
			r.c.Transcript.Add("schedule", "begins: %s", s)
			endings = append(endings, ending{s.At + s.For, d.begin(ctx, next, s)})
			next++
		case ends >= 0:
			endings[ends].end()
			endings = append(endings[:ends], endings[ends+1:]...)
		}
	}
	for _, e := range endings {
		e.end()
	}
	r.c.Transcript.Add("schedule", "the faults end")
}

// client does operations drawn from the seed until its time or its share of
// them is over.
func (r *chaosRun) client(ctx context.Context, number uint64) {
	rng := rand.New(rand.NewPCG(r.Seed, number+1))
	client := r.hist.Client()
	gap := float64(r.Duration) * float64(r.Clients) / float64(r.Operations)
	var created []Operation // that were acknowledged
	for i := range r.Operations / r.Clients {
		what, register, first, many, again := rng.Float64(), rng.IntN(r.Registers), rng.IntN(len(r.c.Members)), rng.IntN(2) == 0, rng.Float64()
		timeout := time.Duration((0.5 + 4*rng.Float64()) * float64(time.Second))
		if !pauseFor(ctx, time.Duration(2*rng.Float64()*gap)) {
			return
		}
		targets := r.targets()
		if len(targets) == 0 {
			continue
		}
		first %= len(targets)
		targets = append(targets[first:], targets[:first]...)
		if !many {
			targets = targets[:1]
		}
		client.Use(targets...)
		opCtx, cancel := context.WithTimeout(ctx, timeout)
		switch {
		case what < 0.4:
			client.Set(opCtx, registerNode(register), "v", fmt.Sprintf("%d-%d", number, i))
		case what < 0.75:
			client.Get(opCtx, r.Level, registerNode(register), "v")
		case what < 0.9 || len(created) == 0:
			if op := client.Create(opCtx); op.Outcome == OutcomeDone {
				created = append(created, op)
			}
		default:
			r.failed(repeat(opCtx, client, created[int(again*float64(len(created)))]))
		}
		cancel()
	}
}

// repeat sends a create that was acknowledged again, as one does whose answer
// was lost: the first outcome is the answer, not a verdict on a second try.
func repeat(ctx context.Context, client *Client, first Operation) error {
	cmd, err := replication.NewNodeCommand(replication.CmdCreateNode, &replication.Node{ID: first.NodeID})
	if err != nil {
		return err
	}
	cmd.RequestID = first.RequestID
	op := client.Do(ctx, cmd)
	if code, verdict := replication.Verdict(op.Err); verdict && op.Outcome == OutcomeFailed {
		return fmt.Errorf("%w: repeated, it was answered %s: %s", ErrAppliedTwice, code, op)
	}
	return nil
}

// recover ends every fault, brings every node up and waits for progress.
func (r *chaosRun) recover(ctx context.Context) (time.Duration, error) {
	c := r.c
	c.Net.ClearFaults()
	c.Net.Heal()
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, r.Recovery)
	defer cancel()
	errs := make(chan error, len(c.Members))
	for _, m := range c.Members {
		m.Disk().CrashAt(0, nil)
		m.Disk().SetFaults(DiskFaults{})
		m.Disk().Release()
		m.SetClockOffset(0)
		go func() {
			if state := m.Health().State; state == "storage_failed" || state == "log_failed" { // it says so until an operator restarts it
				if err := c.Stop(m); err != nil {
					c.Transcript.Add(m.ID, "stop: %v", err)
				}
			}
			errs <- c.Start(ctx, m)
		}()
	}
	var err error
	for range c.Members {
		err = errors.Join(err, <-errs)
	}
	if err != nil {
		return 0, fmt.Errorf("starting after the faults: %w", err)
	}
	if r.Repair != nil {
		if err := r.Repair(ctx, c); err != nil {
			return 0, fmt.Errorf("repair: %w", err)
		}
	}
	cmd, err := replication.NewNodeCommand(replication.CmdPutNode, &replication.Node{ID: "the end"})
	if err != nil {
		return 0, err
	}
	err = r.everywhere(ctx, r.hist.Client(), cmd, r.Recovery)
	return time.Since(start), err
}

// check runs every check.
func (r *chaosRun) check(progress error) {
	r.failed(progress)
	if progress == nil {
		if _, ok := r.c.WaitSame(r.Recovery); !ok {
			r.failed(fmt.Errorf("%w: the nodes do not come to one state", ErrNoProgress))
		}
	}
	ops := r.hist.Operations()
	if r.Check != nil && progress == nil {
		r.failed(r.Check(r.c, ops))
	}
	if !r.Except.Loss {
		r.failed(r.obs.Err())
		r.failed(r.apps.Check())
		r.failed(CheckOrder(ops))
		r.failed(CheckLinearizable(ops, r.Pictures))
	}
	for _, m := range r.c.Members {
		if err := CheckOutcomes(ops, Has(m.Store())); err != nil && progress == nil && !(r.Except.Loss && !errors.Is(err, ErrFailedButThere)) {
			r.failed(fmt.Errorf("%s: %w", m.ID, err))
		}
	}
}
