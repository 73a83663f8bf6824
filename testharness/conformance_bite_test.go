package testharness

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// recorder is a reporter that notes whether a check failed.
type recorder struct {
	// mu guards the fields below.
	mu              sync.Mutex
	failed, skipped bool
	log             []string
}

func (r *recorder) Helper() {}

func (r *recorder) Errorf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = true
	r.log = append(r.log, fmt.Sprintf(format, args...))
}

func (r *recorder) FailNow() {
	r.mu.Lock()
	r.failed = true
	r.mu.Unlock()
	runtime.Goexit()
}

func (r *recorder) Skipf(format string, args ...any) {
	r.mu.Lock()
	r.skipped = true
	r.log = append(r.log, fmt.Sprintf(format, args...))
	r.mu.Unlock()
	runtime.Goexit()
}

// record runs one check on a store.
func record(check storageCheck, open func() Opened, patience time.Duration) *recorder {
	r := &recorder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				r.Errorf("the check panicked: %v", p)
			}
		}()
		runStorageCheck(r, check, open, patience)
	}()
	<-done
	return r
}

func checkNamed(t *testing.T, name string) storageCheck {
	t.Helper()
	for _, c := range storageChecks {
		if c.name == name {
			return c
		}
	}
	t.Fatalf("no check %q", name)
	return storageCheck{}
}

// TestTheSuiteFailsOnBrokenStores: each store has one fault, which the named
// check must find; the same check passes on the store without the fault.
func TestTheSuiteFailsOnBrokenStores(t *testing.T) {
	bitten := map[string]bool{}
	for _, b := range brokenStores {
		t.Run(b.check+"/"+strings.ReplaceAll(b.fault, " ", "_"), func(t *testing.T) {
			check := checkNamed(t, b.check)
			r := record(check, b.open, 200*time.Millisecond)
			require.False(t, r.skipped, "the check was skipped: %v", r.log)
			require.True(t, r.failed, "the fault was not found")
			require.NotContains(t, strings.Join(r.log, ""), "the check panicked", "it fell over the fault instead of finding it")
			bitten[b.check] = true
		})
	}
	for _, c := range storageChecks {
		require.True(t, bitten[c.name], "no broken store shows that %s can fail", c.name)
	}
}

// TestTheSuitePassesWholeStores in the same recorder that the broken ones run
// in, so that a failure there is the fault's and not the recorder's.
func TestTheSuitePassesWholeStores(t *testing.T) {
	whole := map[string]func() Opened{
		"MemStore": openedMem,
		"routed":   func() Opened { return openedBroken(brokenStore{}) },
		"plain": func() Opened {
			return openedWrapped(func(s *MemStore) replication.Storage { return readableStore{plainStore{s}, s} })
		},
		"effects": func() Opened {
			o := openedWrapped(func(s *MemStore) replication.Storage { return s.WithEffects(touch) })
			o.Opaque = &replication.Command{Type: replication.CmdCypher}
			return o
		},
	}
	ran := map[string]bool{}
	for name, open := range whole {
		for _, check := range storageChecks {
			r := record(check, open, defaultPatience)
			require.False(t, r.failed, "%s on %s: %s", check.name, name, strings.Join(r.log, "\n"))
			ran[check.name] = ran[check.name] || !r.skipped
		}
	}
	for _, c := range storageChecks {
		require.True(t, ran[c.name], "%s was skipped everywhere", c.name)
	}
}
