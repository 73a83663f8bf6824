package replication

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzPlainValue: the short cuts for plain values agree with encoding/json.
func FuzzPlainValue(f *testing.F) {
	for _, s := range append(oddValues, `"a"b"`, `01`, `"é"`, ` [1 , {"a" : null , "a" : 2.5e3}] `, `[1,]`, `{"a":1,}`, `1 2`, `-`, `1.`, `.5`, `1e`, `+1`) {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := DecodeValue(data)
		want, wantErr := slowValue(data)
		require.Equal(t, wantErr == nil, err == nil, "%v, %v", wantErr, err)
		require.Equal(t, want, got)
		require.Equal(t, fmt.Sprintf("%#v", want), fmt.Sprintf("%#v", got), "which tells -0.0 from 0.0, too")
		r := plainReader{data: data, check: true}
		if r.value(0); r.done() {
			require.NoError(t, wantErr, "what is only checked is not taken for valid")
		}
		text, err := json.Marshal(string(data))
		require.NoError(t, err)
		require.Equal(t, string(text), string(appendString(nil, string(data))))
	})
}
