package replication

import "io"

// NodeID names a node of the graph. Any non-empty UTF-8 string.
type NodeID string

// EdgeID is the optional ID of an edge, by which several edges of one type
// between the same two nodes are told apart. Usually empty. A non-empty EdgeID
// is unique in the whole graph.
type EdgeID string

// Node is a node of the graph. Property values are those that DecodeValue
// returns; its JSON keeps integers and floats apart (wire protocol, Commands).
type Node struct {
	ID         NodeID
	Labels     []string
	Properties map[string]any
}

// Edge is a directed edge. Its identity is (StartNode, Type, EndNode, ID).
type Edge struct {
	ID         EdgeID
	StartNode  NodeID
	EndNode    NodeID
	Type       string
	Properties map[string]any
}

// Storage is the replication layer's view of the database (source document,
// "Storage Interface").
//
// A replicator is the only writer, and calls the mutating methods from one
// goroutine at a time; GetWALPosition may be called at any time. An operation
// either takes effect as a whole or returns an error; one that returns a
// verdict (see [Verdict]) has changed nothing, and every copy of the database
// in the same state gives the same verdict. Any other error is a failure of
// the storage and stops the node. Arguments belong to the caller: a Storage
// keeps copies.
type Storage interface {
	// ApplyCommand executes one command. Storages without a better idea
	// return Dispatch(s, cmd).
	ApplyCommand(cmd *Command) error

	// GetWALPosition returns the position of the last applied log entry, 0
	// for a new storage. ErrRestoreIncomplete says that a restore was begun
	// and must be run again.
	GetWALPosition() (uint64, error)
	// SetWALPosition records it.
	SetWALPosition(pos uint64) error

	// CreateNode: ErrExists if there is a node with this ID.
	CreateNode(node *Node) error
	// UpdateNode replaces labels and all properties: ErrNotFound without it.
	UpdateNode(node *Node) error
	// DeleteNode deletes the node and its edges: ErrNotFound without it.
	DeleteNode(id NodeID) error
	// CreateEdge: ErrMissingEnd without both nodes, ErrExists if it is there.
	CreateEdge(edge *Edge) error
	// DeleteEdge deletes the edge with this start, end and type, and an empty
	// ID: ErrNotFound without it.
	DeleteEdge(from, to NodeID, relType string) error
	// SetProperty sets one property, or removes it when value is nil.
	// ErrNotFound without the node.
	SetProperty(nodeID NodeID, key string, value interface{}) error
}

// TxStorage is a Storage with durable transactions: what gives exactly-once
// across a crash, atomic batches, and request IDs that outlive a restart.
type TxStorage interface {
	Storage
	// Update runs fn in one transaction. It is durable when Update returns
	// nil, unless the storage was told to defer that, and has left no trace when
	// Update returns fn's error, or fn panics. Tx is valid only within fn, and fn
	// sees its own writes.
	//
	// Multi-region mode reads the graph, too: there Tx is also a
	// conflict.GraphReader (package region/conflict).
	Update(fn func(Tx) error) error
	// View gives a consistent read of the metadata rows; many at once. For
	// multi-region mode its Meta is also a conflict.NodeReader.
	View(fn func(Meta) error) error
}

// DeferringStorage is a TxStorage that can make its transactions durable later,
// many at once. A mode that has a durable log of its own, from which it applies
// again what a crash took back, lets it do so.
type DeferringStorage interface {
	TxStorage
	// Defer(true) lets Update return before its transaction is durable. A crash,
	// a power failure included, then takes back the latest transactions, each as
	// a whole and none without those after it: the next GetWALPosition says from
	// where to apply again. Defer(false) ends that and flushes.
	Defer(on bool) error
	// Flush returns when what Update had done when it was called is durable. It
	// may be called at any time, beside Update too. After it failed Update fails.
	Flush() error
}

// LargeTxStorage is a TxStorage that can change a great part of itself in one
// transaction without holding that in memory. Multi-region mode merges the state
// of another region so, for which Update would need as much memory as the state
// takes.
type LargeTxStorage interface {
	TxStorage
	// UpdateLarge is Update in bounded memory, whatever fn writes. It may take
	// long and much of the disk, a copy of everything, say; readers see what was
	// before until it is done. What it did, and everything before, is durable when
	// it returns nil. fn does not write while it scans.
	UpdateLarge(fn func(Tx) error) error
}

// MetaSeeker is a Meta whose scans can begin in the middle, so that a long one
// can be made in parts.
type MetaSeeker interface {
	// ScanMetaFrom is ScanMeta without the keys below from.
	ScanMetaFrom(prefix, from []byte, fn func(k, v []byte) error) error
}

// Tx is a transaction of a TxStorage.
type Tx interface {
	Storage
	Meta
	// SetMeta sets a metadata row; a nil value deletes it.
	SetMeta(key, value []byte) error
}

// Meta reads metadata rows: small rows beside the graph that belong to the
// replication layer and are part of every snapshot. Keys and values are any bytes,
// text or not.
type Meta interface {
	// GetMeta returns a copy of the value, nil where there is none.
	GetMeta(key []byte) ([]byte, error)
	// ScanMeta calls fn for each row whose key has the prefix, in key order.
	// k and v are valid only during the call; fn's error ends the scan.
	ScanMeta(prefix []byte, fn func(k, v []byte) error) error
}

// StorageSnapshotter is a Storage that can be copied as a whole. Without it
// logs are never compacted and a node that lags too far cannot be rebuilt.
type StorageSnapshotter interface {
	// Snapshot pins the present state. It is cheap, and called between
	// writes; the copy is read later, while writes go on.
	Snapshot() (StorageSnapshot, error)
	// Restore replaces everything by the snapshot in r: all or nothing as
	// seen through GetWALPosition. It reads r to its end; an error of r other
	// than io.EOF says that the snapshot is not whole. On an error either the
	// old state is whole or GetWALPosition returns ErrRestoreIncomplete.
	Restore(r io.Reader) error
}

// StorageSnapshot is a pinned state: graph, position and metadata rows as one.
type StorageSnapshot interface {
	// Position is the WAL position of the pinned state.
	Position() uint64
	// WriteTo streams the state in bounded memory.
	WriteTo(w io.Writer) (int64, error)
	// Release frees what the pin holds. Idempotent.
	Release()
}

// EdgeStorage is a Storage that tells several edges of one type between one
// pair of nodes apart by their IDs.
type EdgeStorage interface {
	// UpdateEdge replaces the properties of the edge with the same identity:
	// ErrNotFound without it.
	UpdateEdge(edge *Edge) error
	// DeleteEdgeByID deletes the edge with this non-empty ID: ErrNotFound
	// without it.
	DeleteEdgeByID(id EdgeID) error
}

// EffectRecorder is a Storage that can tell which typed commands an opaque
// command amounts to, without executing it.
type EffectRecorder interface {
	// RecordEffects returns the typed commands and the WAL position of the
	// state they were computed against.
	RecordEffects(cmd *Command) (effects []*Command, at uint64, err error)
}
