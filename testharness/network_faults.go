package testharness

import (
	"math"
	"math/rand/v2"
	"time"
)

const (
	// retransmitFirst is the wait before a lost chunk is sent again; it doubles
	// with each loss.
	retransmitFirst = 200 * time.Millisecond
	// connectFirst is the same for the first packet of a dial.
	connectFirst = time.Second
	// maxLosses of one chunk in a row end its connection, after 51 s.
	maxLosses = 8
	// reorderHold is how long a chunk waits for one that overtakes it.
	reorderHold = 100 * time.Millisecond
)

// Faults is what a link does to bytes that go one way. A chunk is what one
// write brings, at most 16 KiB of it. Probabilities are from 0 to 1 and count
// for each chunk. The zero Faults is a perfect link.
type Faults struct {
	// A chunk takes Latency, and up to Jitter more. The order within a
	// connection stays.
	Latency, Jitter time.Duration
	// Spike is the probability that a chunk takes SpikeMin to SpikeMax longer,
	// and with it all that comes behind it; 2 s to 3 s where both are 0.
	Spike              float64
	SpikeMin, SpikeMax time.Duration
	// Loss is the probability that a packet is lost. TCP sends it again, so
	// bytes come late, by 200 ms and twice as much for each further loss; after
	// 8 losses in a row the connection ends on both sides.
	Loss float64
	// Drop is the probability that the connection is reset in place of the
	// chunk.
	Drop float64
	// Corrupt is the probability that one bit of the chunk is flipped.
	Corrupt float64
	// Duplicate is the probability that the chunk arrives twice in a row.
	Duplicate float64
	// Reorder is the probability that the chunk arrives after the following one,
	// if that comes within 100 ms.
	Reorder float64
	// Bandwidth is in bytes per second, for all connections of the link
	// together; 0 is no limit.
	Bandwidth int
}

// dice are the random numbers of one chunk, each in [0, 1). All are drawn for
// every chunk, so that the faults that are set do not change the next ones.
type dice struct {
	jitter, spike, spikeSize, loss, drop, corrupt, bit, duplicate, reorder float64
}

func rollDice(r *rand.Rand) dice {
	return dice{jitter: r.Float64(), spike: r.Float64(), spikeSize: r.Float64(), loss: r.Float64(), drop: r.Float64(),
		corrupt: r.Float64(), bit: r.Float64(), duplicate: r.Float64(), reorder: r.Float64()}
}

// delay is how long a chunk is under way, without losses.
func (f *Faults) delay(d dice) (total time.Duration, spiked bool) {
	total = f.Latency + time.Duration(d.jitter*float64(f.Jitter))
	if d.spike >= f.Spike {
		return total, false
	}
	least, most := f.SpikeMin, f.SpikeMax
	if least == 0 && most == 0 {
		least, most = 2*time.Second, 3*time.Second
	}
	return total + least + time.Duration(d.spikeSize*float64(most-least)), true
}

// losses is how often a packet is lost before it arrives, at most maxLosses.
func (f *Faults) losses(d dice) int {
	switch {
	case f.Loss <= 0:
		return 0
	case f.Loss >= 1:
		return maxLosses
	}
	// P(at least k losses) = Loss^k, so one number in (0, 1] decides.
	return int(min(math.Log(1-d.loss)/math.Log(f.Loss), maxLosses))
}

// retransmission is the time that losses cost, when the first one costs first.
func retransmission(first time.Duration, losses int) time.Duration {
	return first * (1<<losses - 1)
}

// transmission is the time that sending takes.
func (f *Faults) transmission(bytes int) time.Duration {
	if f.Bandwidth <= 0 {
		return 0
	}
	return time.Duration(float64(bytes) / float64(f.Bandwidth) * float64(time.Second))
}
