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
		f.lose("eu")
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

// lose makes a region begin anew with empty disks.
func (f *federation) lose(name string) {
	f.crashAll(name)
	for _, m := range f.nodes[name] {
		f.Wipe(m)
	}
	f.startAll(name)
}

func (f *federation) crashAll(name string) {
	for _, m := range f.nodes[name] {
		f.Crash(m)
	}
}

func (f *federation) startAll(name string) {
	f.t.Helper()
	errs := make(chan error, perRegion)
	for _, m := range f.nodes[name] {
		go func() { errs <- f.Start(f.t.Context(), m) }()
	}
	for range perRegion {
		require.NoError(f.t, <-errs)
	}
}

// stopped waits until a region's leader says that the region has lost writes.
func (f *federation) stopped(name string) {
	f.t.Helper()
	f.Eventually(time.Minute, name+" says that it has lost writes", func() bool {
		h := f.leader(name).Replicator().Health()
		return !h.Healthy && h.State == "region_stopped"
	})
}

// TestARegionThatWroteMoreThanItLostStops: what it has written since takes the
// positions of what it lost, and goes on behind them. The other region has other
// writes at these positions, and would pass over the new ones.
func TestARegionThatWroteMoreThanItLostStops(t *testing.T) {
	for _, more := range []int{0, 3} {
		t.Run(fmt.Sprint(more), func(t *testing.T) {
			virtually(t, func(t *testing.T) {
				f := newFederation(t, 19, two, nil)
				for i := range 5 {
					f.apply("eu", put(t, fmt.Sprint("n", i), nil))
				}
				f.converged(time.Minute)
				have := node(f.leader("us")).Status().Applied[0]
				f.crashAll("us")
				f.lose("eu")
				for i := range int(have) + more {
					f.apply("eu", put(t, fmt.Sprint("other", i), nil))
				}
				f.startAll("us")
				f.stopped("eu")
				require.ErrorContains(t, f.leader("eu").Replicator().Apply(put(t, "new", nil), 10*time.Second), "lost")
				_, err := f.leader("us").Store().Node("n4")
				require.NoError(t, err)
				_, err = f.leader("us").Store().Node(replication.NodeID(fmt.Sprint("other", int(have)+more-1)))
				require.ErrorIs(t, err, replication.ErrNotFound, "what it wrote since is not brought to us")
				f.apply("us", put(t, "more", nil))
			})
		})
	}
}

// TestTheAlarmOutlivesTheLeader: that a region has lost writes is known to its
// next leader, and after a restart, before another region can be asked.
func TestTheAlarmOutlivesTheLeader(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 25, two, nil)
		for i := range 5 {
			f.apply("eu", put(t, fmt.Sprint("n", i), nil))
		}
		f.converged(time.Minute)
		f.lose("eu")
		f.stopped("eu")
		f.crashAll("us")
		f.Crash(f.leader("eu"))
		require.ErrorContains(t, f.leader("eu").Replicator().Apply(put(t, "new", nil), 10*time.Second), "lost")
		f.crashAll("eu")
		f.startAll("eu")
		require.ErrorContains(t, f.leader("eu").Replicator().Apply(put(t, "new", nil), 10*time.Second), "lost")
		for _, m := range f.nodes["eu"] {
			f.Eventually(time.Minute, m.ID+" knows it", func() bool { return m.Replicator().Health().State == "region_stopped" })
		}
	})
}

// TestAForkDoesNotSpread: what a region has written at positions that were taken
// reaches no other region, one that has none of the first writes either; and when
// those that have them were set back, too, the region goes on.
func TestAForkDoesNotSpread(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 27, []string{"ap", "eu", "us"}, nil)
		f.leader("us")
		f.crashAll("ap")
		for i := range 5 {
			f.apply("eu", put(t, fmt.Sprint("n", i), nil))
		}
		f.Eventually(time.Minute, "us has them", func() bool { return node(f.leader("us")).Status().Applied[1] >= 5 })
		f.crashAll("us")
		f.lose("eu")
		for i := range 8 {
			f.apply("eu", put(t, fmt.Sprint("other", i), nil))
		}
		f.startAll("us")
		f.stopped("eu")
		require.Contains(t, fmt.Sprint(f.leader("eu").Replicator().Health().Reasons), "others are here")
		f.startAll("ap")
		f.apply("ap", put(t, "more", nil))
		f.Eventually(time.Minute, "what ap writes is in eu and us", func() bool {
			return node(f.leader("eu")).Status().Applied[0] > 0 && node(f.leader("us")).Status().Applied[0] > 0
		})
		<-time.After(20 * time.Second) // virtual
		require.Zero(t, node(f.leader("ap")).Status().Applied[1])

		f.lose("us")
		f.Eventually(time.Minute, "eu goes on", func() bool {
			return f.leader("eu").Replicator().Apply(put(t, "new", nil), 10*time.Second) == nil
		})
		f.Eventually(time.Minute, "ap has what eu wrote", func() bool { return node(f.leader("ap")).Status().Applied[1] >= 9 })
	})
}
