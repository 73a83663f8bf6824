package conflict

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// someEntries are entries of a random history.
func someEntries(t testing.TB) (entries []*Entry, rows [][2][]byte) {
	h := makeHistory(3, 150)
	h.regions, h.strategy, h.nodes = 4, Manual, 3
	s := newSim(h)
	for i := range h.steps {
		require.NoError(t, s.step(&h.steps[i]))
	}
	for _, r := range s.regions {
		entries = append(entries, r.stream...)
		for k, v := range r.store.rows {
			rows = append(rows, [2][]byte{[]byte(k), v})
		}
	}
	require.Greater(t, len(entries), 10)
	return entries, rows
}

// FuzzDecodeEntry: hostile bytes give ErrInvalidEntry or an entry that encodes
// to the same bytes, and that a region merges, or refuses without a trace.
func FuzzDecodeEntry(f *testing.F) {
	entries, _ := someEntries(f)
	for _, e := range entries {
		f.Add(e.Encode())
		e.RequestID, e.RequestHash = "r", [16]byte{1}
		f.Add(e.Encode())
	}
	settings := Settings{Regions: simRegionNames[:5], Strategy: Manual}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := DecodeEntry(data)
		if err != nil {
			require.ErrorIs(t, err, ErrInvalidEntry)
			return
		}
		require.True(t, bytes.Equal(e.Encode(), data), "another encoding of the same entry")
		c, err := Load(newStore(), simRegionNames[4], settings)
		require.NoError(t, err)
		switch fresh, err := c.Remote(1, e); {
		case err == nil:
			require.True(t, fresh)
		default:
			require.Nil(t, c.failed, "%v", err)
		}
	})
}

// FuzzFromWAL: the same for the wire form.
func FuzzFromWAL(f *testing.F) {
	settings := Settings{Regions: simRegionNames[:4], Strategy: Manual}
	entries, _ := someEntries(f)
	for _, e := range entries {
		w := settings.ToWAL(e)
		f.Add(w.Position, w.Origin, w.Time, w.Context["asia"], w.Context["eu"], w.Command.RequestID, w.Command.Data)
		e.RequestID, e.RequestHash = "r", [16]byte{1}
		w = settings.ToWAL(e)
		f.Add(w.Position, w.Origin, w.Time, w.Context["asia"], w.Context["eu"], w.Command.RequestID, w.Command.Data)
	}
	f.Fuzz(func(t *testing.T, pos uint64, origin string, time, asia, eu uint64, request string, data []byte) {
		w := &replication.WALEntry{Position: pos, Origin: origin, Time: time, Context: map[string]uint64{"asia": asia, "eu": eu},
			Command: &replication.Command{Type: CmdEffects, Data: data, RequestID: request}}
		e, err := settings.FromWAL(w)
		if err != nil {
			require.ErrorIs(t, err, ErrInvalidEntry)
			return
		}
		again, err := settings.FromWAL(settings.ToWAL(e))
		require.NoError(t, err)
		require.Equal(t, e, again)
	})
}

func rowOf(write func(*writer, byte), flags byte) []byte {
	var w writer
	write(&w, flags)
	return w
}

// FuzzRows: a damaged row is an error, never a panic, and what decodes encodes
// to the same bytes.
func FuzzRows(f *testing.F) {
	_, rows := someEntries(f)
	for _, r := range rows {
		f.Add(r[0], r[1])
	}
	f.Fuzz(func(t *testing.T, key, row []byte) {
		if _, _, err := splitRow(key); err != nil {
			require.ErrorIs(t, err, ErrDamagedRow)
		}
		if h, err := decodeHeader(row); err == nil {
			require.Equal(t, row, h.encode())
		} else {
			require.ErrorIs(t, err, ErrDamagedRow)
		}
		if n, err := decodeNode("a", row); err == nil {
			write := n.appendRegisters
			if n.bare {
				write = n.appendRow
			}
			require.Equal(t, row, rowOf(write, row[1]))
		} else {
			require.ErrorIs(t, err, ErrDamagedRow)
		}
		if e, err := decodeEdge(edgeKey{"a", "T", "b"}, row); err == nil {
			require.Equal(t, row, rowOf(e.appendRow, row[1]))
		} else {
			require.ErrorIs(t, err, ErrDamagedRow)
		}
		if b, err := decodeBlock(row); err == nil {
			again := new(queueBlock)
			for _, r := range b.records {
				again.data = binary.AppendUvarint(append(again.data, r.place), uint64(r.to-r.from))
				again.data = append(again.data, b.key(r)...)
			}
			require.True(t, bytes.Equal(row, again.data))
		} else {
			require.ErrorIs(t, err, ErrDamagedRow)
		}
	})
}

// FuzzParseKey: keys of conflicts come from HTTP paths.
func FuzzParseKey(f *testing.F) {
	f.Add(Key{Field: FieldProperty, Node: "a", Property: "k"}.String())
	f.Add(Key{Field: FieldEdge, Node: "a", Type: "T", To: "b"}.String())
	f.Add(Key{Field: FieldNode, Node: "a"}.String())
	f.Add(Key{Field: FieldLabels, Node: "a"}.String())
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseKey(s)
		if err != nil {
			require.ErrorIs(t, err, replication.ErrInvalidCommand)
			return
		}
		again, err := ParseKey(k.String())
		require.NoError(t, err)
		require.Equal(t, k, again)
	})
}

// FuzzPlainValue: the short way to read a value gives what the long one does.
func FuzzPlainValue(f *testing.F) {
	for _, s := range []string{"0", "-0", "-1", "12345678901234567890", `"a"`, `"<"`, `"\u0000"`, "true", "1.5", "", `"`, "-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, ok := plainValue(s)
		if !ok {
			return
		}
		want, err := replication.DecodeValue([]byte(s))
		require.NoError(t, err)
		require.Equal(t, want, v)
		c, err := canonical(v)
		require.NoError(t, err)
		require.Equal(t, s, c)
	})
}

// FuzzPlainLabels: the same for labels.
func FuzzPlainLabels(f *testing.F) {
	for _, s := range []string{`[]`, `["A"]`, `["A","B"]`, `["B","A"]`, `["A","A"]`, `["A",]`, `[,"A"]`, `["A,B"]`, `[1]`, `["a" ,"b"]`, `[`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := plainLabels(s)
		if !ok {
			return
		}
		var want []string
		require.NoError(t, json.Unmarshal([]byte(s), &want))
		require.ElementsMatch(t, want, got)
		require.Equal(t, s, canonicalLabels(want))
	})
}

// FuzzMergeState: a hostile row in another region's state is refused without a
// trace, or merged without breaking anything.
func FuzzMergeState(f *testing.F) {
	_, rows := someEntries(f)
	for _, r := range rows {
		f.Add(r[0], r[1])
	}
	f.Fuzz(func(t *testing.T, key, row []byte) {
		settings := regions(Manual, 4)
		p := newPair(t, settings)
		p.send(0, p.local(1, 1, createNode("a"), createNode("b"), edgeCmd(replication.CmdCreateEdge, "a", "b", nil)))
		p.send(1, p.local(2, 1, createNode("b")), p.local(3, 1, createNode("c")))
		p.local(0, 2, setProp("a", "k", "x"))
		state := newStore()
		require.NoError(t, ExportState(p.store[1], func(k, v []byte) error { return state.SetMeta(k, v) }))
		require.NoError(t, state.SetMeta(key, bytes.Clone(row)))
		before := p.store[0].clone()
		err := p.cores[0].MergeState(1, state)
		require.NoError(t, p.cores[0].failed)
		if err != nil {
			require.True(t, p.store[0].equal(before), "%v left traces", err)
			return
		}
		p.local(0, 3, createNode("new"), edgeCmd(replication.CmdCreateEdge, "new", "new", nil))
		_, err = Conflicts(p.store[0], Filter{})
		require.NoError(t, err)
	})
}
