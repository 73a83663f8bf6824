// Package standby is hot-standby mode: two nodes, one primary, a write-ahead log
// that is streamed to the other, and a failover that neither loses nor forks
// what its sync mode and partition policy promise.
//
//	r, err := replication.New(cfg, storage, replication.Modes{replication.ModeHAStandby: standby.New})
//
// What a node does is decided by a pure machine (machine.go, starting.go,
// follow.go, lead.go), which the tests explore; the rest drives it. See
// DESIGN.md.
package standby
