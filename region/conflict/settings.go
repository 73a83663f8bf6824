package conflict

import (
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/nornicdb/replication"
)

// Strategy says which of several concurrent writes of one thing is shown.
type Strategy string

// The strategies (spec multi-region.md, "What users are promised").
const (
	// LastWriteWins shows the latest.
	LastWriteWins Strategy = "last_write_wins"
	// FirstWriteWins shows the earliest.
	FirstWriteWins Strategy = "first_write_wins"
	// Manual shows the latest and lists the conflict until a write settles it.
	Manual Strategy = "manual"
)

// Errors of this package. Those of Remote are answers to the sender, not
// storage failures: nothing was changed.
var (
	// ErrSettings: the settings are invalid, or differ from the replicated ones.
	ErrSettings = errors.New("region settings")
	// ErrInvalidEntry: an entry that no correct region sends.
	ErrInvalidEntry = errors.New("invalid entry")
	// ErrGap: entries between this and the last applied one are missing. Errors
	// of this kind are a *GapError.
	ErrGap = errors.New("gap in the stream")
	// ErrAhead: a peer knows more of this region's stream than this region
	// itself, which was restored from a backup then and must not write.
	ErrAhead = errors.New("a peer knows writes that this region has lost")
	// ErrNoConflict: there is no conflict about this thing.
	ErrNoConflict = replication.ErrNoConflict
	// ErrVersionsChanged: the versions are not those that the operator saw.
	ErrVersionsChanged = replication.ErrVersionsChanged
	// ErrDamagedRow: a metadata row cannot be read. A storage failure.
	ErrDamagedRow = errors.New("conflict metadata row is damaged")
	// ErrRefused: the Storage gave a verdict of its own on a local write that
	// this package had no objection to. The transaction must be rolled back; the
	// verdict, wrapped too, then is the answer to the client.
	ErrRefused = errors.New("refused by the storage")
	// ErrMismatch: the Storage does not hold what the rows say it does. A
	// storage failure.
	ErrMismatch = errors.New("storage and conflict metadata disagree")
)

// GapError is an [ErrGap] that says from where the sender has to go on.
type GapError struct {
	Want, Got uint64 // positions; Want is the next one to be applied
}

func (e *GapError) Error() string { return fmt.Sprintf("%v: got %d, want %d", ErrGap, e.Got, e.Want) }

// Unwrap makes errors.Is(err, ErrGap) true.
func (e *GapError) Unwrap() error { return ErrGap }

// MaxIDBytes bounds a node ID and an edge type, as three of them are part of a
// row's key.
const MaxIDBytes = 4096

// maxRegionIDBytes bounds the ID of a region.
const maxRegionIDBytes = 256

// Settings are what all regions must agree on. They are replicated state.
type Settings struct {
	// Regions are the IDs of all regions, sorted, at most MaxRegions.
	Regions  []string
	Strategy Strategy
	// MaxClockOffsetMS bounds how far a remote timestamp may pull the clock
	// ahead of the wall; 0: no bound.
	MaxClockOffsetMS uint64
}

// Validate returns an error that wraps ErrSettings.
func (s *Settings) Validate() error {
	if len(s.Regions) == 0 || len(s.Regions) > MaxRegions {
		return fmt.Errorf("%w: %d regions, allowed are 1 to %d", ErrSettings, len(s.Regions), MaxRegions)
	}
	for i, r := range s.Regions {
		if r == "" || len(r) > maxRegionIDBytes || !utf8.ValidString(r) {
			return fmt.Errorf("%w: region ID %q", ErrSettings, r)
		}
		if i > 0 && s.Regions[i-1] >= r {
			return fmt.Errorf("%w: regions are not sorted, or one is named twice: %q", ErrSettings, r)
		}
	}
	switch s.Strategy {
	case LastWriteWins, FirstWriteWins, Manual:
	default:
		return fmt.Errorf("%w: conflict strategy %q", ErrSettings, s.Strategy)
	}
	if s.MaxClockOffsetMS > maxTime>>counterBits {
		return fmt.Errorf("%w: clock offset of %d ms", ErrSettings, s.MaxClockOffsetMS)
	}
	return nil
}

// index of a region in the list.
func (s *Settings) index(region string) (uint8, bool) {
	i := slices.Index(s.Regions, region)
	return uint8(i), i >= 0
}

func (s *Settings) equal(o *Settings) bool {
	return slices.Equal(s.Regions, o.Regions) && s.Strategy == o.Strategy && s.MaxClockOffsetMS == o.MaxClockOffsetMS
}

// Store is what a Core needs of a Storage transaction: metadata rows, the
// operations that change the graph, and a look at it. Only the Core may write
// the graph.
type Store interface {
	replication.Meta
	GraphReader
	SetMeta(key, value []byte) error
	CreateNode(*replication.Node) error
	UpdateNode(*replication.Node) error
	DeleteNode(replication.NodeID) error
	CreateEdge(*replication.Edge) error
	DeleteEdge(from, to replication.NodeID, relType string) error
	SetProperty(id replication.NodeID, key string, value interface{}) error
}

// GraphReader reads the graph inside a transaction, with the transaction's own
// writes. It is needed because settled things have no metadata rows: what a
// delete hides must be read before it goes.
type GraphReader interface {
	NodeReader
	HasNode(id replication.NodeID) (bool, error)
	// GetEdge returns the edge with this start, end and type; nil where there is none.
	GetEdge(from, to replication.NodeID, relType string) (*replication.Edge, error)
	// ScanEdges calls fn once or twice for each edge that starts or ends at
	// the node, in any order; properties need not be set. fn does not write.
	ScanEdges(id replication.NodeID, fn func(*replication.Edge) error) error
}

// NodeReader reads nodes.
type NodeReader interface {
	// GetNode returns nil where there is none.
	GetNode(id replication.NodeID) (*replication.Node, error)
}

// ReadStore is what is needed of a Storage transaction that only reads, to take a
// state from it: metadata rows, and the nodes whose values they leave out.
type ReadStore interface {
	replication.Meta
	NodeReader
}
