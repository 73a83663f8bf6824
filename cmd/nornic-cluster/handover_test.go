package main

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	"github.com/stretchr/testify/require"
)

// soonReady is a pair whose standby is ready after some tries.
type soonReady struct {
	replication.Membership
	tries, ready int
}

func (s *soonReady) TransferLeadership(context.Context, string) error {
	if s.tries++; s.tries < s.ready {
		return fmt.Errorf("%w: it is not admitted", replication.ErrNotReady)
	}
	if s.ready < 0 {
		return replication.ErrUnknownOutcome
	}
	return nil
}

// A primary that is stopped just when its standby is to be admitted waits for that,
// and no longer than it has time; what is not known to have failed is not repeated.
func TestHandOverWaitsForAStandbyThatIsNearlyReady(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), handOverTimeout)
		defer cancel()
		soon := &soonReady{ready: 3}
		require.NoError(t, transferWhenReady(ctx, soon))
		require.Equal(t, 3, soon.tries)
		unknown := &soonReady{ready: -1}
		require.ErrorIs(t, transferWhenReady(ctx, unknown), replication.ErrUnknownOutcome)
		require.Equal(t, 1, unknown.tries)
		start := time.Now()
		require.ErrorIs(t, transferWhenReady(ctx, &soonReady{ready: 1 << 30}), replication.ErrNotReady)
		require.LessOrEqual(t, time.Since(start), handOverTimeout)
	})
}

// hangingPrimary is a primary whose standby is never ready, and whose log does not
// close before its disk answers.
type hangingPrimary struct {
	replication.Replicator
	soonReady
	disk chan struct{}
}

func (*hangingPrimary) Mode() replication.ReplicationMode { return replication.ModeHAStandby }
func (*hangingPrimary) IsLeader() bool                    { return true }

func (p *hangingPrimary) Shutdown() error {
	<-p.disk
	runtime.Goexit() // nothing after it is reached
	return nil
}

// A node is gone ten seconds after it was told to stop, whatever hangs: the wait for
// the standby is part of them.
func TestStoppingTakesTenSecondsAtMost(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		p := &hangingPrimary{soonReady: soonReady{ready: 1 << 30}, disk: make(chan struct{})}
		defer close(p.disk)
		start := time.Now()
		err := (&node{repl: p}).leave(slog.New(slog.DiscardHandler))
		require.ErrorIs(t, err, replication.ErrTimeout)
		require.Positive(t, p.tries, "it tried to hand over")
		require.LessOrEqual(t, time.Since(start), 10*time.Second)
	})
}
