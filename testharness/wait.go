package testharness

import (
	"time"

	"github.com/nornicdb/replication"
)

// pollInterval is how often waiting looks.
const pollInterval = 10 * time.Millisecond

// Eventually waits until what is said by what holds, and fails the test if it
// does not within the time. It says whether it does.
func (c *Cluster) Eventually(within time.Duration, what string, holds func() bool) bool {
	c.tb.Helper()
	timer := time.NewTimer(within)
	defer timer.Stop()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-timer.C:
			c.Transcript.Add("check", "not within %v: %s", within, what)
			c.tb.Errorf("not within %v: %s", within, what)
			return false
		}
	}
	return true
}

// WaitLeader waits for a member that leads, other than those named; nil, and
// the test has failed, if there is none in time.
func (c *Cluster) WaitLeader(within time.Duration, but ...*Member) *Member {
	c.tb.Helper()
	var found *Member
	c.Eventually(within, "a node leads", func() bool {
	members:
		for _, m := range c.Members {
			for _, b := range but {
				if b == m {
					continue members
				}
			}
			if r := m.Replicator(); r != nil && r.IsLeader() {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

// WaitRole waits until a member has a role, as its Health says.
func (c *Cluster) WaitRole(within time.Duration, m *Member, role string) bool {
	c.tb.Helper()
	return c.Eventually(within, m.ID+" is "+role, func() bool { return m.Health().Role == role })
}

// WaitPosition waits until every running member has applied a position.
func (c *Cluster) WaitPosition(within time.Duration, position uint64) bool {
	c.tb.Helper()
	return c.Eventually(within, "all nodes have applied the position", func() bool {
		for _, m := range c.Members {
			if at, err := m.Store().GetWALPosition(); m.Running() && (err != nil || at < position) {
				return false
			}
		}
		return true
	})
}

// WaitSame waits until all members run and hold the same at the same position.
func (c *Cluster) WaitSame(within time.Duration) (stats MemStats, ok bool) {
	c.tb.Helper()
	ok = c.Eventually(within, "all nodes hold the same", func() bool {
		for i, m := range c.Members {
			s := m.Store().Stats()
			if i == 0 {
				stats = s
			}
			if !m.Running() || s.Position != stats.Position || s.Digest != stats.Digest || s.Nodes != stats.Nodes {
				return false
			}
		}
		return true
	})
	return stats, ok
}

// Reader is a member's replicator as a ConsistentReader; nil while it is down.
func (m *Member) Reader() replication.ConsistentReader {
	r, _ := m.Replicator().(replication.ConsistentReader)
	return r
}
