package transport_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	"github.com/nornicdb/replication/testharness"
	"github.com/nornicdb/replication/transport"
	"github.com/stretchr/testify/require"
)

// corruptedCalls makes calls over a link that flips bits, and counts the ones
// whose content came through changed: the number must be zero.
func corruptedCalls(t *testing.T, seed uint64, change func(*transport.Options)) (done, changed int) {
	bubble.Test(t, func(t *testing.T) {
		n := testharness.NewNetwork(seed)
		open := func(id string) *transport.Transport {
			h := n.Host(id)
			o := transport.Options{NodeID: id, ClusterID: "c", Logger: slog.New(slog.DiscardHandler), Listen: h.Listen, Dial: h.Dial}
			if change != nil {
				change(&o)
			}
			tr, err := transport.New(o)
			require.NoError(t, err)
			return tr
		}
		server, dialer := open("s"), open("d")
		server.Handle(replication.MsgFetch, func(_ context.Context, r *replication.Request) (any, error) {
			var text string
			err := json.Unmarshal(r.Payload, &text)
			return text, err
		})
		served := make(chan error, 1)
		_, err := server.Bind(t.Context(), "s:7688")
		require.NoError(t, err)
		go func() { served <- server.Listen(context.Background(), "s:7688", nil) }()
		c, err := dialer.Connect(t.Context(), "s:7688")
		require.NoError(t, err)
		n.SetDefaultFaults(testharness.Faults{Latency: time.Millisecond, Corrupt: 0.05})
		for i := range 300 {
			sent := fmt.Sprintf("a property's value, number %d, of some length so that a flipped bit finds it", i)
			var got string
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if err := c.(replication.Caller).Call(ctx, replication.MsgFetch, sent, &got); err == nil {
				done++
				if got != sent {
					changed++
				}
			}
			cancel()
		}
		require.NoError(t, c.Close())
		require.NoError(t, dialer.Close())
		require.NoError(t, server.Close())
		require.NoError(t, <-served)
	})
	return done, changed
}

func TestMutant_RecordChecksumSkipped(t *testing.T) {
	found := 0
	for seed := range uint64(5) {
		done, changed := corruptedCalls(t, seed, nil)
		require.Zero(t, changed)
		require.Greater(t, done, 100, "of any use")
		_, changed = corruptedCalls(t, seed, transport.SkipChecksums)
		found += changed
	}
	require.Positive(t, found, "with the mutant, changed content comes through")
}
