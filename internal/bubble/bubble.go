// Package bubble runs tests in virtual time: [testing/synctest], kept from a
// fault of Go's race detector support.
//
// The timers of one bubble share one context of the race detector, and a
// goroutine that receives from a timer channel whose time has come fires that
// timer itself (runtime, (*timer).maybeRunChan). Two goroutines that do so at
// once use the context from two threads, which it is not made for, and the
// process dies of a SIGSEGV within the detector: seen with Go 1.26.8, and
// within seconds in a program of twenty lines. With one thread running Go code
// it cannot happen, and the detector finds the same unordered accesses: it
// follows what happens before what, not what happens at the same time.
package bubble

import (
	"testing"
	"testing/synctest"
)

// Test is [synctest.Test]. Under the race detector the whole process runs Go
// code on one thread as long as a bubble is open. Safe for concurrent use.
func Test(t *testing.T, f func(*testing.T)) {
	t.Helper()
	defer oneThread()()
	synctest.Test(t, f)
}
