package standby

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Lag in seconds is the age of the oldest news that is missing, on this node's own
// clock; hearing from the primary again does not make it smaller.
func TestLagClock(t *testing.T) {
	var c lagClock
	require.Zero(t, c.lag(0, 5*time.Second))
	for i := range 60 {
		c.heard(uint64(10*(i+1)), 5, time.Duration(i)*time.Second)
	}
	now := 60 * time.Second
	require.Equal(t, 60*time.Second, c.lag(5, now), "entry 6 was heard of at 0 s")
	require.Equal(t, 60*time.Second, c.lag(9, now))
	require.Equal(t, 59*time.Second, c.lag(10, now))
	require.Equal(t, time.Second, c.lag(599, now))
	require.Zero(t, c.lag(600, now), "it lacks nothing that it knows of")
	c.heard(600, 300, now)
	require.Equal(t, 30*time.Second, c.lag(300, now))
	require.Zero(t, c.lag(600, now))
	for i := range 100000 {
		c.heard(uint64(1000+i), 300, now+time.Duration(i)*time.Millisecond)
	}
	require.LessOrEqual(t, len(c.seen), maxSightings)
	require.Equal(t, 130*time.Second, c.lag(300, 160*time.Second), "the oldest one stays")
}
