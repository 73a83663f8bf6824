package region_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region"
	"github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

func (f *federation) ids(name string) (list []string) {
	for _, m := range f.nodes[name] {
		list = append(list, m.ID)
	}
	return list
}

// TestConcurrentWrites is the first of the spec's two histories: each strategy
// shows its winner, in both regions.
func TestConcurrentWrites(t *testing.T) {
	for strategy, want := range map[string]string{"last_write_wins": "a", "first_write_wins": "b", "manual": "a"} {
		t.Run(strategy, func(t *testing.T) {
			virtually(t, func(t *testing.T) {
				f := newFederation(t, 2, two, func(_ string, cfg *replication.Config) { cfg.Region.ConflictStrategy = strategy })
				f.apply("eu", put(t, "x", map[string]any{"k": 0}))
				f.converged(time.Minute)
				f.Net.Partition(f.ids("eu"), f.ids("us"))
				f.apply("us", set(t, "x", "k", "b"))
				<-time.After(2 * time.Millisecond) // virtual: a is the later one
				f.apply("eu", set(t, "x", "k", "a"))
				f.Net.Heal()
				f.converged(time.Minute)
				require.Equal(t, want, property(t, f.nodes["us"][0], "x", "k"))
				list, err := node(f.nodes["us"][2]).Conflicts(t.Context(), replication.ConflictFilter{})
				require.NoError(t, err)
				if strategy != "manual" {
					require.Empty(t, list)
					return
				}
				f.resolve(list)
			})
		})
	}
}

// resolve settles the one conflict from a node that does not lead.
func (f *federation) resolve(list []replication.Conflict) {
	t := f.t
	require.Len(t, list, 1)
	require.Len(t, list[0].Versions, 2)
	follower := f.nodes["us"][0]
	if follower == f.leader("us") {
		follower = f.nodes["us"][1]
	}
	require.Contains(t, fmt.Sprint(follower.Replicator().Health().Reasons), "conflicts")
	expect := []replication.VersionID{list[0].Versions[0].VersionID, list[0].Versions[1].VersionID}
	err := node(follower).Resolve(bounded(t, time.Minute), list[0].Key, replication.Resolution{Expect: expect[:1], Value: []byte(`"c"`)})
	require.ErrorIs(t, err, replication.ErrVersionsChanged, "not what the operator saw")
	require.NoError(t, node(follower).Resolve(bounded(t, time.Minute), list[0].Key, replication.Resolution{Expect: expect, Value: []byte(`"c"`)}))
	err = node(follower).Resolve(bounded(t, time.Minute), list[0].Key, replication.Resolution{Expect: expect, Value: []byte(`"d"`)})
	require.ErrorIs(t, err, replication.ErrNoConflict)
	f.converged(time.Minute)
	for _, m := range f.Members {
		require.Equal(t, "c", property(t, m, "x", "k"))
		left, err := node(m).Conflicts(t.Context(), replication.ConflictFilter{})
		require.NoError(t, err)
		require.Empty(t, left)
	}
}

// TestASeenWriteIsReplacedWhateverTheClocks is the second of the two histories.
func TestASeenWriteIsReplacedWhateverTheClocks(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 3, two, nil)
		for _, m := range f.nodes["us"] {
			m.SetClockOffset(-5 * time.Second)
		}
		f.apply("eu", put(t, "x", map[string]any{"k": "a"}))
		f.converged(time.Minute)
		f.apply("us", set(t, "x", "k", "b"))
		f.converged(time.Minute)
		require.Equal(t, "b", property(t, f.nodes["eu"][0], "x", "k"))
		f.Eventually(time.Minute, "health tells of the clock", func() bool {
			for _, r := range f.leader("eu").Replicator().Health().Reasons {
				if len(r) > 9 && r[:9] == "the clock" {
					return true
				}
			}
			return false
		})
	})
}

// TestMetadataGoes: when all regions have everything, and have said so, only
// the headers are left.
func TestMetadataGoes(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 4, []string{"ap", "eu", "us"}, nil)
		for i := range 30 {
			f.apply(f.regions[i%3], put(t, fmt.Sprint("n", i%7), map[string]any{"i": i}))
		}
		f.converged(time.Minute)
		f.Eventually(time.Minute, "everything is settled", func() bool {
			for _, m := range f.Members {
				if s := node(m).Status(); s.Rows != 0 || s.NeedsMark {
					return false
				}
			}
			return true
		})
		for _, m := range f.Members {
			f.Eventually(time.Minute, "only what does not grow with the graph is left", func() bool {
				return reflect.DeepEqual(rows(t, m), []string{"replication/conflict/h", "replication/region/h", "replication/region/s"})
			})
		}
		before := node(f.Members[0]).Status().Applied
		<-time.After(10 * time.Second) // virtual
		require.Equal(t, before, node(f.Members[0]).Status().Applied, "marks do not call for marks")
	})
}

// rows are the keys of the metadata rows of this mode.
func rows(t *testing.T, m *testharness.Member) (keys []string) {
	require.NoError(t, m.Store().View(func(meta replication.Meta) error {
		for _, prefix := range []string{"replication/conflict/", "replication/region/"} {
			err := meta.ScanMeta([]byte(prefix), func(k, _ []byte) error {
				keys = append(keys, string(k))
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	}))
	return keys
}

// TestSemiSync: a write is answered when the other region has it; without the
// other region its outcome says where it is.
func TestSemiSync(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 5, two, func(_ string, cfg *replication.Config) { cfg.Region.CrossRegionMode = replication.SyncSemi })
		f.apply("eu", put(t, "x", nil))
		require.NoError(t, f.leader("us").Replicator().(replication.ConsistentReader).WaitApplied(t.Context(), 0))
		_, err := f.leader("us").Store().Node("x")
		require.NoError(t, err, "it is in the other region when it is answered")
		f.Net.Partition(f.ids("eu"), f.ids("us"))
		err = f.leader("eu").Replicator().Apply(put(t, "y", nil), 5*time.Second)
		require.ErrorIs(t, err, region.ErrUnconfirmed)
		require.ErrorIs(t, err, replication.ErrUnknownOutcome)
		f.Net.Heal()
		f.converged(time.Minute)
		_, err = f.leader("us").Store().Node("y")
		require.NoError(t, err, "and it is on its way nevertheless")
	})
}

// TestWriteRegion: writes go to the one write region from every node; a
// promotion moves it; nothing of the time between is lost.
func TestWriteRegion(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 6, two, func(_ string, cfg *replication.Config) { cfg.Region.WriteRegion = "eu" })
		us := f.nodes["us"][1]
		ctx := bounded(t, time.Minute)
		_, err := node(us).ApplyBatch(ctx, []*replication.Command{put(t, "x", nil)})
		require.NoError(t, err)
		_, err = f.leader("eu").Store().Node("x")
		require.NoError(t, err, "the write region took it")
		create := put(t, "x", nil)
		create.Type = replication.CmdCreateNode
		_, err = node(us).ApplyBatch(ctx, []*replication.Command{create})
		require.ErrorIs(t, err, replication.ErrExists, "a verdict comes back")

		f.Net.Partition(f.ids("eu"), f.ids("us"))
		require.NoError(t, node(us).PromoteRegion(ctx))
		f.apply("us", put(t, "new", nil))
		f.apply("eu", put(t, "old", nil))
		f.Net.Heal()
		f.converged(time.Minute)
		f.Eventually(time.Minute, "the old write region has heard of it", func() bool {
			before := node(f.leader("us")).Status().Applied
			f.apply("eu", put(t, "z", map[string]any{"at": time.Now().UnixNano()}))
			after := node(f.leader("us")).Status().Applied
			return after[1] > before[1] && after[0] == before[0]
		})
		f.converged(time.Minute)
		for _, id := range []replication.NodeID{"new", "old", "z"} {
			_, err := f.nodes["eu"][2].Store().Node(id)
			require.NoError(t, err)
		}
	})
}

// TestActiveActiveIsNotPromoted, and what else is refused.
func TestRefusals(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 7, two, nil)
		eu := node(f.leader("eu"))
		require.ErrorIs(t, eu.PromoteRegion(t.Context()), replication.ErrUnsupported)
		opaque := []*replication.Command{{Type: replication.CmdEmbedder, Data: []byte("x")}}
		_, err := eu.ApplyBatch(t.Context(), opaque)
		require.ErrorIs(t, err, replication.ErrOpaqueWrite)
		query, err := json.Marshal(map[string]string{"query": "CREATE (n)"})
		require.NoError(t, err)
		_, err = eu.ApplyBatch(t.Context(), []*replication.Command{{Type: replication.CmdCypher, Data: query}})
		require.ErrorIs(t, err, replication.ErrOpaqueWrite)
		for own := replication.CommandType(32); own < replication.CmdEmbedder; own++ {
			for _, data := range []string{"", `{"outbox_max_entries":5}`} {
				_, err = eu.ApplyBatch(t.Context(), []*replication.Command{{Type: own, Data: []byte(data)}})
				require.ErrorIs(t, err, replication.ErrInvalidCommand, "type %d is not a client's", own)
			}
		}
		_, err = eu.ReadBarrier(t.Context(), replication.ConsistencyQuorum)
		require.ErrorIs(t, err, replication.ErrUnsupported)
		_, err = eu.ReadBarrier(bounded(t, time.Minute), replication.ConsistencyLocalQuorum)
		require.NoError(t, err)

		// Another strategy in the environment than the region was founded with.
		m := f.nodes["us"][0]
		f.apply("us", put(t, "x", nil))
		f.converged(time.Minute)
		require.NoError(t, f.Stop(m))
		m.Config.Region.ConflictStrategy = "manual"
		require.ErrorIs(t, f.Start(t.Context(), m), replication.ErrInvalidConfig)
		m.Config.Region.ConflictStrategy = "last_write_wins"
		require.NoError(t, f.Start(t.Context(), m))
	})
}

// TestStorageIsRefused: transactions, their view of the graph, and snapshots.
func TestStorageIsRefused(t *testing.T) {
	cfg := replication.DefaultConfig()
	cfg.Mode, cfg.NodeID, cfg.BindAddr, cfg.Region.RegionID = replication.ModeMultiRegion, "n1", "127.0.0.1:7688", "eu"
	store := testharness.NewMemStore()
	for name, s := range map[string]replication.Storage{
		"no transactions":      struct{ replication.Storage }{store},
		"no snapshots":         struct{ replication.TxStorage }{store},
		"no view of the graph": blind{store},
		"views without nodes":  blindViews{store},
	} {
		_, err := replication.New(cfg, s, replication.Modes{replication.ModeMultiRegion: region.New})
		require.ErrorIs(t, err, replication.ErrUnsupported, name)
	}
	r, err := replication.New(cfg, store, replication.Modes{replication.ModeMultiRegion: region.New})
	require.NoError(t, err)
	require.NoError(t, r.Shutdown())
}

// blind is a storage whose transactions do not read the graph.
type blind struct{ *testharness.MemStore }

func (b blind) Update(fn func(replication.Tx) error) error {
	return b.MemStore.Update(func(tx replication.Tx) error { return fn(struct{ replication.Tx }{tx}) })
}

// blindViews is a storage that reads the graph in transactions that write alone.
type blindViews struct{ *testharness.MemStore }

func (b blindViews) View(fn func(replication.Meta) error) error {
	return b.MemStore.View(func(m replication.Meta) error { return fn(struct{ replication.Meta }{m}) })
}

// TestOtherSettings: regions that would diverge do not exchange anything.
func TestOtherSettings(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 8, two, func(name string, cfg *replication.Config) {
			if name == "us" {
				cfg.Region.ConflictStrategy = "first_write_wins"
			}
		})
		f.apply("eu", put(t, "x", nil))
		f.apply("us", put(t, "y", nil))
		for _, name := range two {
			f.Eventually(time.Minute, name+" tells of it", func() bool {
				h := f.leader(name).Replicator().Health()
				return len(h.Reasons) > 0 && h.Federation.Regions[0].State == "silent"
			})
		}
		_, err := f.leader("us").Store().Node("x")
		require.ErrorIs(t, err, replication.ErrNotFound)
	})
}

// TestBeyondTheOutbox: a region that was away for longer than the outbox keeps
// is caught up by the state, and later by the stream again.
func TestBeyondTheOutbox(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 9, two, func(_ string, cfg *replication.Config) { cfg.Region.OutboxMaxEntries = 5 })
		f.apply("eu", put(t, "x", map[string]any{"k": 0}))
		f.converged(time.Minute)
		f.Net.Partition(f.ids("eu"), f.ids("us"))
		for i := range 20 {
			f.apply("eu", put(t, fmt.Sprint("eu", i), map[string]any{"i": i}))
			f.apply("us", put(t, fmt.Sprint("us", i), map[string]any{"i": i}))
			f.apply(two[i%2], set(t, "x", "k", i))
		}
		for i := range 4 { // a row that goes in several parts
			f.apply("eu", set(t, "x", fmt.Sprint("long", i), strings.Repeat("x", 100<<10)))
		}
		f.Net.Heal()
		f.converged(5 * time.Minute)
		require.Contains(t, f.Transcript.String(), "beyond the outbox", "the state was sent")
		left := filepath.Join(f.Members[0].Config.DataDir, "region-state-1.tmp") // by a crash
		require.NoError(t, os.WriteFile(left, nil, 0o600))
		require.NoError(t, f.Stop(f.Members[0]))
		require.NoError(t, f.Start(t.Context(), f.Members[0]))
		for _, m := range f.Members {
			files, err := filepath.Glob(filepath.Join(m.Config.DataDir, "region-state*"))
			require.NoError(t, err)
			require.Empty(t, files)
		}
		f.converged(time.Minute)
		require.Equal(t, 41, f.nodes["us"][1].Store().Stats().Nodes)
		f.apply("us", put(t, "after", nil))
		f.converged(time.Minute)
	})
}

// TestARequestIsAppliedOnce: over a leader change too.
func TestARequestIsAppliedOnce(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 10, two, nil)
		cmd := put(t, "x", nil)
		cmd.Type, cmd.RequestID = replication.CmdCreateNode, "r1"
		f.apply("eu", cmd)
		f.Crash(f.leader("eu"))
		f.apply("eu", cmd)
		other := put(t, "y", nil)
		other.RequestID = "r1"
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err := node(f.leader("eu")).ApplyBatch(ctx, []*replication.Command{other})
		require.True(t, errors.Is(err, replication.ErrRequestIDReused), "%v", err)
	})
}

// TestHealthSaysHowFarOtherRegionsAre: in entries and seconds, on every node of
// the region, and over HTTP.
func TestHealthSaysHowFarOtherRegionsAre(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 14, two, func(_ string, cfg *replication.Config) { cfg.Region.WriteRegion = "eu" })
		f.apply("eu", put(t, "x", nil))
		f.converged(time.Minute)
		<-time.After(3 * time.Second) // virtual: the cursors are written down
		for _, m := range f.nodes["eu"] {
			h := m.Replicator().Health().Federation
			require.Equal(t, "eu", h.Region)
			require.Equal(t, replication.Epoch{Number: 1, Owner: "eu"}, h.Epoch)
			require.Equal(t, [2]float64{}, [2]float64{float64(h.Regions[0].LagEntries), h.Regions[0].LagSeconds})
		}
		f.Net.Partition(f.ids("eu"), f.ids("us"))
		f.apply("eu", put(t, "y", nil))
		f.apply("eu", put(t, "z", nil))
		<-time.After(20 * time.Second) // virtual
		for _, m := range f.nodes["eu"] {
			h := m.Replicator().Health()
			r := h.Federation.Regions[0]
			require.Equal(t, "us", r.Region)
			require.EqualValues(t, 2, r.LagEntries)
			require.InDelta(t, 20, r.LagSeconds, 2)
			require.Equal(t, map[bool]string{true: "silent", false: "unknown"}[h.IsLeader], r.State)
			s, err := m.Replicator().(replication.Membership).ClusterStatus(t.Context())
			require.NoError(t, err)
			require.Equal(t, "silent", s.Federation.Regions[0].State, "asked of the leader")
			require.Len(t, s.Members, 3)
		}
		f.Net.Heal()
		f.converged(time.Minute)
		<-time.After(3 * time.Second) // virtual
		require.Equal(t, replication.RegionHealth{Region: "us", Address: "x", Healthy: true, State: "connected"}, func() replication.RegionHealth {
			r := f.leader("eu").Replicator().Health().Federation.Regions[0]
			r.Address = "x"
			return r
		}())
	})
}

// TestPromotionWithoutTheOtherRegion: in semi_sync, too, where a write waits for
// it; and until then a write that is not sent says so.
func TestPromotionWithoutTheOtherRegion(t *testing.T) {
	virtually(t, func(t *testing.T) {
		f := newFederation(t, 15, two, func(_ string, cfg *replication.Config) {
			cfg.Region.WriteRegion, cfg.Region.CrossRegionMode = "eu", replication.SyncSemi
		})
		f.apply("us", put(t, "x", nil))
		for _, m := range f.nodes["eu"] {
			f.Crash(m)
		}
		f.Eventually(time.Minute, "the broken connections are noticed", func() bool {
			return f.leader("us").Replicator().Health().Federation.Regions[0].State == "silent"
		})
		err := f.leader("us").Replicator().Apply(put(t, "y", nil), time.Minute)
		require.ErrorIs(t, err, replication.ErrNotReady)
		require.NotErrorIs(t, err, replication.ErrUnknownOutcome)
		require.ErrorContains(t, err, "region eu")
		for _, m := range f.nodes["us"] {
			require.NoError(t, node(m).PromoteRegion(bounded(t, 10*time.Second)), "it does not wait for the region that is lost")
		}
		require.Equal(t, replication.Epoch{Number: 2, Owner: "us"}, f.leader("us").Replicator().Health().Federation.Epoch)
		err = f.leader("us").Replicator().Apply(put(t, "z", nil), 10*time.Second)
		require.ErrorIs(t, err, region.ErrUnconfirmed)
	})
}

// TestAWriteWithoutItsWriteRegionSaysWhatToDo: whichever way the write region is
// lost, the error of a write names the order that gets the federation going again.
func TestAWriteWithoutItsWriteRegionSaysWhatToDo(t *testing.T) {
	for name, lose := range map[string]func(f *federation){
		"crashed":  func(f *federation) { f.crashAll("eu") },
		"cut off":  func(f *federation) { f.Net.Partition(f.ids("eu"), f.ids("us")) },
		"hanging":  func(f *federation) { f.distant(time.Hour) },
		"minority": func(f *federation) { f.Crash(f.nodes["eu"][0]); f.Crash(f.nodes["eu"][1]) },
	} {
		t.Run(name, func(t *testing.T) {
			virtually(t, func(t *testing.T) {
				f := newFederation(t, 80, two, func(_ string, cfg *replication.Config) { cfg.Region.WriteRegion = "eu" })
				f.Eventually(time.Minute, "us sends its writes to eu", func() bool {
					return f.leader("us").Replicator().Apply(put(t, "x", nil), time.Minute) == nil
				})
				lose(f)
				for range 2 { // the first may find the connection still open
					err := f.leader("us").Replicator().Apply(put(t, "y", nil), 20*time.Second)
					require.ErrorContains(t, err, "nornic-cluster region promote")
				}
				require.NoError(t, node(f.leader("us")).PromoteRegion(bounded(t, time.Minute)))
				require.NoError(t, f.leader("us").Replicator().Apply(put(t, "z", nil), 20*time.Second))
				f.Net.Heal()
			})
		})
	}
}
