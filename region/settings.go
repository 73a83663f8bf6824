package region

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region/conflict"
	"github.com/nornicdb/replication/transport"
)

// settings steer the state machine. The first leader founds them through the
// log; a node whose environment differs is refused.
type settings struct {
	Federation string
	Self       string
	Conflict   conflict.Settings
	// WriteRegion is the one region that accepts writes at first; empty: all do.
	WriteRegion      string
	OutboxMaxEntries uint64
	OutboxMaxBytes   uint64
	// MaxEntryBytes is the largest entry that crosses the wire between regions.
	// It is founded, and not compared with the environment.
	MaxEntryBytes uint64
}

func settingsOf(cfg *replication.Config) (*settings, error) {
	r := &cfg.Region
	s := &settings{Federation: r.FederationID, Self: r.RegionID, WriteRegion: r.WriteRegion,
		OutboxMaxEntries: uint64(r.OutboxMaxEntries), OutboxMaxBytes: uint64(r.OutboxMaxBytes),
		MaxEntryBytes: uint64(transport.MaxCommandBytes(cfg.MaxFrameSize))}
	s.Conflict = conflict.Settings{Regions: []string{r.RegionID}, Strategy: conflict.Strategy(r.ConflictStrategy),
		MaxClockOffsetMS: uint64(r.MaxClockOffset.Milliseconds())}
	for _, o := range r.RemoteRegions {
		s.Conflict.Regions = append(s.Conflict.Regions, o.Region)
	}
	slices.Sort(s.Conflict.Regions)
	s.Conflict.Regions = slices.Compact(s.Conflict.Regions)
	if err := s.Conflict.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", replication.ErrInvalidConfig, err)
	}
	return s, nil
}

// hash is what the regions of a federation must have in common.
func (s *settings) hash() string {
	common := *s
	common.Self, common.OutboxMaxEntries, common.OutboxMaxBytes, common.MaxEntryBytes = "", 0, 0, 0
	sum := sha256.Sum256(jsonBody(&common))
	return hex.EncodeToString(sum[:16])
}

// differs names every variable in which the environment is not what was founded.
func (s *settings) differs(founded *settings) error {
	env := *s
	env.MaxEntryBytes = founded.MaxEntryBytes
	if reflect.DeepEqual(&env, founded) {
		return nil
	}
	text := "the region has other settings; set the environment to them, or change those of the region that can be (nornic-cluster region settings):"
	there := founded.variables()
	for i, v := range env.variables() {
		if v.value != there[i].value {
			text += fmt.Sprintf("\n  NORNICDB_CLUSTER_%s: %q here, the region has %q", v.name, v.value, there[i].value)
		}
	}
	return fmt.Errorf("%w: %s", replication.ErrInvalidConfig, text)
}

type variable struct{ name, value string }

// variables are the settings under the names that they have in the environment.
func (s *settings) variables() []variable {
	return []variable{
		{"REGION_ID", s.Self},
		{"REMOTE_REGIONS", strings.Join(s.others(), ",")},
		{"FEDERATION_ID", s.Federation},
		{"WRITE_REGION", s.WriteRegion},
		{"CONFLICT_STRATEGY", string(s.Conflict.Strategy)},
		{"MAX_CLOCK_OFFSET", (time.Duration(s.Conflict.MaxClockOffsetMS) * time.Millisecond).String()},
		{"OUTBOX_MAX_ENTRIES", strconv.FormatUint(s.OutboxMaxEntries, 10)},
		{"OUTBOX_MAX_BYTES", strconv.FormatUint(s.OutboxMaxBytes, 10)},
	}
}

// others are the other regions, sorted.
func (s *settings) others() []string {
	return slices.DeleteFunc(slices.Clone(s.Conflict.Regions), func(r string) bool { return r == s.Self })
}

// index of a region in the sorted list; -1 where there is none.
func (s *settings) index(region string) int { return slices.Index(s.Conflict.Regions, region) }
