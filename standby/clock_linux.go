package standby

import (
	"time"

	"golang.org/x/sys/unix"
)

// bootClock is the time since boot, suspension included.
func bootClock() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return monotonicClock()
	}
	return time.Duration(ts.Nano())
}
