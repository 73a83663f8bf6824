package replication

import (
	"errors"
	"fmt"
	"strings"
)

// Errors of the replication layer. They are wrapped with context; test with
// errors.Is. Only [ErrUnknownOutcome] leaves open whether a write took effect;
// every other error of a write says that it did not and will not.
var (
	// ErrNotLeader: this node cannot accept the write. Errors of this kind are
	// a *NotLeaderError that names the leader where it is known.
	ErrNotLeader = errors.New("not the leader")
	// ErrNoLeader: no leader is known, or none was found in time.
	ErrNoLeader = errors.New("no leader")
	// ErrTimeout: the deadline passed before the write was proposed, or before
	// a read or a wait was satisfied.
	ErrTimeout = errors.New("timeout")
	// ErrUnknownOutcome: the write was proposed and its result was not learned.
	ErrUnknownOutcome = errors.New("outcome unknown")
	// ErrUnconfirmed: the write is in the log of this node or region and was not
	// confirmed as its mode demands, in time. It may still take effect, so it is
	// an ErrUnknownOutcome. Errors of hot standby are an *UnconfirmedError, which
	// names the position.
	ErrUnconfirmed = fmt.Errorf("%w: write is not confirmed", ErrUnknownOutcome)
	// ErrClosed: the replicator or transport was shut down.
	ErrClosed = errors.New("closed")
	// ErrNotReady: the node has not started, or has not caught up.
	ErrNotReady = errors.New("not ready")
	// ErrNoLease: the primary has not heard its standby for so long that it may
	// have been replaced (policy consistency). Nothing was appended. It is an
	// ErrNotReady.
	ErrNoLease = fmt.Errorf("%w: no lease: the standby does not answer", ErrNotReady)
	// ErrOverloaded: too many writes are in flight; try again later.
	ErrOverloaded = errors.New("overloaded")
	// ErrCommandTooLarge: the command exceeds what one log entry or frame takes.
	ErrCommandTooLarge = errors.New("command too large")
	// ErrRequestIDReused: the request ID was used before with other content.
	ErrRequestIDReused = errors.New("request ID reused with other content")
	// ErrModeUnavailable: the configured mode was not passed to New.
	ErrModeUnavailable = errors.New("replication mode unavailable")
	// ErrUnsupported: this mode, storage or peer does not offer the operation.
	ErrUnsupported = errors.New("not supported")
	// ErrOpaqueWrite: the command's effect cannot be known before it runs, and
	// the storage cannot record it (see EffectRecorder).
	ErrOpaqueWrite = errors.New("opaque command cannot be replicated")
	// ErrInvalidTimeout: a timeout of zero or less was given.
	ErrInvalidTimeout = errors.New("timeout must be positive")
	// ErrInvalidConfig: the configuration has mistakes.
	ErrInvalidConfig = errors.New("invalid configuration")
	// ErrStorageFailed: the Storage failed and the node applies nothing more
	// until it is restarted.
	ErrStorageFailed = errors.New("storage failed")
	// ErrForeignHistory: the Storage or log belongs to another history, so its
	// positions mean nothing here.
	ErrForeignHistory = errors.New("foreign history")
	// ErrLocked: another process holds the data directory.
	ErrLocked = errors.New("data directory is locked by another process")
	// ErrMemberExists: a member with this ID is in the cluster already, so an
	// empty node may not take its place before it has been removed.
	ErrMemberExists = errors.New("member exists")
	// ErrClusterExists: a peer has a cluster already; a second one is not founded.
	ErrClusterExists = errors.New("a cluster exists already")
	// ErrQuorumAtRisk: the membership change would break the quorum.
	ErrQuorumAtRisk = errors.New("change would break the quorum")
	// ErrUnauthenticated: a peer gave no proof or a wrong one.
	ErrUnauthenticated = errors.New("peer is not authenticated")
	// ErrWrongPeer: the node that answered is not the one that was meant, or
	// belongs to another cluster.
	ErrWrongPeer = errors.New("wrong peer")
	// ErrClockSkew: this region's clock is off from that of most other regions,
	// and the policy is to refuse writes then.
	ErrClockSkew = errors.New("the clock is off from the other regions'")
)

// Verdicts: deterministic answers of a Storage to a command. Every node gets
// the same one at the same position; the position advances; the error goes to
// the caller and nobody stops. See [Verdict].
var (
	// ErrExists: the thing to be created exists.
	ErrExists = errors.New("exists")
	// ErrNotFound: the thing to be changed or deleted does not exist.
	ErrNotFound = errors.New("not found")
	// ErrMissingEnd: an edge needs both of its nodes.
	ErrMissingEnd = errors.New("edge end missing")
	// ErrInvalidCommand: the command is malformed.
	ErrInvalidCommand = errors.New("invalid command")
	// ErrNoConflict: there is no conflict about the thing to be resolved.
	ErrNoConflict = errors.New("no conflict waits under this key: it is settled, or never was")
	// ErrVersionsChanged: the versions in conflict are not those that the
	// operator saw.
	ErrVersionsChanged = errors.New("versions have changed: list the conflict again")
)

// Errors between a Storage and the StorageApplier.
var (
	// ErrTxTooLarge: the transaction exceeds what the Storage takes at once;
	// the StorageApplier tries again with less in it, at last with one group
	// alone. If that is too large, too, it is a verdict where the error also has
	// ErrorCode() string: a Storage that returns such a one promises that every
	// node, in every region, has the same limits, so that all refuse the same
	// groups. Without that promise it is a storage failure: to leave out what
	// another node takes would make the nodes differ. A Storage should take any
	// group that its configuration lets a client send, or make the promise, as
	// the failure comes back at every start until it takes more.
	ErrTxTooLarge = errors.New("transaction too large")
	// ErrRestoreIncomplete: a restore was begun and did not finish; the
	// Storage must be restored again before anything is applied.
	ErrRestoreIncomplete = errors.New("restore incomplete")
)

// ErrStaleEffects: effects that were recorded at a position (EffectRecorder)
// arrived at another; nothing was applied. The recording node tries again.
var ErrStaleEffects = errors.New("recorded effects are stale")

// errorCodes gives every sentinel its code, the form in which errors are
// stored with request outcomes and cross the wire.
var errorCodes = []struct {
	code    string
	err     error
	verdict bool
}{
	{"exists", ErrExists, true},
	{"not_found", ErrNotFound, true},
	{"missing_end", ErrMissingEnd, true},
	{"invalid_command", ErrInvalidCommand, true},
	{"no_conflict", ErrNoConflict, true},
	{"versions_changed", ErrVersionsChanged, true},
	{"request_id_reused", ErrRequestIDReused, false},
	{"stale_effects", ErrStaleEffects, false},
	{"unconfirmed", ErrUnconfirmed, false},
	{"unknown_outcome", ErrUnknownOutcome, false},
	{"quorum_at_risk", ErrQuorumAtRisk, false},
	{"no_lease", ErrNoLease, false},
	{"not_leader", ErrNotLeader, false},
	{"no_leader", ErrNoLeader, false},
	{"timeout", ErrTimeout, false},
	{"closed", ErrClosed, false},
	{"not_ready", ErrNotReady, false},
	{"overloaded", ErrOverloaded, false},
	{"command_too_large", ErrCommandTooLarge, false},
	{"mode_unavailable", ErrModeUnavailable, false},
	{"unsupported", ErrUnsupported, false},
	{"opaque_write", ErrOpaqueWrite, false},
	{"invalid_timeout", ErrInvalidTimeout, false},
	{"invalid_config", ErrInvalidConfig, false},
	{"storage_failed", ErrStorageFailed, false},
	{"foreign_history", ErrForeignHistory, false},
	{"locked", ErrLocked, false},
	{"member_exists", ErrMemberExists, false},
	{"cluster_exists", ErrClusterExists, false},
	{"unauthenticated", ErrUnauthenticated, false},
	{"wrong_peer", ErrWrongPeer, false},
	{"clock_skew", ErrClockSkew, false},
}

const (
	codeInternal = "internal"
	// verdictPrefix keeps the codes of an embedder's own verdicts apart from
	// ours, so that a constraint called "timeout" is not taken for a timeout.
	verdictPrefix = "verdict:"
)

// NotLeaderError is an [ErrNotLeader] that names the leader, where known.
type NotLeaderError struct {
	LeaderID   string
	LeaderAddr string
}

func (e *NotLeaderError) Error() string {
	if e.LeaderID == "" && e.LeaderAddr == "" {
		return "not the leader, no leader known"
	}
	return fmt.Sprintf("not the leader, the leader is %s at %s", e.LeaderID, e.LeaderAddr)
}

// Unwrap makes errors.Is(err, ErrNotLeader) true.
func (e *NotLeaderError) Unwrap() error { return ErrNotLeader }

// UnconfirmedError is an [ErrUnconfirmed] that names the write's position in the
// log.
type UnconfirmedError struct {
	Position uint64
	Reason   string
}

func (e *UnconfirmedError) Error() string {
	text := fmt.Sprintf("write at position %d is not confirmed", e.Position)
	if e.Reason != "" {
		text += ": " + e.Reason
	}
	return text
}

// Unwrap makes errors.Is true for ErrUnconfirmed and ErrUnknownOutcome.
func (e *UnconfirmedError) Unwrap() error { return ErrUnconfirmed }

// VerdictError is an embedder's own verdict as it comes back from the log or
// from another node: the code without the text.
type VerdictError struct{ Code string }

func (e *VerdictError) Error() string { return "refused by the storage: " + e.Code }

// ErrorCode returns the embedder's code.
func (e *VerdictError) ErrorCode() string { return e.Code }

// RemoteError is an error of a peer that has no sentinel here.
type RemoteError struct{ Code, Message string }

func (e *RemoteError) Error() string {
	if e.Message == "" {
		return "peer: " + e.Code
	}
	return "peer: " + e.Message
}

// wrapped puts a peer's text around the sentinel that its code stands for.
type wrapped struct {
	text     string
	sentinel error
}

func (e *wrapped) Error() string { return e.text }
func (e *wrapped) Unwrap() error { return e.sentinel }

// Verdict tells a verdict from a storage failure (architecture, "Verdicts and
// failures"). A verdict wraps one of the verdict sentinels or has a method
// ErrorCode() string; its code is stable and is what gets replicated. A caller finds
// its own again, wherever it was given, with [errors.As] and that method: from another
// node, or for a repeated request, it comes as a [VerdictError].
func Verdict(err error) (code string, ok bool) {
	if err == nil {
		return "", false
	}
	for _, c := range errorCodes {
		if c.verdict && errors.Is(err, c.err) {
			return c.code, true
		}
	}
	if own := ownCode(err); own != "" && !errors.Is(err, ErrTxTooLarge) { // which depends on what else is in the transaction
		return verdictPrefix + own, true
	}
	return "", false
}

// ownCode is an embedder's own code of an error; empty: it has none.
func ownCode(err error) string {
	var own interface{ ErrorCode() string }
	if errors.As(err, &own) {
		return own.ErrorCode()
	}
	return ""
}

// ErrorCode returns the code under which err is stored and sent: "" for nil,
// "internal" for an error that has none.
func ErrorCode(err error) string {
	if err == nil {
		return ""
	}
	// An error that wraps ErrUnknownOutcome and its cause is, for the caller,
	// of unknown outcome before anything else.
	switch {
	case errors.Is(err, ErrUnconfirmed):
		return "unconfirmed"
	case errors.Is(err, ErrUnknownOutcome):
		return "unknown_outcome"
	}
	if code, ok := Verdict(err); ok {
		return code
	}
	for _, c := range errorCodes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	var remote *RemoteError
	if errors.As(err, &remote) {
		return remote.Code
	}
	return codeInternal
}

// ErrorFromCode is the inverse of ErrorCode: an error for which errors.Is finds
// the sentinel of the code, with the peer's message as text where one came.
func ErrorFromCode(code, message string) error {
	if code == "" {
		return nil
	}
	if own, ok := strings.CutPrefix(code, verdictPrefix); ok {
		return &VerdictError{Code: own}
	}
	for _, c := range errorCodes {
		if c.code == code {
			if message == "" || message == c.err.Error() {
				return c.err
			}
			return &wrapped{text: message, sentinel: c.err}
		}
	}
	return &RemoteError{Code: code, Message: message}
}
