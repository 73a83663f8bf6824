package walstream_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/transport"
	"github.com/nornicdb/replication/walstream"
	"github.com/stretchr/testify/require"
)

var benchEpoch = replication.Epoch{Number: 1, Owner: "a"}

func bolt(b testing.TB) *raftboltdb.BoltStore {
	s, err := raftboltdb.New(raftboltdb.Options{Path: filepath.Join(b.TempDir(), "wal.db")})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, s.Close()) })
	return s
}

func openBench(b testing.TB, s raft.LogStore) *walstream.Log {
	l, err := walstream.OpenLog(s, walstream.LogOptions{})
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, l.Close()) })
	return l
}

func benchGroup() replication.Group {
	return replication.NewGroup(&replication.Command{Type: replication.CmdPutNode, Timestamp: time.Now(),
		Data: []byte(`{"id":"node-0001","labels":["Person"],"properties":{"age":33,"name":"somebody with a name","score":1.5}}`)})
}

// countingStore counts StoreLogs.
type countingStore struct {
	raft.LogStore
	calls atomic.Int64
}

func (c *countingStore) StoreLogs(logs []*raft.Log) error {
	c.calls.Add(1)
	return c.LogStore.StoreLogs(logs)
}

// BenchmarkAppend is to be compared with BenchmarkStoreLogs, a loop of StoreLogs
// with as many entries as callers.
func BenchmarkAppend(b *testing.B) {
	for _, callers := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			store := &countingStore{LogStore: bolt(b)}
			l := openBench(b, store)
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for range callers {
				wg.Go(func() {
					for next.Add(1) <= int64(b.N) {
						if _, err := l.Append(context.Background(), benchEpoch, time.Now(), benchGroup()); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
			b.ReportMetric(float64(b.N)/float64(store.calls.Load()), "entries/sync")
		})
	}
}

func BenchmarkStoreLogs(b *testing.B) {
	for _, batch := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprintf("entries=%d", batch), func(b *testing.B) {
			store := bolt(b)
			data := make([]byte, 150)
			index := uint64(0)
			b.ResetTimer()
			for range (b.N + batch - 1) / batch {
				logs := make([]*raft.Log, batch)
				for i := range logs {
					index++
					logs[i] = &raft.Log{Index: index, Term: 1, Data: append([]byte(nil), data...)}
				}
				require.NoError(b, store.StoreLogs(logs))
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}

// peerSink sends batches over a transport.
type peerSink struct{ conn replication.PeerConnection }

func (p peerSink) Position(ctx context.Context) (walstream.Ack, error) {
	return p.Send(ctx, &walstream.Batch{})
}

func (p peerSink) Send(ctx context.Context, batch *walstream.Batch) (walstream.Ack, error) {
	var resp replication.WALBatchResponse
	ctx = transport.WithPrevEpoch(ctx, batch.Prev.Epoch)
	err := p.conn.(replication.Caller).Call(ctx, replication.MsgWALBatch, batch.Entries, &resp)
	return walstream.Ack{Received: resp.ReceivedPosition, Persisted: resp.AckedPosition}, err
}

func newTransport(b testing.TB, id string) *transport.Transport {
	t, err := transport.New(transport.Options{NodeID: id, Secret: []byte("0123456789abcdef"), Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	require.NoError(b, err)
	t.SetEpoch(func() replication.Epoch { return benchEpoch })
	b.Cleanup(func() { require.NoError(b, t.Close()) })
	return t
}

// serveApplier serves an Applier on a loopback port.
func serveApplier(b testing.TB, to *walstream.Applier) (addr string) {
	t := newTransport(b, "b")
	t.Handle(replication.MsgWALBatch, func(ctx context.Context, req *replication.Request) (any, error) {
		entries, err := walstream.DecodeBatch(req.Payload)
		if err != nil {
			return nil, err
		}
		ack, err := to.Receive(ctx, walstream.Received{Epoch: req.Epoch, Prev: req.PrevEpoch, Entries: entries})
		return replication.WALBatchResponse{AckedPosition: ack.Persisted, ReceivedPosition: ack.Received}, err
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	addr = l.Addr().String()
	require.NoError(b, l.Close())
	_, err = t.Bind(context.Background(), addr)
	require.NoError(b, err)
	go func() { _ = t.Listen(context.Background(), addr, nil) }()
	return addr
}

// What catching up must reach, and by how many entries it is measured.
const (
	catchUpEntries = 100000
	catchUpRate    = 60000 // entries/s
)

// BenchmarkCatchUp streams a log of 256-byte commands that is on the disk to a node
// that has nothing, over loopback, both logs durable on this machine's disk.
func BenchmarkCatchUp(b *testing.B) {
	src := openBench(b, bolt(b))
	group := benchGroup()
	group.Commands[0].Data = append(group.Commands[0].Data, bytes.Repeat([]byte(" "), 256-len(group.Commands[0].Data))...)
	for i := range catchUpEntries {
		_, err := src.Propose(benchEpoch, time.Now(), group)
		require.NoError(b, err)
		if i%4096 == 4095 {
			require.NoError(b, src.Sync(context.Background()))
		}
	}
	require.NoError(b, src.Sync(context.Background()))
	best := 0.0
	for b.Loop() {
		for range 3 {
			best = max(best, float64(catchUpEntries)/catchUp(b, src).Seconds())
		}
	}
	b.ReportMetric(0, "ns/op") // means nothing here
	b.ReportMetric(best, "entries/s")
	b.ReportMetric(best*256/1e6, "MB/s")
	load, _ := os.ReadFile("/proc/loadavg")
	b.Logf("load %s: %.0f entries/s", bytes.TrimSpace(load), best)
	if best < catchUpRate {
		b.Errorf("%.0f entries/s, wanted at least %d", best, catchUpRate)
	}
}

// catchUp is how long a node that has nothing takes to have all of a log.
func catchUp(b *testing.B, src *walstream.Log) time.Duration {
	dst := openBench(b, bolt(b))
	to := walstream.NewApplier(dst, walstream.ApplierOptions{})
	to.Follow("h", benchEpoch)
	addr := serveApplier(b, to)
	conn, err := newTransport(b, "a").Connect(context.Background(), addr)
	require.NoError(b, err)
	defer conn.Close()
	s := walstream.NewStreamer(walstream.LogSource{Log: src, History: "h"}, peerSink{conn}, walstream.StreamerOptions{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	start := time.Now()
	go func() { defer close(done); _ = s.Run(ctx) }() // it ends with ctx
	require.NoError(b, dst.WaitDurable(ctx, src.Last().Position))
	took := time.Since(start)
	cancel()
	<-done
	return took
}

func BenchmarkDecodeBatch(b *testing.B) {
	_, payload := benchBatch(b)
	b.SetBytes(int64(len(payload)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := walstream.DecodeBatch(payload); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*1000/b.Elapsed().Seconds(), "entries/s")
}

// BenchmarkEncodeBatch is to be compared with what encoding/json takes for the same.
func BenchmarkEncodeBatch(b *testing.B) {
	batch, payload := benchBatch(b)
	for name, encode := range map[string]func() ([]byte, error){
		"json.Marshal": func() ([]byte, error) { return json.Marshal(batch.Entries) },
		"AppendJSON":   func() ([]byte, error) { return batch.Entries.AppendJSON(nil) },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(payload)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := encode(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// benchBatch is a batch of 1000 entries and its JSON.
func benchBatch(b *testing.B) (*walstream.Batch, []byte) {
	src := openBench(b, bolt(b))
	for range 1000 {
		_, err := src.Propose(benchEpoch, time.Now(), benchGroup())
		require.NoError(b, err)
	}
	batch, err := walstream.LogSource{Log: src, History: "h"}.Read(0, 1000, 1<<30)
	require.NoError(b, err)
	payload, err := json.Marshal(batch.Entries)
	require.NoError(b, err)
	return batch, payload
}
