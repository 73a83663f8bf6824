package main

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nornicdb/replication"
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
	synctest.Test(t, func(t *testing.T) {
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
