package walstream

import (
	"testing"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// A record is written as the codec writes it.
func TestRecordIsWrittenAsTheCodecWouldWriteIt(t *testing.T) {
	number := rapid.OneOf(rapid.Uint64(), rapid.Uint64Range(0, 1<<17), rapid.Uint64Range(1<<32-3, 1<<32+3))
	nanos := rapid.OneOf(rapid.Int64(), rapid.Int64Range(-1<<17, 1<<17), rapid.Int64Range(-1<<31-3, -1<<31+3), rapid.Int64Range(1<<31-3, 1<<31+3))
	size := rapid.OneOf(rapid.IntRange(0, 40), rapid.SampledFrom([]int{255, 256, 65535, 65536}))
	rapid.Check(t, func(t *rapid.T) {
		r := &record{EpochNumber: number.Draw(t, "epoch"), EpochOwner: string(make([]byte, size.Draw(t, "owner"))), TimestampNS: nanos.Draw(t, "time"),
			RequestID: rapid.String().Draw(t, "id"), Conditional: rapid.Bool().Draw(t, "conditional"), ValidAt: number.Draw(t, "at"),
			Commands: make([]recordCommand, rapid.SampledFrom([]int{0, 1, 2, 15, 16, 70}).Draw(t, "commands"))}
		if rapid.Bool().Draw(t, "hash") {
			r.Hash = make([]byte, size.Draw(t, "hash size"))
		}
		for i := range r.Commands {
			r.Commands[i] = recordCommand{Type: rapid.Byte().Draw(t, "type"), Data: make([]byte, size.Draw(t, "data")), TimestampNS: nanos.Draw(t, "command time")}
			if len(r.Commands[i].Data) > 0 {
				r.Commands[i].Data[0] = byte(i)
			}
		}
		var want []byte
		require.NoError(t, codec.NewEncoderBytes(&want, handle).Encode(r))
		dst := make([]byte, 3, 3+r.sizeBound())
		got := r.append(dst)
		require.Equal(t, want, got[3:])
		require.Same(t, &dst[0], &got[0], "there is room for it")
		for i := range r.Commands {
			if data := r.Commands[i].Data; len(data) > 0 {
				require.Equal(t, byte(i), data[0], "Data refers to its own part")
				data[0]++
			}
		}
		require.Equal(t, len(want), len(got)-3)
		var again record
		require.NoError(t, decodeBytes(got[3:], &again))
		for i := range again.Commands {
			require.Equal(t, r.Commands[i].Data, again.Commands[i].Data, "and to what was appended")
		}
	})
}
