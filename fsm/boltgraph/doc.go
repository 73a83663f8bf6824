// Package boltgraph is the embedded graph store: a replication.Storage with
// transactions, snapshots and edge IDs on one bbolt file.
//
// Nodes, edges with their reverse index, counts, content digest, position and
// metadata rows change as one. A transaction is durable when Update returns,
// unless a mode with a log of its own said Defer. A snapshot pins a bbolt read
// transaction: it costs nothing to take, but the file cannot reuse the pages
// it sees until it is released. DESIGN.md has the arguments. A component of an edge's identity, and a node
// ID, has at most MaxIDBytes.
package boltgraph
