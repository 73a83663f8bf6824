package walstream

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	"github.com/stretchr/testify/require"
)

// wire is a Sink that hands batches to an Applier through JSON, with the faults
// of a network: loss of the batch or of its answer, repetition, delay and with
// it another order.
type wire struct {
	mu      sync.Mutex
	to      *Applier
	epoch   replication.Epoch
	faulty  bool
	rng     *rand.Rand
	stalled chan struct{} // not nil: Send waits for it
	held    int           // bytes of batches in Send
	maxHeld int
	sends   int
}

var errNet = errors.New("the network lost it")

func (w *wire) Position(context.Context) (Ack, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.to.Ack(), nil
}

func (w *wire) draw() (dice int, delay time.Duration, stalled chan struct{}, to *Applier) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sends++
	if w.faulty {
		dice, delay = w.rng.IntN(10), time.Duration(w.rng.IntN(20))*time.Millisecond
	}
	return dice, delay, w.stalled, w.to
}

func (w *wire) hold(bytes int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held += bytes
	w.maxHeld = max(w.maxHeld, w.held)
}

func (w *wire) Send(ctx context.Context, b *Batch) (Ack, error) {
	w.hold(b.Bytes)
	defer w.hold(-b.Bytes)
	dice, delay, stalled, to := w.draw()
	if stalled != nil {
		select {
		case <-stalled:
		case <-ctx.Done():
			return Ack{}, ctx.Err()
		}
	}
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return Ack{}, ctx.Err()
		}
	}
	if dice == 1 {
		return Ack{}, errNet
	}
	payload, err := json.Marshal(b.Entries)
	if err != nil {
		return Ack{}, err
	}
	receive := func() (Ack, error) {
		entries, err := DecodeBatch(payload)
		if err != nil {
			return Ack{}, err
		}
		prev := b.Prev.Epoch
		return to.Receive(ctx, Received{Epoch: w.epoch, Prev: &prev, Entries: entries})
	}
	ack, err := receive()
	w.mu.Lock()
	crashed := to != w.to
	w.mu.Unlock()
	if dice == 2 || crashed {
		return Ack{}, errNet
	}
	if dice == 3 {
		ack, err = receive()
	}
	return ack, err
}

func runStreamer(t testing.TB, s *Streamer) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = stop() })
	return stop
}

func requireSameLog(t testing.TB, want, got *Log) {
	t.Helper()
	require.Equal(t, want.Last(), got.Last())
	for p := got.First() - 1; p < got.Last().Position; {
		a, err := want.Read(p, 100, 1<<20)
		require.NoError(t, err)
		b, err := got.Read(p, len(a), 1<<30)
		require.NoError(t, err)
		for i := range b {
			require.Equal(t, a[i].Checksum, b[i].Checksum)
			require.Equal(t, a[i].Position, b[i].Position)
		}
		p = b[len(b)-1].Position
	}
}

// A network that loses, repeats and reorders, and a receiver that crashes and
// loses what it had not synced: the log arrives whole, and nothing is
// acknowledged that the receiver could lose.
func TestStreamOverAFaultyNetwork(t *testing.T) {
	for _, received := range []bool{false, true} {
		bubble.Test(t, func(t *testing.T) {
			for seed := range uint64(8) {
				src := openLog(t, newCrashStore(), LogOptions{CacheEntries: 50})
				store := newCrashStore()
				dst := openLog(t, store, LogOptions{})
				to := NewApplier(dst, ApplierOptions{AnswerReceived: received})
				to.Follow("h", e1)
				w := &wire{to: to, epoch: e1, faulty: true, rng: rand.New(rand.NewPCG(seed, 1))}
				var mu sync.Mutex
				var acked Ack
				s := NewStreamer(LogSource{src, "h"}, w, StreamerOptions{BatchEntries: 7, BatchTimeout: time.Millisecond,
					OnAck: func(a Ack) { mu.Lock(); acked = a; mu.Unlock() }})
				stop := runStreamer(t, s)
				for i := range 300 {
					_, err := src.Propose(e1, time.Unix(1, 0), group(i))
					require.NoError(t, err)
					if i%20 == 0 {
						<-time.After(time.Millisecond) // virtual
					}
					if i == 150 {
						w.mu.Lock()
						mu.Lock()
						store = store.crash(w.rng.IntN(5))
						old := acked
						mu.Unlock()
						to.Stop()
						dst = openLog(t, store, LogOptions{})
						require.GreaterOrEqual(t, dst.Durable().Position, old.Persisted, "an acknowledged entry is lost")
						w.to = NewApplier(dst, ApplierOptions{AnswerReceived: received})
						w.to.Follow("h", e1)
						w.mu.Unlock()
					}
				}
				require.NoError(t, src.Sync(t.Context()))
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute) // virtual
				require.NoError(t, dst.WaitDurable(ctx, 300))
				cancel()
				require.ErrorIs(t, stop(), context.Canceled)
				requireSameLog(t, src, dst)
			}
		})
	}
}

// While the peer stalls, no more than the window is in memory; a batch that waits
// to be filled goes out when its time is over.
func TestBackPressureAndFilling(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		src := openLog(t, newCrashStore(), LogOptions{})
		dst := openLog(t, newCrashStore(), LogOptions{})
		to := NewApplier(dst, ApplierOptions{})
		to.Follow("h", e1)
		w := &wire{to: to, epoch: e1, stalled: make(chan struct{})}
		s := NewStreamer(LogSource{src, "h"}, w, StreamerOptions{BatchEntries: 10, BatchBytes: 400, MaxBytes: 1000, BatchTimeout: 50 * time.Millisecond, SendTimeout: time.Hour})
		runStreamer(t, s)
		for i := range 1000 {
			_, err := src.Propose(e1, time.Now(), group(i))
			require.NoError(t, err)
		}
		synctest.Wait()
		require.Greater(t, w.maxHeld, 500)
		require.LessOrEqual(t, w.maxHeld, 1000)
		w.mu.Lock()
		close(w.stalled)
		w.stalled = nil
		w.mu.Unlock()
		require.NoError(t, dst.WaitDurable(t.Context(), 1000))

		start, sends := time.Now(), w.sends
		for i := range 3 {
			_, err := src.Propose(e1, time.Now(), group(i))
			require.NoError(t, err)
		}
		require.NoError(t, dst.WaitDurable(t.Context(), 1003))
		require.Equal(t, 50*time.Millisecond, time.Since(start))
		synctest.Wait()
		require.Equal(t, sends+1, w.sends)
	})
}

// slowLink carries so many bytes in a second, one batch after the other.
type slowLink struct {
	*wire
	bytes int
	free  chan struct{} // one token
}

func (l *slowLink) Send(ctx context.Context, b *Batch) (Ack, error) {
	select {
	case <-l.free:
	case <-ctx.Done():
		return Ack{}, ctx.Err()
	}
	defer func() { l.free <- struct{}{} }()
	select {
	case <-time.After(time.Duration(b.Bytes) * time.Second / time.Duration(l.bytes)):
	case <-ctx.Done():
		return Ack{}, ctx.Err()
	}
	return l.wire.Send(ctx, b)
}

// TestABacklogGetsThroughASlowLink: a link that carries no full batch within the
// time for its answer carries smaller ones.
func TestABacklogGetsThroughASlowLink(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		src, dst := openLog(t, newCrashStore(), LogOptions{}), openLog(t, newCrashStore(), LogOptions{})
		to := NewApplier(dst, ApplierOptions{})
		to.Follow("h", e1)
		for i := range 1000 {
			_, err := src.Propose(e1, time.Now(), group(i))
			require.NoError(t, err)
		}
		b, err := LogSource{src, "h"}.Read(0, 1000, 1<<30)
		require.NoError(t, err)
		total := b.Bytes
		link := &slowLink{wire: &wire{to: to, epoch: e1}, bytes: total / 40, free: make(chan struct{}, 1)}
		link.free <- struct{}{}
		runStreamer(t, NewStreamer(LogSource{src, "h"}, link, StreamerOptions{BatchBytes: total / 2, MaxBytes: 2 * total}))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // virtual
		defer cancel()
		require.NoError(t, dst.WaitDurable(ctx, 1000), "a batch takes 20 s, and may take 10")
	})
}

func TestStreamEndsWhereGoingOnMakesNoSense(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		src := openLog(t, newCrashStore(), LogOptions{})
		appendN(t, src, e1, 20)
		require.NoError(t, src.Compact(Retention{Applied: 20, MaxEntries: 5, MaxBytes: 1 << 30}))
		dst := openLog(t, newCrashStore(), LogOptions{})
		to := NewApplier(dst, ApplierOptions{})
		to.Follow("h", e1)
		w := &wire{to: to, epoch: e1}
		require.ErrorIs(t, NewStreamer(LogSource{src, "h"}, w, StreamerOptions{}).Run(t.Context()), ErrSnapshotNeeded)
		appendN(t, dst, e1, 21)
		require.ErrorIs(t, NewStreamer(LogSource{src, "h"}, w, StreamerOptions{}).Run(t.Context()), ErrDiverged)
		require.NoError(t, dst.Truncate(17))
		require.ErrorIs(t, NewStreamer(LogSource{src, "x"}, w, StreamerOptions{}).Run(t.Context()), replication.ErrForeignHistory)
		w.epoch = epoch(1, "b")
		require.ErrorIs(t, NewStreamer(LogSource{src, "h"}, w, StreamerOptions{}).Run(t.Context()), ErrStaleEpoch)
		require.EqualValues(t, 17, dst.Last().Position)
	})
}

// Under semi_sync the answer says "received" before the disk has it, and never
// "persisted".
func TestReceivedIsNotPersisted(t *testing.T) {
	src := openLog(t, newCrashStore(), LogOptions{})
	appendN(t, src, e1, 3)
	store := newCrashStore()
	store.gate = make(chan struct{})
	dst := openLog(t, store, LogOptions{})
	to := NewApplier(dst, ApplierOptions{AnswerReceived: true})
	b, err := LogSource{src, "h"}.Read(0, 10, 1<<20)
	require.NoError(t, err)
	got := Received{Epoch: e1, Prev: &replication.Epoch{}, Entries: b.Entries}
	_, err = to.Receive(t.Context(), got)
	require.ErrorIs(t, err, ErrStaleEpoch, "nobody is followed yet")
	to.Follow("h", e1)
	ack, err := to.Receive(t.Context(), got)
	require.NoError(t, err)
	require.Equal(t, Ack{Received: 3}, ack)
	close(store.gate)
	require.NoError(t, dst.Sync(t.Context()))
	ack, err = to.Receive(t.Context(), got)
	require.NoError(t, err)
	require.Equal(t, Ack{Received: 3, Persisted: 3}, ack, "a duplicate is answered and changes nothing")
	got.Entries[1].Command.Data[0] ^= 1
	require.NoError(t, dst.Truncate(1))
	got.Entries, got.Prev = got.Entries[1:], &e1
	got.Entries[0].History = "h"
	_, err = to.Receive(t.Context(), got)
	require.ErrorIs(t, err, ErrCorrupt, "another content than its checksum says")
	require.EqualValues(t, 1, dst.Last().Position)
}

// A log that has an entry which its primary does not have takes nothing behind it,
// neither from a batch nor from what it fetched: the epoch of the entry before
// gives it away, where epoch and position of what follows would fit.
func TestNothingIsTakenBehindADivergedEntry(t *testing.T) {
	e2, e3 := epoch(2, "b"), epoch(3, "a")
	for _, batchFrom := range []uint64{1, 2} { // the entry before the batch; the batch's own first entry
		src := openLog(t, newCrashStore(), LogOptions{})
		appendN(t, src, e1, 2)
		appendN(t, src, e3, 2)
		dst := openLog(t, newCrashStore(), LogOptions{})
		appendN(t, dst, e1, 1)
		appendN(t, dst, e2, 1)
		b, err := LogSource{src, "h"}.Read(3-batchFrom, 10, 1<<20)
		require.NoError(t, err)

		to := NewApplier(dst, ApplierOptions{})
		err = to.Extend("h", e3, dst.Last(), b.Entries)
		if batchFrom == 1 { // nothing says what the sender has before it
			require.NoError(t, err)
			require.NoError(t, dst.Sync(t.Context()))
			require.NoError(t, dst.Truncate(2))
		} else {
			require.ErrorIs(t, err, ErrDiverged)
		}
		to.Follow("h", e3)
		_, err = to.Receive(t.Context(), Received{Epoch: e3, Prev: &b.Prev.Epoch, Entries: b.Entries})
		require.ErrorIs(t, err, ErrDiverged)
		require.Equal(t, Mark{2, e2}, dst.Last())
	}
}

// What is fetched may begin with what is there already, up to the whole log.
func TestExtendPassesOverWhatIsThere(t *testing.T) {
	src := openLog(t, newCrashStore(), LogOptions{})
	appendN(t, src, e1, 6)
	for from := uint64(0); from <= 4; from++ { // entries 1 and 2 are gone
		dst := openLog(t, newCrashStore(), LogOptions{})
		appendN(t, dst, e1, 4)
		require.NoError(t, dst.Compact(Retention{Applied: 3, Peer: 3, MaxEntries: 2}))
		b, err := LogSource{src, "h"}.Read(from, 10, 1<<20)
		require.NoError(t, err)
		to := NewApplier(dst, ApplierOptions{})
		require.NoError(t, to.Extend("h", epoch(2, "b"), dst.Last(), b.Entries), from)
		require.EqualValues(t, 6, dst.Last().Position)
		require.NoError(t, to.Extend("h", epoch(2, "b"), dst.Last(), b.Entries), "again: nothing is new")
		require.ErrorIs(t, to.Extend("h", epoch(2, "b"), Mark{4, e1}, b.Entries), ErrStaleEpoch, "the log has gone on meanwhile")
	}
}
