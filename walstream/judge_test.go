package walstream

import (
	"fmt"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// script is a log as the epochs of its entries, from position 1.
type script []uint64

func (s script) epochAt(p uint64) (replication.Epoch, error) {
	switch {
	case p == 0:
		return replication.Epoch{}, nil
	case p > uint64(len(s)):
		return replication.Epoch{}, ErrAhead
	}
	return epoch(s[p-1], "a"), nil
}

func (s script) last() Mark {
	e, _ := s.epochAt(uint64(len(s)))
	return Mark{uint64(len(s)), e}
}

func (s script) batch(from, to uint64) Received {
	prev, _ := s.epochAt(from - 1)
	b := Received{Epoch: s.last().Epoch, Prev: &prev}
	for p := from; p <= to; p++ {
		e, _ := s.epochAt(p)
		w := &WireEntry{WALEntry: replication.WALEntry{Position: p, Epoch: &e}}
		if p == from {
			w.History = "h"
		}
		b.Entries = append(b.Entries, w)
	}
	return b
}

func drawScript(t *rapid.T, from script, label string) script {
	s := append(script{}, from...)
	for range rapid.IntRange(0, 6).Draw(t, label) {
		e := uint64(1)
		if len(s) > 0 {
			e = s[len(s)-1]
		}
		s = append(s, e+rapid.Uint64Range(0, 1).Draw(t, "step"))
	}
	return s
}

// Whatever batch of a primary's log comes, in whatever order: a receiver whose log
// is a prefix of the primary's keeps a prefix of it, and one whose log is not
// takes nothing.
func TestJudgeKeepsThePrefix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		common := drawScript(t, nil, "common")
		primary := append(drawScript(t, common, "primary"), 1000)
		mine := common
		diverged := rapid.Bool().Draw(t, "diverged")
		if diverged { // entries of an epoch that the primary never had
			for range rapid.IntRange(1, 4).Draw(t, "tail") {
				mine = append(append(script{}, mine...), 500)
			}
		}
		for range rapid.IntRange(1, 8).Draw(t, "batches") {
			from := rapid.Uint64Range(1, uint64(len(primary))).Draw(t, "from")
			to := rapid.Uint64Range(from, uint64(len(primary))).Draw(t, "to")
			f := following{history: "h", epoch: epoch(1000, "a"), last: mine.last()}
			v, fresh, err := f.judge(primary.batch(from, to), mine.epochAt)
			switch {
			case err != nil:
				require.True(t, diverged, "%v", err)
				require.ErrorIs(t, err, ErrDiverged)
			case v == verdictTake:
				require.False(t, diverged && from+uint64(fresh) > uint64(len(common)), "entries taken behind a diverged tail")
				mine = append(append(script{}, mine...), primary[from-1+uint64(fresh):to]...)
			case v == verdictGap:
				require.Greater(t, from, uint64(len(mine))+1)
			}
			if !diverged {
				require.Equal(t, primary[:len(mine)], mine)
			}
		}
	})
}

func TestJudgeRefuses(t *testing.T) {
	log := script{1, 1, 2}
	f := following{history: "h", epoch: epoch(2, "a"), last: script{1, 1}.last()}
	known := script{1, 1}.epochAt
	for name, c := range map[string]struct {
		change func(b *Received)
		want   error
	}{
		"a lower epoch":       {func(b *Received) { b.Epoch.Number = 1 }, ErrStaleEpoch},
		"another owner":       {func(b *Received) { b.Epoch.Owner = "b" }, ErrStaleEpoch},
		"no epoch":            {func(b *Received) { b.Epoch = replication.Epoch{} }, ErrStaleEpoch},
		"a foreign history":   {func(b *Received) { b.Entries[0].History = "x" }, replication.ErrForeignHistory},
		"no previous epoch":   {func(b *Received) { b.Prev = nil }, replication.ErrForeignHistory},
		"another previous":    {func(b *Received) { b.Prev.Number = 2 }, ErrDiverged},
		"a hole":              {func(b *Received) { b.Entries[0].Position++ }, nil},
		"an epoch from above": {func(b *Received) { b.Entries[0].Epoch.Number = 3 }, ErrCorrupt},
		"an epoch going back": {func(b *Received) { b.Entries[0].Epoch.Number = 0 }, ErrCorrupt},
		"position 0":          {func(b *Received) { b.Entries[0].Position = 0 }, ErrCorrupt},
	} {
		b := log.batch(3, 3)
		c.change(&b)
		v, _, err := f.judge(b, known)
		require.ErrorIs(t, err, c.want, name)
		if c.want == nil {
			require.Equal(t, verdictGap, v)
		}
	}
	b := log.batch(2, 3)
	b.Entries[1].Position = 4
	_, _, err := f.judge(b, known)
	require.ErrorIs(t, err, ErrCorrupt, "a hole within")
	_, _, err = f.judge(script{1, 2, 2}.batch(2, 3), known)
	require.ErrorIs(t, err, ErrDiverged, "a duplicate must be the same entry")
	v, fresh, err := f.judge(log.batch(1, 3), known)
	require.NoError(t, err)
	require.Equal(t, verdictTake, v)
	require.Equal(t, 2, fresh)
	v, _, err = f.judge(log.batch(1, 2), known)
	require.NoError(t, err)
	require.Equal(t, verdictDuplicate, v)
}

// The window never holds more than its bounds, and what the peer has only goes
// up, whatever it says.
func TestWindow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := sender{maxBatches: rapid.IntRange(1, 4).Draw(t, "batches"), mostBytes: rapid.IntRange(1, 100).Draw(t, "bytes")}
		s.start(Ack{Received: rapid.Uint64Range(0, 9).Draw(t, "start")}, s.mostBytes)
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			before := s
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				if room := s.room(); room > 0 {
					size := rapid.IntRange(1, room).Draw(t, "size")
					s.launch(s.sent+rapid.Uint64Range(1, 5).Draw(t, "n"), size)
				}
			case 1:
				if len(s.flights) > 0 {
					i := rapid.IntRange(0, len(s.flights)-1).Draw(t, "which")
					last := s.flights[i].last
					ack := Ack{rapid.Uint64Range(0, 60).Draw(t, "r"), rapid.Uint64Range(0, 60).Draw(t, "p"), rapid.Uint64Range(0, 60).Draw(t, "a")}
					taken := s.answered(last, ack)
					require.Equal(t, ack.Received >= last, taken)
					require.Len(t, s.flights, len(before.flights)-1)
				}
			case 2:
				s.learn(Ack{Received: rapid.Uint64().Draw(t, "r"), Persisted: rapid.Uint64().Draw(t, "p")})
			case 3:
				s.start(Ack{Received: rapid.Uint64Range(0, s.sent).Draw(t, "restart")}, rapid.IntRange(1, s.mostBytes).Draw(t, "window"))
				before.ack = Ack{}
				require.Empty(t, s.flights)
			}
			sum := 0
			for _, f := range s.flights {
				sum += f.bytes
			}
			require.Equal(t, sum, s.bytes)
			require.LessOrEqual(t, len(s.flights), s.maxBatches)
			require.LessOrEqual(t, s.bytes, s.maxBytes)
			require.LessOrEqual(t, s.maxBytes, s.mostBytes)
			require.True(t, s.sent >= s.ack.Received && s.ack.Received >= s.ack.Persisted && s.ack.Persisted >= s.ack.Applied, fmt.Sprintf("%+v", s))
			require.True(t, s.ack.Received >= before.ack.Received && s.ack.Persisted >= before.ack.Persisted)
		}
	})
}
