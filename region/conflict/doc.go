// Package conflict is the conflict resolution of multi-region mode: the part
// of a region's replicated state machine that gives every write its name, time
// and context, merges the writes of other regions, decides what is shown, and
// forgets what all regions have (spec multi-region.md).
//
// It is a pure state machine. A [Core] has no clock, goroutine, socket or
// file: wall readings come with the commands, and everything it keeps are
// metadata rows of the Storage's own transaction, so that rows, graph and
// position change as one. DESIGN.md has the rules and why they hold.
//
// The owner of a region's log uses it inside a transaction:
//
//	core, err := conflict.Load(store, "eu", settings)
//	entry, err := core.Local(wallMS, cmds...) // a client's write; entry goes to the outbox
//	fresh, err := core.Remote(wallMS, entry)  // an entry of another region
//	entry, err = core.Mark(wallMS)            // idle, and core.Status().NeedsMark
//	err = core.Collect()                      // idle, and core.Status().Uncollected > 0
//	entry, err = core.Resolve(wallMS, key, resolution)
//	err = core.MergeState(wallMS, rows)       // beyond the reach of an outbox
//
// and, outside of one, [Conflicts] and [ReadStatus].
package conflict
