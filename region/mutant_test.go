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
