package raftnode

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestAStandstillIsNoCallsAge: a process that stood still (SIGSTOP) in the middle of a
// call finds nothing that hangs when it goes on.
func TestAStandstillIsNoCallsAge(t *testing.T) {
	m := new(machine)
	ended := m.watch(7)
	now := time.Now()
	m.see(now, 2*time.Second, 4)
	for range 5 { // the first time it has got further
		now = now.Add(time.Second)
		m.see(now, 2*time.Second, 5)
	}
	stuck, last := m.stuckFor()
	require.Equal(t, uint64(7), last)
	require.InDelta(t, 4, stuck.Seconds(), 0.5)

	m.see(now.Add(time.Hour), 2*time.Second, 5)
	stuck, _ = m.stuckFor()
	require.InDelta(t, 6, stuck.Seconds(), 0.5)

	ended()
	m.see(now.Add(2*time.Hour), 2*time.Second, 5)
	stuck, last = m.stuckFor()
	require.Zero(t, stuck)
	require.Zero(t, last)
}

// TestWhatProvesThatAnotherStorageDoesNotHang: a storage that has a part of the batch
// that hangs here may hang in the rest of it, as batches end elsewhere on each node;
// with leadership there it would come back as soon as this node is further by a part.
func TestWhatProvesThatAnotherStorageDoesNotHang(t *testing.T) {
	m := new(machine)
	ended := m.watch(9)
	require.Equal(t, uint64(9), m.proof(3), "not 4")
	ended()
	m.watch(0) // a snapshot
	require.Equal(t, uint64(4), m.proof(3))
}
