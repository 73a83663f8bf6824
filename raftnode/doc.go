// Package raftnode is Raft mode: three to five nodes, hashicorp/raft behind a
// replication.Storage. It adds what Raft alone does not give: one port, writes
// and linearizable reads on any node, commands joined into log entries,
// founding and joining that cannot vote committed writes away, and health that
// is true.
//
//	r, err := replication.New(cfg, storage, replication.Modes{replication.ModeRaft: raftnode.New})
package raftnode
