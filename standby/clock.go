package standby

import "time"

var processStart = time.Now()

// monotonicClock stands still while the machine is suspended; the wall clock then
// ends the lease.
func monotonicClock() time.Duration { return time.Since(processStart) }
