package replication

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var typedCommands = []CommandType{CmdCreateNode, CmdUpdateNode, CmdDeleteNode, CmdCreateEdge, CmdDeleteEdge, CmdSetProperty, CmdBatchWrite,
	CmdPutNode, CmdPutEdge, CmdUpdateEdge}

// sameAsSlow: a command is decided and decoded as encoding/json has it.
func sameAsSlow(t require.TestingT, kind CommandType, data []byte) {
	cmd := &Command{Type: kind, Data: data}
	if kind == CmdCypher {
		require.Equal(t, validateCypher(data) == nil, cmd.Validate() == nil, "%s", data)
		return
	}
	if kind >= CmdEmbedder {
		return
	}
	want, wantErr := slowCalls(kind, data)
	var got calls
	err := Dispatch(&got, cmd)
	require.Equal(t, wantErr == nil, err == nil, "%s %s: %v, %v", kind, data, wantErr, err)
	invalid := cmd.Validate()
	require.Equal(t, wantErr == nil, invalid == nil, "%s %s: %v, %v", kind, data, wantErr, invalid)
	if wantErr != nil {
		require.ErrorIs(t, err, ErrInvalidCommand)
		require.ErrorIs(t, invalid, ErrInvalidCommand)
		require.Empty(t, got.list)
		return
	}
	require.Equal(t, want, got.list, "%s %s", kind, data)
	require.Equal(t, fmt.Sprint(want), fmt.Sprint(got.list), "which tells -0.0 from 0.0, too")
}

// oddValues are property values that are not plain, or at the edge of it.
var oddValues = []string{`0`, `-0`, `-1`, `12`, `00`, `-01`, `999999999999999999`, `9223372036854775807`, `-9223372036854775808`, `9223372036854775808`,
	`-9223372036854775809`, `0.0`, `-0.0`, `1.0`, `1e3`, `1E+3`, `1e-400`, `1e400`, `-1e400`, `1.7976931348623157e308`, `1.8e308`, `5e-324`, `1.e3`, `1e+`,
	`true`, `false`, `null`, `tru`, `nul`, `True`, `""`, `"<&>"`, `"\""`, `"\\"`, `"\/\b\f\n\r\t"`, `"A\u0000\u00e9\u2028"`, `"\u00E9"`,
	`"\ud83d\ude00"`, `"\ud83d"`, `"\ude00x"`, `"\ud83dA"`, `"\u12"`, `"\x41"`, `"\`, "\"\x00\"", "\"\n\"", "\"\x7f\"", "\"\xff\"", "\"\xc0\x80\"",
	"\"\xed\xa0\x80\"", "\"1234567\xc3\"", "\"\xff\\n\"", `"é€😀"`, `"12345678\n12345678"`, `"1234567"8"`, `"unfinished`, `[]`, `[1,"a",null,[true],{"a":1.5}]`, `[1,]`,
	`[,1]`, `[1 2]`, `[1;2]`, `{}`, `{"a":1,"a":2}`, `{"a":1e400,"a":2}`, `{"\u0061":1,"a":null}`, `{"a"}`, `{"a":}`, `{a:1}`, `{"a":1,}`, `{,}`,
	` 1 `, "\t\r\n1", "\v1", "1\x00", "", strings.Repeat("[", 64) + strings.Repeat("]", 64), strings.Repeat("[", 65) + strings.Repeat("]", 65),
	strings.Repeat("[", 66) + strings.Repeat("]", 66), strings.Repeat(`{"a":`, 64) + "1" + strings.Repeat("}", 64),
	strings.Repeat(`{"a":`, 65) + "1" + strings.Repeat("}", 65)}

// oddCommands are Data of commands of any type that are not plain, or at the
// edge of it.
var oddCommands = []string{`{}`, `null`, `[]`, `"a"`, ``, ` `, `{`, `a`, "a\xff",
	`{"id":"a"}`, `{"ID":"a","Labels":["L"],"PROPERTIES":{"k":1}}`, `{"id":"a","ID":"b"}`, `{"id":"a","id":"b"}`, `{"id":"a","id":""}`, `{"id":""}`, `{"id":null}`,
	`{"id":1}`, `{"i\u0064":"a"}`, `{"id":"\u0061"}`, "{\"id\":\"a\xff\"}", `{"id":"a","labels":null,"properties":null}`, `{"id":"a","labels":[]}`,
	`{"id":"a","labels":[null]}`, `{"id":"a","labels":["x",1]}`, `{"id":"a","labels":"x"}`, `{"id":"a","labels":["x"],"labels":["y","z"]}`,
	`{"id":"a","labels":["x"],"labels":null}`, `{"id":"a","labels":["x"],"labels":[null]}`, `{"id":"a","properties":{"k":1,"k":2}}`,
	`{"id":"a","properties":{"k":1},"properties":{"l":2}}`, `{"id":"a","properties":{"k":1},"properties":null}`, `{"id":"a","properties":{"k":1,"k":null}}`,
	`{"id":"a","properties":{"k":null,"k":1}}`, `{"id":"a","properties":{"k":1e400,"k":1}}`, `{"id":"a","properties":{"k":1,"k":1e400}}`, `{"id":"a","properties":[]}`,
	`{"id":"a","properties":{"":1}}`, `{"id":"a","unknown":{"a":[1e999]}}`, `{"id":"a"} `, ` { "id" : "a" , "labels" : [ "x" , "y" ] , "properties" : { } } `,
	`{"id":"a"}x`, `{"id":"a"}{}`, `{"id":"a",}`, `{"id":"a","labels":["x",]}`, `{"id":"a" "labels":[]}`, `{"id" "a"}`, `{"id":"a","properties":{"k":}}`,
	"{\"i\u017fd\":\"a\"}", `{"id":"a","labelſ":["folded"]}`, `{"node_id":"a","Key":"k","value":1}`, `{"node_id":"a","\u212aey":"k","value":1}`,
	`{"startNode":"a","endNode":"b","type":"R"}`, `{"startNode":"a","endNode":"b","type":""}`, `{"startNode":"","endNode":"b","type":"R","properties":{}}`,
	`{"id":"","startNode":"a","endNode":"b","type":"R","properties":{"k":1}}`, `{"id":"e","startNode":"a","endNode":"b","type":"R"}`, `{"edge_id":"e"}`,
	`{"edge_id":"","id":"e"}`, `{"edge_id":"","startNode":"a","endNode":"b","type":"R"}`, `{"edge_id":"e","id":"f","type":"R"}`, `{"id":"e","type":""}`,
	`{"node_id":"a","value":1}`, `{"key":"k","value":1}`, `{"node_id":"a","key":"k"}`, `{"node_id":"a","key":"","value":1}`, `{"node_id":"a","key":"k","value":null}`, `{"node_id":"a","key":"k","value":1,"value":null}`,
	`{"node_id":"a","key":"k","value":1e400,"value":1}`, `{"node_id":"a","key":"k","value":1.0}`,
	`{"commands":[]}`, `{"commands":null}`, `{"commands":[null]}`, `{"commands":[{}]}`, `{"commands":[{"Type":3,"Data":"YQ=="}]}`, `{"commands":[{"Type":3,"Data":"YQ"}]}`,
	`{"commands":[{"Type":3,"Data":"Y\nQ=="}]}`, `{"commands":[{"Type":3,"Data":"Y\u0051=="}]}`, `{"commands":[{"Type":3,"Data":null}]}`, `{"commands":[{"Type":3,"Data":""}]}`,
	`{"commands":[{"Type":256,"Data":"YQ=="}]}`, `{"commands":[{"Type":03,"Data":"YQ=="}]}`, `{"commands":[{"Type":3.0,"Data":"YQ=="}]}`,
	`{"commands":[{"Type":-0,"Data":"YQ=="}]}`, `{"commands":[{"type":3,"data":"YQ=="}]}`, `{"commands":[{"Type":3,"Data":"YQ==","Timestamp":"2024-05-01T10:00:00.5+02:00","RequestID":"r"}]}`,
	`{"commands":[{"Type":3,"Data":"YQ==","Timestamp":"yesterday"}]}`, `{"commands":[{"Type":3,"Data":"YQ==","Timestamp":"2024-05-01T24:00:00Z"}]}`,
	`{"commands":[{"Type":3,"Data":"YQ==","Timestamp":null}]}`, `{"commands":[{"Type":3,"Data":"YQ==","Timestamp":"2024-05-01T10:00:00\u005a"}]}`,
	`{"commands":[{"Type":7,"Data":"e30="}]}`, `{"commands":[{"Type":8,"Data":"e30="}]}`, `{"commands":[{"Type":32,"Data":"e30="}]}`, `{"commands":[{"Type":64,"Data":"e30="}]}`,
	`{"commands":[{"Type":3,"Data":"YQ==","RequestID":"\ud800"},{"Type":3,"Data":"Yg=="},{"Type":3,"Data":"YmI="}]}`,
	`{"nodes":[{"id":"a"},{"id":"b","labels":["L"]}],"edges":[{"startNode":"a","endNode":"b","type":"R"}]}`,
	`{"edges":[{"startNode":"a","endNode":"b","type":"R"}],"nodes":[{"id":"a"}],"commands":[{"Type":3,"Data":"YQ=="}]}`, `{"nodes":[{"id":"a"}],"commands":[{"Type":3,"Data":"YQ=="}]}`,
	`{"edges":[{"startNode":"a","endNode":"b","type":"R"}],"commands":[{"Type":3,"Data":"YQ=="}]}`, `{"nodes":[{"ID":"a"}]}`, `{"nodes":[null]}`,
	`{"nodes":[{"id":"a"}],"nodes":[{"id":"b"}]}`, `{"nodes":[{"id":"a","labels":["L"]}],"nodes":[{"id":"b"}]}`, `{"nodes":null,"edges":null}`, `{"nodes":[{"id":"a"}],"edges":[{}]}`,
	`{"query":"RETURN 1"}`, `{"query":"RETURN $a","params":{"a":1e400}}`, `{"query":"RETURN $a","params":{"a":12345678901234567890}}`, `{"query":""}`,
	`{"query":"x","params":null}`, `{"query":"x","params":[]}`, `{"Query":"x"}`, `{"query":"x","query":""}`}

func TestPlainReaderDecidesAsEncodingJSON(t *testing.T) {
	for _, kind := range append(typedCommands, CmdCypher) {
		for _, data := range oddCommands {
			sameAsSlow(t, kind, []byte(data))
		}
		for _, v := range oddValues {
			sameAsSlow(t, kind, []byte(`{"id":"a","properties":{"k":`+v+`}}`))
			sameAsSlow(t, kind, []byte(`{"id":`+v+`,"labels":[`+v+`],"properties":{`+v+`:`+v+`}}`))
			sameAsSlow(t, kind, []byte(`{"startNode":`+v+`,"endNode":"b","type":"R","properties":{"k":`+v+`}}`))
			sameAsSlow(t, kind, []byte(`{"startNode":`+v+`,"endNode":"b","type":"R"}`))
			sameAsSlow(t, kind, []byte(`{"node_id":"a","key":"k","value":`+v+`}`))
			sameAsSlow(t, kind, []byte(`{"commands":[{"Type":`+v+`,"Data":`+v+`}]}`))
			sameAsSlow(t, kind, []byte(`{"nodes":[{"id":"a","properties":{"k":`+v+`}}],"edges":[]}`))
			sameAsSlow(t, kind, []byte(`{"query":"x","params":{"k":`+v+`}}`))
		}
	}
}

// A batch of as many operations as are allowed, and of one more.
func TestPlainReaderBoundsBatches(t *testing.T) {
	if testing.Short() {
		t.Skip("a million operations")
	}
	for count, valid := range map[int]bool{maxBatchCommands: true, maxBatchCommands + 1: false} {
		cmd := &Command{Type: CmdBatchWrite, Data: []byte(`{"nodes":[` + strings.Repeat(`{"id":"a"},`, count-1) + `{"id":"a"}]}`)}
		require.Equal(t, valid, cmd.Validate() == nil)
		ops, err := decodeBatch(cmd.Data)
		require.Equal(t, valid, err == nil)
		require.Equal(t, valid, len(ops) == count)
	}
}

// drawJSON draws the JSON of something that resembles a command: mostly in
// the right form, now and then anything.
func drawJSON(t *rapid.T, depth int) string {
	space := func() string { return rapid.SampledFrom([]string{"", "", "", "", " ", "\n\t"}).Draw(t, "space") }
	text := func() string {
		return rapid.OneOf(rapid.SampledFrom(oddValues), rapid.Map(rapid.String(), func(s string) string {
			b, _ := json.Marshal(s)
			return string(b)
		})).Draw(t, "text")
	}
	keys := []string{"id", "labels", "properties", "startNode", "endNode", "type", "edge_id", "node_id", "key", "value", "commands", "nodes", "edges", "Type", "Data",
		"Timestamp", "RequestID", "ID", "Id", "k", "query", "params"}
	switch kind := rapid.IntRange(0, 9).Draw(t, "kind"); {
	case depth == 0 || kind < 4:
		return space() + text() + space()
	case kind < 6:
		items := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string { return drawJSON(t, depth-1) }), 0, 3).Draw(t, "items")
		return "[" + strings.Join(items, ",") + "]"
	default:
		members := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
			return fmt.Sprintf("%q:%s", rapid.SampledFrom(keys).Draw(t, "key"), drawJSON(t, depth-1))
		}), 0, 5).Draw(t, "members")
		return space() + "{" + space() + strings.Join(members, ",") + "}" + space()
	}
}

// drawCommand draws a command as it should be, with drawn values.
func drawCommand(t *rapid.T) (CommandType, string) {
	j := func(what string) string {
		if rapid.IntRange(0, 5).Draw(t, what) > 0 {
			return `"` + what + `"`
		}
		return drawJSON(t, 0)
	}
	kind := rapid.SampledFrom(typedCommands).Draw(t, "type")
	node := func() string {
		return fmt.Sprintf(`{"id":%s,"labels":[%s],"properties":{%s:%s,"k":%s}}`, j("id"), j("label"), j("a key"), drawJSON(t, 2), drawJSON(t, 2))
	}
	edge := func() string {
		return fmt.Sprintf(`{"startNode":%s,"endNode":%s,"type":%s,"properties":{%s:%s}}`, j("start"), j("end"), j("type"), j("a key"), drawJSON(t, 2))
	}
	switch kind {
	case CmdCreateNode, CmdUpdateNode, CmdPutNode:
		return kind, node()
	case CmdCreateEdge, CmdUpdateEdge, CmdPutEdge:
		return kind, edge()
	case CmdSetProperty:
		return kind, fmt.Sprintf(`{"node_id":%s,"key":%s,"value":%s}`, j("id"), j("a key"), drawJSON(t, 2))
	case CmdDeleteEdge:
		return kind, fmt.Sprintf(`{"startNode":%s,"endNode":%s,"type":%s}`, j("start"), j("end"), j("type"))
	case CmdBatchWrite:
		if rapid.Bool().Draw(t, "nodes") {
			return kind, fmt.Sprintf(`{"nodes":[%s,%s],"edges":[%s]}`, node(), node(), edge())
		}
		cmd, err := json.Marshal(&Command{Type: CmdPutNode, Data: []byte(node())})
		if err != nil {
			t.Fatal(err)
		}
		return kind, fmt.Sprintf(`{"commands":[%s,%s]}`, cmd, cmd)
	}
	return kind, drawJSON(t, 3)
}

func TestPlainReaderOfDrawnCommands(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kind, data := drawCommand(t)
		switch rapid.IntRange(0, 9).Draw(t, "what becomes of it") {
		case 0:
			data = data[:rapid.IntRange(0, len(data)).Draw(t, "cut")]
		case 1:
			i := rapid.IntRange(0, len(data)).Draw(t, "at")
			data = data[:i] + string([]byte{rapid.Byte().Draw(t, "byte")}) + data[i:]
		case 2:
			data = drawJSON(t, 3)
		}
		sameAsSlow(t, kind, []byte(data))
	})
}

func FuzzPlainCommand(f *testing.F) {
	for i, data := range oddCommands {
		f.Add(uint8(typedCommands[i%len(typedCommands)]), []byte(data))
	}
	for _, v := range oddValues {
		f.Add(uint8(CmdPutNode), []byte(`{"id":"a","labels":["L"],"properties":{"k":`+v+`,"l":[`+v+`]}}`))
	}
	f.Fuzz(func(t *testing.T, kind uint8, data []byte) { sameAsSlow(t, CommandType(kind), data) })
}
