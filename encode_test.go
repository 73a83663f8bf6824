package replication_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func drawText(t *rapid.T, what string) string {
	return rapid.OneOf(rapid.Just(""), rapid.Just("n1"), rapid.String(), rapid.SampledFrom([]string{"<a&b>", "\xff", "\u2028", `"\`, "\x00\x7f", "é"})).Draw(t, what)
}

func drawInstant(t *rapid.T, what string) time.Time {
	zone := time.FixedZone("z", rapid.SampledFrom([]int{0, 0, 3600, -12600, 59, 24 * 3600}).Draw(t, "zone"))
	return rapid.SampledFrom([]time.Time{{}, time.Unix(0, 1).UTC(), time.Unix(1714557600, 123456789).In(zone), time.Unix(1714557600, 120000000).UTC(),
		time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC)}).Draw(t, what)
}

func drawWireCommand(t *rapid.T) *replication.Command {
	if rapid.IntRange(0, 9).Draw(t, "nil") == 0 {
		return nil
	}
	data := rapid.OneOf(rapid.Just([]byte(nil)), rapid.SliceOf(rapid.Byte())).Draw(t, "data")
	return &replication.Command{Type: replication.CommandType(rapid.Uint8().Draw(t, "type")), Data: data, Timestamp: drawInstant(t, "timestamp"), RequestID: drawText(t, "request")}
}

type appender interface {
	AppendJSON([]byte) ([]byte, error)
}

// The wire forms are those of encoding/json, byte for byte, errors included.
func TestAppendJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		entry := &replication.WALEntry{Position: rapid.Uint64().Draw(t, "position"), Timestamp: drawInstant(t, "at"), Command: drawWireCommand(t),
			Origin: drawText(t, "origin"), Time: rapid.Uint64Range(0, 3).Draw(t, "time")}
		if rapid.Bool().Draw(t, "epoch") {
			entry.Epoch = &replication.Epoch{Number: rapid.Uint64().Draw(t, "number"), Owner: drawText(t, "owner")}
		}
		if rapid.Bool().Draw(t, "context") {
			entry.Context = rapid.MapOf(rapid.Custom(func(t *rapid.T) string { return drawText(t, "region") }), rapid.Uint64()).Draw(t, "context")
		}
		request := &replication.ApplyRequest{TimeoutMS: rapid.Int64().Draw(t, "timeout"), Hops: rapid.Int().Draw(t, "hops"),
			Commands: rapid.OneOf(rapid.Just([]*replication.Command(nil)), rapid.SliceOfN(rapid.Custom(drawWireCommand), 0, 3)).Draw(t, "commands")}
		for _, v := range []appender{entry, entry.Command, request, (*replication.WALEntry)(nil)} {
			want, wantErr := json.Marshal(v)
			got, err := v.AppendJSON([]byte("before"))
			require.Equal(t, wantErr == nil, err == nil, "%v, %v", wantErr, err)
			if err == nil {
				require.Equal(t, "before"+string(want), string(got))
			}
		}
		if sent, err := request.AppendJSON(nil); err == nil {
			sameApplyRequest(t, sent)
		}
	})
}

// sameApplyRequest: a request is decided and decoded as encoding/json has it.
func sameApplyRequest(t require.TestingT, data []byte) {
	type fields replication.ApplyRequest // without the method
	for _, into := range []replication.ApplyRequest{{}, {TimeoutMS: 5, Hops: 6}, {Commands: []*replication.Command{{Type: 3, RequestID: "r"}}}} {
		want, got := fields(into), into
		want.Commands, got.Commands = nil, nil
		for _, c := range into.Commands {
			one, other := *c, *c
			want.Commands, got.Commands = append(want.Commands, &one), append(got.Commands, &other)
		}
		wantErr := json.Unmarshal(data, &want)
		err := got.UnmarshalJSON(data)
		require.Equal(t, wantErr == nil, err == nil, "%s: %v, %v", data, wantErr, err)
		if err == nil {
			require.Equal(t, replication.ApplyRequest(want), got, "%s", data)
		}
	}
}

var applyRequests = []string{`{}`, `null`, ``, `[]`, `{"Commands":[],"TimeoutMS":1,"Hops":2}`, `{"Commands":null,"TimeoutMS":1,"Hops":2}`, `{"Commands":[null]}`,
	`{"Commands":[{"Type":16,"Data":"YWJj","Timestamp":"2024-05-01T10:00:00Z","RequestID":"a\u0062"},{}],"TimeoutMS":60000,"Hops":1}`, `{"TimeoutMS":-1,"Hops":-2}`,
	`{"TimeoutMS":1.0}`, `{"TimeoutMS":1e3}`, `{"TimeoutMS":9223372036854775807}`, `{"TimeoutMS":9223372036854775808}`, `{"Hops":"1"}`, `{"Hops":1,"Hops":2}`, `{"hops":1}`,
	`{"Hops":null}`, `{"Commands":[{"Type":1}],"Commands":[{"Data":"YQ=="}]}`, `{"Commands":[{"Type":1},]}`, `{"Hops":1}x`, `{"Hops":1,}`, `{"Other":1}`, `{"Commands":[{"Data":null}]}`,
	`{"Commands":[{"Data":"Y"}]}`, `{"Commands":[{"Data":""}]}`, `{"Commands":{}}`}

func TestApplyRequestIsReadAsByEncodingJSON(t *testing.T) {
	for _, data := range applyRequests {
		sameApplyRequest(t, []byte(data))
	}
}

func FuzzApplyRequest(f *testing.F) {
	for _, data := range applyRequests {
		f.Add([]byte(data))
	}
	f.Fuzz(func(t *testing.T, data []byte) { sameApplyRequest(t, data) })
}
