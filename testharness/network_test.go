package testharness_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nornicdb/replication/internal/bubble"
	th "github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// twoEnds is a connection from host a to host b, closed with the test.
func twoEnds(t *testing.T, n *th.Network) (a, b net.Conn) {
	t.Helper()
	l, err := n.Host("b").Listen(t.Context(), "b:1")
	require.NoError(t, err)
	a, err = n.Host("a").Dial(t.Context(), "b:1")
	require.NoError(t, err)
	b, err = l.Accept()
	require.NoError(t, err)
	require.NoError(t, l.Close())
	t.Cleanup(func() { _, _ = a.Close(), b.Close() })
	return a, b
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	k, err := c.Write([]byte(s))
	require.NoError(t, err)
	require.Equal(t, len(s), k)
}

// readN reads size bytes and says how long it took.
func readN(t *testing.T, c net.Conn, size int) (string, time.Duration) {
	t.Helper()
	start := time.Now()
	buf := make([]byte, size)
	_, err := io.ReadFull(c, buf)
	require.NoError(t, err)
	return string(buf), time.Since(start)
}

// virtual lets time pass.
func virtual(d time.Duration) { <-time.After(d) }

// inBubble runs a test of a network in virtual time.
func inBubble(t *testing.T, f func(t *testing.T, n *th.Network)) {
	t.Helper()
	bubble.Test(t, func(t *testing.T) { f(t, th.NewNetwork(1)) })
}

func TestBytesCrossAPerfectNetwork(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		a, b := twoEnds(t, n)
		data := bytes.Repeat([]byte("0123456789"), 100_000)
		var wg sync.WaitGroup
		wg.Go(func() {
			_, err := a.Write(data)
			require.NoError(t, err)
			require.NoError(t, a.Close())
		})
		got, err := io.ReadAll(b)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, got))
		wg.Wait()
		require.Equal(t, b.RemoteAddr(), a.LocalAddr())
		_, err = b.Write([]byte("x"))
		require.ErrorIs(t, err, syscall.EPIPE)
		_, err = a.Read(make([]byte, 1))
		require.ErrorIs(t, err, net.ErrClosed)
	})
}

func requireTimeout(t *testing.T, err error) {
	t.Helper()
	var ne net.Error
	require.ErrorAs(t, err, &ne)
	require.True(t, ne.Timeout())
}

func TestDeadlines(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		a, b := twoEnds(t, n)
		start := time.Now()
		require.NoError(t, a.SetReadDeadline(start.Add(time.Second)))
		_, err := a.Read(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		requireTimeout(t, err)
		require.Equal(t, time.Second, time.Since(start))

		require.NoError(t, a.SetDeadline(time.Now().Add(time.Second)))
		written, err := a.Write(make([]byte, 1<<20))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.Less(t, written, 64<<10, "the window is bounded")
		require.Greater(t, written, 32<<10)

		// A deadline that is set, or moved, meets a Read that waits already.
		require.NoError(t, b.SetReadDeadline(time.Time{}))
		_, _ = io.CopyN(io.Discard, b, int64(written))
		failed := make(chan error)
		go func() { _, err := b.Read(make([]byte, 1)); failed <- err }()
		synctest.Wait()
		require.NoError(t, b.SetReadDeadline(time.Now()))
		require.ErrorIs(t, <-failed, os.ErrDeadlineExceeded)
		require.NoError(t, b.SetReadDeadline(time.Time{}))
		go func() { _, err := b.Read(make([]byte, 1)); failed <- err }()
		synctest.Wait()
		require.NoError(t, b.Close())
		require.ErrorIs(t, <-failed, net.ErrClosed)
	})
}

func TestDialsFailAsTheyDoOnTCP(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		a := n.Host("a")
		_, err := a.Dial(t.Context(), "b:1")
		require.ErrorIs(t, err, syscall.ECONNREFUSED, "never heard of")
		l, err := n.Host("b").Listen(t.Context(), "b:1")
		require.NoError(t, err)
		_, err = n.Host("b").Listen(t.Context(), "b:1")
		require.ErrorIs(t, err, syscall.EADDRINUSE)

		n.OneWay("b", "a")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = a.Dial(ctx, "b:1")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		requireTimeout(t, err)
		start := time.Now()
		_, err = a.Dial(context.Background(), "b:1")
		requireTimeout(t, err)
		require.Equal(t, 2*time.Minute, time.Since(start))

		n.Heal()
		c, err := a.Dial(t.Context(), "b:1") // waits in the backlog
		require.NoError(t, err)
		require.NoError(t, l.Close())
		_, err = l.Accept()
		require.ErrorIs(t, err, net.ErrClosed)
		_, err = c.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET, "nobody accepted it")
		_, err = a.Dial(t.Context(), "b:1")
		require.ErrorIs(t, err, syscall.ECONNREFUSED, "nobody listens any more")
		require.NoError(t, c.Close())
	})
}

func TestLatencyAndJitterKeepTheOrder(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		n.SetFaults("a", "b", th.Faults{Latency: 10 * time.Millisecond, Jitter: 50 * time.Millisecond})
		start := time.Now()
		a, b := twoEnds(t, n)
		require.GreaterOrEqual(t, time.Since(start), 10*time.Millisecond, "a dial takes a round trip")
		var times []time.Duration
		for i := range 100 {
			write(t, a, fmt.Sprintf("%02d", i))
		}
		start = time.Now()
		for i := range 100 {
			got, _ := readN(t, b, 2)
			require.Equal(t, fmt.Sprintf("%02d", i), got)
			times = append(times, time.Since(start))
		}
		require.GreaterOrEqual(t, times[0], 10*time.Millisecond)
		require.Greater(t, times[99], 40*time.Millisecond)
		require.LessOrEqual(t, times[99], 60*time.Millisecond)
		write(t, b, "back")
		_, took := readN(t, a, 4)
		require.Zero(t, took, "the other direction has no faults")
	})
}

func TestSpikes(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		a, b := twoEnds(t, n)
		n.SetFaults("a", "b", th.Faults{Spike: 0.1})
		spiked := 0
		for range 100 {
			write(t, a, "x")
			_, took := readN(t, b, 1)
			if took > 0 {
				require.GreaterOrEqual(t, took, 2*time.Second)
				require.LessOrEqual(t, took, 3*time.Second)
				spiked++
			}
		}
		require.InDelta(t, 10, spiked, 8)
	})
}

func TestLossIsDelayStallAndReset(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		a, b := twoEnds(t, n)
		n.SetFaults("a", "b", th.Faults{Loss: 0.3})
		late := 0
		for range 100 {
			write(t, a, "x")
			if _, took := readN(t, b, 1); took > 0 {
				require.GreaterOrEqual(t, took, 200*time.Millisecond)
				late++
			}
		}
		require.InDelta(t, 30, late, 15)
		n.SetFaults("a", "b", th.Faults{Loss: 1})
		write(t, a, "never")
		start := time.Now()
		_, err := b.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.Equal(t, 51*time.Second, time.Since(start))
		_, err = a.Write([]byte("x"))
		require.ErrorIs(t, err, syscall.ECONNRESET)
	})
}

func TestDroppedConnection(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		a, b := twoEnds(t, n)
		n.SetFaults("b", "a", th.Faults{Drop: 1})
		write(t, a, "x")
		readN(t, b, 1)
		_, err := b.Write([]byte("y"))
		require.ErrorIs(t, err, syscall.ECONNRESET)
		_, err = a.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)

		c, d := twoEnds(t, th.NewNetwork(1))
		require.NoError(t, c.Close())
		_, err = d.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF, "another network is not touched")
	})
}

func TestCorruptedChunksDifferByOneBit(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		a, b := twoEnds(t, n)
		n.SetFaults("a", "b", th.Faults{Corrupt: 1})
		sent := bytes.Repeat([]byte{0}, 100)
		_, err := a.Write(sent)
		require.NoError(t, err)
		require.Equal(t, bytes.Repeat([]byte{0}, 100), sent, "the writer's buffer is its own")
		got, _ := readN(t, b, 100)
		bits := 0
		for _, x := range []byte(got) {
			for ; x != 0; x &= x - 1 {
				bits++
			}
		}
		require.Equal(t, 1, bits)
	})
}

func TestDuplicatedAndReorderedChunks(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		a, b := twoEnds(t, n)
		n.SetFaults("a", "b", th.Faults{Duplicate: 1})
		write(t, a, "ab")
		got, _ := readN(t, b, 4)
		require.Equal(t, "abab", got)

		n.SetFaults("a", "b", th.Faults{Reorder: 1})
		write(t, a, "1")
		n.SetFaults("a", "b", th.Faults{})
		write(t, a, "2")
		write(t, a, "3")
		got, took := readN(t, b, 3)
		require.Equal(t, "213", got)
		require.Zero(t, took)

		n.SetFaults("a", "b", th.Faults{Reorder: 1})
		write(t, a, "4")
		_, took = readN(t, b, 1)
		require.Equal(t, 100*time.Millisecond, took, "nothing came to overtake it")
	})
}

func TestBandwidthIsSharedByALink(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		a, b := twoEnds(t, n)
		l, err := n.Host("b").Listen(t.Context(), "b:2")
		require.NoError(t, err)
		c, err := n.Host("a").Dial(t.Context(), "b:2")
		require.NoError(t, err)
		d, err := l.Accept()
		require.NoError(t, err)
		n.SetFaults("a", "b", th.Faults{Bandwidth: 10_000})
		start := time.Now()
		var wg sync.WaitGroup
		for _, ends := range [][2]net.Conn{{a, b}, {c, d}} {
			wg.Go(func() { _, _ = ends[0].Write(make([]byte, 100_000)) })
			wg.Go(func() { _, _ = io.CopyN(io.Discard, ends[1], 100_000) })
		}
		wg.Wait()
		require.InDelta(t, 20, time.Since(start).Seconds(), 0.01)
		require.NoError(t, errors.Join(c.Close(), d.Close(), l.Close()))
	})
}

func TestCrashOfAHost(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		a, b := twoEnds(t, n)
		old := n.Host("b")
		require.Same(t, old, n.Host("b"))
		n.Isolate("b") // the power fails: nobody is told
		n.Crash("b")
		_, err := b.Write([]byte("x"))
		require.ErrorIs(t, err, net.ErrClosed)
		_, err = old.Listen(t.Context(), "b:1")
		require.ErrorIs(t, err, th.ErrCrashed)
		_, err = old.Dial(t.Context(), "b:1")
		require.ErrorIs(t, err, th.ErrCrashed)
		require.NoError(t, a.SetReadDeadline(time.Now().Add(time.Hour)))
		_, err = a.Read(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		n.Heal()
		require.NoError(t, a.SetReadDeadline(time.Time{}))
		_, err = a.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
		l, err := n.Host("b").Listen(t.Context(), "b:1")
		require.NoError(t, err)
		require.NoError(t, l.Close())
	})
}
