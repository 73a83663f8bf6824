package conflict

import (
	"fmt"
	"runtime/debug"
	"testing"

	"github.com/nornicdb/replication"
)

// sink is a Store of rows whose graph costs nothing: every node is there.
type sink struct{ *memStore }

func (sink) HasNode(replication.NodeID) (bool, error)                  { return true, nil }
func (sink) SetProperty(replication.NodeID, string, interface{}) error { return nil }

// BenchmarkRemoteSetProperty merges writes of region eu in region asia: decoded
// from the wire form, merged, materialised into a Storage that does nothing,
// rows written, and settled when region us-east's marks say so. A transaction has
// 256 entries, as a proposal of a stream does.
func BenchmarkRemoteSetProperty(b *testing.B) {
	defer debug.SetGCPercent(debug.SetGCPercent(100)) // as usual: TestMain has changed it
	settings := Settings{Regions: []string{"asia", "eu", "us-east"}, Strategy: LastWriteWins}
	const keys = 10_000
	data := make([][]byte, 0, b.N)
	e := Entry{Dot: Dot{Region: 1}, Time: 1 << 40}
	for i := range b.N {
		e.Context[1] = e.Dot.Pos
		e.Dot.Pos++
		e.Time++
		e.ops = []op{{kind: opSetProperty, node: fmt.Sprintf("node-%d", i%keys), key: "k", value: fmt.Sprint(i)}}
		data = append(data, e.Encode())
	}
	mark := Entry{Dot: Dot{Region: 2}, Time: 1 << 40}
	store := sink{newStore()}
	c, err := Load(store, "asia", settings)
	if err != nil {
		b.Fatal(err)
	}
	c.Hold()
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		e, err := DecodeEntry(data[i])
		if err == nil {
			_, err = c.Remote(1<<24, e)
		}
		if err == nil && i%1000 == 999 {
			mark.Context[2] = mark.Dot.Pos
			mark.Context[1] = e.Dot.Pos
			mark.Dot.Pos++
			mark.Time++
			_, err = c.Remote(1<<24, &mark)
		}
		if err == nil && i%256 == 255 {
			err = c.Save()
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "merges/s")
}
