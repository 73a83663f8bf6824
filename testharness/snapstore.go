package testharness

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
)

// SnapshotStore is a raft.SnapshotStore on a Disk. A snapshot is there when the
// Close of its sink has returned; a crash before leaves all of it or nothing.
// Safe for concurrent use.
type SnapshotStore struct {
	v           *snapshotVolume
	incarnation int
	retain      int
}

var _ raft.SnapshotStore = (*SnapshotStore)(nil)

// OpenSnapshots opens the disk's snapshots, of which it keeps the newest ones,
// retain of them, whenever there is one more.
func (d *Disk) OpenSnapshots(retain int) *SnapshotStore {
	return &SnapshotStore{v: d.snapshots, incarnation: d.Incarnation(), retain: max(retain, 1)}
}

// snapshotVolume is the snapshots on a disk. A lying disk has them all the same:
// hashicorp/raft panics where the log begins above the newest snapshot.
type snapshotVolume struct {
	disk *Disk

	// commit guards the fields below.
	commit sync.Mutex
	rng    *rand.Rand
	made   int         // IDs given
	list   []*snapshot // best first; what is in it is not changed
}

type snapshot struct {
	meta raft.SnapshotMeta
	data []byte
}

// Create implements raft.SnapshotStore.
func (s *SnapshotStore) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration,
	configurationIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	v := s.v
	v.commit.Lock()
	defer v.commit.Unlock()
	if err := v.disk.alive(s.incarnation); err != nil {
		return nil, err
	}
	v.made++
	return &snapshotSink{s: s, meta: raft.SnapshotMeta{Version: version, ID: fmt.Sprintf("%d-%d-%d", term, index, v.made), Index: index, Term: term,
		Configuration: configuration.Clone(), ConfigurationIndex: configurationIndex}}, nil
}

// List implements raft.SnapshotStore.
func (s *SnapshotStore) List() (list []*raft.SnapshotMeta, err error) {
	s.v.commit.Lock()
	defer s.v.commit.Unlock()
	for _, one := range s.v.list {
		meta := one.meta
		list = append(list, &meta)
	}
	return list, s.v.disk.alive(s.incarnation)
}

// Open implements raft.SnapshotStore.
func (s *SnapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.v.commit.Lock()
	defer s.v.commit.Unlock()
	if err := s.v.disk.alive(s.incarnation); err != nil {
		return nil, nil, err
	}
	for _, one := range s.v.list {
		if one.meta.ID == id {
			meta := one.meta
			return &meta, io.NopCloser(bytes.NewReader(one.data)), nil
		}
	}
	return nil, nil, fmt.Errorf("no snapshot %s", id)
}

// snapshotSink is a snapshot that is written. One goroutine uses it.
type snapshotSink struct {
	s     *SnapshotStore
	meta  raft.SnapshotMeta
	data  []byte
	ended bool
}

// ID implements raft.SnapshotSink.
func (k *snapshotSink) ID() string { return k.meta.ID }

// Write implements raft.SnapshotSink.
func (k *snapshotSink) Write(p []byte) (int, error) {
	k.data = append(k.data, p...)
	return len(p), nil
}

// Cancel implements raft.SnapshotSink.
func (k *snapshotSink) Cancel() error {
	k.ended = true
	return nil
}

// Close implements raft.SnapshotSink.
func (k *snapshotSink) Close() error {
	if k.ended {
		return nil
	}
	k.ended = true
	k.meta.Size = int64(len(k.data))
	v := k.s.v
	v.commit.Lock()
	dice := rollDiskDice(v.rng)
	v.commit.Unlock()
	return v.disk.do(&write{incarnation: k.s.incarnation, steps: 1, commit: func(int, int) error {
		v.commit.Lock()
		defer v.commit.Unlock()
		if err := v.disk.alive(k.s.incarnation); err != nil {
			return err
		}
		v.list = slices.Insert(v.list, 0, &snapshot{meta: k.meta, data: k.data})
		slices.SortStableFunc(v.list, func(a, b *snapshot) int {
			return cmp.Or(cmp.Compare(b.meta.Term, a.meta.Term), cmp.Compare(b.meta.Index, a.meta.Index))
		})
		v.list = v.list[:min(len(v.list), k.s.retain)]
		return nil
	}}, dice)
}
