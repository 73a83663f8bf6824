package testharness

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// Opened is a new, empty store and what the suite may do with it. Cleaning up
// is for the function that opened it, with t.Cleanup.
type Opened struct {
	// Storage is the open store.
	Storage replication.Storage
	// Crash opens what is durable at this moment: what a process finds that
	// starts after this one died here. The store in use is not disturbed. It is
	// also called while a transaction or a restore runs. nil: the store keeps
	// nothing, and what needs it is skipped.
	Crash func() (replication.Storage, error)
	// Reopen closes the store in good order and opens it again. nil: skipped.
	Reopen func() (replication.Storage, error)
	// Digest identifies the graph in a storage that came from here: equal for
	// equal content, whatever its history. nil: the suite reads the content
	// where the storage is a GraphReader, and otherwise judges by verdicts.
	Digest func(replication.Storage) (string, error)
	// Opaque is a command for RecordEffects that changes something in an empty
	// store, where the storage is an EffectRecorder. nil: skipped.
	Opaque *replication.Command
}

// TestStorage checks that a store keeps what replication.Storage and the
// optional abilities that it offers promise: each operation, its verdicts and
// values, determinism, position, and what a crash at any point leaves. A
// subtest of an ability that the store does not offer is skipped and says so.
// open is called several times in a subtest, each time for another store.
//
// A crash is simulated between calls, not within a write to the disk: tearing
// of a page or a lost sync is the business of the store's own tests.
func TestStorage(t *testing.T, open func(t *testing.T) Opened) {
	for _, check := range storageChecks {
		t.Run(check.name, func(t *testing.T) {
			runStorageCheck(t, check, func() Opened { return open(t) }, defaultPatience)
		})
	}
}

// defaultPatience is how long a call may take before it counts as stuck.
const defaultPatience = 20 * time.Second

// reporter is the part of *testing.T that a check needs, so that the suite can
// be tested: it must fail on a broken store.
type reporter interface {
	Helper()
	Errorf(format string, args ...any)
	FailNow()
	Skipf(format string, args ...any)
}

// ability is something that not every store offers.
type ability string

const (
	abilityContent ability = "way to read its content back (Digest or GraphReader)"
	abilityReader  ability = "GraphReader"
	abilityTx      ability = "transactions (TxStorage)"
	abilityPlain   ability = "life without transactions"
	abilityEdgeIDs ability = "edge IDs (EdgeStorage)"
	abilitySnap    ability = "snapshots (StorageSnapshotter)"
	abilityCrash   ability = "crash (Opened.Crash)"
	abilityReopen  ability = "reopening (Opened.Reopen)"
	abilityEffects ability = "effects (EffectRecorder and Opened.Opaque)"
)

func (o Opened) offers(a ability) bool {
	switch a {
	case abilityContent:
		return o.Digest != nil || o.offers(abilityReader)
	case abilityReader:
		_, ok := o.Storage.(GraphReader)
		return ok
	case abilityTx:
		_, ok := o.Storage.(replication.TxStorage)
		return ok
	case abilityPlain:
		return !o.offers(abilityTx)
	case abilityEdgeIDs:
		_, ok := o.Storage.(replication.EdgeStorage)
		return ok
	case abilitySnap:
		_, ok := o.Storage.(replication.StorageSnapshotter)
		return ok
	case abilityCrash:
		return o.Crash != nil
	case abilityReopen:
		return o.Reopen != nil
	case abilityEffects:
		_, ok := o.Storage.(replication.EffectRecorder)
		return ok && o.Opaque != nil
	default:
		panic("unknown ability " + a)
	}
}

type storageCheck struct {
	name  string
	needs []ability
	run   func(*suite)
}

var storageChecks = []storageCheck{
	{"Nodes", nil, checkNodes},
	{"Edges", nil, checkEdges},
	{"EdgeIDs", []ability{abilityEdgeIDs}, checkEdgeIDs},
	{"Commands", nil, checkCommands},
	{"VerdictsChangeNothing", []ability{abilityContent}, checkVerdictsChangeNothing},
	{"Values", []ability{abilityReader}, checkValues},
	{"NullProperties", []ability{abilityReader}, checkNullProperties},
	{"ArgumentsStayTheCallers", []ability{abilityReader}, checkArguments},
	{"Position", nil, checkPosition},
	{"Determinism", nil, checkDeterminism},
	{"CallsAreDurable", []ability{abilityCrash}, checkCallsAreDurable},
	{"Reopen", []ability{abilityReopen}, checkReopen},
	{"TransactionRollsBack", []ability{abilityTx}, checkRollback},
	{"TransactionCrash", []ability{abilityTx, abilityCrash}, checkTransactionCrash},
	{"ExactlyOnce", []ability{abilityTx, abilityCrash}, checkExactlyOnce},
	{"PositionAfterEachCommand", []ability{abilityPlain, abilityCrash}, checkPlainPosition},
	{"Metadata", []ability{abilityTx}, checkMetadata},
	{"Views", []ability{abilityTx}, checkViews},
	{"SnapshotUnderLoad", []ability{abilitySnap}, checkSnapshot},
	{"SnapshotDoesNotHoldWritesUp", []ability{abilitySnap}, checkSnapshotHoldsNothingUp},
	{"Restore", []ability{abilitySnap}, checkRestore},
	{"RestoreAllOrNothing", []ability{abilitySnap}, checkRestoreAllOrNothing},
	{"RestoreCrash", []ability{abilitySnap, abilityCrash}, checkRestoreCrash},
	{"Effects", []ability{abilityEffects}, checkEffects},
}

func runStorageCheck(r reporter, check storageCheck, open func() Opened, patience time.Duration) {
	r.Helper()
	c := &suite{reporter: r, open: open, Opened: open(), patience: patience}
	for _, a := range check.needs {
		if !c.offers(a) {
			r.Skipf("the storage has no %s", a)
		}
	}
	check.run(c)
}

// suite is what a check works with: a fresh store and the way to another.
type suite struct {
	reporter
	Opened
	open     func() Opened
	patience time.Duration // after which a call counts as stuck
}

// within runs fn and fails when it has not returned in time.
func (c *suite) within(what string, fn func() error) {
	c.Helper()
	done := make(chan error, 1)
	go func() { done <- fn() }()
	timer := time.NewTimer(c.patience)
	defer timer.Stop()
	select {
	case err := <-done:
		require.NoError(c, err, what)
	case <-timer.C:
		c.Errorf("%s has not returned within %s", what, c.patience)
		c.FailNow()
	}
}

// crash is Crash, which must not fail.
func (c *suite) crash() replication.Storage {
	c.Helper()
	s, err := c.Crash()
	require.NoError(c, err, "opening after a crash")
	return s
}

// tx is the storage with its transactions.
func (c *suite) tx() replication.TxStorage { return c.Storage.(replication.TxStorage) }

// verdict requires a verdict of one kind, or success for nil.
func (c *suite) verdict(want, err error, what string, args ...any) {
	c.Helper()
	what = fmt.Sprintf(what, args...)
	if want == nil {
		require.NoError(c, err, what)
		return
	}
	require.ErrorIs(c, err, want, what)
	code, ok := replication.Verdict(err)
	require.True(c, ok, "%s: %v is not a verdict", what, err)
	require.Equal(c, replication.ErrorCode(want), code, what)
}

// observe is everything that can be seen of a storage, as text.
func (c *suite) observe(s replication.Storage) string {
	c.Helper()
	var b strings.Builder
	pos, err := s.GetWALPosition()
	require.NoError(c, err, "GetWALPosition")
	fmt.Fprintf(&b, "position %d\n", pos)
	b.WriteString(c.content(s))
	if tx, ok := s.(replication.TxStorage); ok {
		err := tx.View(func(m replication.Meta) error {
			return m.ScanMeta(nil, func(k, v []byte) error {
				fmt.Fprintf(&b, "row %q=%q\n", k, v)
				return nil
			})
		})
		require.NoError(c, err, "ScanMeta")
	}
	return b.String()
}

// content is the graph in a storage, as far as it can be seen.
func (c *suite) content(s replication.Storage) string {
	c.Helper()
	var b strings.Builder
	if c.Digest != nil {
		digest, err := c.Digest(s)
		require.NoError(c, err, "Digest")
		fmt.Fprintf(&b, "digest %s\n", digest)
	}
	if r, ok := s.(GraphReader); ok {
		c.list(&b, r, c.offers(abilityEdgeIDs))
	}
	return b.String()
}

// list writes the part of the universe that is there.
func (c *suite) list(b *strings.Builder, r GraphReader, edgeIDs bool) {
	c.Helper()
	show := func(v interface{ MarshalJSON() ([]byte, error) }, err error) {
		if errors.Is(err, replication.ErrNotFound) {
			return
		}
		require.NoError(c, err, "reading back")
		data, err := v.MarshalJSON()
		require.NoError(c, err, "reading back")
		if len(data) > 1000 {
			data = fmt.Appendf(data[:200:200], "... %x", sha256.Sum256(data))
		}
		fmt.Fprintf(b, "%s\n", data)
	}
	ids := 1
	if edgeIDs {
		ids = universeEdgeIDs
	}
	for i := range universeNodes {
		n, err := r.Node(universeNode(i))
		show(n, err)
		for k := range universeTypes * universeNodes * ids {
			e, err := r.Edge(universeNode(i), universeType(k%universeTypes), universeNode(k/universeTypes%universeNodes),
				universeEdgeID(k/universeTypes/universeNodes))
			show(e, err)
		}
	}
}

// someGraph fills the first nodes of the universe.
func (c *suite) someGraph(s replication.Storage, nodes int) {
	c.Helper()
	for i := range nodes {
		require.NoError(c, s.CreateNode(&replication.Node{ID: universeNode(i), Labels: []string{"L"}, Properties: map[string]any{"i": i}}))
		require.NoError(c, s.CreateEdge(&replication.Edge{StartNode: universeNode(i), EndNode: universeNode(0), Type: universeType(0)}))
	}
}
