package region

import (
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// TestSettingsThatDifferAreNamed: each by its variable, with both values.
func TestSettingsThatDifferAreNamed(t *testing.T) {
	base := func() *replication.Config {
		cfg := replication.DefaultConfig()
		cfg.Region.RegionID = "eu"
		cfg.Region.RemoteRegions = []replication.RemoteRegion{{Region: "us", Addr: "h:1"}, {Region: "us", Addr: "h:2"}}
		return cfg
	}
	founded, err := settingsOf(base())
	require.NoError(t, err)
	require.NoError(t, founded.differs(founded))
	for name, change := range map[string]func(r *replication.RegionConfig){
		"REGION_ID: \"ap\" here, the region has \"eu\"":                          func(r *replication.RegionConfig) { r.RegionID = "ap" },
		"REMOTE_REGIONS: \"ap,us\" here, the region has \"us\"":                  func(r *replication.RegionConfig) { r.RemoteRegions[0].Region = "ap" },
		"FEDERATION_ID: \"f\" here, the region has \"nornicdb\"":                 func(r *replication.RegionConfig) { r.FederationID = "f" },
		"WRITE_REGION: \"us\" here, the region has \"\"":                         func(r *replication.RegionConfig) { r.WriteRegion = "us" },
		"CONFLICT_STRATEGY: \"manual\" here, the region has \"last_write_wins\"": func(r *replication.RegionConfig) { r.ConflictStrategy = "manual" },
		"MAX_CLOCK_OFFSET: \"1s\" here, the region has \"500ms\"":                func(r *replication.RegionConfig) { r.MaxClockOffset = time.Second },
		"OUTBOX_MAX_ENTRIES: \"7\" here, the region has \"1000000\"":             func(r *replication.RegionConfig) { r.OutboxMaxEntries = 7 },
		"OUTBOX_MAX_BYTES: \"8\" here, the region has \"1073741824\"":            func(r *replication.RegionConfig) { r.OutboxMaxBytes = 8 },
	} {
		cfg := base()
		change(&cfg.Region)
		s, err := settingsOf(cfg)
		require.NoError(t, err)
		err = s.differs(founded)
		require.ErrorIs(t, err, replication.ErrInvalidConfig)
		require.ErrorContains(t, err, "\n  NORNICDB_CLUSTER_"+name)
	}
	cfg := base()
	cfg.MaxFrameSize /= 2
	s, err := settingsOf(cfg)
	require.NoError(t, err)
	require.NoError(t, s.differs(founded), "what is founded stays")

}
