package region

import (
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// FuzzDecodeCommand: whatever the bytes, decoding ends with a verdict or a
// command, and a command that was written by encode comes back.
func FuzzDecodeCommand(f *testing.F) {
	write := &logCommand{kind: kindWrite, wallMS: 5, commands: []*replication.Command{{Type: replication.CmdDeleteNode, Data: []byte("x")}}}
	f.Add(write.encode().Data)
	f.Add((&logCommand{kind: kindCursors, body: jsonBody(cursors{"eu": 3})}).encode().Data)
	f.Add([]byte{byte(kindRemote), 1, 200})
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := decodeCommand(data)
		if err != nil {
			_, verdict := replication.Verdict(err)
			require.True(t, verdict, "%v", err)
			return
		}
		again, err := decodeCommand(c.encode().Data)
		require.NoError(t, err)
		require.Equal(t, c, again)
	})
}
