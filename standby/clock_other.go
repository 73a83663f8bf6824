//go:build !linux

package standby

import "time"

func bootClock() time.Duration { return monotonicClock() }
