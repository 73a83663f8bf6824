package forward

import (
	"errors"
	"fmt"

	"github.com/nornicdb/replication"
)

// Transient: another try, elsewhere or later, can succeed.
func Transient(err error) bool {
	if errors.Is(err, replication.ErrCommandTooLarge) {
		return false
	}
	for _, t := range []error{replication.ErrNotLeader, replication.ErrNoLeader, replication.ErrNotReady, replication.ErrClosed,
		replication.ErrUnknownOutcome, replication.ErrWrongPeer, replication.ErrStorageFailed} {
		if errors.Is(err, t) {
			return true
		}
	}
	return replication.NotSent(err)
}

// Decided: the error is the state machine's answer to this very request, which
// settles what became of earlier tries with its request ID.
func Decided(err error) bool {
	_, verdict := replication.Verdict(err)
	return verdict || errors.Is(err, replication.ErrRequestIDReused)
}

// Answered: the error is one that the peer sent, so it says itself what became
// of the request. Only ErrTimeout is ambiguous: it also stands for no answer.
func Answered(err error) bool {
	var remote *replication.RemoteError
	if errors.As(err, &remote) {
		return false
	}
	code := replication.ErrorCode(err)
	return code != "internal" && code != "timeout" && code != "closed"
}

// Sent is what the error of a request that was sent to a peer means: the peer's
// answer, a request that never left, or ErrUnknownOutcome.
func Sent(to string, err error) error {
	if err == nil || replication.NotSent(err) || Answered(err) {
		return err
	}
	return fmt.Errorf("%w: sent to %s: %w", replication.ErrUnknownOutcome, to, err)
}
