package replication

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzPlainValue: the short cuts for plain values agree with encoding/json.
func FuzzPlainValue(f *testing.F) {
	for _, s := range []string{`"a b"`, `"<"`, `"\\"`, `"`, `""`, `"a"b"`, `0`, `01`, `12`, `-1`, `999999999999999`, "\"\x7f\"", `"é"`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if v, ok := decodePlain(data); ok {
			dec := json.NewDecoder(bytes.NewReader(data))
			dec.UseNumber()
			var raw any
			require.NoError(t, dec.Decode(&raw))
			want, err := normalize(raw, 0)
			require.NoError(t, err)
			require.Equal(t, want, v)
		}
		want, err := json.Marshal(string(data))
		require.NoError(t, err)
		require.Equal(t, string(want), string(appendString(nil, string(data))))
	})
}
