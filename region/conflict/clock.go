package conflict

import (
	"fmt"

	"github.com/nornicdb/replication"
)

// A time is a hybrid logical clock: 48 bit of milliseconds, 16 bit of counter.
const counterBits = 16

// maxTime bounds the times of entries. No clock follows another one, or the wall,
// to maxFollowed (the year 4200), so that it has room to tick below maxTime.
const (
	maxTime     = 1 << 63
	maxFollowed = 1 << 62
)

// maxWallMS is what fits below maxFollowed.
const maxWallMS = maxFollowed>>counterBits - 1

// tick returns the time of a new write: later than last, and not before the wall.
func tick(last, wallMS uint64) uint64 {
	return max(last+1, min(wallMS, maxWallMS)<<counterBits)
}

// observe returns the clock after a remote time was seen. A time further ahead
// of the wall than maxOffsetMS (0: no bound) is not followed, nor one at the end of the range.
func observe(last, remote, wallMS, maxOffsetMS uint64) (clock uint64, ahead bool) {
	if remote >= maxFollowed || maxOffsetMS > 0 && remote>>counterBits > min(wallMS, maxWallMS)+maxOffsetMS {
		return last, true
	}
	return max(last, remote), false
}

// WallMS is the millisecond part of a time.
func WallMS(time uint64) uint64 { return time >> counterBits }

// SetMaxClockOffset changes how far a remote time may pull the clock ahead of the
// wall. What regions show does not depend on it, and they need not change it at
// the same moment. An error that is a verdict says that nothing was changed.
func (c *Core) SetMaxClockOffset(ms uint64) error {
	if c.failed != nil {
		return c.failed
	}
	s := c.head.settings
	s.MaxClockOffsetMS = ms
	if err := s.Validate(); err != nil {
		return fmt.Errorf("%w: %w", replication.ErrInvalidCommand, err)
	}
	c.head.settings = s
	if c.dirty = true; c.held {
		return nil
	}
	return c.Save()
}
