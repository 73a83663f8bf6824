package walstream

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// readAsJSON: a batch is decided and decoded as encoding/json has it.
func readAsJSON(t require.TestingT, payload []byte) {
	want, wantErr := decodeBatchJSON(payload)
	got, err := DecodeBatch(payload)
	require.Equal(t, wantErr, err)
	require.Equal(t, want, got, "%s", payload)
}

const (
	plainEntry = `{"Position":7,"Timestamp":"2024-05-01T10:00:00.123456789Z","Command":{"Type":16,"Data":"YWJj","Timestamp":"2024-05-01T10:00:00+02:00","RequestID":"r"},` +
		`"Epoch":{"Number":3,"Owner":"n1"},"Origin":"eu","Time":18446744073709551615,"Context":{"eu":6,"us":1},` +
		`"RequestID":"q","Hash":"AAAAAAAAAAAAAAAAAAAAAA==","Conditional":true,"ValidAt":6,"Checksum":4294967295,"History":"h"}`
	shortEntry = `{"Position":8,"Timestamp":"0001-01-01T00:00:00Z","Command":null,"Epoch":{"Number":3},"Commands":[{"Type":1,"Data":null,"Timestamp":"2024-05-01T10:00:00Z"},` +
		`{"Type":1,"Data":"","Timestamp":"2024-05-01T10:00:00Z"}]}`
	plainBatch = "[" + plainEntry + "," + shortEntry + "]"
)

// oddBatches are not in the form of AppendJSON, or not valid: a plain one, changed.
var oddBatches = func() []string {
	batches := []string{plainBatch, ` ` + plainBatch, plainBatch + ` `, plainBatch + `x`, plainBatch[:len(plainBatch)-1], `[]`, `[]x`, `[`, `[,]`, `[null]`, `null`, ``, `{}`,
		`[` + plainEntry + `,]`, `[` + plainEntry + ` , ` + plainEntry + `]`, `[` + strings.Repeat(plainEntry+",", 9) + plainEntry + `]`}
	for _, change := range [][2]string{{`"Position":7`, `"position":7`}, {`"Position":7`, `"Position":07`}, {`"Position":7`, `"Position":`}, {`"Position":7`, `"Position":-7`},
		{`"Position":7`, `"Position":18446744073709551616`}, {`"Position":7`, `"Position":9999999999999999999`}, {`"Position":7`, `"Position":7.0`}, {`"Position":7`, `"Position":null`},
		{`"Position":7`, `"Position":7,"Position":9`}, {`"Position":7`, `"Position":7,"Unknown":[1e999]`},
		{`"YWJj"`, `"YWJ"`}, {`"YWJj"`, "\"YW\nJj\""}, {`"YWJj"`, "\"YW\rJj\""}, {`"YWJj"`, `"YW\nJj"`}, {`"YWJj"`, `"YW\u004aj"`}, {`"YWJj"`, `null`}, {`"YWJj"`, `"é"`}, {`"YWJj"`, `"YWJj`},
		{`"Type":16`, `"Type":256`}, {`"Type":16`, `"Type":016`}, {`"Type":16`, `"type":16`}, {`4294967295`, `4294967296`}, {`4294967295`, `0`},
		{`.123456789Z`, `.1234567891Z`}, {`.123456789Z`, `,5Z`}, {`.123456789Z`, `.123456789z`}, {`10:00:00+02:00`, `9:00:00+02:00`}, {`10:00:00+02:00`, `10:00:00+24:00`}, {`+02:00`, "+02:00\n"},
		{`"n1"`, `"\u006e"`}, {`"n1"`, "\"\xff\""}, {`"n1"`, "\"\n\""}, {`"n1"`, `"é"`}, {`"n1"`, `""`}, {`"n1"`, `null`}, {`"n1"`, "\"\x7f\""}, {`"n1"`, `"a\"b"`},
		{`{"Number":3,"Owner":"n1"}`, `null`}, {`{"Number":3,"Owner":"n1"}`, `{"Owner":"n1","Number":3}`}, {`{"eu":6,"us":1}`, `{}`}, {`{"eu":6,"us":1}`, `{"eu":6,"eu":1}`},
		{`{"eu":6,"us":1}`, `{"eu":6,}`}, {`{"eu":6,"us":1}`, `null`}, {`"Conditional":true`, `"Conditional":false`}, {`"Conditional":true,`, ``}, {`"AAAAAAAAAAAAAAAAAAAAAA=="`, `""`},
		{`"Command":null`, `"Command":null,"Command":{}`}, {`"Commands":[`, `"Commands":[null,`}, {`"Commands":[`, `"Commands":[],"X":[`}, {`"History":"h"`, `"History":"h","History":"i"`},
		{`"History":"h"`, `"HISTORY":"h"`}, {`"Checksum":4294967295,"History":"h"`, `"History":"h","Checksum":4294967295`}} {
		batches = append(batches, strings.Replace(plainBatch, change[0], change[1], 1))
	}
	return batches
}()

func TestBatchesAreReadAsByEncodingJSON(t *testing.T) {
	for _, payload := range oddBatches {
		readAsJSON(t, []byte(payload))
	}
	for cut := range plainBatch {
		readAsJSON(t, []byte(plainBatch[:cut]))
	}
	if testing.Short() {
		return
	}
	readAsJSON(t, []byte(`[`+strings.Repeat(`{"Position":1,"Timestamp":"0001-01-01T00:00:00Z","Command":null},`, MaxBatchEntries-1)+shortEntry+`]`))
	readAsJSON(t, []byte(`[`+strings.Repeat(`{"Position":1,"Timestamp":"0001-01-01T00:00:00Z","Command":null},`, MaxBatchEntries)+shortEntry+`]`))
}

func drawWire(t *rapid.T) *WireEntry {
	text := func(what string) string {
		return rapid.OneOf(rapid.Just(""), rapid.Just("n1"), rapid.String(), rapid.SampledFrom([]string{"<", "\xff", `"`})).Draw(t, what)
	}
	if rapid.IntRange(0, 9).Draw(t, "nil") == 0 {
		return nil
	}
	g := drawGroup(t)
	w := &WireEntry{WALEntry: replication.WALEntry{Position: rapid.Uint64().Draw(t, "position"), Timestamp: drawTime(t), Origin: text("origin")}, RequestID: text("request"),
		Commands: g.Commands, Conditional: g.Conditional, ValidAt: g.ValidAt, Checksum: rapid.Uint32().Draw(t, "sum"), History: text("history"), Hash: rapid.SliceOfN(rapid.Byte(), 0, 17).Draw(t, "hash")}
	if len(g.Commands) > 0 && rapid.Bool().Draw(t, "one") {
		w.Command, w.Commands = g.Commands[0], nil
		w.Command.RequestID = text("request")
	}
	if rapid.Bool().Draw(t, "epoch") {
		w.Epoch = &replication.Epoch{Number: rapid.Uint64().Draw(t, "number"), Owner: text("owner")}
	}
	if rapid.Bool().Draw(t, "region") {
		w.Time, w.Context = rapid.Uint64().Draw(t, "time"), map[string]uint64{text("region"): 1, "us": rapid.Uint64().Draw(t, "seen")}
	}
	if rapid.IntRange(0, 9).Draw(t, "year") == 0 {
		w.Timestamp = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	return w
}

// Batches are written as by encoding/json, and read again as they were written.
func TestBatchesAreWrittenAsByEncodingJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entries := rapid.SliceOfN(rapid.Custom(drawWire), 0, 4).Draw(t, "entries")
		want, wantErr := json.Marshal(entries)
		got, err := Entries(entries).AppendJSON(nil)
		require.Equal(t, wantErr == nil, err == nil, "%v, %v", wantErr, err)
		if err == nil {
			require.Equal(t, string(want), string(got))
			readAsJSON(t, got)
		}
	})
	none, err := Entries(nil).AppendJSON(nil)
	require.NoError(t, err)
	require.Equal(t, "null", string(none))
}

// What nodes send is read the short way.
func TestWireReaderReadsWhatIsSent(t *testing.T) {
	plain, err := encode(e1, time.Now(), replication.NewGroup(&replication.Command{Type: replication.CmdPutNode, Data: []byte("{}"), Timestamp: time.Now()}))
	require.NoError(t, err)
	conditional, err := encode(e1, time.Time{}, replication.Group{Commands: []*replication.Command{command(1), command(2)}, RequestID: "r", Hash: [16]byte{1}, Conditional: true, ValidAt: 3})
	require.NoError(t, err)
	entries := Entries{toWire(new(WireEntry), plain.seal(4).entry), toWire(new(WireEntry), conditional.seal(5).entry)}
	entries[0].History = "h"
	payload, err := entries.AppendJSON(nil)
	require.NoError(t, err)
	for _, p := range []string{string(payload), plainBatch, "[]"} {
		_, ok := (&wireReader{data: []byte(p)}).batch()
		require.True(t, ok, "%s", p)
	}
}
