package transport

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// Messages that write themselves are the bytes that encoding/json makes of them.
func TestPayloadsAreThoseOfEncodingJSON(t *testing.T) {
	cmd := &replication.Command{Type: replication.CmdPutNode, Data: []byte(`{"id":"a"}`), Timestamp: time.Now(), RequestID: "<r>"}
	one := &replication.WALEntry{Position: 1, Timestamp: time.Now(), Command: cmd, Epoch: &replication.Epoch{Number: 2, Owner: "n1"}}
	two := &replication.WALEntry{Position: 2, Origin: "eu", Time: 3, Context: map[string]uint64{"us": 1, "eu": 2}}
	for _, entries := range [][]*replication.WALEntry{nil, {}, {one}, {one, nil, two}} {
		want, err := json.Marshal(entries)
		require.NoError(t, err)
		got, err := encodePayload(walEntries(entries))
		require.NoError(t, err)
		require.Equal(t, string(want), string(got))
	}
	late := &replication.WALEntry{Timestamp: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}
	_, err := encodePayload(walEntries{one, late})
	require.Error(t, err)
	for _, message := range []any{&replication.ApplyRequest{Commands: []*replication.Command{cmd}, TimeoutMS: 1, Hops: 1}, &replication.WALBatchResponse{AckedPosition: 1}, nil} {
		want, err := json.Marshal(message)
		require.NoError(t, err)
		got, err := encodePayload(message)
		require.NoError(t, err)
		require.Equal(t, string(want), string(got))
	}
}
