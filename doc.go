// Package replication is the vocabulary of a replication layer for a graph
// database: the interfaces a database server meets ([Storage]) and uses
// ([Replicator]), the commands that change a graph, the messages that nodes
// exchange, the configuration, the errors, and the one component through which
// every mode writes to a Storage, the [StorageApplier].
//
// The package imports the standard library only. Apart from the standalone
// mode, which needs no other node, the modes live in packages of their own and
// are handed to [New], so that a server links only what it uses:
//
//	r, err := replication.New(cfg, storage, replication.Modes{
//		replication.ModeRaft: raftnode.New,
//	})
//
// # Outcomes of a write
//
// A write has three outcomes, and the errors keep them apart. No error: the
// write is done and survives what its mode promises. An error that wraps
// [ErrUnknownOutcome]: it may or may not take effect, now or later; a retry
// with the same request ID is safe. Any other error: it did not and will not
// take effect.
package replication
