package region

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region/conflict"
)

// machine is the state machine of a region: the Storage that the inner Raft
// cluster replicates. Its transactions understand the commands of the region's
// log alone, and bring them to the graph through conflict.Core.
type machine struct {
	replication.TxStorage
	snaps replication.StorageSnapshotter
	// committed is told of each transaction that changed something; nil: nobody.
	// It must not block.
	committed func(before, after *view, did conflict.Counts)

	// mu guards the fields below: what is committed.
	mu       sync.Mutex
	view     view
	changed  chan struct{} // closed and replaced when view changes
	restored uint64        // last position of the outbox of a snapshot that was installed; for mutants
	unread   error         // why a snapshot that the Storage holds could not be read; nil: view is its
}

// view is the state as a whole, as readers outside of transactions see it.
type view struct {
	settings *settings // nil: not founded yet
	head     header
	status   conflict.Status
}

// applied is how far this region is in another one's stream.
func (v *view) applied(region string) uint64 {
	if v.settings == nil || v.settings.index(region) < 0 {
		return 0
	}
	return v.status.Applied[v.settings.index(region)]
}

// deferrer is the ability of a Storage to make its transactions durable later.
type deferrer interface {
	Defer(on bool) error
	Flush() error
}

// What the inner cluster sees of a machine whose Storage has more abilities.
type (
	recording struct {
		*machine
		replication.EffectRecorder
	}
	deferring struct {
		*machine
		deferrer
	}
	recordingAndDeferring struct {
		*machine
		replication.EffectRecorder
		deferrer
	}
)

var (
	_ replication.TxStorage          = (*machine)(nil)
	_ replication.StorageSnapshotter = (*machine)(nil)
	_ replication.DeferringStorage   = deferring{}
	_ replication.DeferringStorage   = recordingAndDeferring{}
)

var errProbe = errors.New("only to look")

// newMachine refuses a storage that multi-region mode cannot stand on.
func newMachine(storage replication.Storage) (*machine, error) {
	tx, ok := storage.(replication.TxStorage)
	if !ok {
		return nil, fmt.Errorf("%w: multi-region mode needs a storage with transactions", replication.ErrUnsupported)
	}
	snaps, ok := storage.(replication.StorageSnapshotter)
	if !ok {
		return nil, fmt.Errorf("%w: multi-region mode needs a storage with snapshots", replication.ErrUnsupported)
	}
	m := &machine{TxStorage: tx, snaps: snaps, changed: make(chan struct{})}
	if _, err := tx.GetWALPosition(); errors.Is(err, replication.ErrRestoreIncomplete) {
		return m, nil // it is restored before anything is read
	}
	err := tx.Update(func(tx replication.Tx) error {
		if _, ok := tx.(conflict.Store); !ok {
			return fmt.Errorf("%w: multi-region mode needs a storage whose transactions read the graph (conflict.GraphReader)", replication.ErrUnsupported)
		}
		return errProbe
	})
	if err == nil {
		return nil, fmt.Errorf("%w: the storage's Update returned nil where its function returned an error", replication.ErrStorageFailed)
	}
	if !errors.Is(err, errProbe) {
		return nil, err
	}
	err = tx.View(func(m replication.Meta) error {
		if _, ok := m.(conflict.ReadStore); !ok {
			return fmt.Errorf("%w: multi-region mode needs a storage whose views read nodes (conflict.ReadStore)", replication.ErrUnsupported)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return m, m.reload()
}

// storage is what the inner cluster gets.
func (m *machine) storage() replication.Storage {
	r, records := m.TxStorage.(replication.EffectRecorder)
	d, defers := m.TxStorage.(replication.DeferringStorage)
	switch {
	case records && defers:
		return recordingAndDeferring{m, r, d}
	case records:
		return recording{m, r}
	case defers:
		return deferring{m, d}
	}
	return m
}

// now is the committed state, and a channel that is closed when it changes.
func (m *machine) now() (view, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.view, m.changed
}

func (m *machine) publish(v view) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.view = v
	close(m.changed)
	m.changed = make(chan struct{})
}

// reload reads the state anew.
func (m *machine) reload() error {
	var v view
	err := m.View(func(meta replication.Meta) (err error) {
		v, err = readView(meta)
		return err
	})
	if err == nil {
		m.publish(v)
	}
	return err
}

func readView(meta replication.Meta) (v view, err error) {
	row, err := meta.GetMeta([]byte(rowSettings))
	if err != nil || row == nil {
		return v, err
	}
	v.settings = new(settings)
	if err := json.Unmarshal(row, v.settings); err != nil {
		return v, fmt.Errorf("metadata row %s is damaged: %w", rowSettings, err)
	}
	if v.head, err = readHeader(meta); err != nil {
		return v, err
	}
	v.status, err = conflict.ReadStatus(meta)
	return v, err
}

// Snapshot implements replication.StorageSnapshotter.
func (m *machine) Snapshot() (replication.StorageSnapshot, error) { return m.snaps.Snapshot() }

// Restore implements replication.StorageSnapshotter.
func (m *machine) Restore(r io.Reader) error {
	if err := m.snaps.Restore(r); err != nil {
		return err
	}
	err := m.reload()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.restored, m.unread = m.view.head.Last, err
	return err
}

// GetWALPosition implements replication.Storage. A restored state that could not
// be read is neither the old one nor known to be whole: it is restored again.
func (m *machine) GetWALPosition() (uint64, error) {
	m.mu.Lock()
	unread := m.unread
	m.mu.Unlock()
	if unread != nil {
		return 0, fmt.Errorf("%w: %w", replication.ErrRestoreIncomplete, unread)
	}
	return m.TxStorage.GetWALPosition()
}

func (m *machine) restoredUpTo() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.restored
}

// txn is one transaction of the state machine.
type txn struct {
	replication.Tx
	view
	core      *conflict.Core // nil: not loaded
	changed   bool
	calls     int           // commands so far
	entries   *logCommand   // of another region, if the last command is such; they can be merged a part at a time
	rejected  map[int]error // by number: what is left out, and why
	resettled bool          // settings were changed
	blocks    blocks        // of the outbox
	buffer    []byte        // room for an encoded entry
	// mayBeLarge: this is no large transaction, and it can be run again as one.
	mayBeLarge bool
}

// ApplyCommand implements replication.Storage: one entry of the region's log.
func (t *txn) ApplyCommand(cmd *replication.Command) error {
	number := t.calls
	t.calls++
	if err := t.rejected[number]; err != nil {
		return err
	}
	if cmd.Type != cmdLog {
		return fmt.Errorf("%w: %s in a region's log", replication.ErrInvalidCommand, cmd.Type)
	}
	c, err := decodeCommand(cmd.Data)
	if err != nil {
		return err
	}
	if t.settings == nil && c.kind != kindSettings {
		return fmt.Errorf("%w: the region's settings are not founded", replication.ErrInvalidCommand)
	}
	err = t.apply(c)
	if errors.Is(err, conflict.ErrRefused) || errors.Is(err, errEntryTooLarge) {
		t.rejected[number] = err
		return errAgain
	}
	return asAnswer(err)
}

func (t *txn) apply(c *logCommand) error {
	if c.kind == kindSettings {
		return t.found(c.body)
	}
	if err := t.load(); err != nil {
		return err
	}
	t.changed = true
	if err := t.head.err(); err != nil && c.writes() {
		return fmt.Errorf("%w: %w", replication.ErrUnsupported, err)
	}
	switch c.kind {
	case kindWrite:
		return t.write(c)
	case kindRemote:
		t.entries = c
		return t.remote(c)
	case kindMark:
		if !t.core.Status().NeedsMark {
			return nil
		}
		return t.emit(t.core.Mark(c.wallMS))
	case kindCursors:
		return t.moveCursors(c.body)
	case kindResolve:
		return t.resolve(c)
	case kindPromote, kindEpoch:
		return t.setEpoch(c)
	case kindStage:
		return t.stage(c.body)
	case kindCollect:
		return t.core.Collect()
	case kindChange:
		return t.changeSettings(c.body)
	case kindMeet:
		return t.meet(c.body)
	default:
		return t.merge(c)
	}
}

// found founds the settings, unless they are.
func (t *txn) found(body []byte) error {
	if t.settings != nil {
		return nil
	}
	s := new(settings)
	if err := decodeBody(body, s); err != nil {
		return err
	}
	if err := s.Conflict.Validate(); err != nil || s.index(s.Self) < 0 {
		return fmt.Errorf("%w: %v", errBadCommand, err)
	}
	if err := t.SetMeta([]byte(rowSettings), body); err != nil {
		return err
	}
	t.settings, t.changed = s, true
	t.head = newHeader(s)
	return t.load()
}

func (t *txn) load() (err error) {
	if t.core != nil {
		return nil
	}
	if t.core, err = conflict.Load(t.Tx.(conflict.Store), t.settings.Self, t.settings.Conflict); err == nil {
		t.core.Hold()
	}
	return err
}

// finish writes what belongs to the transaction as a whole.
func (t *txn) finish() error {
	if !t.changed {
		return nil
	}
	if err := t.core.Save(); err != nil {
		return err
	}
	if err := t.blocks.tail.save(t.Tx); err != nil {
		return err
	}
	t.status = t.core.Status()
	return t.SetMeta([]byte(rowHeader), jsonBody(&t.head))
}

// write applies a client's commands. Their effects go to the outbox.
func (t *txn) write(c *logCommand) error {
	e, err := t.core.Local(c.wallMS, c.commands...)
	if errors.Is(err, replication.ErrOpaqueWrite) { // refused before it was proposed
		return fmt.Errorf("%w: %v", replication.ErrInvalidCommand, err)
	}
	if e != nil {
		e.RequestID, e.RequestHash = c.request, c.hash
	}
	return t.emit(e, err)
}

// remote merges entries of another region; what comes before a bad one stays.
func (t *txn) remote(c *logCommand) error {
	defer measureMerge(time.Now())
	for i, e := range c.entries {
		fresh, err := t.core.Remote(c.wallMS, e)
		if err == nil && fresh && e.RequestID != "" {
			err = t.remember(&replication.RequestOutcome{ID: e.RequestID, Hash: e.RequestHash})
		}
		if err != nil {
			return t.told(int(e.Dot.Region), err)
		}
		if fresh {
			origin := t.settings.Conflict.Regions[e.Dot.Region]
			t.head.setStamp(origin, stamped(t.head.Stamps[origin], c.encoded[i]))
		}
	}
	return nil
}

func (t *txn) resolve(c *logCommand) error {
	var r resolveRequest
	if err := decodeBody(c.body, &r); err != nil {
		return err
	}
	key, res, err := r.decode()
	if err != nil {
		return err
	}
	return t.emit(t.core.Resolve(c.wallMS, key, res))
}
