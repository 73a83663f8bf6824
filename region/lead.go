package region

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/transport"
	"github.com/nornicdb/replication/walstream"
)

const (
	// markInterval is how often an idle region marks, and how often the leader
	// asks the other regions how they are.
	markInterval = time.Second
	// proposeTimeout bounds a proposal of the leader's own.
	proposeTimeout = 10 * time.Second
	// batchBytes bounds a batch; a larger entry goes alone.
	batchBytes = 1 << 20
)

// lead does what the leader of a region does, until stop is called.
func (n *Node) lead() (stop func()) {
	ctx, cancel := context.WithCancel(n.ctx)
	var wg sync.WaitGroup
	wg.Go(func() { n.housekeeping(ctx) })
	for _, r := range n.settings.others() {
		wg.Go(func() { n.stream(ctx, r) })
		wg.Go(func() { n.watch(ctx, r) })
	}
	return func() {
		cancel()
		wg.Wait()
		n.links.forgetAsked()
	}
}

// housekeeping proposes what is due: the settings, marks, cursors, and settling.
func (n *Node) housekeeping(ctx context.Context) {
	tick := time.NewTicker(max(n.cfg.Region.BatchTimeout, 50*time.Millisecond))
	defer tick.Stop()
	var marked time.Time
	left := uint64(0) // uncollected at the last look
	for ctx.Err() == nil {
		v, _ := n.machine.now()
		c := n.due(&v, time.Since(marked) >= markInterval, left)
		left = v.status.Uncollected
		if c != nil {
			proposeCtx, cancel := context.WithTimeout(ctx, proposeTimeout)
			err := n.propose(proposeCtx, c)
			cancel()
			switch {
			case err != nil:
				n.rt.Logger.Debug("an entry of the leader's own was not committed", "kind", c.kind, "error", err)
			case c.kind == kindMark:
				marked = time.Now()
			case c.kind == kindCollect: // there may be much of it
				left = 0
				continue
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// due is what the leader is to propose now; nil: nothing. What is left to be
// settled goes down by itself while there are writes.
func (n *Node) due(v *view, mayMark bool, left uint64) *logCommand {
	if v.settings == nil {
		return &logCommand{kind: kindSettings, body: jsonBody(n.settings)}
	}
	if v.status.NeedsMark && mayMark && n.alarmedBy() == nil { // a mark takes a position too
		return &logCommand{kind: kindMark, wallMS: n.wallMS()}
	}
	if more := n.acks.beyond(v.head.Cursors, v.head.Last); more != nil {
		return &logCommand{kind: kindCursors, body: jsonBody(more)}
	}
	if v.status.Uncollected > 0 && v.status.Uncollected >= left {
		return &logCommand{kind: kindCollect}
	}
	return nil
}

// windowEntries and minBatches say how much may be on its way to another region:
// over a link of 150 ms there and back 27,000 entries a second.
const (
	windowEntries = 4096
	minBatches    = 16
)

// sink is another region as the other side of a stream.
type sink struct {
	n      *Node
	region string
}

var _ walstream.Sink = sink{}

// Position implements walstream.Sink. What the region has is asked of its
// leader: a follower that lags must not make this side think that what the
// outbox has dropped is missing there.
func (s sink) Position(ctx context.Context) (walstream.Ack, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout+proposeTimeout)
	defer cancel()
	state, err := s.n.ask(ctx, s.region, true)
	if err != nil {
		return walstream.Ack{}, err
	}
	at := state.Applied[s.n.settings.Self]
	if err := s.n.meet(ctx, &meeting{Region: s.region, Pos: at, Stamp: state.Stamps[s.n.settings.Self]}); err != nil {
		return walstream.Ack{}, err
	}
	return walstream.Ack{Received: at, Persisted: at, Applied: at}, nil
}

// Send implements walstream.Sink.
func (s sink) Send(ctx context.Context, b *walstream.Batch) (walstream.Ack, error) {
	if v, _ := s.n.machine.now(); v.head.forked() {
		return walstream.Ack{}, fmt.Errorf("%w: %w", walstream.ErrDiverged, v.head.err())
	}
	entries := make([]*replication.WALEntry, len(b.Entries))
	for i, e := range b.Entries {
		entries[i] = &e.WALEntry
	}
	return s.send(ctx, entries)
}

// send sends entries. The other region's frames may be smaller than this one's:
// what does not fit one goes in parts, and an entry that does not by itself with
// the state, of which the parts are small.
func (s sink) send(ctx context.Context, entries []*replication.WALEntry) (walstream.Ack, error) {
	var resp replication.WALBatchResponse
	err := s.n.call(ctx, s.region, replication.MsgWALBatch, entries, &resp)
	countSent(s.region, len(entries), err)
	half := len(entries) / 2
	switch {
	case !errors.Is(err, replication.ErrCommandTooLarge):
	case half == 0:
		return walstream.Ack{}, fmt.Errorf("%w: entry %d: %w", walstream.ErrSnapshotNeeded, entries[0].Position, err)
	default:
		if ack, err := s.send(ctx, entries[:half]); err != nil {
			return ack, err
		}
		return s.send(ctx, entries[half:])
	}
	return walstream.Ack{Received: resp.ReceivedPosition, Persisted: resp.AckedPosition, Applied: resp.AckedPosition}, err
}

// stream brings this region's outbox to another one, until ctx ends.
func (n *Node) stream(ctx context.Context, region string) {
	opts := walstream.StreamerOptions{BatchEntries: n.cfg.Region.BatchSize, BackoffMax: 2 * time.Second,
		MaxBatches: max(minBatches, windowEntries/n.cfg.Region.BatchSize),
		BatchBytes: min(batchBytes, transport.MaxCommandBytes(n.cfg.MaxFrameSize)/2),
		OnAck: func(a walstream.Ack) {
			n.acks.learn(region, a.Applied)
			n.links.moved(region, a.Applied)
		},
		OnFailure: func(err error) { n.interrupted(region, err) }}
	if n.cfg.Region.CrossRegionMode != replication.SyncSemi {
		opts.BatchTimeout = n.cfg.Region.BatchTimeout
	}
	for ctx.Err() == nil {
		err := walstream.NewStreamer(outbox{n.machine}, sink{n, region}, opts).Run(ctx)
		if errors.Is(err, walstream.ErrSnapshotNeeded) {
			n.rt.Logger.Warn("a region is beyond the outbox, or takes no such entry: it gets this region's state", "region", region, "reason", err)
			err = n.transfer(ctx, region)
		}
		if err != nil && ctx.Err() == nil {
			n.rt.Logger.Error("the stream to another region has stopped; it is tried again", "region", region, "error", err)
			n.links.failed(region, err, n.rt.Now())
		}
		pause(ctx, markInterval)
	}
}

// interrupted notes a failure of a stream. Most are over at once; of one that is
// not, a refusal say, somebody has to hear.
func (n *Node) interrupted(region string, err error) {
	if n.links.failed(region, err, n.rt.Now()) {
		n.rt.Logger.Warn("the stream to another region gets no further", "region", region, "error", err)
		return
	}
	n.rt.Logger.Debug("the stream to another region is interrupted", "region", region, "error", err)
}

// watch asks another region how it is, and takes over a newer region epoch.
func (n *Node) watch(ctx context.Context, region string) {
	silent := false // which was said once
	for ctx.Err() == nil {
		askCtx, cancel := context.WithTimeout(ctx, dialTimeout)
		state, err := n.ask(askCtx, region, false)
		if ctx.Err() == nil {
			n.links.ask(region)
		}
		switch {
		case err != nil && !silent && ctx.Err() == nil:
			n.rt.Logger.Warn("another region does not answer", "region", region, "error", err)
			silent = true
		case err == nil && silent:
			n.rt.Logger.Info("another region answers again", "region", region)
			silent = false
		}
		if err == nil {
			err = n.followEpoch(askCtx, state.Epoch)
		}
		cancel()
		if err != nil {
			n.rt.Logger.Debug("asking another region how it is has failed", "region", region, "error", err)
		}
		pause(ctx, markInterval)
	}
}

// pause waits; it ends early with ctx.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
