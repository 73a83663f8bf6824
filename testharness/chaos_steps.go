package testharness

import (
	"context"
	"fmt"
	"time"

	"github.com/nornicdb/replication"
)

// director carries a plan out on a cluster. One goroutine calls it.
type director struct {
	c      *Cluster
	seed   uint64
	active map[int]Step // steps on links, by their place in the plan
	wiped  *Member
	// corrupts: bits flip on the network, also in what strangers are answered, which
	// no checksum guards.
	corrupts bool
	onWipe   func(m *Member)
	failed   func(error)
}

// begin does what a step does and returns what ends it. Two steps on one node or
// link may overlap; the end of either then ends both.
func (d *director) begin(ctx context.Context, i int, s Step) (end func()) {
	c, m := d.c, d.c.Members[s.Member]
	switch s.Kind {
	case FaultPartition:
		return d.partition(ctx, m, s)
	case FaultCrash:
		return d.crash(ctx, m, s)
	case FaultPause:
		c.Pause(m)
		return func() { c.Resume(m) }
	case FaultDisk:
		return d.disk(m, s)
	case FaultFull:
		m.Disk().SetFaults(DiskFaults{Full: true})
		return func() { m.Disk().SetFaults(DiskFaults{}) }
	case FaultWipe:
		return d.wipe(ctx, m)
	case FaultByzantine:
		return d.attack(ctx, m, i)
	case FaultOperator:
		return d.operate(ctx, m, s)
	case FaultOverrule:
		return d.overrule(ctx, m, s)
	case FaultClock:
		m.SetClockOffset(time.Duration((s.Roll[0]*2 - 1) * float64(time.Hour)))
		return func() { m.SetClockOffset(0) }
	}
	d.active[i] = s
	d.setLinks()
	return func() { delete(d.active, i); d.setLinks() }
}

// setLinks gives every link the sum of the steps that work on links.
func (d *director) setLinks() {
	f := Faults{Latency: time.Millisecond, Jitter: time.Millisecond}
	for _, s := range d.active {
		s.linkFaults(&f)
	}
	d.c.Net.SetDefaultFaults(f)
}

func (d *director) partition(ctx context.Context, m *Member, s Step) (end func()) {
	n, peers := d.c.Net, m.Peers()
	other := peers[int(s.Roll[1]*float64(len(peers)))]
	switch int(s.Roll[0] * 5) {
	case 0:
		n.OneWay(m.ID, other.ID)
	case 1:
		n.OneWay(other.ID, m.ID)
	case 2:
		n.Bridge(m.ID)
	case 3:
		ctx, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			n.Flap(ctx, []string{m.ID}, []string{other.ID}, 300*time.Millisecond, 200*time.Millisecond)
		}()
		return func() { stop(); <-done; n.Heal() }
	default:
		n.Isolate(m.ID)
	}
	return n.Heal
}

// crash takes a node down, at once or at one of its next writes, and starts it
// again.
func (d *director) crash(ctx context.Context, m *Member, s Step) (end func()) {
	switch {
	case s.Roll[0] < 0.4:
		d.c.Crash(m)
	case s.Roll[0] < 0.8:
		d.c.CrashAt(m, 1+int(s.Roll[1]*20))
	default:
		go func() { _ = d.c.Stop(m) }() // what it says is seen when it starts again
	}
	return func() { d.start(ctx, m) }
}

// start starts a node that is down, in the background: it may have to wait.
func (d *director) start(ctx context.Context, m *Member) {
	go func() {
		if err := d.c.Start(ctx, m); err != nil && ctx.Err() == nil {
			d.c.Transcript.Add(m.ID, "start: %v", err)
		}
	}()
}

func (d *director) disk(m *Member, s Step) (end func()) {
	disk := m.Disk()
	if s.Roll[0] < 0.5 {
		disk.Hang()
		return disk.Release
	}
	disk.SetFaults(DiskFaults{SyncLatency: time.Duration(s.Roll[1] * float64(50*time.Millisecond)), SyncJitter: time.Duration(s.Roll[2] * float64(100*time.Millisecond))})
	return func() { disk.SetFaults(DiskFaults{}) }
}

// wipe takes a node's disk away, once, and only while all are up: two nodes
// without disk are more than any cluster of three survives.
func (d *director) wipe(ctx context.Context, m *Member) (end func()) {
	for _, o := range d.c.Members {
		if d.wiped != nil || !o.Running() {
			return func() {}
		}
	}
	d.wiped = m
	d.c.Crash(m)
	d.c.Wipe(m)
	d.onWipe(m)
	return func() { d.start(ctx, m) }
}

// attack lets a stranger speak to a node; what it is answered must give nothing
// away.
func (d *director) attack(ctx context.Context, m *Member, i int) (end func()) {
	ctx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	b := NewByzantine(d.c.Net, ByzantineOptions{ID: fmt.Sprint("stranger", i), Target: m.Addr, ClusterID: m.Config.Raft.ClusterID,
		NodeIDs: []string{"n1", "n2", "n3"}, Seed: d.seed + uint64(i), Patience: 2 * time.Second})
	go func() {
		defer close(done)
		results, _ := b.Attack(ctx) // a node that is down is not attacked
		for _, r := range results {
			if !d.corrupts && !r.Refused() {
				d.failed(fmt.Errorf("a stranger's %s was answered: %s", r.Name, r.Answers))
			}
		}
	}()
	return func() { stop(); <-done }
}

func (d *director) operate(ctx context.Context, m *Member, s Step) (end func()) {
	ctx, stop := context.WithTimeout(ctx, 5*time.Second)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := m.Replicator()
		var err error
		if t, ok := r.(replication.Snapshotter); ok && s.Roll[0] < 0.5 {
			err = t.TakeSnapshot(ctx)
		} else if t, ok := r.(replication.Membership); ok {
			err = t.TransferLeadership(ctx, "")
		}
		d.c.Transcript.Add(m.ID, "operator: %v", err)
	}()
	return func() { <-done; stop() }
}

func (d *director) overrule(ctx context.Context, m *Member, s Step) (end func()) {
	ctx, stop := context.WithTimeout(ctx, 5*time.Second)
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := m.Replicator()
		var err error
		if t, ok := r.(replication.Soloer); ok && s.Roll[0] < 0.5 {
			err = t.Solo(ctx)
		} else if t, ok := r.(replication.Promoter); ok {
			err = t.Promote(ctx, true)
		}
		d.c.Transcript.Add(m.ID, "overruled: %v", err)
	}()
	return func() { <-done; stop() }
}
