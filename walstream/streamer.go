package walstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nornicdb/replication"
)

// ErrSnapshotNeeded: the source no longer has what the peer lacks.
var ErrSnapshotNeeded = errors.New("the peer needs a snapshot")

// Source is what a Streamer sends. Safe for concurrent use.
type Source interface {
	// Last is the position of the last entry that can be read.
	Last() uint64
	// Changed returns a channel that is closed when there is an entry after the
	// position; it may be closed sooner.
	Changed(after uint64) <-chan struct{}
	// Read returns entries from the one after a position, at most maxEntries and
	// about maxBytes, but at least one where there is one. ErrCompacted where
	// the first is gone, ErrAhead where the position is above the end.
	Read(after uint64, maxEntries, maxBytes int) (*Batch, error)
}

// Sink is the other side of a stream. Its methods may be called at once.
type Sink interface {
	// Position asks the peer where it stands; its Received is what sending goes
	// on from. ErrSnapshotNeeded, ErrDiverged, ErrStaleEpoch and
	// ErrForeignHistory end the stream.
	Position(ctx context.Context) (Ack, error)
	// Send sends a batch and waits for the answer.
	Send(ctx context.Context, b *Batch) (Ack, error)
}

// StreamerOptions of a Streamer. Zero fields get the defaults named beside them.
type StreamerOptions struct {
	BatchEntries int           // of a batch, 1,000
	BatchBytes   int           // of a batch, 1 MiB; a larger entry goes alone
	BatchTimeout time.Duration // longest wait to fill one; 0: none, somebody waits for the answer
	MaxBatches   int           // in flight, 8
	MaxBytes     int           // in flight, 4 MiB
	SendTimeout  time.Duration // for the answer to one batch, 10 s
	BackoffMin   time.Duration // first pause after a failure, 50 ms; with jitter
	BackoffMax   time.Duration // longest, 5 s
	// OnAck is told whenever the peer got further, in order. It must neither block
	// nor call the Streamer.
	OnAck func(Ack)
	// OnFailure is told of each failure that is followed by another try.
	OnFailure func(error)
}

func (o *StreamerOptions) setDefaults() {
	defaultTo(&o.BatchEntries, 1000)
	defaultTo(&o.BatchBytes, 1<<20)
	defaultTo(&o.MaxBatches, 8)
	defaultTo(&o.MaxBytes, 4<<20)
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&o.SendTimeout, 10 * time.Second}, {&o.BackoffMin, 50 * time.Millisecond}, {&o.BackoffMax, 5 * time.Second}} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
}

// Streamer sends a source to one peer, several batches in flight, and begins
// again at the peer's own position after a failure. While the peer stalls it
// holds no more than MaxBytes; the rest stays in the source.
type Streamer struct {
	src  Source
	sink Sink
	opts StreamerOptions

	// mu guards the field below.
	mu     sync.Mutex
	sender sender
}

// NewStreamer makes a Streamer; Run runs it.
func NewStreamer(src Source, sink Sink, opts StreamerOptions) *Streamer {
	opts.setDefaults()
	return &Streamer{src: src, sink: sink, opts: opts, sender: sender{maxBatches: opts.MaxBatches, mostBytes: opts.MaxBytes, maxBytes: opts.MaxBytes}}
}

// Ack is how far the peer is, as far as it has said.
func (s *Streamer) Ack() Ack {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sender.ack
}

// Learn takes what the peer said of itself on another way, in a heartbeat say.
func (s *Streamer) Learn(ack Ack) { s.update(func(w *sender) { w.learn(ack) }) }

// update changes the window and tells of what the peer got.
func (s *Streamer) update(change func(*sender)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.sender.ack
	change(&s.sender)
	if after := s.sender.ack; after != before && s.opts.OnAck != nil {
		s.opts.OnAck(after)
	}
}

// Run streams until ctx ends or going on makes no sense: ErrSnapshotNeeded,
// ErrDiverged (the peer has what the source has not, too), ErrStaleEpoch,
// ErrForeignHistory. Every other failure is followed by another try after a
// pause.
func (s *Streamer) Run(ctx context.Context) error {
	failures, fruitless := 0, 0
	for {
		ack, err := s.sink.Position(ctx)
		if err == nil {
			s.update(func(w *sender) { w.start(ack, s.window(fruitless)) })
			var got bool
			fruitless++
			if got, err = s.session(ctx); got {
				failures, fruitless = 0, 0
			}
		}
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, ErrCompacted):
			return fmt.Errorf("%w: %w", ErrSnapshotNeeded, err)
		case errors.Is(err, ErrAhead):
			return fmt.Errorf("%w: %w", ErrDiverged, err)
		case final(err):
			return err
		}
		if s.opts.OnFailure != nil {
			s.opts.OnFailure(err)
		}
		if !s.pause(ctx, failures) {
			return context.Cause(ctx)
		}
		failures++
	}
}

// window is how many bytes a session begins with, after so many that got nothing
// through: a link may be too slow for a whole batch in SendTimeout, or for what else
// waits behind it, and each try with as much would end as the last did.
func (s *Streamer) window(fruitless int) int {
	if fruitless == 0 {
		return s.opts.MaxBytes
	}
	return max(min(s.opts.BatchBytes, s.opts.MaxBytes)>>min(2*fruitless, 6), 1)
}

func final(err error) bool {
	for _, e := range []error{ErrSnapshotNeeded, ErrDiverged, ErrStaleEpoch, replication.ErrForeignHistory, ErrCorrupt} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// pause waits after a failure, longer each time; false: ctx ended.
func (s *Streamer) pause(ctx context.Context, failures int) bool {
	wait := s.opts.BackoffMax
	if d := s.opts.BackoffMin << min(failures, 30); d > 0 && d < wait {
		wait = d
	}
	timer := time.NewTimer(wait/2 + rand.N(wait/2+1))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// answer is what came back for a batch.
type answer struct {
	last uint64
	ack  Ack
	err  error
}

// session streams until something fails. progress says that the peer took
// something.
func (s *Streamer) session(ctx context.Context) (progress bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	answers := make(chan answer)
	fill := fillTimer{timeout: s.opts.BatchTimeout, full: s.opts.BatchEntries}
	defer fill.stop()
	for {
		changed, err := s.sendMore(ctx, &wg, answers, &fill)
		if err != nil {
			return progress, err
		}
		select {
		case a := <-answers:
			if a.err != nil {
				return progress, a.err
			}
			taken := false
			s.update(func(w *sender) { taken = w.answered(a.last, a.ack) })
			if !taken {
				return progress, fmt.Errorf("%w: it has %d of %d", errGap, a.ack.Received, a.last)
			}
			progress = true
		case <-changed:
		case <-fill.expired():
			fill.done = true
		case <-ctx.Done():
			return progress, context.Cause(ctx)
		}
	}
}

// sendMore sends batches while there is room and something to send. The channel
// it returns is closed when there may be more; nil while there is no room.
func (s *Streamer) sendMore(ctx context.Context, wg *sync.WaitGroup, answers chan<- answer, fill *fillTimer) (<-chan struct{}, error) {
	for {
		s.mu.Lock()
		room, sent, alone := s.sender.room(), s.sender.sent, len(s.sender.flights) == 0
		s.mu.Unlock()
		if room == 0 {
			return nil, nil
		}
		last := s.src.Last()
		if !fill.ready(sent, last) {
			return s.src.Changed(max(last, sent)), nil
		}
		b, err := s.src.Read(sent, s.opts.BatchEntries, min(room, s.opts.BatchBytes))
		if err != nil {
			return nil, err
		}
		if len(b.Entries) == 0 {
			return s.src.Changed(sent), nil
		}
		if b.Bytes > room && !alone { // one entry, larger than the room that is left
			return nil, nil
		}
		s.mu.Lock()
		s.sender.launch(b.Last(), b.Bytes)
		s.mu.Unlock()
		wg.Go(func() {
			a := answer{last: b.Last()}
			sendCtx, cancel := context.WithTimeout(ctx, s.opts.SendTimeout)
			a.ack, a.err = s.sink.Send(sendCtx, b)
			cancel()
			if a.err == nil {
				s.Learn(a.ack) // writes wait for it: they do not wait for the session's turn, too
			}
			select {
			case answers <- a:
			case <-ctx.Done():
			}
		})
	}
}

// fillTimer says when a batch that is not full is sent nevertheless.
type fillTimer struct {
	timeout time.Duration
	full    int // entries
	timer   *time.Timer
	done    bool // the time is over
}

// ready: what is between sent and last is to be sent now.
func (f *fillTimer) ready(sent, last uint64) bool {
	switch {
	case last < sent: // Read says what that means
		return true
	case last == sent:
		f.stop()
		return false
	case f.timeout <= 0 || last-sent >= uint64(f.full) || f.done:
		f.stop()
		return true
	case f.timer == nil:
		f.timer = time.NewTimer(f.timeout)
	}
	return false
}

// expired fires when the time to fill a batch is over.
func (f *fillTimer) expired() <-chan time.Time {
	if f.timer == nil {
		return nil
	}
	return f.timer.C
}

func (f *fillTimer) stop() {
	if f.timer != nil {
		f.timer.Stop()
		f.timer = nil
	}
	f.done = false
}
