package transport

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzObject holds eachMember against encoding/json.
func FuzzObject(f *testing.F) {
	f.Add([]byte(` { "a" : [ {"b\"" : "}"} , -1.5e3 ] , "\u0061x":null,"":{} } `))
	f.Add([]byte(`{"t":1}`))
	f.Add([]byte(`[]`))
	for _, object := range objects {
		f.Add([]byte(object))
	}
	f.Fuzz(func(t *testing.T, data []byte) { sameMembers(t, data) })
}

// objects are plain, or at the edge of it.
var objects = []string{`{}`, `{"a":{}}`, `{"a":[]}`, `{"a":1}`, `{"a":1} `, `{"a":1}x`, `{"a":1`, `{"a":1,}`, `{,"a":1}`, `{"a":1,,"b":2}`, `{"a" :1}`, `{"a": 1}`, `{"a"}`, `{"a":}`, `{a:1}`,
	`{"a":0}`, `{"a":00}`, `{"a":01}`, `{"a":-0}`, `{"a":-}`, `{"a":-01}`, `{"a":1.5}`, `{"a":1.}`, `{"a":1e5}`, `{"a":1e}`, `{"a":1-}`, `{"a":123456789012345678901}`,
	`{"a":true,"b":false,"c":null}`, `{"a":tru}`, `{"a":truex}`, `{"a":nul`, `{"a":"x\"y"}`, `{"a":"\u0061"}`, `{"\u0061":1}`, `{"a":"\x"}`, `{"a":"x`, "{\"a\":\"\n\"}", "{\"a\":\"1234567\x1f\"}",
	"{\"a\":\"12345678\x00\"}", "{\"a\":\"\x7f\xff\"}", "{\"\xff\":1}", "{\"\n\":1}", `{"é":"é"}`, `{"a":[1,[2,{"b":[]}],"x"]}`, `{"a":[1,]}`, `{"a":[1 ,2]}`, `{"a":{"b":1,}}`,
	`{"a":{"b"}}`, `{"a":{b:1}}`, `{"a":{"b":1]}`, `{"a":[1}`, `{"a":[`, `{"a":{`, `{"a":{"b`, `{"a":1,"a":2}`, `{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"j":10,"k":11,"l":12,"m":13,"n":14,"o":15,"p":16}`,
	`{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"j":10,"k":11,"l":12,"m":13,"n":14,"o":15,"p":16,"q":17}`,
	`{"a":"\u00e9\n\/\ud800x"}`, `{"a":-0.5E+3,"b":0e-1,"c":[[],[1,2]],"d":true,"e":false}`, `{"a":"\u12g4"}`, `{"a":"\u12`, "{\"a\":\"\x01\\n\"}", `{"a":1e+}`, `{"a":0.}`,
	`{"a":` + strings.Repeat("[", maxDepth-1) + strings.Repeat("]", maxDepth-1) + `}`, `{"a":` + strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth) + `}`,
	`{"a":` + strings.Repeat("[", 99) + strings.Repeat("]", 99) + `}`, `{"a":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`, `{"a":` + strings.Repeat("[", 101) + strings.Repeat("]", 101) + `}`,
	`{"a":` + strings.Repeat("[", 10001) + strings.Repeat("]", 10001) + `}`}

func TestObjectsAreReadAsByEncodingJSON(t *testing.T) {
	for _, object := range objects {
		for cut := range min(len(object), 100) {
			sameMembers(t, []byte(object[:cut]))
		}
		sameMembers(t, []byte(object))
	}
	for _, value := range []string{`0`, `1`, `01`, `-1`, `1.0`, `null`, ``, `"1"`, `9999999999999999999`, `18446744073709551615`, `18446744073709551616`, `99999999999999999999`, `1x`, ` 1`} {
		var want, got uint64
		wantErr := json.Unmarshal([]byte(value), &want)
		require.Equal(t, wantErr, decodeUint([]byte(value), &got), value)
		require.Equal(t, want, got, value)
	}
	for _, value := range []string{`""`, `"a"`, `"a`, `a`, ``, `"a"b"`, `"\u0061"`, "\"\xff\"", "\"\n\"", `null`, `1`, `"é"`, `"a" `} {
		var want, got string
		wantErr := json.Unmarshal([]byte(value), &want)
		require.Equal(t, wantErr, decodeText([]byte(value), &got), value)
		require.Equal(t, want, got, value)
	}
}

func sameMembers(t *testing.T, data []byte) {
	var want map[string]json.RawMessage
	wantErr := json.Unmarshal(data, &want)
	got := map[string]json.RawMessage{}
	err := eachMember(data, func(key string, value []byte) error {
		got[key] = value
		return nil
	})
	if errors.Is(err, errNotObject) {
		require.True(t, wantErr != nil || want == nil)
		return
	}
	require.Equal(t, wantErr == nil, err == nil, "%v, %v", wantErr, err)
	if err == nil {
		require.Equal(t, want, got)
	}
}
