package replication

import (
	"hash/maphash"
	"sync/atomic"
)

// recentNames holds labels, types and property keys that were decoded lately.
// Most commands bring the same few, so a command mostly needs no memory for
// them, and what a storage keeps of many nodes shares theirs.
type recentNames struct {
	seed  maphash.Seed
	slots [1024]atomic.Pointer[string]
}

// maxNameBytes bounds what is held, with the number of slots.
const maxNameBytes = 32

var names = recentNames{seed: maphash.MakeSeed()}

// of is string(name). Callers may race: each slot holds one whole string, and
// who finds another than its own replaces it.
func (n *recentNames) of(name []byte) string {
	if len(name) > maxNameBytes {
		return string(name)
	}
	slot := &n.slots[maphash.Bytes(n.seed, name)%uint64(len(n.slots))]
	if s := slot.Load(); s != nil && *s == string(name) {
		return *s
	}
	s := string(name)
	slot.Store(&s)
	return s
}
