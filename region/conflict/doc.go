// Package conflict is the conflict resolution of multi-region mode: the part
// of a region's replicated state machine that gives every write its name, time
// and context, merges the writes of other regions, decides what is shown, and
// forgets what all regions have (spec multi-region.md).
//
// It is a pure state machine. A [Core] has no clock, goroutine, socket or
// file: wall readings come with the commands, and everything it keeps are
// metadata rows of the Storage's own transaction, so that rows, graph and
// position change as one. DESIGN.md has the rules and why they hold.
package conflict
