package testharness_test

import (
	"context"
	"fmt"
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

func TestPartitionStallsAndHealResumes(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		a, b := twoEnds(t, n)
		n.SetDefaultFaults(th.Faults{Latency: 10 * time.Millisecond})
		write(t, a, "there")
		virtual(20 * time.Millisecond)
		write(t, a, "under way")
		n.Partition([]string{"a"}, []string{"b"})
		got, _ := readN(t, b, 5)
		require.Equal(t, "there", got, "what has arrived can be read")
		write(t, a, "later")
		require.NoError(t, b.SetReadDeadline(time.Now().Add(time.Hour)))
		_, err := b.Read(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.NoError(t, a.SetWriteDeadline(time.Now().Add(time.Hour)))
		_, err = a.Write(make([]byte, 1<<20))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)

		n.Heal()
		require.NoError(t, b.SetReadDeadline(time.Time{}))
		got, took := readN(t, b, 14)
		require.Equal(t, "under waylater", got)
		require.Equal(t, 10*time.Millisecond, took)
	})
}

func TestCloseDuringAPartitionIsLearnedAfterIt(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		a, b := twoEnds(t, n)
		n.Isolate("a")
		require.NoError(t, a.Close())
		require.NoError(t, b.SetReadDeadline(time.Now().Add(time.Hour)))
		_, err := b.Read(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		write(t, b, "into the void")
		n.Drop("b", "a")
		n.Heal()
		_, err = b.Write([]byte("x"))
		require.ErrorIs(t, err, syscall.ECONNRESET)
	})
}

func TestOneWayPartitionTakesAWindowTheOtherWay(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		a, b := twoEnds(t, n)
		n.OneWay("b", "a")
		var wg sync.WaitGroup
		var written int
		require.NoError(t, a.SetWriteDeadline(time.Now().Add(time.Hour)))
		wg.Go(func() { written, _ = a.Write(make([]byte, 1<<20)) })
		require.NoError(t, b.SetReadDeadline(time.Now().Add(2*time.Hour)))
		total := 0
		for {
			k, err := b.Read(make([]byte, 4096))
			if err != nil {
				break
			}
			total += k
		}
		wg.Wait()
		require.Equal(t, written, total)
		require.Greater(t, total, 32<<10)
		require.Less(t, total, 64<<10, "no acknowledgement comes back")
		n.Heal()
		require.NoError(t, a.SetWriteDeadline(time.Time{}))
		write(t, a, "again")
		require.NoError(t, b.SetReadDeadline(time.Time{}))
		readN(t, b, 5)
	})
}

// reaches says which of the hosts can be dialled from which.
func reaches(t *testing.T, n *th.Network, ids ...string) map[string]bool {
	got := make(map[string]bool)
	for _, from := range ids {
		for _, to := range ids {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			c, err := n.Host(from).Dial(ctx, to+":1")
			cancel()
			if got[from+to] = err == nil; err == nil {
				require.NoError(t, c.Close())
			}
		}
	}
	return got
}

func TestShapesOfPartitions(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		ids := []string{"a", "b", "c", "d", "e"}
		for _, id := range ids {
			l, err := n.Host(id).Listen(t.Context(), id+":1")
			require.NoError(t, err)
			go acceptAndClose(l)
			t.Cleanup(func() { require.NoError(t, l.Close()) })
		}
		for name, tc := range map[string]struct {
			cut  func()
			want func(from, to string) bool
		}{
			"none":     {func() {}, func(string, string) bool { return true }},
			"full":     {func() { n.Partition(ids[:2], ids[2:]) }, func(f, g string) bool { return (f < "c") == (g < "c") }},
			"isolated": {func() { n.Isolate("b") }, func(f, g string) bool { return (f == "b") == (g == "b") }},
			"bridge": {func() { n.Bridge("c") }, func(f, g string) bool {
				return f == "c" || g == "c" || (f < "c") == (g < "c")
			}},
			"one way": {func() { n.OneWay("a", "b") }, func(f, g string) bool { return f+g != "ab" && f+g != "ba" }},
		} {
			tc.cut()
			for link, ok := range reaches(t, n, ids...) {
				require.Equal(t, tc.want(link[:1], link[1:]), ok, "%s: %s", name, link)
			}
			n.Heal()
		}
	})
}

func acceptAndClose(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_ = c.Close()
	}
}

func TestFlapping(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		a, b := twoEnds(t, n)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { n.Flap(ctx, []string{"a"}, []string{"b"}, 2*time.Second, time.Second) })
		synctest.Wait()
		for range 3 { // each written at the beginning of a cut
			write(t, a, "x")
			_, took := readN(t, b, 1)
			require.Equal(t, 2*time.Second, took)
			virtual(time.Second)
			synctest.Wait()
		}
		cancel()
		wg.Wait()
		write(t, a, "x")
		_, took := readN(t, b, 1)
		require.Zero(t, took, "connected at the end")
	})
}

// transcript runs a fixed exchange and returns every fault that it met.
func transcript(t *testing.T, seed uint64, f th.Faults) (events []string) {
	bubble.Test(t, func(t *testing.T) {
		n := th.NewNetwork(seed)
		n.SetLog(func(e th.NetworkEvent) { events = append(events, e.String()) })
		a, b := twoEnds(t, n)
		n.SetFaults("a", "b", f)
		for i := range 200 {
			if _, err := fmt.Fprintf(a, "%03d", i); err != nil {
				break
			}
		}
		require.NoError(t, b.SetReadDeadline(time.Now().Add(time.Hour)))
		buf := make([]byte, 100)
		for err := error(nil); err == nil; {
			var k int
			k, err = b.Read(buf)
			events = append(events, fmt.Sprintf("%v %q %v", time.Now().Unix(), buf[:k], err))
		}
	})
	return events
}

func TestSameSeedSameFaults(t *testing.T) {
	f := th.Faults{Latency: time.Millisecond, Jitter: time.Millisecond, Spike: 0.05, Loss: 0.1, Corrupt: 0.1, Duplicate: 0.1, Reorder: 0.1, Drop: 0.002}
	for seed := range uint64(20) {
		require.Equal(t, transcript(t, seed, f), transcript(t, seed, f))
	}
	require.NotEqual(t, transcript(t, 1, f), transcript(t, 2, f))
}

func TestDiceDoNotDependOnOtherFaults(t *testing.T) {
	only := func(f th.Faults, kind string) (lines []string) {
		bubble.Test(t, func(t *testing.T) {
			n := th.NewNetwork(3)
			n.SetLog(func(e th.NetworkEvent) {
				if e.Kind == kind {
					lines = append(lines, e.Detail)
				}
			})
			a, _ := twoEnds(t, n)
			n.SetFaults("a", "b", f)
			for range 100 {
				write(t, a, "some bytes")
			}
		})
		return lines
	}
	alone := only(th.Faults{Corrupt: 0.2}, "corrupt")
	require.NotEmpty(t, alone)
	require.Equal(t, alone, only(th.Faults{Corrupt: 0.2, Duplicate: 0.5, Spike: 0.3, Jitter: time.Second}, "corrupt"))
}
