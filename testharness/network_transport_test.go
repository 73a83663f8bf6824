package testharness_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nornicdb/replication"
	th "github.com/nornicdb/replication/testharness"
	"github.com/nornicdb/replication/transport"
	"github.com/stretchr/testify/require"
)

const clusterSecret = "0123456789abcdef"

func quiet() replication.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// node is a transport on a network, serving its own ID.
func node(t *testing.T, n *th.Network, id, secret string) *transport.Transport {
	t.Helper()
	h := n.Host(id)
	tr, err := transport.New(transport.Options{NodeID: id, ClusterID: "c", Secret: []byte(secret), Logger: quiet(), Listen: h.Listen, Dial: h.Dial})
	require.NoError(t, err)
	done := make(chan error, 1)
	_, err = tr.Bind(t.Context(), id+":7688")
	require.NoError(t, err)
	go func() { done <- tr.Listen(context.Background(), id+":7688", nil) }()
	t.Cleanup(func() {
		require.NoError(t, tr.Close())
		require.NoError(t, <-done)
	})
	return tr
}

// parcel is a payload that shows whether it is the one that was sent.
type parcel struct {
	Number int
	Data   []byte
	Sum    [32]byte
}

func newParcel(r *rand.Rand, number int) *parcel {
	p := &parcel{Number: number, Data: make([]byte, r.IntN(2000))}
	for i := range p.Data {
		p.Data[i] = byte(r.Uint32())
	}
	p.Sum = p.sum()
	return p
}

func (p *parcel) sum() [32]byte { return sha256.Sum256(fmt.Appendf(nil, "%d %x", p.Number, p.Data)) }

// postOffice answers parcels with parcels, and counts.
type postOffice struct {
	mu    sync.Mutex
	seen  map[int]int // how often each number came
	wrong atomic.Int64
}

func (o *postOffice) serve(tr *transport.Transport) {
	o.seen = make(map[int]int)
	tr.Handle(replication.MsgFetch, func(_ context.Context, r *replication.Request) (any, error) {
		var p parcel
		if json.Unmarshal(r.Payload, &p) != nil || p.sum() != p.Sum {
			o.wrong.Add(1)
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		o.seen[p.Number]++
		return &p, nil
	})
}

// deliver sends parcels, each in one call with a deadline, until one arrives or
// tries run out; it counts calls that failed.
func deliver(t *testing.T, c replication.Caller, number int, r *rand.Rand) (failed int) {
	t.Helper()
	sent := newParcel(r, number)
	for range 50 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		var got parcel
		err := c.Call(ctx, replication.MsgFetch, sent, &got)
		cancel()
		if err == nil {
			require.Equal(t, *sent, got)
			return failed
		}
		failed++
	}
	require.Fail(t, "a parcel never arrived")
	return failed
}

func connectAnyhow(t *testing.T, tr *transport.Transport, addr string) replication.Caller {
	t.Helper()
	for range 50 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		c, err := tr.Connect(ctx, addr)
		cancel()
		if err == nil {
			t.Cleanup(func() { require.NoError(t, c.Close()) })
			return c.(replication.Caller)
		}
		require.True(t, replication.NotSent(err))
	}
	require.Fail(t, "no connection")
	return nil
}

// TestRecordsWithstandTheNetwork: whatever a link does to bytes, a call fails or
// brings the right payload, and a later one succeeds.
func TestRecordsWithstandTheNetwork(t *testing.T) {
	for name, tc := range map[string]struct {
		faults th.Faults
		breaks bool // connections have to end
	}{
		"latency":   {th.Faults{Latency: 50 * time.Millisecond, Jitter: 50 * time.Millisecond}, false},
		"spikes":    {th.Faults{Spike: 0.2}, false},
		"loss":      {th.Faults{Loss: 0.3}, false},
		"bandwidth": {th.Faults{Bandwidth: 20_000}, false},
		"drop":      {th.Faults{Drop: 0.05}, true},
		"corrupt":   {th.Faults{Corrupt: 0.05}, true},
		"duplicate": {th.Faults{Duplicate: 0.05}, true},
		"reorder":   {th.Faults{Reorder: 0.05}, true},
		"all": {th.Faults{Latency: time.Millisecond, Jitter: 5 * time.Millisecond, Spike: 0.01, Loss: 0.02, Drop: 0.01, Corrupt: 0.02,
			Duplicate: 0.02, Reorder: 0.02}, true},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *th.Network) { testRecords(t, n, clusterSecret, tc.faults, tc.breaks) })
		})
		if tc.faults.Duplicate+tc.faults.Reorder > 0 {
			continue // a checksum without a key has no sequence number
		}
		t.Run(name+" without a secret", func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *th.Network) { testRecords(t, n, "", tc.faults, tc.breaks) })
		})
	}
}

func testRecords(t *testing.T, n *th.Network, secret string, f th.Faults, breaks bool) {
	server, client := node(t, n, "s", secret), node(t, n, "c", secret)
	var office postOffice
	office.serve(server)
	n.SetDefaultFaults(f)
	c := connectAnyhow(t, client, "s:7688")
	const callers, calls = 4, 30
	var wg sync.WaitGroup
	var failed atomic.Int64
	for i := range callers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			for j := range calls {
				failed.Add(int64(deliver(t, c, i*calls+j, r)))
			}
		})
	}
	wg.Wait()
	synctest.Wait() // for requests whose calls have failed
	require.Zero(t, office.wrong.Load(), "a wrong payload was delivered")
	total := 0
	for _, times := range office.seen {
		total += times
	}
	require.Len(t, office.seen, callers*calls)
	require.LessOrEqual(t, total, callers*calls+int(failed.Load()), "a request was handled more often than it was sent")
	stats, accepted := client.Stats(), server.Stats().Accepted
	if !breaks {
		require.Equal(t, uint64(1), accepted)
		return
	}
	require.Greater(t, accepted, uint64(1), "no connection ended")
	if f.Corrupt+f.Duplicate+f.Reorder > 0 {
		require.Positive(t, stats.FramesRejected["record"]+server.Stats().FramesRejected["record"], "no record was refused")
	}
}

// TestCallsGoOnAfterAHeal: a partition ends calls by their deadlines, and the
// calls after it succeed, whether connections survived it or not.
func TestCallsGoOnAfterAHeal(t *testing.T) {
	for name, forget := range map[string]bool{"resumed": false, "reset": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *th.Network) {
				server, client := node(t, n, "s", clusterSecret), node(t, n, "c", clusterSecret)
				var office postOffice
				office.serve(server)
				c := connectAnyhow(t, client, "s:7688")
				r := rand.New(rand.NewPCG(1, 1))
				require.Zero(t, deliver(t, c, 1, r))
				n.Isolate("s")
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				err := c.Call(ctx, replication.MsgFetch, newParcel(r, 2), nil)
				require.ErrorIs(t, err, replication.ErrTimeout)
				require.False(t, replication.NotSent(err), "it may arrive yet")
				if forget {
					n.Drop("s", "c")
				}
				n.Heal()
				deliver(t, c, 3, r)
				synctest.Wait()
				want := map[int]int{1: 1, 2: 1, 3: 1}
				if forget {
					delete(want, 2)
				}
				require.Equal(t, want, office.seen)
			})
		})
	}
}

var errGarbled = errors.New("garbled")

// TestRawStreamsWithstandTheNetwork: bytes of a raw stream are the right ones
// up to its end.
func TestRawStreamsWithstandTheNetwork(t *testing.T) {
	for name, f := range map[string]th.Faults{"corrupt": {Corrupt: 0.02}, "duplicate": {Duplicate: 0.02}, "reorder": {Reorder: 0.02}, "loss": {Loss: 0.1}} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, n *th.Network) {
				server, client := node(t, n, "s", clusterSecret), node(t, n, "c", clusterSecret)
				results := make(chan error)
				server.HandleStream(replication.StreamRaft, func(_ replication.Peer, c net.Conn) {
					err := checkCounting(c)
					_ = c.Close()
					results <- err
				})
				s, err := client.OpenStream(t.Context(), "s:7688", replication.StreamRaft)
				require.NoError(t, err)
				n.SetFaults("c", "s", f)
				for i := range 1000 {
					if _, err = s.Write([]byte{byte(i), byte(i >> 8), byte(i), byte(i >> 8)}); err != nil {
						break
					}
				}
				_ = s.Close()
				err = <-results
				require.NotErrorIs(t, err, errGarbled)
				if f.Loss == 0 {
					require.ErrorContains(t, err, "bad record")
					require.Equal(t, uint64(1), server.Stats().FramesRejected["record"])
				} else {
					require.ErrorIs(t, err, io.EOF)
				}
			})
		})
	}
}

// checkCounting reads what counts up until the stream ends.
func checkCounting(r io.Reader) error {
	buf := make([]byte, 4)
	for i := 0; ; i++ {
		if _, err := io.ReadFull(r, buf); err != nil {
			return err
		}
		if [4]byte(buf) != [4]byte{byte(i), byte(i >> 8), byte(i), byte(i >> 8)} {
			return fmt.Errorf("%w: %v at %d", errGarbled, buf, i)
		}
	}
}

// TestCallsWhileTheirConnectionEnds: a call that comes at the very moment at
// which its connection ends fails as one that was not sent.
func TestCallsWhileTheirConnectionEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		server, client := node(t, n, "s", ""), node(t, n, "c", "")
		var office postOffice
		office.serve(server)
		c := connectAnyhow(t, client, "s:7688")
		n.SetDefaultFaults(th.Faults{Latency: time.Millisecond}) // time has to pass
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(1, uint64(i)))
				for !closed(stop) {
					deliver(t, c, i, r)
				}
			})
		}
		for range 50 {
			virtual(15 * time.Millisecond)
			n.Drop("s", "c")
		}
		close(stop)
		wg.Wait()
	})
}
