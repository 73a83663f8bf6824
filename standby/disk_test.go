package standby_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nornicdb/replication"
	th "github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// While a disk hangs in the middle of a step, whoever calls the node is answered
// when his own time is over: a write that was not appended has failed.
func TestNobodyWaitsForAHungDiskLongerThanHeSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := th.NewCluster(t, pairConfig(pairMode{replication.SyncSemi, "availability"}))
		c.StartAll(t.Context())
		require.NoError(t, waitAdmitted(c, time.Minute))
		primary, other := c.Members[0], c.Members[1]
		require.NoError(t, put(t, primary, "before"))
		for _, m := range c.Members {
			m.Disk().Hang()
		}
		c.Net.Isolate(other.ID)
		<-time.After(3 * chaosFailover) // one stores that it is degraded, the other that it promotes itself

		for name, call := range map[string]func(ctx context.Context, m *th.Member) error{
			"write": func(_ context.Context, m *th.Member) error { return put(t, m, "hung") },
			"read": func(ctx context.Context, m *th.Member) error {
				_, err := m.Reader().ReadBarrier(ctx, replication.ConsistencyQuorum)
				return err
			},
			"promote": func(ctx context.Context, m *th.Member) error {
				return m.Replicator().(replication.Promoter).Promote(ctx, true)
			},
			"solo": func(ctx context.Context, m *th.Member) error {
				return m.Replicator().(replication.Soloer).Solo(ctx)
			},
		} {
			for _, m := range c.Members {
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				start := time.Now()
				err := call(ctx, m)
				cancel()
				require.LessOrEqual(t, time.Since(start), 5*time.Second, name)
				if name == "write" {
					require.ErrorIs(t, err, replication.ErrTimeout)
					require.NotErrorIs(t, err, replication.ErrUnknownOutcome)
				} else {
					require.Error(t, err, name)
				}
			}
		}
		for _, m := range c.Members {
			m.Disk().Release()
		}
		c.Net.Heal()
		require.NoError(t, waitAdmitted(c, time.Minute))
		_, err := primary.Store().Node("hung")
		require.ErrorIs(t, err, replication.ErrNotFound)
		holdSame(t, c, "before")
	})
}
