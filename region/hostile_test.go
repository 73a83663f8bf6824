package region_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region"
	"github.com/nornicdb/replication/region/conflict"
	"github.com/nornicdb/replication/testharness"
	"github.com/nornicdb/replication/transport"
	"github.com/stretchr/testify/require"
)

// TestTroubleInAStateTransfer: a leader of either region dies at some write to
// its disk, or hands over, while a state is on its way; the state arrives.
func TestTroubleInAStateTransfer(t *testing.T) {
	for i, c := range []struct {
		side  string
		write int // of the crash; 0: leadership is handed over
	}{{"us", 0}, {"us", 1}, {"us", 2}, {"us", 3}, {"us", 4}, {"us", 6}, {"us", 9}, {"eu", 0}, {"eu", 1}, {"eu", 2}, {"eu", 4}} {
		t.Run(fmt.Sprint(c.side, c.write), func(t *testing.T) {
			if testing.Short() && i%4 != 0 {
				t.Skip("some of them")
			}
			virtually(t, func(t *testing.T) {
				f := newFederation(t, uint64(50+i), two, func(_ string, cfg *replication.Config) { cfg.Region.OutboxMaxEntries = 2 })
				f.apply("eu", put(t, "x", nil))
				f.converged(time.Minute)
				f.Net.Partition(f.ids("eu"), f.ids("us"))
				for j := range 6 { // several parts
					f.apply("eu", put(t, fmt.Sprint("n", j), map[string]any{"long": strings.Repeat("x", 100<<10)}))
					f.apply("us", put(t, fmt.Sprint("m", j), nil))
				}
				f.distant(10 * time.Millisecond)
				f.Net.Heal()
				f.Eventually(time.Minute, "the state is on its way", func() bool {
					return strings.Contains(f.Transcript.String(), "beyond the outbox")
				})
				victim := f.leader(c.side)
				if c.write == 0 {
					<-time.After(25 * time.Millisecond) // virtual: some parts are there
					require.NoError(t, node(victim).TransferLeadership(bounded(t, time.Minute), ""))
				} else {
					f.CrashAt(victim, c.write)
				}
				<-time.After(5 * time.Second) // virtual
				victim.Disk().CrashAt(0, nil)
				f.Eventually(time.Minute, "it is back", func() bool { return f.Start(context.Background(), victim) == nil })
				f.apply("eu", put(t, "after", nil))
				f.converged(5 * time.Minute)
				require.Equal(t, 14, victim.Store().Stats().Nodes)
				f.Eventually(time.Minute, "everything is settled", func() bool { return node(victim).Status().Rows == 0 })
			})
		})
	}
}

// TestAStateOverALinkThatBreaks: a connection that ends now and then costs a part
// of the state, not all that was sent of it.
func TestAStateOverALinkThatBreaks(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 73, two, func(_ string, cfg *replication.Config) { cfg.Region.OutboxMaxEntries = 2 })
		f.apply("eu", put(t, "x", nil))
		f.converged(time.Minute)
		f.Net.Partition(f.ids("eu"), f.ids("us"))
		for i := range 24 { // a part each
			f.apply("eu", put(t, fmt.Sprint("n", i), map[string]any{"long": strings.Repeat("x", 200<<10)}))
		}
		f.distant(50 * time.Millisecond)
		f.Net.Heal()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			for ctx.Err() == nil {
				sleep(ctx, 3*time.Second) // virtual
				for _, a := range f.ids("eu") {
					for _, b := range f.ids("us") {
						f.Net.Drop(a, b)
					}
				}
			}
		}()
		f.Eventually(2*time.Minute, "us has everything", func() bool { return f.nodes["us"][0].Store().Stats().Nodes == 25 })
		require.Equal(t, 1, strings.Count(f.Transcript.String(), "beyond the outbox"), "it is sent once")
	})
}

// TestTwoStatesAtOnce: a region that was away gets the states of two others,
// both in many parts, at the same time.
func TestTwoStatesAtOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("states of several parts, three regions")
	}
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 72, []string{"ap", "eu", "us"}, func(_ string, cfg *replication.Config) { cfg.Region.OutboxMaxEntries = 2 })
		f.apply("eu", put(t, "x", nil))
		f.converged(time.Minute)
		for _, m := range f.nodes["us"] {
			f.Crash(m)
		}
		for _, pair := range [][2]string{{"ap", "eu"}, {"ap", "us"}, {"eu", "us"}} {
			f.Net.Partition(f.ids(pair[0]), f.ids(pair[1]))
		}
		for i := range 6 {
			for _, name := range []string{"ap", "eu"} {
				f.apply(name, put(t, fmt.Sprint(name, i), map[string]any{"long": strings.Repeat("x", 100<<10)}))
			}
		}
		f.Net.SetDefaultFaults(testharness.Faults{Latency: 20 * time.Millisecond})
		errs := make(chan error, perRegion)
		for _, m := range f.nodes["us"] {
			go func() { errs <- f.Start(t.Context(), m) }()
		}
		for range perRegion {
			require.NoError(t, <-errs)
		}
		f.leader("us")
		f.Net.Heal()
		f.Eventually(time.Minute, "us has what both have", func() bool { return f.nodes["us"][0].Store().Stats().Nodes == 13 })
		require.Equal(t, 2, strings.Count(f.Transcript.String(), "this region's state region=us"), "each state is sent once")
		f.converged(5 * time.Minute)
	})
}

// TestPromotionsRace: two regions are promoted at once while they cannot hear
// each other; afterwards all know one write region, and no write is lost.
func TestPromotionsRace(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 70, []string{"ap", "eu", "us"}, func(_ string, cfg *replication.Config) { cfg.Region.WriteRegion = "ap" })
		f.apply("eu", put(t, "x", nil))
		f.converged(time.Minute)
		f.Net.Partition(f.ids("eu"), f.ids("us"))
		done := make(chan error, 2)
		for _, name := range []string{"eu", "us"} {
			go func() { done <- node(f.nodes[name][1]).PromoteRegion(bounded(t, time.Minute)) }()
		}
		require.NoError(t, <-done)
		require.NoError(t, <-done)
		for _, name := range f.regions {
			f.apply(name, put(t, "in-"+name, nil))
		}
		require.NoError(t, node(f.nodes["eu"][0]).PromoteRegion(bounded(t, time.Minute)), "again")
		f.Net.Heal()
		f.Eventually(time.Minute, "all know the same write region", func() bool {
			first := f.Members[0].Health().Federation.Epoch
			for _, m := range f.Members {
				if e := m.Health().Federation.Epoch; e != first || e.Number < 2 {
					return false
				}
			}
			return true
		})
		for _, name := range f.regions {
			f.apply(name, put(t, "later-"+name, nil))
		}
		f.converged(time.Minute)
		require.Equal(t, 7, f.Members[0].Store().Stats().Nodes)
	})
}

// liar is a peer that has the secret and says that it belongs to region us.
func (f *federation) liar(t *testing.T) replication.Caller {
	model := f.nodes["us"][0].Config
	tr := f.liarsTransport(t, model)
	tr.SetRegions(region.SettingsHash(model), func(string) error { return nil })
	conn, err := tr.ConnectRegion(bounded(t, time.Minute), f.leader("eu").Addr)
	require.NoError(t, err)
	return conn.(replication.Caller)
}

func (f *federation) liarsTransport(t *testing.T, model *replication.Config) *transport.Transport {
	cfg := *model
	cfg.NodeID, cfg.BindAddr = "liar", "liar:7688"
	o, err := transport.OptionsFromConfig(&cfg, nil)
	require.NoError(t, err)
	h := f.Net.Host("liar")
	o.Secret, o.Listen, o.Dial = []byte("a secret of the test harness"), h.Listen, h.Dial
	tr, err := transport.New(o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, tr.Close()) })
	return tr
}

// TestANodeOfOnesOwnThatLies: what no correct node hands to its leader is refused.
func TestANodeOfOnesOwnThatLies(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 74, two, nil)
		f.apply("eu", put(t, "x", nil))
		conn, err := f.liarsTransport(t, f.nodes["eu"][0].Config).Connect(bounded(t, time.Minute), f.leader("eu").Addr)
		require.NoError(t, err)
		settings := conflict.Settings{Regions: two}
		e := settings.ToWAL(&conflict.Entry{Dot: conflict.Dot{Region: 0, Pos: 1}, Time: 1 << 20})
		var resp replication.WALBatchResponse
		err = conn.(replication.Caller).Call(bounded(t, time.Minute), replication.MsgWALBatch, []*replication.WALEntry{e}, &resp)
		require.ErrorIs(t, err, replication.ErrInvalidCommand)
		f.apply("eu", put(t, "y", nil))
	})
}

// TestAPeerThatLies: what no correct region sends is refused, and the region
// goes on.
func TestAPeerThatLies(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 71, []string{"ap", "eu", "us"}, nil)
		f.apply("eu", put(t, "x", nil))
		f.converged(time.Minute)
		for _, m := range f.nodes["us"] {
			f.Crash(m)
		}
		liar := f.liar(t)
		settings := conflict.Settings{Regions: []string{"ap", "eu", "us"}}
		at := node(f.leader("eu")).Status()
		entry := func(change func(*replication.WALEntry)) []*replication.WALEntry {
			pos := at.Applied[2] + 1
			e := settings.ToWAL(&conflict.Entry{Dot: conflict.Dot{Region: 2, Pos: pos}, Time: at.Clock + 1<<20, Context: at.Seen[2]})
			e.Context["us"] = pos - 1
			change(e)
			return []*replication.WALEntry{e}
		}
		send := func(code replication.MessageType, payload any) error {
			var resp replication.WALBatchResponse
			return liar.Call(bounded(t, time.Minute), code, payload, &resp)
		}
		for name, lie := range map[string]func(*replication.WALEntry){
			"another origin":   func(e *replication.WALEntry) { e.Origin = "ap" },
			"our own stream":   func(e *replication.WALEntry) { e.Origin = "eu" },
			"a time too late":  func(e *replication.WALEntry) { e.Time = 1 << 63 },
			"no time":          func(e *replication.WALEntry) { e.Time = 0 },
			"an old context":   func(e *replication.WALEntry) { e.Context = map[string]uint64{"us": e.Position - 1} },
			"a foreign region": func(e *replication.WALEntry) { e.Context["mars"] = 1 },
			"no command":       func(e *replication.WALEntry) { e.Command = nil },
			"effects":          func(e *replication.WALEntry) { e.Command.Data = []byte{1, 200} },
			"half a request":   func(e *replication.WALEntry) { e.Command.RequestID = "r" },
		} {
			require.Error(t, send(replication.MsgWALBatch, entry(lie)), name)
		}
		require.NoError(t, send(replication.MsgWALBatch, entry(func(e *replication.WALEntry) { e.Position += 7; e.Context["us"] += 7 })), "a gap is answered by the position before it")
		type part struct {
			Part struct {
				Region string
				ID     string
				Number uint64
				Rows   []map[string][]byte
			}
			Merge bool
		}
		var p part
		p.Part.Region, p.Part.ID = "ap", "t"
		require.Error(t, send(replication.MsgRegionState, &p), "the state of another region")
		p.Part.Region = "us"
		p.Part.Rows = []map[string][]byte{{"K": []byte("replication/history"), "V": []byte("x")}}
		require.Error(t, send(replication.MsgRegionState, &p), "a row that is none of a state's")
		p.Part.Rows = []map[string][]byte{{"K": []byte("replication/conflict/h"), "V": []byte("x")}}
		require.NoError(t, send(replication.MsgRegionState, &p))
		p.Part.Number, p.Part.Rows, p.Merge = 1, nil, true
		require.Error(t, send(replication.MsgRegionState, &p))
		p.Part.ID, p.Part.Number = "another", 3
		require.Error(t, send(replication.MsgRegionState, &p))
		require.Error(t, send(replication.MsgApply, &replication.ApplyRequest{Commands: []*replication.Command{{Type: 34, Data: []byte{1}}}, TimeoutMS: 1000, Hops: 1}))
		require.Error(t, send(replication.MsgApply, &replication.ApplyRequest{TimeoutMS: 1 << 60, Hops: 1}))

		f.apply("eu", put(t, "y", nil))
		for _, m := range f.nodes["us"] {
			go func() { _ = f.Start(context.Background(), m) }() // converged says whether it does
		}
		f.Eventually(time.Minute, "us is back", func() bool {
			return f.nodes["us"][0].Running() && f.nodes["us"][1].Running() && f.nodes["us"][2].Running()
		})
		f.converged(5 * time.Minute)
		for _, m := range f.nodes["eu"] {
			require.True(t, m.Replicator().Health().Healthy, "%v", m.Replicator().Health().Reasons)
		}
	})
}
