// Package fsm makes a replication.Storage the state machine of a
// hashicorp/raft cluster: log entries become Storage transactions through the
// replication.StorageApplier, snapshots are streamed, and a restart replays
// only what the Storage lacks.
//
// The package also fixes the encoding of log entries, which the hot-standby
// log shares.
package fsm
