package testharness

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
)

// LogStore is a raft.LogStore and raft.StableStore on a Disk. It allows gaps,
// like the log stores of hashicorp/raft. Safe for concurrent use.
type LogStore struct {
	v           *logVolume
	incarnation int
	state       *logState // v.state until the crash, then a copy nobody else has
}

var (
	_ raft.LogStore    = (*LogStore)(nil)
	_ raft.StableStore = (*LogStore)(nil)
)

// OpenLog opens the disk's log store: what the last incarnation left.
func (d *Disk) OpenLog() *LogStore {
	d.logs.commit.Lock()
	defer d.logs.commit.Unlock()
	return &LogStore{v: d.logs, incarnation: d.Incarnation(), state: d.logs.state}
}

// logVolume is the log on a disk.
type logVolume struct {
	disk *Disk

	// commit guards the fields below and all states.
	commit  sync.Mutex
	rng     *rand.Rand
	state   *logState
	durable *logState // of a lying disk
}

// logState is a log with its term and vote.
type logState struct {
	first, last uint64 // 0, 0: empty
	entries     map[uint64]*raft.Log
	stable      map[string][]byte
	bytes       int64
}

func newLogState() *logState {
	return &logState{entries: make(map[uint64]*raft.Log), stable: make(map[string][]byte)}
}

func (s *logState) clone() *logState {
	c := *s
	c.entries, c.stable = maps.Clone(s.entries), maps.Clone(s.stable)
	return &c
}

// checkpoint implements volume.
func (v *logVolume) checkpoint() error {
	v.commit.Lock()
	defer v.commit.Unlock()
	v.durable = v.state.clone()
	return nil
}

// crash implements volume. The old incarnation keeps the old state.
func (v *logVolume) crash(forget bool) error {
	v.commit.Lock()
	defer v.commit.Unlock()
	if forget && v.durable != nil {
		v.state = v.durable.clone()
	} else {
		v.state = v.state.clone()
	}
	return nil
}

// change runs a write of the log in steps.
func (s *LogStore) change(w *write, step func(state *logState, i int)) error {
	v := s.v
	v.commit.Lock()
	dice := rollDiskDice(v.rng)
	w.incarnation, w.used = s.incarnation, s.state.bytes
	v.commit.Unlock()
	w.commit = func(from, to int) error {
		v.commit.Lock()
		defer v.commit.Unlock()
		if err := v.disk.alive(s.incarnation); err != nil {
			return err
		}
		for i := from; i < to; i++ {
			step(s.state, i)
		}
		if to == w.steps && v.disk.wroteBack(dice) {
			v.durable = v.state.clone()
		}
		return nil
	}
	return v.disk.do(w, dice)
}

// FirstIndex implements raft.LogStore.
func (s *LogStore) FirstIndex() (uint64, error) {
	s.v.commit.Lock()
	defer s.v.commit.Unlock()
	return s.state.first, nil
}

// LastIndex implements raft.LogStore.
func (s *LogStore) LastIndex() (uint64, error) {
	s.v.commit.Lock()
	defer s.v.commit.Unlock()
	return s.state.last, nil
}

// GetLog implements raft.LogStore.
func (s *LogStore) GetLog(index uint64, log *raft.Log) error {
	s.v.commit.Lock()
	defer s.v.commit.Unlock()
	l := s.state.entries[index]
	if l == nil {
		return raft.ErrLogNotFound
	}
	*log = *l
	log.Data, log.Extensions = bytes.Clone(l.Data), bytes.Clone(l.Extensions)
	return nil
}

// StoreLog implements raft.LogStore.
func (s *LogStore) StoreLog(log *raft.Log) error { return s.StoreLogs([]*raft.Log{log}) }

// StoreLogs implements raft.LogStore. A crash before it returns lets any number
// of the first entries survive.
func (s *LogStore) StoreLogs(logs []*raft.Log) error {
	w := &write{steps: len(logs)}
	for _, l := range logs {
		w.bytes += entryBytes(l)
	}
	return s.change(w, func(state *logState, i int) { state.put(logs[i]) })
}

func entryBytes(l *raft.Log) int64 { return int64(len(l.Data) + len(l.Extensions)) }

func (s *logState) put(l *raft.Log) {
	kept := *l
	kept.Data, kept.Extensions = bytes.Clone(l.Data), bytes.Clone(l.Extensions)
	if old := s.entries[l.Index]; old != nil {
		s.bytes -= entryBytes(old)
	}
	s.entries[l.Index] = &kept
	s.bytes += entryBytes(l)
	if s.first == 0 || l.Index < s.first {
		s.first = l.Index
	}
	s.last = max(s.last, l.Index)
}

// DeleteRange implements raft.LogStore. A crash before it returns leaves all of
// the range or nothing.
func (s *LogStore) DeleteRange(first, last uint64) error {
	return s.change(&write{steps: 1}, func(state *logState, _ int) { state.delete(first, last) })
}

func (s *logState) delete(first, last uint64) {
	for i, l := range s.entries {
		if i >= first && i <= last {
			s.bytes -= entryBytes(l)
			delete(s.entries, i)
		}
	}
	s.first, s.last = 0, 0
	if len(s.entries) > 0 {
		indexes := slices.Collect(maps.Keys(s.entries))
		s.first, s.last = slices.Min(indexes), slices.Max(indexes)
	}
}

// Set implements raft.StableStore. After a crash it changes only a copy, see
// Disk.Crash.
func (s *LogStore) Set(key, value []byte) error {
	key, value = bytes.Clone(key), bytes.Clone(value)
	set := func(state *logState, _ int) { state.stable[string(key)] = value }
	err := s.change(&write{steps: 1, stable: true}, set)
	if errors.Is(err, ErrCrashed) {
		s.v.commit.Lock()
		defer s.v.commit.Unlock()
		set(s.state, 0)
		return nil
	}
	return err
}

// Get implements raft.StableStore; nil where there is nothing.
func (s *LogStore) Get(key []byte) ([]byte, error) {
	s.v.commit.Lock()
	defer s.v.commit.Unlock()
	return bytes.Clone(s.state.stable[string(key)]), nil
}

// SetUint64 implements raft.StableStore.
func (s *LogStore) SetUint64(key []byte, value uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

// GetUint64 implements raft.StableStore; 0 where there is nothing.
func (s *LogStore) GetUint64(key []byte) (uint64, error) {
	value, err := s.Get(key)
	if err != nil || len(value) != 8 {
		return 0, err
	}
	return binary.BigEndian.Uint64(value), nil
}
