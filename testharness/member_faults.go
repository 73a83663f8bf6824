package testharness

import (
	"os"
	"path/filepath"

	"github.com/nornicdb/replication"
)

// Crash cuts a node's power: its connections vanish without a word, its disk
// keeps what Disk says it keeps. The links from and to it are healed, so that
// its next incarnation is reached.
func (c *Cluster) Crash(m *Member) {
	life := m.takeLife()
	if life == nil {
		return
	}
	c.Transcript.Add(m.ID, "crashes")
	c.Net.Isolate(m.ID)
	c.Net.Crash(m.ID)
	if err := m.Disk().Crash(); err != nil {
		c.tb.Errorf("crash of %s: %v", m.ID, err)
	}
	c.clearAway(m, life)
}

// CrashAt plans a crash in the middle of a node's write to its disk: the first
// one from now where writes is 1, and so on.
func (c *Cluster) CrashAt(m *Member, writes int) {
	c.Transcript.Add(m.ID, "is to crash at its write %d from now", writes)
	m.Disk().CrashAt(writes, func() {
		life := m.takeLife()
		c.Net.Isolate(m.ID)
		c.Net.Crash(m.ID)
		if life != nil {
			c.clearAway(m, life)
		}
	})
}

// clearAway lets what is left of a dead process run out: cut off from disk and
// network, it can do no harm.
func (c *Cluster) clearAway(m *Member, life *incarnation) {
	c.Net.Reconnect(m.ID)
	go func() { _ = m.bury(life) }() // the errors of a dead node are expected
}

// Wipe empties the disk of a node that is down.
func (c *Cluster) Wipe(m *Member) {
	m.waitGone()
	m.freshDisk()
	c.Transcript.Add(m.ID, "its disk is wiped")
	entries, err := os.ReadDir(m.Config.DataDir)
	if err != nil {
		c.tb.Errorf("wiping %s: %v", m.ID, err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(m.Config.DataDir, e.Name())); err != nil {
			c.tb.Errorf("wiping %s: %v", m.ID, err)
		}
	}
}

// Pause stops a node as SIGSTOP looks from outside: nothing of it is sent, or
// received, or written, until Resume. Its clocks go on.
func (c *Cluster) Pause(m *Member) {
	c.Transcript.Add(m.ID, "is paused")
	c.Net.Isolate(m.ID)
	m.Disk().Hang()
}

// Resume ends Pause; and with it a hang and an isolation of the node.
func (c *Cluster) Resume(m *Member) {
	c.Transcript.Add(m.ID, "goes on")
	m.Disk().Release()
	c.Net.Reconnect(m.ID)
}

// Health of a member; the zero HealthStatus while it is down.
func (m *Member) Health() replication.HealthStatus {
	if r := m.Replicator(); r != nil {
		return *r.Health()
	}
	return replication.HealthStatus{}
}
