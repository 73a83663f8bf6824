package fsm

import (
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
)

// Response is what the FSM answers to a log entry: a Result for each of its
// groups, or, after a storage failure, an error that wraps
// replication.ErrUnknownOutcome.
type Response struct {
	Results []replication.Result
	Err     error
}

// Options of an FSM. Every field may be zero.
type Options struct {
	// OnFailure is told, once, that the storage failed. It must not block.
	OnFailure func(error)
	// OnRestore is told the position of a restored snapshot. It must not block.
	OnRestore func(position uint64)
	// ReplayFrom is the position of the snapshot after which the log is replayed
	// first, where that was not restored.
	ReplayFrom uint64
}

// FSM is a raft.BatchingFSM over a Storage. hashicorp/raft calls Apply,
// ApplyBatch, Snapshot and Restore from one goroutine; the rest is safe at any
// time.
//
// An entry at or below the Storage's own position has taken effect before a
// restart and is passed over. After a storage failure the FSM applies nothing
// more and refuses snapshots: hashicorp/raft would label one with the index it
// handed over, not the one that was applied, and cut the log.
type FSM struct {
	applier *replication.StorageApplier
	storage replication.Storage
	opts    Options
	failed  bool // OnFailure was told
	// replayed is the position of the entry passed over last, or of the
	// snapshot that the log goes on from.
	replayed uint64
}

var (
	_ raft.BatchingFSM = (*FSM)(nil)
	_ raft.FSM         = (*FSM)(nil)
)

// New makes an FSM over the storage and the applier that is its only writer.
func New(storage replication.Storage, applier *replication.StorageApplier, opts Options) *FSM {
	return &FSM{applier: applier, storage: storage, opts: opts, replayed: opts.ReplayFrom}
}

// Apply implements raft.FSM.
func (f *FSM) Apply(log *raft.Log) any { return f.ApplyBatch([]*raft.Log{log})[0] }

// ApplyBatch implements raft.BatchingFSM: all entries in one transaction, where
// the storage can. The response to a command is a Response.
func (f *FSM) ApplyBatch(logs []*raft.Log) []any {
	responses := make([]any, len(logs))
	entries := make([]replication.Entry, 0, len(logs))
	slots := make([]int, 0, len(logs)) // entries[i] answers logs[slots[i]]
	var skipped []replication.Entry
	position := f.applier.Position()
	var broken error
	for i, log := range logs {
		if log.Type != raft.LogCommand {
			continue
		}
		groups, err := DecodeEntry(log.Data)
		if err != nil {
			broken = fmt.Errorf("index %d: %w", log.Index, err)
			break
		}
		entry := replication.Entry{Position: log.Index, Groups: groups}
		if log.Index <= position {
			skipped = append(skipped, f.tookEffect(entry))
			continue
		}
		entries = append(entries, entry)
		slots = append(slots, i)
	}
	f.applier.Remember(skipped)
	results, err := f.applier.Apply(entries)
	for i, r := range results {
		responses[slots[i]] = Response{Results: r}
	}
	if err == nil && broken != nil {
		err = f.applier.Fail(broken)
	}
	if err != nil {
		f.failure(err)
	}
	unknown := Response{Err: fmt.Errorf("%w: %w", replication.ErrUnknownOutcome, err)}
	for i, log := range logs {
		if responses[i] == nil && log.Type == raft.LogCommand {
			responses[i] = unknown
		}
	}
	return responses
}

// tookEffect is an entry that is passed over without the groups that were stale
// when they came: their requests are still to come.
func (f *FSM) tookEffect(e replication.Entry) replication.Entry {
	before := f.replayed
	f.replayed = e.Position
	groups := e.Groups[:0:0]
	for i, g := range e.Groups {
		if !g.Conditional || i == 0 && (g.ValidAt == before || before >= e.Position) {
			groups = append(groups, g)
		}
	}
	e.Groups = groups
	return e
}

func (f *FSM) failure(err error) {
	if !f.failed && f.opts.OnFailure != nil {
		f.opts.OnFailure(err)
	}
	f.failed = true
}

// Snapshot implements raft.FSM: it pins the storage's state.
func (f *FSM) Snapshot() (raft.FSMSnapshot, error) {
	if err := f.applier.Failure(); err != nil {
		return nil, err
	}
	return TakeSnapshot(f.storage, f.applier)
}

// TakeSnapshot pins the state of a storage for a snapshot in this package's
// format. ErrUnsupported where the storage has no snapshots. It must not run
// beside the applier's Apply.
func TakeSnapshot(storage replication.Storage, applier *replication.StorageApplier) (*Snapshot, error) {
	snapshotter, ok := storage.(replication.StorageSnapshotter)
	if !ok {
		return nil, fmt.Errorf("%w: the storage has no snapshots", replication.ErrUnsupported)
	}
	snap, err := snapshotter.Snapshot()
	if err != nil {
		return nil, fmt.Errorf("storage snapshot: %w", err)
	}
	if snap.Position() != applier.Position() {
		defer snap.Release()
		return nil, fmt.Errorf("storage snapshot at position %d, applied is %d", snap.Position(), applier.Position())
	}
	return &Snapshot{
		snap: snap, storage: storage,
		header: Header{
			Identity: applier.Identity(), Position: snap.Position(), Outcomes: applier.ExportOutcomes(), Wishes: applier.ExportWishes(),
		},
	}, nil
}

// Restore implements raft.FSM: all or nothing. A snapshot of the storage's own
// history that holds nothing new is passed over, so that positions never go
// back; one of another history is refused with ErrForeignHistory, unless the
// storage is empty.
func (f *FSM) Restore(source io.ReadCloser) error {
	err := f.restore(source)
	return errors.Join(err, source.Close())
}

func (f *FSM) restore(source io.Reader) error {
	header, body, err := ReadHeader(source)
	if err != nil {
		return err
	}
	own, position := f.applier.Identity(), f.applier.Position()
	_, stateErr := f.storage.GetWALPosition()
	whole := stateErr == nil && f.applier.Failure() == nil
	if whole && position > 0 {
		if own.History != header.Identity.History {
			return fmt.Errorf("%w: the storage stands at %d of %q, the snapshot is of %q",
				replication.ErrForeignHistory, position, own.History, header.Identity.History)
		}
		if position >= header.Position {
			f.replayed = header.Position
			return errors.Join(body.drain(), flush(f.storage))
		}
	}
	snapshotter, ok := f.storage.(replication.StorageSnapshotter)
	if !ok {
		return fmt.Errorf("%w: the storage has no snapshots", replication.ErrUnsupported)
	}
	if err := snapshotter.Restore(body); err != nil {
		err = fmt.Errorf("restoring the storage: %w", err)
		if _, stateErr := f.storage.GetWALPosition(); stateErr != nil {
			f.failure(f.applier.Fail(errors.Join(err, stateErr))) // until the next restore
		}
		return err
	}
	if err := body.drain(); err != nil {
		// The storage accepted a snapshot whose end it had not seen.
		f.failure(f.applier.Fail(err))
		return err
	}
	return f.adopt(header)
}

// adopt takes over the identity and position of a restored storage.
func (f *FSM) adopt(header *Header) error {
	if err := f.applier.Reload(); err != nil {
		f.failure(f.applier.Fail(err))
		return err
	}
	if err := f.applier.ImportOutcomes(header.Outcomes); err != nil {
		f.failure(f.applier.Fail(err))
		return err
	}
	f.applier.ImportWishes(header.Wishes)
	if !f.applier.Atomic() {
		f.applier.Adopt(header.Identity)
	}
	f.failed, f.replayed = false, header.Position
	if f.applier.Position() != header.Position || f.applier.Identity() != header.Identity {
		err := fmt.Errorf("restored storage stands at %d of %q, the snapshot said %d of %q", f.applier.Position(),
			f.applier.Identity().History, header.Position, header.Identity.History)
		f.failure(f.applier.Fail(err))
		return err
	}
	if f.opts.OnRestore != nil {
		f.opts.OnRestore(header.Position)
	}
	return nil
}
