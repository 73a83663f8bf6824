package region_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region"
	"github.com/stretchr/testify/require"
)

// lossHistory is a history in which entries are lost unless what this package
// does against it is done. It says what was lost.
func lossHistory(t *testing.T) error {
	f := newFederation(t, 11, two, nil)
	f.apply("eu", put(t, "x", nil))
	f.Eventually(time.Minute, "the first write is there", func() bool {
		_, err := f.nodes["us"][0].Store().Node("x")
		return err == nil
	})
	// The writes of a time in which the regions cannot reach each other, and
	// the cursors with them, are written down by a leader that then dies.
	f.Net.Partition(f.ids("eu"), f.ids("us"))
	for i := range 10 {
		f.apply("eu", put(t, fmt.Sprint("n", i), nil))
	}
	<-time.After(2 * time.Second) // virtual
	f.Net.Heal()
	f.Crash(f.leader("eu"))
	f.leader("eu")
	<-time.After(20 * time.Second) // virtual
	for i := range 10 {
		if _, err := f.leader("us").Store().Node(replication.NodeID(fmt.Sprint("n", i))); err != nil {
			return errors.Join(err, fmt.Errorf("reasons: %v", f.leader("eu").Replicator().Health().Reasons))
		}
	}
	log := f.Transcript.String()
	if strings.Contains(log, "beyond the outbox") {
		return errors.New("a state transfer, although the outbox has room")
	}
	return nil
}

// TestMutant_TrimUnread: the outbox must keep what another region lacks.
func TestMutant_TrimUnread(t *testing.T) {
	virtually(t, func(t *testing.T) { require.NoError(t, lossHistory(t)) })
	region.TrimUnread(true)
	defer region.TrimUnread(false)
	virtually(t, func(t *testing.T) { require.Error(t, lossHistory(t)) })
}

// TestMutant_AckBeforeCommit: semi_sync must not believe what is not committed.
func TestMutant_AckBeforeCommit(t *testing.T) {
	history := func(t *testing.T) (err error) {
		f := newFederation(t, 12, two, func(_ string, cfg *replication.Config) { cfg.Region.CrossRegionMode = replication.SyncSemi })
		f.apply("eu", put(t, "x", nil))
		f.converged(time.Minute)
		leader := f.leader("us")
		for _, m := range f.nodes["us"] { // the other region's leader finds no quorum
			if m != leader {
				m.Disk().Hang()
			}
		}
		err = f.leader("eu").Replicator().Apply(put(t, "y", nil), 300*time.Millisecond)
		return err
	}
	virtually(t, func(t *testing.T) { require.ErrorIs(t, history(t), region.ErrUnconfirmed) })
	region.AckBeforeCommit(true)
	defer region.AckBeforeCommit(false)
	virtually(t, func(t *testing.T) { require.NoError(t, history(t), "the fault is not noticed by the history") })
}

// snapshotHistory is a history in which a region's leader has what waits for
// another region from a snapshot alone, and what it wrote had seen the other's
// write. It says what went wrong.
func snapshotHistory(t *testing.T) error {
	f := newFederation(t, 16, two, func(_ string, cfg *replication.Config) {
		cfg.Raft.SnapshotThreshold, cfg.Raft.TrailingLogs, cfg.Raft.SnapshotInterval = 20, 1, time.Second
	})
	for _, m := range f.nodes["eu"] { // by time alone its writes would lose
		m.SetClockOffset(-time.Hour)
	}
	f.apply("us", put(t, "x", map[string]any{"k": "b"}))
	f.converged(time.Minute)
	f.Net.Partition(f.ids("eu"), f.ids("us"))
	f.apply("eu", set(t, "x", "k", "a"))
	for i := range 30 {
		f.apply("eu", put(t, fmt.Sprint("n", i), nil))
	}
	fresh := f.nodes["eu"][2]
	f.Crash(fresh)
	f.Wipe(fresh)
	old := f.leader("eu")
	require.NoError(t, node(old).TakeSnapshot(bounded(t, time.Minute)))
	require.NoError(t, node(old).RemoveMember(bounded(t, time.Minute), fresh.ID, false))
	require.NoError(t, f.Start(t.Context(), fresh))
	f.Eventually(time.Minute, "it leads", func() bool {
		_ = node(fresh).TransferLeadership(bounded(t, time.Minute), fresh.ID) // as soon as it is a voter
		return fresh.Replicator().IsLeader()
	})
	f.Crash(old) // with what it has sent and the partition has held up
	f.Net.Heal()
	<-time.After(30 * time.Second) // virtual
	if strings.Contains(f.Transcript.String(), "beyond the outbox") {
		return errors.New("a state transfer, although the outbox has room")
	}
	want := f.leader("eu").Store().Stats()
	for _, m := range f.nodes["us"] {
		if got := m.Store().Stats(); got.Digest != want.Digest {
			return fmt.Errorf("%s has %d nodes of %d, or they differ", m.ID, got.Nodes, want.Nodes)
		}
	}
	return nil
}

// TestMutant_OutboxFromLog and TestMutant_ContextForgotten: a leader that joined
// by a snapshot goes on with the stream, contexts included.
func TestMutant_OutboxFromLog(t *testing.T) {
	virtually(t, func(t *testing.T) { require.NoError(t, snapshotHistory(t)) })
	region.OutboxFromLog(true)
	defer region.OutboxFromLog(false)
	virtually(t, func(t *testing.T) { require.ErrorContains(t, snapshotHistory(t), "state transfer") })
}

func TestMutant_ContextForgotten(t *testing.T) {
	region.ContextForgotten(true)
	defer region.ContextForgotten(false)
	virtually(t, func(t *testing.T) { require.ErrorContains(t, snapshotHistory(t), "differ") })
}
