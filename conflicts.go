package replication

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// ConflictResolver lists and settles what regions wrote without having each
// other's write (multi-region, "API").
type ConflictResolver interface {
	// Conflicts lists the open conflicts as this node has applied them, in the
	// order of their keys.
	Conflicts(ctx context.Context, f ConflictFilter) ([]Conflict, error)
	// Resolve settles one: ErrNoConflict where there is none, ErrVersionsChanged
	// where the versions are not those of r.Expect, ErrInvalidCommand.
	Resolve(ctx context.Context, key string, r Resolution) error
}

// RegionPromoter makes this node's region the one that accepts writes:
// ErrUnsupported where all do (multi-region, "Region failover").
type RegionPromoter interface {
	PromoteRegion(ctx context.Context) error
}

// RegionConfigurer shows and changes the settings that steer a region's state
// machine. They are replicated: the environment only founds them.
type RegionConfigurer interface {
	// RegionSettings are those of this node's region, as it has applied them:
	// ErrNotReady before they are founded.
	RegionSettings() (*RegionSettings, error)
	// ChangeRegionSettings changes them by a command of the region's log, on all
	// nodes of the region alike. ErrUnsupported for those that cannot be changed.
	ChangeRegionSettings(ctx context.Context, c *RegionSettingsChange) error
}

// RegionSettings steer the state machine of a region.
type RegionSettings struct {
	Region           string   `json:"region"`
	Regions          []string `json:"regions"`      // of the federation, sorted
	WriteRegion      string   `json:"write_region"` // at first; empty: all
	ConflictStrategy string   `json:"conflict_strategy"`
	MaxClockOffset   string   `json:"max_clock_offset"`
	OutboxMaxEntries uint64   `json:"outbox_max_entries"`
	OutboxMaxBytes   uint64   `json:"outbox_max_bytes"`
}

// RegionSettingsChange names new values; empty fields stay as they are. The first
// three can only be founded, and are here to be refused with the reason.
type RegionSettingsChange struct {
	Regions          []string `json:"regions,omitempty"`
	WriteRegion      *string  `json:"write_region,omitempty"`
	ConflictStrategy string   `json:"conflict_strategy,omitempty"`
	// MaxClockOffset is a duration ("500ms"; "0": no bound). All regions must have
	// the same: until they do, connections between them are refused.
	MaxClockOffset string `json:"max_clock_offset,omitempty"`
	// The caps of the outbox are each region's own.
	OutboxMaxEntries uint64 `json:"outbox_max_entries,omitempty"`
	OutboxMaxBytes   uint64 `json:"outbox_max_bytes,omitempty"`
}

// ConflictFilter selects conflicts. Empty fields select all.
type ConflictFilter struct {
	Field string // node, labels, property or edge
	Node  string // ID of the node, or of the one where the edge starts
	After string // key of the last one of the page before
	Limit int    // 0: 100; at most 10,000
}

// Conflict is a thing that regions wrote concurrently.
type Conflict struct {
	Key      string            `json:"key"` // one word, for Resolve
	Field    string            `json:"field"`
	Node     string            `json:"node"` // or the edge's start
	Property string            `json:"property,omitempty"`
	Type     string            `json:"type,omitempty"` // of the edge
	To       string            `json:"to,omitempty"`   // the edge's end
	Versions []ConflictVersion `json:"versions"`
}

// VersionID names a version of a thing: the place of its write in the stream of
// a region.
type VersionID struct {
	Region string `json:"region"`
	Pos    uint64 `json:"pos"`
}

// String is region:position.
func (id VersionID) String() string { return fmt.Sprintf("%s:%d", id.Region, id.Pos) }

// ConflictVersion is one of the values in conflict.
type ConflictVersion struct {
	VersionID
	Time time.Time `json:"time"` // by the region's clock
	// Deleted, or unset: Value is empty. It is for a node that exists, too.
	Deleted bool            `json:"deleted,omitempty"`
	Value   json.RawMessage `json:"value,omitempty"`
	// Shown until the conflict is settled.
	Shown bool `json:"shown,omitempty"`
}

// Resolution settles a conflict. Exactly one of Keep, Value, Deleted is set.
type Resolution struct {
	Expect  []VersionID     `json:"expect"`          // the versions that the operator saw
	Keep    *VersionID      `json:"keep,omitempty"`  // one of them
	Value   json.RawMessage `json:"value,omitempty"` // labels, a property, or an edge's properties
	Deleted bool            `json:"deleted,omitempty"`
}
