// Package walstream is the write-ahead log of hot standby and its stream to
// another node.
//
// [Log] is the durable log: positions without gaps over any raft.LogStore.
// [Streamer] sends a [Source], a Log or another, to a peer; [Applier] is the
// receiving side, which checks what comes and writes it to its own Log; [Feed]
// applies a Log to a Storage as far as its mode allows.
//
// What is decided is in pure code (window.go, judge.go, retain.go); the rest
// drives it. See DESIGN.md for what each mechanism withstands.
package walstream
