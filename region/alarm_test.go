package region_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// TestClockSkewIsRefused: with the policy reject, a region whose clock is off
// from that of most others takes no writes; the others go on.
func TestClockSkewIsRefused(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 14, []string{"ap", "eu", "us"}, func(_ string, cfg *replication.Config) { cfg.Region.ClockSkewPolicy = "reject" })
		f.apply("us", put(t, "x", nil))
		events, cancel := f.leader("us").Replicator().(replication.Subscriber).Subscribe(1000)
		defer cancel()
		for _, m := range f.nodes["us"] {
			m.SetClockOffset(time.Hour)
		}
		f.Eventually(time.Minute, "us refuses writes", func() bool {
			err := f.leader("us").Replicator().Apply(put(t, "x", nil), 10*time.Second)
			if err != nil {
				require.ErrorIs(t, err, replication.ErrClockSkew)
			}
			return err != nil
		})
		f.apply("eu", put(t, "y", nil))
		for _, m := range f.nodes["us"] {
			m.SetClockOffset(0)
		}
		f.Eventually(time.Minute, "us takes writes again", func() bool {
			return f.leader("us").Replicator().Apply(put(t, "z", nil), 10*time.Second) == nil
		})
		f.converged(time.Minute)
		var told []string
		for len(events) > 0 {
			if e := <-events; e.Type == replication.EventClockSkew {
				told = append(told, e.Detail)
			}
		}
		require.Len(t, told, 2)
		require.Contains(t, told[0], "off from that of 2 of 2")
		require.Contains(t, told[1], "again")
	})
}

// TestANewLeaderAsksForTheClocksFirst: with the policy reject it does not take
// writes because it does not know yet how far off its clock is; one that finds
// nobody to ask does not wait for that.
func TestANewLeaderAsksForTheClocksFirst(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 18, []string{"ap", "eu", "us"}, func(_ string, cfg *replication.Config) { cfg.Region.ClockSkewPolicy = "reject" })
		f.apply("us", put(t, "x", nil))
		f.converged(time.Minute)
		for _, m := range f.nodes["us"] {
			m.SetClockOffset(time.Hour)
		}
		for _, a := range f.nodes["us"] { // the answers take their time
			for _, b := range append(f.nodes["eu"], f.nodes["ap"]...) {
				f.Net.SetFaults(a.ID, b.ID, testharness.Faults{Latency: 75 * time.Millisecond})
				f.Net.SetFaults(b.ID, a.ID, testharness.Faults{Latency: 75 * time.Millisecond})
			}
		}
		old := f.leader("us")
		f.Eventually(time.Minute, "us refuses writes", func() bool {
			return errors.Is(old.Replicator().Apply(put(t, "x", nil), 10*time.Second), replication.ErrClockSkew)
		})
		require.NoError(t, node(old).TransferLeadership(bounded(t, time.Minute), ""))
		f.Eventually(time.Minute, "another leads", func() bool { return f.leader("us") != old })
		for range 20 {
			err := f.leader("us").Replicator().Apply(put(t, "y", nil), time.Second)
			require.Error(t, err)
			require.NotErrorIs(t, err, replication.ErrUnknownOutcome)
		}
		for _, m := range f.nodes["us"] {
			m.SetClockOffset(0)
		}
		f.Eventually(time.Minute, "us takes writes again", func() bool {
			return f.leader("us").Replicator().Apply(put(t, "z", nil), 10*time.Second) == nil
		})
		f.Net.Partition(f.ids("us"), append(f.ids("eu"), f.ids("ap")...))
		old = f.leader("us")
		require.NoError(t, node(old).TransferLeadership(bounded(t, time.Minute), ""))
		f.Eventually(time.Minute, "another leads", func() bool { return f.leader("us") != old })
		require.NoError(t, f.leader("us").Replicator().Apply(put(t, "z", nil), 10*time.Second), "it waits until nobody has answered")
	})
}

// TestARegionThatLostWritesStops: all disks of a region are lost; what it is
// told of its own stream stops it from using the same positions again.
func TestARegionThatLostWritesStops(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 15, two, nil)
		for i := range 5 {
			f.apply("eu", put(t, fmt.Sprint("n", i), nil))
		}
		f.converged(time.Minute)
		for _, m := range f.nodes["eu"] {
			f.Crash(m)
			f.Wipe(m)
		}
		errs := make(chan error, perRegion)
		for _, m := range f.nodes["eu"] {
			go func() { errs <- f.Start(t.Context(), m) }()
		}
		for range perRegion {
			require.NoError(t, <-errs)
		}
		f.Eventually(time.Minute, "eu says that it has lost writes", func() bool {
			h := f.leader("eu").Replicator().Health()
			return !h.Healthy && h.State == "region_stopped"
		})
		err := f.leader("eu").Replicator().Apply(put(t, "new", nil), 10*time.Second)
		require.ErrorContains(t, err, "lost")
		_, err = f.leader("us").Store().Node("n4")
		require.NoError(t, err, "us has everything, and goes on")
		f.apply("us", put(t, "more", nil))
	})
}
