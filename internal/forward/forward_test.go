package forward

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	"github.com/stretchr/testify/require"
)

func TestAnswersThatLeaveTheOutcomeOpen(t *testing.T) {
	for _, err := range []error{replication.ErrExists, &replication.NotLeaderError{}} {
		require.ErrorIs(t, Sent("n2", err), err)
		require.NotErrorIs(t, Sent("n2", err), replication.ErrUnknownOutcome)
	}
	lost := errors.New("connection reset")
	for _, err := range []error{replication.ErrTimeout, replication.ErrClosed, lost, &replication.RemoteError{Code: "internal"}} {
		require.ErrorIs(t, Sent("n2", err), replication.ErrUnknownOutcome)
	}
	require.NotErrorIs(t, Sent("n2", replication.MarkNotSent(lost)), replication.ErrUnknownOutcome)
	require.NoError(t, Sent("n2", nil))
}

// tries answers one error after another, and then the last again.
func tries(errs ...error) func(context.Context) (uint64, error) {
	return func(context.Context) (uint64, error) {
		err := errs[0]
		if len(errs) > 1 {
			errs = errs[1:]
		}
		return 7, err
	}
}

func TestOutcomeOfAWriteThatIsTriedAgain(t *testing.T) {
	lost := Sent("n2", errors.New("connection reset"))
	notSent := replication.MarkNotSent(errors.New("connection refused"))
	for name, c := range map[string]struct {
		id      string
		errs    []error
		want    []error
		wantNot []error
	}{
		"done":                              {"", []error{nil}, nil, nil},
		"not sent, then done":               {"", []error{notSent, replication.ErrNoLeader, nil}, nil, nil},
		"lost":                              {"", []error{lost, nil}, []error{replication.ErrUnknownOutcome}, nil},
		"lost, with an ID":                  {"r", []error{lost, nil}, nil, nil},
		"lost, then failed":                 {"r", []error{lost, replication.ErrCommandTooLarge}, []error{replication.ErrUnknownOutcome, replication.ErrCommandTooLarge}, nil},
		"lost, then its own answer":         {"r", []error{lost, replication.ErrExists}, []error{replication.ErrExists}, []error{replication.ErrUnknownOutcome}},
		"failed":                            {"", []error{replication.ErrMissingEnd}, []error{replication.ErrMissingEnd}, []error{replication.ErrUnknownOutcome}},
		"nobody takes it":                   {"", []error{replication.ErrNoLeader}, []error{replication.ErrNoLeader, replication.ErrTimeout}, []error{replication.ErrUnknownOutcome}},
		"lost, and then nobody takes it":    {"r", []error{lost, replication.ErrNoLeader}, []error{replication.ErrUnknownOutcome}, nil},
		"lost, and lost for all its time":   {"r", []error{lost}, []error{replication.ErrUnknownOutcome}, nil},
		"what no other try is to follow":    {"", []error{replication.ErrNotReady, nil}, []error{replication.ErrNotReady}, []error{replication.ErrTimeout}},
		"the same, after one that was lost": {"r", []error{lost, replication.ErrNotReady, nil}, []error{replication.ErrUnknownOutcome}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				never := make(chan struct{})
				r := Retry{Changed: func() <-chan struct{} { return never }, Life: t.Context(),
					Final: func(err error) bool { return errors.Is(err, replication.ErrNotReady) }}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				position, err := r.Write(ctx, []*replication.Command{{RequestID: c.id}}, tries(c.errs...))
				for _, want := range c.want {
					require.ErrorIs(t, err, want)
				}
				for _, not := range c.wantNot {
					require.NotErrorIs(t, err, not)
				}
				if c.want == nil {
					require.NoError(t, err)
					require.Equal(t, uint64(7), position)
				}
			})
		})
	}
}

// The position of a write that is in the log but not confirmed is worth more to
// the caller than the later word that an answer was lost.
func TestErrorThatNamesThePositionIsKept(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		never := make(chan struct{})
		r := Retry{Changed: func() <-chan struct{} { return never }, Life: t.Context()}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := r.Write(ctx, []*replication.Command{{RequestID: "r"}},
			tries(&replication.UnconfirmedError{Position: 12}, Sent("n2", replication.ErrTimeout)))
		var unconfirmed *replication.UnconfirmedError
		require.ErrorAs(t, err, &unconfirmed)
		require.Equal(t, uint64(12), unconfirmed.Position)
	})
}

func TestNodeThatClosesLeavesTheOutcomeOfALostTryOpen(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		life, end := context.WithCancel(t.Context())
		never := make(chan struct{})
		r := Retry{Changed: func() <-chan struct{} { return never }, Life: life}
		time.AfterFunc(time.Second, end)
		_, err := r.Write(t.Context(), []*replication.Command{{RequestID: "r"}}, tries(Sent("n2", replication.ErrTimeout)))
		require.ErrorIs(t, err, replication.ErrClosed)
		require.ErrorIs(t, err, replication.ErrUnknownOutcome)
	})
}

type recorder struct {
	replication.Storage
	record func() ([]*replication.Command, uint64, error)
}

func (r recorder) RecordEffects(*replication.Command) ([]*replication.Command, uint64, error) {
	return r.record()
}

// A command that was applied is not refused because it could not be applied twice.
func TestOpaqueCommandThatWasAppliedIsNotAskedForItsEffectsAgain(t *testing.T) {
	applied := false
	o := Opaque{
		Recorder: recorder{record: func() ([]*replication.Command, uint64, error) { return nil, 0, replication.ErrExists }},
		Outcome: func(string, [16]byte) (replication.Result, bool) {
			return replication.Result{Position: 5}, applied
		},
		Settle: func(context.Context) error { applied = true; return nil }, // the first try was still on its way
	}
	position, err := o.Write(t.Context(), &replication.Command{Type: replication.CmdCypher, RequestID: "r"})
	require.NoError(t, err)
	require.Equal(t, uint64(5), position)

	o.Outcome = func(string, [16]byte) (replication.Result, bool) { return replication.Result{}, false }
	_, err = o.Write(t.Context(), &replication.Command{Type: replication.CmdCypher, RequestID: "r"})
	require.ErrorIs(t, err, replication.ErrExists)
}

func TestEffectsAreRecordedAgainWhenAWriteCameBetween(t *testing.T) {
	at := uint64(0)
	o := Opaque{
		Recorder: recorder{record: func() ([]*replication.Command, uint64, error) {
			at++
			return []*replication.Command{replication.NewDeleteNode("a")}, at, nil
		}},
		Outcome: func(string, [16]byte) (replication.Result, bool) { return replication.Result{}, false },
		Propose: func(_ context.Context, g replication.Group) (uint64, error) {
			require.True(t, g.Conditional)
			if g.ValidAt < 3 {
				return 0, replication.ErrStaleEffects
			}
			return 9, nil
		},
	}
	position, err := o.Write(t.Context(), &replication.Command{Type: replication.CmdCypher})
	require.NoError(t, err)
	require.Equal(t, uint64(9), position)
	require.Equal(t, uint64(3), at)
}

func TestForwardedWriteIsBounded(t *testing.T) {
	cmds := []*replication.Command{replication.NewDeleteNode("a")}
	_, err := Send(t.Context(), "n2", cmds, maxHops, func(context.Context, any, any) error { t.Fatal("sent"); return nil })
	require.ErrorIs(t, err, replication.ErrNoLeader)

	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	position, err := Send(ctx, "n2", cmds, 0, func(_ context.Context, req, _ any) error {
		left := time.Duration(req.(*replication.ApplyRequest).TimeoutMS) * time.Millisecond
		require.Less(t, left, time.Hour-answerTime/2, "the answer has to be back in time")
		return &replication.UnconfirmedError{Position: 12}
	})
	require.ErrorIs(t, err, replication.ErrUnconfirmed)
	require.Equal(t, uint64(12), position)

	serve := func(r replication.ApplyRequest, write func(ctx context.Context, cmds []*replication.Command, hops int) (uint64, error)) error {
		payload, err := json.Marshal(r)
		require.NoError(t, err)
		_, err = Serve(t.Context(), payload, write)
		return err
	}
	for _, r := range []replication.ApplyRequest{{Hops: 1}, {TimeoutMS: -1, Hops: 1}, {TimeoutMS: 1 << 40, Hops: 1}, {TimeoutMS: 1, Hops: -1}, {TimeoutMS: 1}} {
		require.ErrorIs(t, serve(r, nil), replication.ErrInvalidTimeout, "%+v", r)
	}
	_, err = Serve(t.Context(), []byte(`{"Commands":7}`), nil)
	require.ErrorIs(t, err, replication.ErrInvalidCommand)

	err = serve(replication.ApplyRequest{Commands: cmds, TimeoutMS: 1000, Hops: 2}, func(ctx context.Context, got []*replication.Command, hops int) (uint64, error) {
		deadline, ok := ctx.Deadline()
		require.True(t, ok && time.Until(deadline) <= time.Second)
		require.Equal(t, 2, hops)
		require.Equal(t, cmds[0].Type, got[0].Type)
		return 0, replication.ErrClosed
	})
	require.ErrorIs(t, err, replication.ErrNotReady)
	require.NotErrorIs(t, err, replication.ErrClosed, "the sender would take it for its own end's")
}
