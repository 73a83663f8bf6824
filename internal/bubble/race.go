//go:build race

package bubble

import (
	"runtime"
	"sync"
)

// bubbles that are open in this process, and the threads there were before the
// first of them.
var bubbles struct {
	sync.Mutex
	open, threads int
}

// oneThread lets one thread run Go code until the last bubble is closed.
func oneThread() (restore func()) {
	bubbles.Lock()
	defer bubbles.Unlock()
	if bubbles.open++; bubbles.open == 1 {
		bubbles.threads = runtime.GOMAXPROCS(1)
	}
	return func() {
		bubbles.Lock()
		defer bubbles.Unlock()
		if bubbles.open--; bubbles.open == 0 {
			runtime.GOMAXPROCS(bubbles.threads)
		}
	}
}
