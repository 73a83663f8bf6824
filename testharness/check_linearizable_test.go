package testharness

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/anishathalye/porcupine"
	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func setOp(call, ret int, value string, outcome Outcome) Operation {
	return Operation{Client: 1, Kind: KindSet, NodeID: "n", Key: "k", Call: call, Return: ret, Value: value, Outcome: outcome}
}

func getOp(call, ret int, value string) Operation {
	return Operation{Client: 2, Kind: KindGet, NodeID: "n", Key: "k", Call: call, Return: ret, Value: value,
		Level: replication.ConsistencyQuorum, Outcome: OutcomeDone}
}

func TestLinearizableHistoriesPass(t *testing.T) {
	for name, ops := range map[string][]Operation{
		"nothing":                     nil,
		"before the first write":      {getOp(1, 2, "null"), setOp(3, 4, "1", OutcomeDone), getOp(5, 6, "1")},
		"a concurrent read sees it":   {setOp(1, 4, "1", OutcomeDone), getOp(2, 3, "1")},
		"a concurrent read does not":  {setOp(1, 4, "1", OutcomeDone), getOp(2, 3, "null")},
		"a failed write is not seen":  {setOp(1, 2, "1", OutcomeFailed), getOp(3, 4, "null")},
		"an unknown write is seen":    {setOp(1, 2, "1", OutcomeUnknown), getOp(3, 4, "1")},
		"an unknown write is not":     {setOp(1, 2, "1", OutcomeUnknown), getOp(3, 4, "null")},
		"an unknown write comes late": {setOp(1, 2, "1", OutcomeUnknown), getOp(3, 4, "null"), setOp(5, 6, "2", OutcomeDone), getOp(7, 8, "2"), getOp(9, 10, "1")},
		"one that has not returned":   {setOp(1, 0, "1", OutcomeUnknown), getOp(2, 3, "null"), getOp(4, 5, "1")},
		"a read at ONE may be stale": {setOp(1, 2, "1", OutcomeDone), {Kind: KindGet, NodeID: "n", Key: "k", Call: 3, Return: 4, Value: "null",
			Level: replication.ConsistencyOne, Outcome: OutcomeDone}},
		"registers are apart": {setOp(1, 2, "1", OutcomeDone), {Kind: KindGet, NodeID: "n", Key: "other", Call: 3, Return: 4, Value: "null", Outcome: OutcomeDone},
			{Kind: KindGet, NodeID: "m", Key: "k", Call: 5, Return: 6, Value: "null", Outcome: OutcomeDone}},
	} {
		t.Run(name, func(t *testing.T) { require.NoError(t, CheckLinearizable(ops, t.TempDir())) })
	}
}

func TestOtherHistoriesAreRejectedWithAPicture(t *testing.T) {
	for name, ops := range map[string][]Operation{
		"a stale read":                      {setOp(1, 2, "1", OutcomeDone), setOp(3, 4, "2", OutcomeDone), getOp(5, 6, "1")},
		"a lost write":                      {setOp(1, 2, "1", OutcomeDone), getOp(3, 4, "null")},
		"a failed write is seen":            {setOp(1, 2, "1", OutcomeFailed), getOp(3, 4, "1")},
		"a value that nobody wrote":         {getOp(1, 2, "7")},
		"an unknown write comes and goes":   {setOp(1, 2, "1", OutcomeUnknown), getOp(3, 4, "1"), getOp(5, 6, "null")},
		"an unknown write before its call":  {getOp(1, 2, "1"), setOp(3, 4, "1", OutcomeUnknown)},
		"two readers disagree on the order": {setOp(1, 10, "1", OutcomeDone), setOp(1, 10, "2", OutcomeDone), getOp(2, 3, "1"), getOp(4, 5, "2"), getOp(6, 7, "1")},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "pictures")
			err := CheckLinearizable(ops, dir)
			require.ErrorIs(t, err, ErrNotLinearizable)
			files, globErr := filepath.Glob(filepath.Join(dir, "*.html"))
			require.NoError(t, globErr)
			require.Len(t, files, 1)
			require.ErrorContains(t, err, files[0])
			picture, readErr := os.ReadFile(files[0])
			require.NoError(t, readErr)
			require.Contains(t, string(picture), "<html")
		})
	}
}

// drawSequential makes operations that a real register did, one after the other.
func drawSequential(t *rapid.T) []Operation {
	state, clock := "null", 0
	var ops []Operation
	for i := range rapid.IntRange(1, 40).Draw(t, "operations") {
		clock += 2
		if rapid.Bool().Draw(t, "get") {
			ops = append(ops, getOp(clock, clock+1, state))
			continue
		}
		value := fmt.Sprint(i)
		outcome := rapid.SampledFrom([]Outcome{OutcomeDone, OutcomeFailed, OutcomeUnknown}).Draw(t, "outcome")
		if outcome == OutcomeDone || outcome == OutcomeUnknown && rapid.Bool().Draw(t, "took effect") {
			state = value
		}
		ops = append(ops, setOp(clock, clock+1, value, outcome))
	}
	return ops
}

func TestSequentialHistoriesAlwaysPass(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) { require.NoError(t, CheckLinearizable(drawSequential(t), dir)) })
}

// TestStretchedHistoriesAlwaysPass: operations whose calls come earlier and
// whose returns come later than the moment at which they took effect.
func TestStretchedHistoriesAlwaysPass(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		ops := drawSequential(t)
		for i := range ops {
			ops[i].Call = max(1, ops[i].Call-rapid.IntRange(0, 8).Draw(t, "earlier"))
			ops[i].Return += rapid.IntRange(0, 8).Draw(t, "later")
			ops[i].Client = i + 1
		}
		require.NoError(t, CheckLinearizable(ops, dir))
	})
}

// TestSpoiledSequentialHistoriesNeverPass: one read returns what was true
// before the last write that certainly took effect.
func TestSpoiledSequentialHistoriesNeverPass(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		ops := []Operation{setOp(1, 2, `"a"`, OutcomeDone), setOp(3, 4, `"b"`, OutcomeDone)}
		last := map[bool]string{false: `"a"`, true: `"b"`}
		clock := 5
		more := rapid.IntRange(0, 20).Draw(t, "more")
		for i := range more {
			ops = append(ops, setOp(clock, clock+1, fmt.Sprint(i), OutcomeDone))
			last[false], last[true] = last[true], fmt.Sprint(i)
			clock += 2
			if rapid.Bool().Draw(t, "get") {
				ops = append(ops, getOp(clock, clock+1, last[true]))
				clock += 2
			}
		}
		ops = append(ops, getOp(clock, clock+1, last[false]))
		require.ErrorIs(t, CheckLinearizable(ops, dir), ErrNotLinearizable)
	})
}

// TestLeavingOutUnreadUnknownWritesChangesNothing compares the history that is
// checked with one in which they stand.
func TestLeavingOutUnreadUnknownWritesChangesNothing(t *testing.T) {
	rejected := 0
	rapid.Check(t, func(t *rapid.T) {
		var ops []Operation
		for i := range rapid.IntRange(1, 9).Draw(t, "operations") {
			call := rapid.IntRange(1, 20).Draw(t, "call")
			ret := call + rapid.IntRange(1, 8).Draw(t, "length")
			if rapid.Bool().Draw(t, "get") {
				ops = append(ops, getOp(call, ret, fmt.Sprint(rapid.IntRange(0, 8).Draw(t, "read"))))
			} else {
				ops = append(ops, setOp(call, ret, fmt.Sprint(i), rapid.SampledFrom([]Outcome{OutcomeDone, OutcomeUnknown}).Draw(t, "outcome")))
			}
			ops[i].Client = i + 1
		}
		short := registerHistory(ops)
		var full []porcupine.Operation
		for i := range ops {
			op := &ops[i]
			ends := int64(op.Return)
			if op.Outcome == OutcomeUnknown {
				ends = 1000
			}
			full = append(full, porcupine.Operation{ClientId: i, Call: int64(op.Call), Return: ends,
				Input: registerInput{get: op.Kind == KindGet, value: op.Value, op: op}})
		}
		want := porcupine.CheckOperations(registerModel, full)
		require.Equal(t, want, porcupine.CheckOperations(registerModel, short))
		if !want {
			rejected++
		}
	})
	require.NotZero(t, rejected)
}

func at(op Operation, position uint64) Operation {
	op.Position = position
	return op
}

func TestOrder(t *testing.T) {
	one := func(op Operation) Operation { op.Level = replication.ConsistencyOne; return op }
	for name, ops := range map[string][]Operation{
		"in order":                        {at(setOp(1, 2, "1", OutcomeDone), 5), at(setOp(3, 4, "2", OutcomeDone), 6), at(getOp(5, 6, "2"), 6)},
		"at the same time":                {at(setOp(1, 4, "1", OutcomeDone), 6), at(setOp(2, 3, "2", OutcomeDone), 5)},
		"joined in one entry":             {at(setOp(1, 4, "1", OutcomeDone), 5), at(setOp(2, 3, "2", OutcomeDone), 5)},
		"a read at ONE":                   {at(setOp(1, 2, "1", OutcomeDone), 5), one(at(getOp(3, 4, "null"), 4))},
		"a failed write has no position":  {at(setOp(1, 2, "1", OutcomeDone), 5), setOp(3, 4, "2", OutcomeFailed)},
		"a replicator that does not tell": {setOp(1, 2, "1", OutcomeDone), setOp(3, 4, "2", OutcomeDone)},
	} {
		t.Run(name, func(t *testing.T) { require.NoError(t, CheckOrder(ops)) })
	}
	for name, ops := range map[string][]Operation{
		"a later write before":            {at(setOp(1, 2, "1", OutcomeDone), 5), at(setOp(3, 4, "2", OutcomeDone), 4)},
		"a later write at the same place": {at(setOp(1, 2, "1", OutcomeDone), 5), at(setOp(3, 4, "2", OutcomeDone), 5)},
		"a read that waits for less":      {at(setOp(1, 2, "1", OutcomeDone), 5), at(setOp(1, 3, "1", OutcomeDone), 4), at(getOp(4, 5, "2"), 4)},
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorIs(t, CheckOrder(ops), ErrOrder)
			slices.Reverse(ops) // the order in which they are given does not matter
			require.ErrorIs(t, CheckOrder(ops), ErrOrder)
		})
	}
}
