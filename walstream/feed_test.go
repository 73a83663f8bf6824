package walstream

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	"github.com/stretchr/testify/require"
)

// memoryStorage is a Storage that keeps what was applied, in order.
type memoryStorage struct {
	replication.Storage
	applied  []string
	position uint64
	fail     error
	hang     chan struct{} // not nil: waited for
}

func (s *memoryStorage) GetWALPosition() (uint64, error) { return s.position, nil }
func (s *memoryStorage) SetWALPosition(p uint64) error   { s.position = p; return nil }
func (s *memoryStorage) ApplyCommand(c *replication.Command) error {
	if s.hang != nil {
		<-s.hang
	}
	if s.fail != nil {
		return s.fail
	}
	s.applied = append(s.applied, string(c.Data))
	if string(c.Data) == "write 3" {
		return replication.ErrNotFound
	}
	return nil
}

func TestFeedAppliesWhatIsAllowed(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		store := newCrashStore()
		store.gate = make(chan struct{})
		log := openLog(t, store, LogOptions{})
		storage := new(memoryStorage)
		applier, err := replication.NewStorageApplier(storage)
		require.NoError(t, err)
		f := NewFeed(log, applier)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		var results []<-chan replication.Result
		for i := range 5 {
			_, result, err := f.Propose(func() (*Entry, error) { return log.Propose(e1, time.Now(), group(i+1)) })
			require.NoError(t, err)
			results = append(results, result)
		}
		f.Commit(4)
		synctest.Wait()
		require.Zero(t, applier.Position(), "nothing is applied that the disk does not have")
		close(store.gate)
		for i, r := range results[:4] {
			res := <-r
			require.EqualValues(t, i+1, res.Position)
			if i+1 == 3 {
				require.ErrorIs(t, res.Err, replication.ErrNotFound)
			} else {
				require.NoError(t, res.Err)
			}
		}
		synctest.Wait()
		require.EqualValues(t, 4, applier.Position(), "nothing is applied above the commit position")
		require.Equal(t, 1, f.Waiting())

		gone := errors.New("no longer primary")
		f.Pause(gone)
		require.ErrorIs(t, (<-results[4]).Err, gone)
		f.Resume()
		synctest.Wait()
		require.EqualValues(t, 4, applier.Position(), "commit begins anew after a pause")
		f.Commit(5)
		synctest.Wait()
		require.Equal(t, []string{"write 1", "write 2", "write 3", "write 4", "write 5"}, storage.applied)

		storage.fail = errDisk
		_, result, err := f.Propose(func() (*Entry, error) { return log.Propose(e1, time.Now(), group(6)) })
		require.NoError(t, err)
		f.Commit(6)
		require.ErrorIs(t, (<-result).Err, replication.ErrUnknownOutcome)
		require.ErrorIs(t, <-done, replication.ErrStorageFailed)
		_, _, err = f.Propose(func() (*Entry, error) { return log.Propose(e1, time.Now(), group(7)) })
		require.ErrorIs(t, err, replication.ErrStorageFailed)
		require.EqualValues(t, 6, log.Last().Position)
		cancel()
	})
}

// A Storage that waits for its disk holds Pause up, and nothing else: time goes on.
func TestFeedPauseWaitsForTheStorage(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		log := openLog(t, newCrashStore(), LogOptions{})
		storage := &memoryStorage{hang: make(chan struct{})}
		applier, err := replication.NewStorageApplier(storage)
		require.NoError(t, err)
		f := NewFeed(log, applier)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		done, paused := make(chan error, 1), make(chan struct{})
		go func() { done <- f.Run(ctx) }()
		_, _, err = f.Propose(func() (*Entry, error) { return log.Propose(e1, time.Now(), group(1)) })
		require.NoError(t, err)
		f.Commit(1)
		synctest.Wait()
		go func() { f.Pause(errors.New("no longer primary")); close(paused) }()
		select {
		case <-paused:
			require.Fail(t, "an entry is being applied")
		case <-time.After(time.Second):
		}
		close(storage.hang)
		<-paused
		require.EqualValues(t, 1, applier.Position())
		cancel()
		<-done
	})
}

// An entry that may be applied before the disk has it is applied when the disk has
// it, whenever that happens: also while the feed decides that there is nothing to do.
func TestFeedMissesNoSync(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		log := openLog(t, newCrashStore(), LogOptions{})
		applier, err := replication.NewStorageApplier(new(memoryStorage))
		require.NoError(t, err)
		f := NewFeed(log, applier)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- f.Run(ctx) }()
		for i := range 2_000 {
			f.Commit(uint64(i + 1)) // as on a standby, whose primary is ahead of its disk
			_, result, err := f.Propose(func() (*Entry, error) { return log.Propose(e1, time.Now(), group(i+1)) })
			require.NoError(t, err)
			select {
			case <-result:
			case <-time.After(time.Minute):
				t.Fatalf("entry %d: the disk has %d, applied is %d", i+1, log.Durable().Position, applier.Position())
			}
		}
		cancel()
		require.ErrorIs(t, <-done, context.Canceled)

		// Without luck: the sync ends between a step and the wait.
		f.Commit(2_001)
		more, err := f.step()
		require.NoError(t, err)
		require.False(t, more, "the disk does not have it")
		_, err = log.Append(t.Context(), e1, time.Now(), group(2_001))
		require.NoError(t, err)
		require.True(t, f.awaitsDisk(), "what woke the feed before that step wakes it now")
		require.NoError(t, log.Close())
	})
}

// TestACallThatMovesDoesNotHang: a Storage that takes one write at a time is given
// many in one call. As long as it gets further that takes its time, and no more.
func TestACallThatMovesDoesNotHang(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const each = 10 * time.Second
		log := openLog(t, newCrashStore(), LogOptions{})
		storage := &memoryStorage{hang: make(chan struct{})}
		applier, err := replication.NewStorageApplier(storage)
		require.NoError(t, err)
		f := NewFeed(log, applier)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		var result <-chan replication.Result
		for i := range 5 {
			_, result, err = f.Propose(func() (*Entry, error) { return log.Propose(e1, time.Now(), group(i+10)) })
			require.NoError(t, err)
		}
		require.NoError(t, log.Sync(t.Context()))
		f.Commit(5)
		go func() { done <- f.Run(ctx) }()
		for range 5 {
			for range 9 {
				<-time.After(each / 10)
				stuck, last := f.Hung()
				require.Less(t, stuck, each)
				require.EqualValues(t, 5, last)
			}
			<-time.After(each / 10)
			storage.hang <- struct{}{}
		}
		require.NoError(t, (<-result).Err)
		synctest.Wait()
		stuck, last := f.Hung()
		require.Zero(t, stuck)
		require.Zero(t, last)
		cancel()
		<-done
	})
}
