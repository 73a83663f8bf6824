package region_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	metrics "github.com/hashicorp/go-metrics/compat"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// TestWhatIsTold: events, health and metrics of a conflict, of a region that
// lags, and of a region epoch.
func TestWhatIsTold(t *testing.T) {
	virtually(t, func(t *testing.T) {
		sink := metrics.NewInmemSink(time.Hour, time.Hour)
		conf := metrics.DefaultConfig("nornicdb")
		conf.EnableRuntimeMetrics, conf.EnableHostname = false, false
		_, err := metrics.NewGlobal(conf, sink)
		require.NoError(t, err)
		defer func() { _, _ = metrics.NewGlobal(conf, &metrics.BlackholeSink{}) }()
		f := newFederation(t, 24, two, func(_ string, cfg *replication.Config) {
			cfg.Region.ConflictStrategy, cfg.Region.WriteRegion = "manual", "eu"
		})
		f.apply("eu", put(t, "x", map[string]any{"k": 0}))
		f.converged(time.Minute)
		us := f.nodes["us"][0].Replicator()
		events, cancel := us.(replication.Subscriber).Subscribe(1000)
		defer cancel()
		f.Net.Partition(f.ids("eu"), f.ids("us"))
		require.NoError(t, node(f.nodes["us"][1]).PromoteRegion(bounded(t, time.Minute)))
		f.apply("us", set(t, "x", "k", "b"))
		f.apply("eu", set(t, "x", "k", "a"))
		f.apply("eu", put(t, "y", nil))
		<-time.After(20 * time.Second) // virtual
		for _, m := range f.nodes["eu"] {
			us := m.Health().Federation.Regions[0]
			require.EqualValues(t, 2, us.LagEntries)
			require.InDelta(t, 20, us.LagSeconds, 2)
		}
		f.Net.Heal()
		f.converged(time.Minute)
		seen := make(map[replication.EventType]replication.Event)
		for len(events) > 0 {
			e := <-events
			seen[e.Type] = e
		}
		require.Equal(t, "1 about field property", seen[replication.EventConflict].Detail)
		require.Equal(t, "us", seen[replication.EventRegionEpoch].Leader)
		f.Eventually(time.Minute, "no lag", func() bool {
			us := f.leader("eu").Health().Federation.Regions[0]
			return us.LagSeconds == 0 && us.LagEntries == 0
		})
		d := sink.Data()[0]
		text := fmt.Sprint(d.Gauges, d.Counters, d.Samples)
		for _, name := range []string{"conflicts_total;strategy=manual", "conflicts_by_field_total;field=property", "conflicts_open", "region_entries_merged_total",
			"region_unsettled_rows", "region_unsettled_bytes", "region_cut_lag_entries", "region_outbox_entries", "region_outbox_bytes",
			"region_clock_offset_seconds;region=us", "region_merge_seconds"} {
			require.True(t, strings.Contains(text, "nornicdb.replication."+name), "%s is not reported: %s", name, text)
		}
	})
}

// TestARegionThatCatchesUpIsStillBehind: as long as a region lacks much, its lag is
// told in seconds too, however fast it gets further.
func TestARegionThatCatchesUpIsStillBehind(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 28, two, nil)
		f.apply("eu", put(t, "x", nil))
		f.converged(time.Minute)
		f.Net.Partition(f.ids("eu"), f.ids("us"))
		for i := range 200 {
			f.apply("eu", set(t, "x", "k", fmt.Sprint(i, strings.Repeat("x", 4<<10))))
		}
		<-time.After(time.Minute) // virtual
		for _, a := range f.nodes["eu"] {
			for _, b := range f.nodes["us"] {
				f.Net.SetFaults(a.ID, b.ID, testharness.Faults{Bandwidth: 100 << 10})
			}
		}
		f.Net.Heal()
		told := 0
		f.Eventually(time.Minute, "us has everything", func() bool {
			us := f.leader("eu").Health().Federation.Regions[0]
			if us.LagEntries > 0 && us.LagEntries < 190 {
				require.Greater(t, us.LagSeconds, 50.0, "it lacks %d entries", us.LagEntries)
				told++
			}
			return us.LagEntries == 0
		})
		require.Greater(t, told, 3)
	})
}
