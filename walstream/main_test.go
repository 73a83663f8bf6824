package walstream

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// crashStore is a log store of which a crash keeps what was synced and, of the
// call under way, any part from its front that a disk could keep.
type crashStore struct {
	mu        sync.Mutex
	durable   map[uint64]*raft.Log
	inFlight  []*raft.Log   // of a StoreLogs that has not returned
	gate      chan struct{} // not nil: StoreLogs waits for it
	entered   chan struct{} // not nil: told of each StoreLogs that waits
	fail      error
	failKeeps int // of the logs of a StoreLogs that fails
	calls     int
	deletes   int // DeleteRange calls until one fails; 0: none does
}

var errDisk = errors.New("the disk is gone")

func newCrashStore() *crashStore { return &crashStore{durable: make(map[uint64]*raft.Log)} }

func (s *crashStore) bound(better func(a, b uint64) uint64) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var best uint64
	for p := range s.durable {
		if best == 0 {
			best = p
		}
		best = better(best, p)
	}
	return best, nil
}

func (s *crashStore) FirstIndex() (uint64, error) {
	return s.bound(func(a, b uint64) uint64 { return min(a, b) })
}
func (s *crashStore) LastIndex() (uint64, error) {
	return s.bound(func(a, b uint64) uint64 { return max(a, b) })
}

func (s *crashStore) GetLog(index uint64, out *raft.Log) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.durable[index]
	if l == nil {
		return raft.ErrLogNotFound
	}
	*out = *l
	return nil
}

func (s *crashStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

func (s *crashStore) StoreLogs(logs []*raft.Log) error {
	last, _ := s.LastIndex()
	s.mu.Lock()
	if last > 0 && logs[0].Index != last+1 { // stores that keep their logs in files want that
		panic(fmt.Sprintf("log %d after %d", logs[0].Index, last))
	}
	s.calls++
	s.inFlight = logs
	gate, entered := s.gate, s.entered
	s.mu.Unlock()
	if entered != nil {
		entered <- struct{}{}
	}
	if gate != nil {
		<-gate
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inFlight = nil
	if s.fail != nil {
		for _, l := range logs[:min(s.failKeeps, len(logs))] {
			s.durable[l.Index] = l
		}
		return s.fail
	}
	for _, l := range logs {
		s.durable[l.Index] = l
	}
	return nil
}

func (s *crashStore) DeleteRange(first, last uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deletes > 0 {
		if s.deletes--; s.deletes == 0 {
			return errDisk
		}
	}
	for p := first; p <= last; p++ {
		delete(s.durable, p)
	}
	return nil
}

// crash is what the disk holds if the power fails now and keep of the entries
// being written survive.
func (s *crashStore) crash(keep int) *crashStore {
	s.mu.Lock()
	defer s.mu.Unlock()
	after := newCrashStore()
	maps.Copy(after.durable, s.durable)
	for _, l := range s.inFlight[:min(keep, len(s.inFlight))] {
		after.durable[l.Index] = l
	}
	return after
}

// positions are those of all entries in the store's blocks.
func (s *crashStore) positions() (list []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, index := range slices.Sorted(maps.Keys(s.durable)) {
		b, err := openBlock(index, s.durable[index].Data)
		if err != nil {
			panic(err)
		}
		for i := range b.entries {
			list = append(list, b.first+uint64(i))
		}
	}
	return list
}

func command(i int) *replication.Command {
	return &replication.Command{Type: replication.CmdEmbedder, Data: fmt.Appendf(nil, "write %d", i),
		Timestamp: time.Unix(int64(i), 5).UTC(), RequestID: fmt.Sprint("r", i)}
}

func group(i int) replication.Group { return replication.NewGroup(command(i)) }

func epoch(n uint64, owner string) replication.Epoch {
	return replication.Epoch{Number: n, Owner: owner}
}

var e1 = epoch(1, "a")

func openLog(t testing.TB, s raft.LogStore, opts LogOptions) *Log {
	t.Helper()
	l, err := OpenLog(s, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}
