package transport

import (
	"sync"
	"time"
)

// throttleInterval is the least time between two log lines of one kind.
const throttleInterval = time.Second

// throttle thins out log lines that strangers cause: one of each kind in an
// interval, the rest counted. Counters are not thinned out.
type throttle struct {
	// mu guards kinds.
	mu    sync.Mutex
	kinds map[string]*throttled
}

type throttled struct {
	next    time.Time
	skipped uint64
}

// pass says whether a line of a kind may be logged now, and how many were not
// since the last. The kinds are few and fixed.
func (t *throttle) pass(kind string, now time.Time) (ok bool, skipped uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.kinds == nil {
		t.kinds = make(map[string]*throttled)
	}
	k := t.kinds[kind]
	if k == nil {
		k = &throttled{}
		t.kinds[kind] = k
	}
	if now.Before(k.next) {
		k.skipped++
		return false, 0
	}
	skipped, k.skipped = k.skipped, 0
	k.next = now.Add(throttleInterval)
	return true, skipped
}
