package transport

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"testing"
	"testing/iotest"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

func FuzzEnvelope(f *testing.F) {
	f.Add([]byte(`{"t":7,"n":"x","p":{},"i":1,"e":3,"o":"x","q":{"Number":1},"x":{"code":"c"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := decodeEnvelope(data)
		if err != nil {
			return
		}
		again, err := decodeEnvelope(appendEnvelope(nil, e))
		require.NoError(t, err)
		require.Equal(t, e.Type, again.Type)
		require.Equal(t, e.ID, again.ID)
	})
}

func FuzzFrame(f *testing.F) {
	f.Add(frameOf(`{"t":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		frame, err := readFrame(bufio.NewReader(bytes.NewReader(data)), 1<<16)
		if err == nil {
			size := int(binary.BigEndian.Uint32(data))
			require.True(t, size > 0 && size <= 1<<16)
			require.Equal(t, data[frameHeadBytes:frameHeadBytes+size], frame)
		}
	})
}

// byteConn is a connection that has only what is read from it.
type byteConn struct {
	net.Conn
	io.Reader
}

func (c byteConn) Read(p []byte) (int, error) { return c.Reader.Read(p) }
func (byteConn) Close() error                 { return nil }

func FuzzRecord(f *testing.F) {
	good := newSealer(nil)
	record := append(append([]byte{0, 0, 0, 2}, good.seal([4]byte{0, 0, 0, 2}, []byte("ab"))...), "ab"...)
	f.Add(record, false)
	f.Add(record, true)
	f.Fuzz(func(t *testing.T, data []byte, keyed bool) {
		var key []byte
		if keyed {
			key = []byte("k")
		}
		c := newRecordConn(byteConn{Reader: bytes.NewReader(data)}, bufio.NewReader(bytes.NewReader(data)), key, nil, func() {})
		got, _ := io.ReadAll(c)
		require.False(t, keyed && len(got) > 0, "no record passes without the key")
	})
}

func FuzzHello(f *testing.F) {
	f.Add([]byte(`{"Version":1,"ClusterID":"c","NodeID":"x","Stream":"rpc","Nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","MaxFrameSize":67108864}`))
	tr, err := New(Options{NodeID: "s", ClusterID: "c", Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var h replication.HelloRequest
		if json.Unmarshal(data, &h) != nil {
			return
		}
		if _, err := tr.checkHello(&h); err == nil {
			require.Len(t, h.Nonce, nonceBytes)
			require.NotEmpty(t, h.NodeID)
		}
	})
}

// A frame is read as it was written however many steps that takes, and one that is
// cut short is no frame.
func TestFramesOfEverySize(t *testing.T) {
	for _, size := range []int{1, firstStepBytes - 1, firstStepBytes, firstStepBytes + 1, stepFactor * firstStepBytes, stepFactor*firstStepBytes + 1, 1 << 20} {
		frame := beginFrame(nil)
		for i := range size {
			frame = append(frame, byte(i*i>>8))
		}
		frame, err := endFrame(frame, size)
		require.NoError(t, err)
		got, err := readFrame(bufio.NewReader(iotest.HalfReader(bytes.NewReader(frame))), size)
		require.NoError(t, err)
		require.True(t, bytes.Equal(frame[frameHeadBytes:], got))
		_, err = readFrame(bufio.NewReader(bytes.NewReader(frame[:len(frame)-1])), size)
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	}
}
