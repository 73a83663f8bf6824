package transport

import (
	"strings"
	"testing"

	"github.com/nornicdb/replication"
)

// BenchmarkEnvelope reads a frame that carries what takes about as much as ten
// writes of 256 bytes.
func BenchmarkEnvelope(b *testing.B) {
	entry := `{"Position":7,"Timestamp":"2024-05-01T10:00:00.123456789Z","Command":{"Type":16,"Data":"` + strings.Repeat("YWJj", 86) +
		`","Timestamp":"2024-05-01T10:00:00.123456789Z"},"Epoch":{"Number":3,"Owner":"n1"},"Checksum":4294967295}`
	frame := appendEnvelope(nil, &envelope{Type: 5, Node: "n1", Payload: []byte("[" + strings.Repeat(entry+",", 9) + entry + "]"), ID: 1, HasID: true,
		Epoch: replication.Epoch{Number: 3, Owner: "n1"}, Prev: &replication.Epoch{Number: 2, Owner: "n2"}})
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decodeEnvelope(frame); err != nil {
			b.Fatal(err)
		}
	}
}
