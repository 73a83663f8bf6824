package testharness

import (
	"bytes"
	"testing"
)

func FuzzReadRawFrame(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		frame, err := readRawFrame(bytes.NewReader(data))
		if err == nil && !bytes.HasPrefix(data, rawFrame(frame)) {
			t.Fatalf("frame %x of %x", frame, data)
		}
		r := AttackResult{Answers: [][]byte{frame}}
		_ = r.Refused() // must not panic
	})
}
