package standby_test

import (
	"context"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	th "github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// While a disk hangs in the middle of a step, whoever calls the node is answered
// when his own time is over: a write that was not appended has failed.
func TestNobodyWaitsForAHungDiskLongerThanHeSaid(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
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

// A promotion that a node could not store is nobody's: the other node hears nothing
// of it and goes on as primary, and the node that starts again joins it.
func TestEpochThatWasNotStoredIsToldToNobody(t *testing.T) {
	for _, mode := range pairModes {
		t.Run(mode.String(), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				c := th.NewCluster(t, pairConfig(mode))
				c.StartAll(t.Context())
				require.NoError(t, waitAdmitted(c, time.Minute))
				primary, other := c.Members[0], c.Members[1]
				require.NoError(t, put(t, primary, "before"))
				other.Disk().SetFaults(th.DiskFaults{Full: true, Stable: true})
				c.Net.Isolate(other.ID)
				<-time.After(5 * chaosFailover) // it promotes itself, and cannot store that
				require.False(t, other.Replicator().IsLeader())
				c.Net.Heal()
				<-time.After(5 * chaosFailover)
				h := primary.Health()
				require.Equal(t, "primary", h.Role, "%v", h.Reasons)

				c.Crash(other)
				other.Disk().SetFaults(th.DiskFaults{})
				require.NoError(t, c.Start(t.Context(), other))
				require.NoError(t, waitAdmitted(c, time.Minute))
				holdSame(t, c, "before")
			})
		})
	}
}

// An operator's word to a node whose own disk hangs over it is answered when the
// operator's time is over.
func TestOperatorDoesNotWaitForAHungDisk(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := th.NewCluster(t, pairConfig(pairMode{replication.SyncSemi, "availability"}))
		c.StartAll(t.Context())
		require.NoError(t, waitAdmitted(c, time.Minute))
		other := c.Members[1]
		other.Disk().Hang()
		defer other.Disk().Release()
		ctx := timeout(t, 500*time.Millisecond)
		start := time.Now()
		err := other.Replicator().(replication.Promoter).Promote(ctx, false)
		require.ErrorIs(t, err, replication.ErrTimeout)
		require.ErrorIs(t, err, replication.ErrUnknownOutcome)
		require.LessOrEqual(t, time.Since(start), 500*time.Millisecond)
		other.Disk().Release()
		require.NoError(t, waitAdmitted(c, time.Minute))
		require.Equal(t, other, primaryOf(c), "the switch went on")
	})
}

// A switch that the primary asks for, and of which no answer comes in time, may still
// take place.
func TestTransferWithoutAnAnswerIsOfUnknownOutcome(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := th.NewCluster(t, pairConfig(pairMode{replication.SyncSemi, "availability"}))
		c.StartAll(t.Context())
		require.NoError(t, waitAdmitted(c, time.Minute))
		other := c.Members[1]
		other.Disk().Hang()
		defer other.Disk().Release()
		err := c.Members[0].Replicator().(replication.Membership).TransferLeadership(timeout(t, 500*time.Millisecond), "")
		require.ErrorIs(t, err, replication.ErrUnknownOutcome)
		other.Disk().Release()
		require.NoError(t, waitAdmitted(c, time.Minute))
		require.Equal(t, other, primaryOf(c), "the switch went on")
	})
}

// A level that there is not is refused, and not taken for another one.
func TestUnknownLevelOfReadIsRefused(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := th.NewCluster(t, pairConfig(pairMode{replication.SyncSemi, "availability"}))
		c.StartAll(t.Context())
		require.NoError(t, waitAdmitted(c, time.Minute))
		for _, m := range c.Members {
			_, err := m.Replicator().(replication.ConsistentReader).ReadBarrier(timeout(t, time.Second), "MOST")
			require.ErrorIs(t, err, replication.ErrUnsupported)
		}
	})
}

// Under semi_sync a write is acknowledged when the standby has received it. One that
// dies before it wrote it, and is back at once, gets it again, though nobody writes
// anything more.
func TestStandbyThatLostWhatItReceivedGetsItAgain(t *testing.T) {
	for _, policy := range []string{"availability", "consistency"} {
		bubble.Test(t, func(t *testing.T) {
			c := th.NewCluster(t, pairConfig(pairMode{replication.SyncSemi, policy}))
			c.StartAll(t.Context())
			require.NoError(t, waitAdmitted(c, time.Minute))
			primary, other := c.Members[0], c.Members[1]
			other.Disk().Hang()
			require.NoError(t, put(t, primary, "received"))
			c.Crash(other)
			require.NoError(t, c.Start(t.Context(), other))
			require.NoError(t, waitAdmitted(c, time.Minute))
			require.Equal(t, primary, primaryOf(c))
			holdSame(t, c, "received")
		})
	}
}
