package testharness

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"
)

// DiskFaults is what a disk does to writes. The zero DiskFaults is a perfect
// disk.
type DiskFaults struct {
	// A write takes SyncLatency, and up to SyncJitter more.
	SyncLatency, SyncJitter time.Duration
	// Fail is the probability, from 0 to 1, that a write fails with
	// syscall.EIO and changes nothing.
	Fail float64
	// Full makes every write fail with syscall.ENOSPC.
	Full bool
	// CapacityBytes bounds the bytes of log entries; what does not fit fails
	// with syscall.ENOSPC. 0 is no limit.
	CapacityBytes int64
	// Stable makes Fail and Full count for a log store's Set and SetUint64 too:
	// hashicorp/raft panics when it cannot store its term.
	Stable bool
}

// Disk is the disk of one node: a log store (OpenLog), snapshots of Raft
// (OpenSnapshots) and storages (NewStorage) that remember, across a crash, what
// a disk would. What a call returned for is there; of a call that a crash cuts
// short any first part may be: of a batch of log entries the first ones, of a
// transaction or a snapshot all or nothing. Safe for concurrent use.
type Disk struct {
	seed uint64

	// mu guards the fields below. It is taken after a volume's commit mutex.
	mu          sync.Mutex
	faults      DiskFaults
	incarnation int
	down        chan struct{} // closed when the present incarnation crashes
	hang        chan struct{} // closed when the hang ends; nil: none
	crashIn     int           // the write that crashes; 0: none is planned
	then        func()        // called after a planned crash
	lying       bool
	writeBack   float64
	logs        *logVolume
	snapshots   *snapshotVolume
	volumes     []volume
	log         func(DiskEvent)
}

// volume is what lies on a disk.
type volume interface {
	// checkpoint notes the present state as what a lying disk really has.
	checkpoint() error
	// crash fixes what the next incarnation finds; forget: the checkpoint.
	crash(forget bool) error
}

// DiskEvent is a line of the transcript: what a disk did.
type DiskEvent struct {
	Time   time.Time
	Kind   string // "fail", "full", "crash", "hang", "release", "lie", "honest", "write back"
	Detail string
}

func (e DiskEvent) String() string {
	return fmt.Sprintf("%s disk %s %s", e.Time.Format("15:04:05.000000"), e.Kind, e.Detail)
}

// NewDisk makes an empty disk whose faults are drawn from seed.
func NewDisk(seed uint64) *Disk {
	d := &Disk{seed: seed, down: make(chan struct{})}
	d.logs = &logVolume{disk: d, rng: d.rng(0), state: newLogState()}
	d.snapshots = &snapshotVolume{disk: d, rng: d.rng(-1)}
	d.volumes = []volume{d.logs}
	return d
}

func (d *Disk) rng(volume int) *rand.Rand {
	return rand.New(rand.NewPCG(d.seed, uint64(volume)))
}

// SetFaults sets the faults of writes that begin from now on.
func (d *Disk) SetFaults(f DiskFaults) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.faults = f
}

// SetLog sets who is told of every fault, under the disk's lock: it must not
// call back.
func (d *Disk) SetLog(log func(DiskEvent)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = log
}

func (d *Disk) note(kind, format string, args ...any) {
	if d.log != nil {
		d.log(DiskEvent{Time: time.Now(), Kind: kind, Detail: fmt.Sprintf(format, args...)})
	}
}

// Hang makes writes wait, those under way too, until Release or a crash.
func (d *Disk) Hang() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hang == nil {
		d.hang = make(chan struct{})
		d.note("hang", "")
	}
}

// Release ends a Hang.
func (d *Disk) Release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.release()
}

func (d *Disk) release() {
	if d.hang != nil {
		close(d.hang)
		d.hang = nil
		d.note("release", "")
	}
}

// Lie makes the disk say that it has synced what it has not: at a crash
// everything is lost that was written since Lie, or since the last write to the
// same store that by the probability writeBack took all before it to the disk,
// but for Raft's snapshots. It fails where a storage has no snapshots.
func (d *Disk) Lie(writeBack float64) error {
	d.mu.Lock()
	d.lying, d.writeBack = true, writeBack
	volumes := d.volumes
	d.note("lie", "write back %v", writeBack)
	d.mu.Unlock()
	for _, v := range volumes {
		if err := v.checkpoint(); err != nil {
			return err
		}
	}
	return nil
}

// Honest ends Lie; what is there now is durable.
func (d *Disk) Honest() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lying = false
	d.note("honest", "")
}

// Crash ends the present incarnation. Every later call by it fails with
// ErrCrashed, but for a log store's term, vote and reads, which it has a copy of
// that dies with it: hashicorp/raft panics where they fail. So crash the node's
// Host before, lest it tells of what it wrote to that copy. OpenLog and Open
// give what survived, once it has returned.
func (d *Disk) Crash() error {
	d.mu.Lock()
	return d.crash()
}

// crash is called with d.mu held, and gives it up: a commit that has begun is
// waited for, and counts as before the crash.
func (d *Disk) crash() error {
	d.incarnation++
	d.crashIn = 0
	close(d.down)
	d.down = make(chan struct{})
	d.release()
	lying, volumes := d.lying, d.volumes
	d.note("crash", "")
	d.mu.Unlock()
	for _, v := range volumes {
		if err := v.crash(lying); err != nil {
			return err
		}
	}
	return nil
}

// CrashAt plans a crash in the middle of a write: the first one from now where
// writes is 1, and so on. Then, if not nil, is called after the crash and
// before that write returns.
func (d *Disk) CrashAt(writes int, then func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.crashIn, d.then = writes, then
}

// Incarnation counts the crashes so far.
func (d *Disk) Incarnation() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.incarnation
}

func (d *Disk) alive(incarnation int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.aliveLocked(incarnation)
}

func (d *Disk) aliveLocked(incarnation int) error {
	if incarnation != d.incarnation {
		return fmt.Errorf("disk: %w", ErrCrashed)
	}
	return nil
}

// write is a change on its way to the disk.
type write struct {
	incarnation int
	bytes       int64 // that it adds to a log
	used        int64 // bytes of the log before it
	stable      bool  // of a term or a vote
	steps       int   // of which a crash lets the first ones survive
	// commit makes steps from up to to, if the incarnation is alive.
	commit func(from, to int) error
}

// diskDice are the random numbers of one write, each in [0, 1).
type diskDice struct{ latency, fail, torn, writeBack float64 }

func rollDiskDice(r *rand.Rand) diskDice {
	return diskDice{latency: r.Float64(), fail: r.Float64(), torn: r.Float64(), writeBack: r.Float64()}
}

// do runs a write: some steps, the wait for the disk, the rest of them.
func (d *Disk) do(w *write, dice diskDice) error {
	latency, err := d.begin(w, dice)
	if err != nil {
		return err
	}
	early := int(dice.torn * float64(w.steps+1))
	if early > 0 {
		if err := w.commit(0, early); err != nil {
			return err
		}
	}
	if err := d.sync(w.incarnation, latency); err != nil {
		return err
	}
	if early < w.steps {
		return w.commit(early, w.steps)
	}
	return nil
}

// begin refuses a write or says how long it takes.
func (d *Disk) begin(w *write, dice diskDice) (time.Duration, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.aliveLocked(w.incarnation); err != nil {
		return 0, err
	}
	f := d.faults
	spared := w.stable && !f.Stable
	switch {
	case !spared && (f.Full || f.CapacityBytes > 0 && w.bytes > 0 && w.used+w.bytes > f.CapacityBytes):
		d.note("full", "")
		return 0, fmt.Errorf("disk: %w", syscall.ENOSPC)
	case !spared && dice.fail < f.Fail:
		d.note("fail", "")
		return 0, fmt.Errorf("disk: %w", syscall.EIO)
	}
	return f.SyncLatency + time.Duration(dice.latency*float64(f.SyncJitter)), nil
}

// sync waits for the disk. It is the place of a planned crash.
func (d *Disk) sync(incarnation int, latency time.Duration) error {
	d.mu.Lock()
	if d.crashIn > 0 {
		if d.crashIn--; d.crashIn == 0 && d.incarnation == incarnation {
			then := d.then
			err := d.crash()
			if then != nil {
				then()
			}
			if err != nil {
				return err
			}
			return d.alive(incarnation)
		}
	}
	down, err := d.down, d.aliveLocked(incarnation)
	d.mu.Unlock()
	if err != nil {
		return err
	}
	if latency > 0 {
		timer := time.NewTimer(latency)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-down:
		}
	}
	for {
		d.mu.Lock()
		hang := d.hang
		err := d.aliveLocked(incarnation)
		d.mu.Unlock()
		if err != nil || hang == nil {
			return err
		}
		select {
		case <-hang:
		case <-down:
		}
	}
}

// wroteBack says whether a lying disk really has everything after this write.
func (d *Disk) wroteBack(dice diskDice) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.lying || dice.writeBack >= d.writeBack {
		return false
	}
	d.note("write back", "")
	return true
}
