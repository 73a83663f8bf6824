package region

import (
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// TestSkewPolicy: writes are refused where the policy says so and the clock is
// certainly off from that of most of at least two peers that were heard of lately.
func TestSkewPolicy(t *testing.T) {
	now := time.Now()
	type heard struct{ offset, slack, ago time.Duration }
	far, near := heard{offset: time.Second}, heard{offset: -400 * time.Millisecond}
	for name, c := range map[string]struct {
		policy  string
		bound   time.Duration
		peers   []heard
		refused bool
	}{
		"warn":                     {"warn", 500 * time.Millisecond, []heard{far, far}, false},
		"two of two":               {"reject", 500 * time.Millisecond, []heard{far, {offset: -time.Second}}, true},
		"one of two":               {"reject", 500 * time.Millisecond, []heard{far, near}, false},
		"two of three":             {"reject", 500 * time.Millisecond, []heard{far, far, near}, true},
		"two of four":              {"reject", 500 * time.Millisecond, []heard{far, far, near, near}, false},
		"one peer has no majority": {"reject", 500 * time.Millisecond, []heard{far}, false},
		"no bound":                 {"reject", 0, []heard{far, far}, false},
		"a slow answer may lie":    {"reject", 500 * time.Millisecond, []heard{far, {offset: time.Second, slack: 600 * time.Millisecond}}, false},
		"long ago":                 {"reject", 500 * time.Millisecond, []heard{far, {offset: time.Second, ago: time.Minute}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := replication.DefaultConfig()
			cfg.Region.ClockSkewPolicy, cfg.Region.MaxClockOffset = c.policy, c.bound
			for i := range c.peers {
				cfg.Region.RemoteRegions = append(cfg.Region.RemoteRegions, replication.RemoteRegion{Region: string(rune('a' + i)), Addr: "x:1"})
			}
			l := newLinks(cfg)
			for i, p := range c.peers {
				l.hear(string(rune('a'+i)), &regionState{}, now.Add(-p.ago), p.offset, p.slack)
			}
			bound := cfg.Region.MaxClockOffset
			if c.policy == "reject" && c.bound > 0 && len(c.peers) > 1 && !c.refused {
				require.ErrorIs(t, l.skewed(c.policy, bound, now), replication.ErrNotReady, "a leader that has not asked")
			}
			for i := range c.peers {
				l.ask(string(rune('a' + i)))
			}
			err := l.skewed(c.policy, bound, now)
			if c.refused {
				require.ErrorIs(t, err, replication.ErrClockSkew)
			} else {
				require.NoError(t, err)
			}
		})
	}
}

// TestAStreamThatBeginsAnewIsNoProgress: each try begins with what the other region
// has, which the stream tells of. Where every try ends there, because that region
// refuses the state that it needs, say, the stream is stuck.
func TestAStreamThatBeginsAnewIsNoProgress(t *testing.T) {
	cfg := replication.DefaultConfig()
	cfg.Region.RemoteRegions = []replication.RemoteRegion{{Region: "a", Addr: "x:1"}}
	l, now := newLinks(cfg), time.Now()
	told := 0
	for range 5 {
		l.moved("a", 7)
		now = now.Add(silentAfter / 2)
		if l.failed("a", replication.ErrUnsupported, now) {
			told++
		}
	}
	require.Equal(t, 1, told)
	require.True(t, l.list["a"].isStuck(now))
	l.moved("a", 8)
	require.False(t, l.list["a"].isStuck(now))

	require.False(t, l.failed("a", replication.ErrUnsupported, now))
	l.moved("a", 3) // it was restored from a copy
	l.moved("a", 4)
	require.True(t, l.list["a"].stuck.IsZero(), "it gets what it lacks")
}
