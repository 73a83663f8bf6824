package walstream

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func drawTime(t *rapid.T) time.Time {
	if rapid.Bool().Draw(t, "no time") {
		return time.Time{}
	}
	zone := time.FixedZone("z", 60*rapid.IntRange(-700, 700).Draw(t, "zone"))
	return time.Unix(0, rapid.Int64Range(-1<<60, 1<<60).Draw(t, "ns")).In(zone)
}

func drawGroup(t *rapid.T) replication.Group {
	g := replication.Group{RequestID: rapid.StringN(0, 20, 60).Draw(t, "id")}
	for range rapid.IntRange(0, 3).Draw(t, "commands") {
		g.Commands = append(g.Commands, &replication.Command{Type: replication.CommandType(rapid.Uint8().Draw(t, "type")),
			Data: rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "data"), Timestamp: drawTime(t)})
	}
	if rapid.Bool().Draw(t, "conditional") {
		g.Conditional, g.ValidAt = true, rapid.Uint64().Draw(t, "at")
		g.Hash = replication.CommandHash(g.Commands)
	}
	return g
}

// An entry is the same, bit by bit, after its journey as JSON.
func TestEntryJourney(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := epoch(rapid.Uint64Range(0, maxEpochNumber-1).Draw(t, "epoch"), rapid.StringN(0, 5, 20).Draw(t, "owner"))
		s, err := encode(e, drawTime(t), drawGroup(t))
		require.NoError(t, err)
		s = s.seal(rapid.Uint64Range(1, 1<<60).Draw(t, "position"))
		read, err := decode(s.entry.Position, s.data)
		require.NoError(t, err)
		require.Equal(t, s.entry.Checksum, read.Checksum)

		payload, err := json.Marshal([]*WireEntry{toWire(new(WireEntry), read)})
		require.NoError(t, err)
		wire, err := DecodeBatch(payload)
		require.NoError(t, err)
		require.Len(t, wire, 1)
		there, err := fromWire(wire[0])
		require.NoError(t, err)
		require.Equal(t, s.data, there.data)

		wire[0].Position++
		_, err = fromWire(wire[0])
		require.ErrorIs(t, err, ErrCorrupt, "an entry at another position than its own")
	})
}

func TestEncodeRefuses(t *testing.T) {
	for name, g := range map[string]replication.Group{
		"request ID that JSON changes": {RequestID: "\xff"},
		"a missing command":            {Commands: []*replication.Command{nil}},
		"a year without nanoseconds":   replication.NewGroup(&replication.Command{Timestamp: time.Date(9000, 1, 1, 0, 0, 0, 0, time.UTC)}),
	} {
		_, err := encode(e1, time.Now(), g)
		require.ErrorIs(t, err, replication.ErrInvalidCommand, name)
	}
	_, err := encode(epoch(maxEpochNumber, "a"), time.Now(), group(1))
	require.ErrorIs(t, err, replication.ErrInvalidCommand)
}

// The caller may go on using its command.
func TestEntryOwnsItsCommand(t *testing.T) {
	c := command(1)
	s, err := encode(e1, time.Now(), replication.NewGroup(c))
	require.NoError(t, err)
	c.Data[0] = 'X'
	require.Equal(t, byte('w'), s.entry.Group.Commands[0].Data[0])
}

func TestPlainEntry(t *testing.T) {
	wire, err := DecodeBatch([]byte(`[{"Position":7,"Timestamp":"2024-05-01T10:00:00.123456789Z","Command":{"Type":64,"Data":"YWJj","Timestamp":"2024-05-01T10:00:00Z"}}]`))
	require.NoError(t, err)
	s, err := fromWire(wire[0])
	require.NoError(t, err)
	require.True(t, s.entry.Epoch.IsZero())
	require.Equal(t, "abc", string(s.entry.Group.Commands[0].Data))
	wire[0].Epoch = &replication.Epoch{Number: 1, Owner: "a"}
	_, err = fromWire(wire[0])
	require.ErrorIs(t, err, ErrCorrupt, "an entry with an epoch needs its checksum")
}

func FuzzDecodeEntry(f *testing.F) {
	s, err := encode(e1, time.Unix(1, 2), group(3))
	require.NoError(f, err)
	s = s.seal(9)
	f.Add(uint64(9), s.data)
	f.Add(uint64(8), s.data)
	f.Add(uint64(1), []byte{1, 0, 0, 0, 0, 0x99})
	f.Fuzz(func(t *testing.T, position uint64, data []byte) {
		if e, err := decode(position, data); err == nil {
			again, err := encode(e.Epoch, e.Timestamp, e.Group)
			if err != nil {
				return // decoders take more than encoders make
			}
			if len(data) == len(again.data) {
				require.Equal(t, e.Position, position)
			}
		}
		if len(data) > entryHeadBytes { // behind the checksum, too
			var r record
			if decodeBytes(data[entryHeadBytes:], &r) == nil {
				_, _ = r.entry()
			}
		}
	})
}

func FuzzDecodeBatch(f *testing.F) {
	s, err := encode(e1, time.Unix(1, 2), group(3))
	require.NoError(f, err)
	payload, err := json.Marshal([]*WireEntry{toWire(new(WireEntry), s.seal(4).entry)})
	require.NoError(f, err)
	f.Add(payload)
	f.Add([]byte(`[{"Position":1,"Commands":[null],"Hash":"AA=="}]`))
	f.Add([]byte(`null`))
	f.Add([]byte(`[{}`))
	for _, payload := range oddBatches {
		f.Add([]byte(payload))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		entries, err := DecodeBatch(payload)
		readAsJSON(t, payload)
		if err != nil {
			require.ErrorIs(t, err, replication.ErrInvalidCommand)
			return
		}
		fl := following{history: "h", epoch: e1, last: Mark{3, e1}}
		known := func(uint64) (replication.Epoch, error) { return e1, nil }
		v, fresh, err := fl.judge(Received{Epoch: e1, Prev: &e1, Entries: entries}, known)
		if err != nil || v != verdictTake {
			return
		}
		require.EqualValues(t, 4, entries[fresh].Position, "what is taken follows the last entry")
		for _, w := range entries[fresh:] {
			if s, err := fromWire(w); err == nil {
				read, err := decode(w.Position, s.data)
				require.NoError(t, err)
				require.Equal(t, w.Checksum, read.Checksum)
			}
		}
	})
}
