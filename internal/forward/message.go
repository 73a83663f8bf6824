package forward

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/report"
)

const (
	// maxHops bounds how often a write is sent on: the part of the one who takes
	// it can move while it travels, but a write does not travel in circles.
	maxHops = 3
	// maxTime bounds how long a node works on a write for another.
	maxTime = time.Hour
	// defaultTime is given to a write without a deadline.
	defaultTime = time.Minute
	// answerTime is what the answer gets at most to come back: the other's own word
	// about a write that is not confirmed in time has to be here before the caller
	// gives up.
	answerTime = 200 * time.Millisecond
)

// Send sends a write on, which has come over hops nodes, by a call of code 19.
// If this node cannot tell whether the other got it, the outcome is unknown.
func Send(ctx context.Context, to string, cmds []*replication.Command, hops int, call func(ctx context.Context, req, resp any) error) (uint64, error) {
	if hops >= maxHops {
		return 0, fmt.Errorf("%w: the write was sent on %d times", replication.ErrNoLeader, hops)
	}
	left := defaultTime
	if deadline, ok := ctx.Deadline(); ok {
		left = min(time.Until(deadline), maxTime)
		left -= min(left/10, answerTime)
	}
	report.Forwarded()
	var resp replication.ApplyResponse
	err := call(ctx, &replication.ApplyRequest{Commands: cmds, TimeoutMS: max(left.Milliseconds(), 1), Hops: hops + 1}, &resp)
	if unconfirmed := (*replication.UnconfirmedError)(nil); errors.As(err, &unconfirmed) {
		return unconfirmed.Position, err
	}
	return resp.Index, Sent(to, err)
}

// Serve answers code 19 by write. That this node closes is said as "not ready":
// "closed" would also be what the sender's own end says, of which nothing follows
// for the write.
func Serve(ctx context.Context, payload []byte, write func(ctx context.Context, cmds []*replication.Command, hops int) (uint64, error)) (*replication.ApplyResponse, error) {
	var r replication.ApplyRequest
	if err := r.UnmarshalJSON(payload); err != nil { // directly, as json.Unmarshal would go over it once more
		return nil, fmt.Errorf("%w: %v", replication.ErrInvalidCommand, err)
	}
	if r.TimeoutMS <= 0 || r.TimeoutMS > maxTime.Milliseconds() || r.Hops < 1 {
		return nil, fmt.Errorf("%w: %d ms, %d hops", replication.ErrInvalidTimeout, r.TimeoutMS, r.Hops)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.TimeoutMS)*time.Millisecond)
	defer cancel()
	position, err := write(ctx, r.Commands, r.Hops)
	if errors.Is(err, replication.ErrClosed) && !errors.Is(err, replication.ErrUnknownOutcome) {
		err = fmt.Errorf("%w: %v", replication.ErrNotReady, err)
	}
	if err != nil {
		return nil, err
	}
	return &replication.ApplyResponse{Index: position}, nil
}
