package replication

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"
)

// ReplicationMode says how a database is replicated.
type ReplicationMode string

// The modes.
const (
	ModeStandalone  ReplicationMode = "standalone"
	ModeHAStandby   ReplicationMode = "ha_standby"
	ModeRaft        ReplicationMode = "raft"
	ModeMultiRegion ReplicationMode = "multi_region"
)

// Consistency is a level of a read or write (configuration, "reads").
type Consistency string

// The levels. For a read, ONE and LOCAL_ONE mean what this node has;
// QUORUM and LOCAL_QUORUM are linearizable.
const (
	ConsistencyOne         Consistency = "ONE"
	ConsistencyLocalOne    Consistency = "LOCAL_ONE"
	ConsistencyQuorum      Consistency = "QUORUM"
	ConsistencyLocalQuorum Consistency = "LOCAL_QUORUM"
	ConsistencyAll         Consistency = "ALL"
)

// Replicator is one node of any mode (source document, "Replicator
// Interface"). All methods are safe for concurrent use.
type Replicator interface {
	// Start starts the replicator, once. ctx bounds the start, not the life. A
	// replicator whose start failed is of no more use than one that was shut down:
	// make another to try again.
	Start(ctx context.Context) error

	// Apply applies a write, through the leader if need be, and returns when
	// it is as safe as the mode promises and visible on the node that applied
	// it. timeout must be positive (ErrInvalidTimeout). See the package
	// comment for the three outcomes.
	Apply(cmd *Command, timeout time.Duration) error

	// IsLeader returns true if this node can accept writes itself.
	IsLeader() bool

	// LeaderAddr returns the cluster address of the current leader, "" where
	// none is known.
	LeaderAddr() string

	// LeaderID returns the ID of the current leader, "" where none is known.
	LeaderID() string

	// Health returns the node's health. It does not block on other nodes.
	Health() *HealthStatus

	// WaitForLeader blocks until a leader is known: ErrNoLeader otherwise. timeout
	// must be positive (ErrInvalidTimeout).
	WaitForLeader(timeout time.Duration) error

	// Mode returns the replication mode.
	Mode() ReplicationMode

	// NodeID returns this node's ID.
	NodeID() string

	// Shutdown hands leadership on where it can, stops everything the
	// replicator started, waits for it, and returns the first error.
	// Idempotent. The Storage remains the caller's to close.
	Shutdown() error
}

// BatchApplier applies several commands atomically: all or none.
type BatchApplier interface {
	// ApplyBatch returns the position of the write. The request ID of the
	// batch is that of its first command. ErrUnsupported where the Storage has
	// no transactions.
	ApplyBatch(ctx context.Context, cmds []*Command) (position uint64, err error)
}

// ConsistentReader lets a caller read, on any node, no less than it may expect.
type ConsistentReader interface {
	// ReadBarrier waits until this node's Storage shows at least what the level
	// demands as of the call, and returns that position. ErrUnsupported for a level
	// that the mode does not give; ErrNoLeader, ErrNotLeader or ErrTimeout where
	// nobody vouches for it in time.
	ReadBarrier(ctx context.Context, level Consistency) (position uint64, err error)
	// WaitApplied waits until this node has applied the position: ErrTimeout when
	// ctx ends before.
	WaitApplied(ctx context.Context, position uint64) error
}

// Membership is what an operator can see and change of a cluster. An order is given
// to any node. Its outcome is as open as that of a write: with ErrUnknownOutcome it
// may be carried out, now or later; with any other error it was not. To repeat one
// is safe: it says what is to be.
type Membership interface {
	ClusterStatus(ctx context.Context) (*ClusterStatus, error)
	// AddMember adds a node, or changes its address. A new voter starts as a
	// non-voter and is promoted when it has caught up.
	AddMember(ctx context.Context, id, addr string, voter bool) error
	// RemoveMember removes a node: ErrQuorumAtRisk unless forced.
	RemoveMember(ctx context.Context, id string, force bool) error
	// TransferLeadership hands leadership to the node, or to any if id is "".
	TransferLeadership(ctx context.Context, id string) error
}

// Promoter promotes a standby: a planned switch, or a forced one, which may lose
// writes. It returns when this node is primary; ErrNotReady with the reason where it
// cannot become that, ErrUnknownOutcome where ctx ended first: the promotion goes on.
type Promoter interface {
	Promote(ctx context.Context, force bool) error
}

// Soloer takes an operator's word that the peer is down, and makes this node the
// primary that goes on alone. Errors are those of Promoter.
type Soloer interface {
	Solo(ctx context.Context) error
}

// Snapshotter takes a snapshot of the node's state now.
type Snapshotter interface {
	TakeSnapshot(ctx context.Context) error
}

// Subscriber tells what happens to a node.
type Subscriber interface {
	// Subscribe returns a channel of events. A reader that lags by more than
	// buffer loses the oldest and is told how many by EventsLost. cancel closes
	// the channel; Shutdown does too.
	Subscribe(buffer int) (events <-chan Event, cancel func())
}

// Transport carries messages between nodes (source document, "Transport
// Interface"). Safe for concurrent use.
type Transport interface {
	// Connect returns a connection to the peer at addr.
	Connect(ctx context.Context, addr string) (PeerConnection, error)

	// Listen accepts connections until ctx ends or Close is called, and
	// blocks that long. handler, if not nil, is told of every accepted
	// connection on which this side can send requests.
	Listen(ctx context.Context, addr string, handler ConnectionHandler) error

	// Close shuts down the transport: listeners, connections, goroutines.
	Close() error
}

// ConnectionHandler is told of an accepted connection.
type ConnectionHandler func(PeerConnection)

// PeerConnection sends requests to one peer. Safe for concurrent use; requests
// are pipelined.
type PeerConnection interface {
	// WAL streaming (hot standby)
	SendWALBatch(ctx context.Context, entries []*WALEntry) (*WALBatchResponse, error)
	SendHeartbeat(ctx context.Context, req *HeartbeatRequest) (*HeartbeatResponse, error)
	SendFence(ctx context.Context, req *FenceRequest) (*FenceResponse, error)
	SendPromote(ctx context.Context, req *PromoteRequest) (*PromoteResponse, error)

	// Raft consensus. Nodes of this project answer these two and act on
	// neither: Raft talks over its own streams.
	SendRaftVote(ctx context.Context, req *RaftVoteRequest) (*RaftVoteResponse, error)
	SendRaftAppendEntries(ctx context.Context, req *RaftAppendEntriesRequest) (*RaftAppendEntriesResponse, error)

	Close() error
	IsConnected() bool
}

// Caller is a PeerConnection that sends requests of any code.
type Caller interface {
	// Call sends request and decodes the answer into response, if not nil. An
	// error that the peer answered is one that errors.Is knows again; an error
	// for which NotSent is true says that the peer never got the request.
	Call(ctx context.Context, t MessageType, request, response any) error
}

// StreamKind is the purpose of a connection, declared in its handshake.
type StreamKind string

// The kinds of stream.
const (
	StreamRPC      StreamKind = "rpc"
	StreamRaft     StreamKind = "raft"
	StreamSnapshot StreamKind = "snapshot"
	StreamRegion   StreamKind = "region"
)

// Peer is the other side of a connection.
type Peer struct {
	// NodeID as the peer gave it; believed only as far as Proven.
	NodeID string
	// Addr is the remote network address.
	Addr string
	// Region as the peer gave it in its handshake.
	Region string
	// Hello: the peer made a handshake, so it is a node of this project.
	Hello bool
	// Proven: it proved the cluster secret or showed a valid client certificate.
	Proven bool
}

// Handler answers a request. ctx ends when the connection does. The value is
// the payload of the response; an error is sent as its code.
type Handler func(ctx context.Context, req *Request) (any, error)

// Mux is a Transport that serves requests of any code and carries streams.
type Mux interface {
	// Handle sets the handler of a request code; nil removes it.
	Handle(t MessageType, h Handler)
	// HandleStream sets what gets accepted streams of a kind; it owns the conn.
	HandleStream(kind StreamKind, accept func(Peer, net.Conn))
	// OpenStream dials a stream of raw bytes.
	OpenStream(ctx context.Context, addr string, kind StreamKind) (net.Conn, error)
}

// Logger is met by *slog.Logger and hclog.Logger as they are.
type Logger interface {
	Debug(msg string, args ...any)
	Info(msg string, args ...any)
	Warn(msg string, args ...any)
	Error(msg string, args ...any)
}

// Runtime is what New hands to a mode beside configuration and storage.
type Runtime struct {
	Logger Logger
	// Transport, if not nil, is used and left open by the mode; otherwise the
	// mode makes its own from the Config.
	Transport Transport
	// Now is the clock; never nil.
	Now func() time.Time
}

// Constructor makes a replicator of one mode. It does no I/O but what it needs
// to refuse a bad configuration; Start does the rest.
type Constructor func(cfg *Config, storage Storage, rt Runtime) (Replicator, error)

// Modes are the modes a server offers.
type Modes map[ReplicationMode]Constructor

// Option changes what New hands to a mode.
type Option func(*Runtime)

// WithLogger sets the logger; the default is slog.Default().
func WithLogger(l Logger) Option { return func(rt *Runtime) { rt.Logger = l } }

// WithTransport makes the mode use t, which the caller closes after Shutdown.
func WithTransport(t Transport) Option { return func(rt *Runtime) { rt.Transport = t } }

// WithClock sets the clock for timestamps; the default is time.Now.
func WithClock(now func() time.Time) Option { return func(rt *Runtime) { rt.Now = now } }

// New makes the replicator that cfg asks for. It validates cfg, builds the
// standalone mode itself, and says ErrModeUnavailable for a mode that is not
// in modes. The replicator does nothing before Start.
func New(cfg *Config, storage Storage, modes Modes, opts ...Option) (Replicator, error) {
	if cfg == nil {
		return nil, fmt.Errorf("%w: nil", ErrInvalidConfig)
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if storage == nil {
		return nil, fmt.Errorf("%w: no storage", ErrInvalidConfig)
	}
	rt := Runtime{Now: time.Now}
	for _, opt := range opts {
		opt(&rt)
	}
	if rt.Logger == nil {
		rt.Logger = slog.Default()
	}
	if build, ok := modes[cfg.Mode]; ok && build != nil {
		return build(cfg, storage, rt)
	}
	if cfg.Mode == ModeStandalone {
		return newStandalone(cfg, storage, rt)
	}
	return nil, fmt.Errorf("%w: %s was not passed to New", ErrModeUnavailable, cfg.Mode)
}

// notSent marks errors of requests that never reached the peer.
type notSent struct{ error }

func (e notSent) Unwrap() error { return e.error }

// MarkNotSent wraps an error of a request that certainly did not reach the
// peer, so that a forwarder may send it again.
func MarkNotSent(err error) error {
	if err == nil {
		return nil
	}
	return notSent{err}
}

// NotSent says whether err was marked with MarkNotSent.
func NotSent(err error) bool {
	for err != nil {
		if _, ok := err.(notSent); ok {
			return true
		}
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return false
		}
		err = u.Unwrap()
	}
	return false
}
