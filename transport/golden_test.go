package transport

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// The values below were computed from the protocol's description by another
// program in another language.

func goldenHellos() (dialer, server *replication.HelloRequest) {
	return &replication.HelloRequest{Version: 1, ClusterID: "c", NodeID: "d", Stream: replication.StreamRPC,
			Nonce: bytes.Repeat([]byte{1}, 32), MaxFrameSize: 64 << 20, Region: "eu"},
		&replication.HelloRequest{Version: 1, ClusterID: "c", NodeID: "s", Stream: replication.StreamRPC,
			Nonce: bytes.Repeat([]byte{2}, 32), MaxFrameSize: 1 << 20, SettingsHash: "h"}
}

func TestGoldenHello(t *testing.T) {
	dialer, _ := goldenHellos()
	dialer.MAC = []byte{1, 2, 3}
	got, err := json.Marshal(dialer)
	require.NoError(t, err)
	require.Equal(t, `{"Version":1,"ClusterID":"c","NodeID":"d","Stream":"rpc","Nonce":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",`+
		`"MaxFrameSize":67108864,"Region":"eu","MAC":"AQID"}`, string(got))
}

func TestGoldenProofsAndKeys(t *testing.T) {
	script := goldenTranscript(goldenHellos())
	for label, want := range map[string]string{
		labelServerProof: "0b0fbbfb1c104675b1964684c0d225fabae88b64ee22c8c47c0d71b29f5f9561",
		labelDialerProof: "3c142e18f2a395fa3fe21f0475c249005c29575aa9e14952611ff6906cbbaea3",
		labelServerKey:   "03ee5408ffeb93ca9f14fdabcce08b6db833371c1d27834a80868763a8d688ad",
		labelDialerKey:   "78b7082fc0a751573f882b25d1661cba564e290a138eb347657e5f781e4fc1c2",
	} {
		require.Equal(t, want, hex.EncodeToString(derive([]byte(secret), label, script)), label)
	}
}

func goldenTranscript(dialer, server *replication.HelloRequest) []byte {
	return transcript(dialer, server, nil)
}

// TestGoldenKeyedRecords: the same bytes twice make two records.
func TestGoldenKeyedRecords(t *testing.T) {
	key := derive([]byte(secret), labelDialerKey, goldenTranscript(goldenHellos()))
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	w := newRecordConn(a, bufio.NewReader(a), nil, key, func() {})
	go func() {
		_, _ = w.Write([]byte("hello"))
		_, _ = w.Write([]byte("hello"))
	}()
	got := make([]byte, 2*(4+macBytes+5))
	_, err := io.ReadFull(b, got)
	require.NoError(t, err)
	require.Equal(t, "000000051b1f72fa8d3d81ebc20a48a97cde8aaa68656c6c6f"+
		"00000005a695db8bdf4504ff5e87f1007763fb9868656c6c6f", hex.EncodeToString(got))
}

// TestTranscriptHoldsEveryField: a change of any field of either Hello changes it.
func TestTranscriptHoldsEveryField(t *testing.T) {
	d, s := goldenHellos()
	base := transcript(d, s, nil)
	for i, change := range []func(*replication.HelloRequest){
		func(h *replication.HelloRequest) { h.Version++ },
		func(h *replication.HelloRequest) { h.ClusterID += "x" },
		func(h *replication.HelloRequest) { h.NodeID += "x" },
		func(h *replication.HelloRequest) { h.Stream = replication.StreamRaft },
		func(h *replication.HelloRequest) { h.Nonce[3]++ },
		func(h *replication.HelloRequest) { h.MaxFrameSize++ },
		func(h *replication.HelloRequest) { h.Region += "x" },
		func(h *replication.HelloRequest) { h.SettingsHash += "x" },
	} {
		d, s := goldenHellos()
		change(d)
		require.NotEqual(t, base, transcript(d, s, nil), "dialer, %d", i)
		d, s = goldenHellos()
		change(s)
		require.NotEqual(t, base, transcript(d, s, nil), "server, %d", i)
	}
	require.NotEqual(t, base, transcript(d, s, []byte("session")))
}
