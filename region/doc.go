// Package region is multi-region mode (spec multi-region.md): a Raft cluster in
// each region, asynchronous streams of committed writes between them, and the
// conflict resolution of package conflict in the state machine of each region.
//
// [New], or [Mode] with options of the inner Raft cluster, is the constructor
// to pass to replication.New:
//
//	replication.Modes{replication.ModeMultiRegion: region.New}
//
// DESIGN.md has the failure argument of each mechanism.
package region
