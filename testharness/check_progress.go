package testharness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

var (
	// ErrNoProgress: what should have worked again did not within its bound.
	ErrNoProgress = errors.New("no progress within the bound")
	// ErrLeftOpen: files or connections are open that were not before.
	ErrLeftOpen = errors.New("left open")
)

// CheckProgress tries until try succeeds, and says how long that took. It is
// for the time after faults were healed: ErrNoProgress, with the last error,
// when the bound passes first. try gets what is left of the bound.
func CheckProgress(bound time.Duration, try func(context.Context) error) (time.Duration, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	for {
		err := try(ctx)
		took := time.Since(start)
		switch {
		case err == nil && took <= bound:
			return took, nil
		case err == nil:
			return took, fmt.Errorf("%w of %s: it took %s", ErrNoProgress, bound, took)
		case !pauseFor(ctx, retryPause):
			return took, fmt.Errorf("%w of %s: %w", ErrNoProgress, bound, err)
		}
	}
}

// openFiles lists the file descriptors of this process and what they are of.
func openFiles() (map[int]string, error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	files := make(map[int]string)
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, err
		}
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil || strings.HasPrefix(target, "/proc/") { // the one that ReadDir had open
			continue
		}
		files[fd] = target
	}
	return files, nil
}

// leftOpen names what is open now and was not before.
func leftOpen(before map[int]string) error {
	now, err := openFiles()
	if err != nil {
		return err
	}
	var left []string
	for fd, target := range now {
		// The runtime keeps its poller, and makes it when it first needs one.
		if before[fd] != target && !strings.HasPrefix(target, "anon_inode:[event") {
			left = append(left, fmt.Sprintf("%d %s", fd, target))
		}
	}
	if len(left) == 0 {
		return nil
	}
	sort.Strings(left)
	return fmt.Errorf("%w: %s", ErrLeftOpen, strings.Join(left, ", "))
}

// leakWait is how long what ends by itself may take to end.
const leakWait = 5 * time.Second

// CheckLeaks fails the test if, when it and its other clean-ups are over, it has
// left a goroutine or a file descriptor behind: call it first. It sees the
// whole process, so it is not for tests that run in parallel. File descriptors
// are looked at where there is /proc/self/fd.
func CheckLeaks(t testing.TB) {
	t.Helper()
	before, unknown := openFiles()
	if unknown != nil {
		t.Logf("file descriptors are not checked: %v", unknown)
	}
	running := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		if err := goleak.Find(running); err != nil {
			t.Error(err)
		}
		if unknown != nil {
			return
		}
		if _, err := CheckProgress(leakWait, func(context.Context) error { return leftOpen(before) }); err != nil {
			t.Error(err)
		}
	})
}
