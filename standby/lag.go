package standby

import (
	"slices"
	"time"
)

// maxSightings bounds a lagClock.
const maxSightings = 128

// lagClock says for how long a standby has been behind: it notes, on its own
// clock alone, when it first heard of each position of its primary's log. The
// zero value is ready.
type lagClock struct {
	seen []sighting // both ascending; never changed in place
}

// sighting: at that time the primary's log was known to end at position.
type sighting struct {
	position uint64
	at       time.Duration
}

// heard notes where the primary's log ends. What is applied is forgotten; of too
// many sightings every other one is, but for the first.
func (c *lagClock) heard(position, applied uint64, at time.Duration) {
	seen := slices.Clone(c.seen)
	seen = slices.DeleteFunc(seen, func(s sighting) bool { return s.position <= applied })
	if n := len(seen); position > applied && (n == 0 || seen[n-1].position < position) {
		seen = append(seen, sighting{position, at})
	}
	if len(seen) > maxSightings {
		kept := seen[:0]
		for i := 0; i < len(seen); i += 2 {
			kept = append(kept, seen[i])
		}
		seen = kept
	}
	c.seen = seen
}

// lag is how old the news is that a node which has applied that much lacks.
func (c lagClock) lag(applied uint64, now time.Duration) time.Duration {
	for _, s := range c.seen {
		if s.position > applied {
			return max(now-s.at, 0)
		}
	}
	return 0
}
