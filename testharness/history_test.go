package testharness

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	"github.com/stretchr/testify/require"
)

// scripted answers one write after the other with an error, nil for success.
func scripted(id string, seen *[]*replication.Command, answers ...error) Target {
	return Target{Replicator: &fakeReplicator{id: id, apply: func(cmd *replication.Command) (uint64, error) {
		*seen = append(*seen, cmd)
		err := answers[0]
		if len(answers) > 1 {
			answers = answers[1:]
		}
		if err != nil {
			return 0, err
		}
		return 7, nil
	}}}
}

// TestOutcomeOfAWriteOverSeveralTries: what one try leaves open is closed by
// success or a verdict, and by nothing else.
func TestOutcomeOfAWriteOverSeveralTries(t *testing.T) {
	unknown := fmt.Errorf("%w: %w", replication.ErrUnknownOutcome, replication.ErrTimeout)
	notLeader := &replication.NotLeaderError{}
	for name, c := range map[string]struct {
		answers []error
		want    Outcome
		tries   int
	}{
		"done":                         {[]error{nil}, OutcomeDone, 1},
		"not proposed, then done":      {[]error{notLeader, nil}, OutcomeDone, 2},
		"unknown, then done":           {[]error{unknown, nil}, OutcomeDone, 2},
		"a verdict":                    {[]error{replication.ErrExists}, OutcomeFailed, 1},
		"an embedder's verdict":        {[]error{&replication.VerdictError{Code: "unique"}}, OutcomeFailed, 1},
		"unknown, then a verdict":      {[]error{unknown, replication.ErrNotFound}, OutcomeFailed, 2},
		"never proposed":               {[]error{notLeader}, OutcomeFailed, 101},
		"unknown, then never proposed": {[]error{unknown, notLeader}, OutcomeUnknown, 101},
		"unknown that names a verdict": {[]error{fmt.Errorf("%w: %w", replication.ErrUnknownOutcome, replication.ErrExists)}, OutcomeUnknown, 101},
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second+retryPause/2)
				defer cancel()
				var seen []*replication.Command
				target := scripted("n1", &seen, c.answers...)
				op := NewHistory("h").Client(target, target).Set(ctx, "n", "k", 1)
				require.Equal(t, c.want, op.Outcome)
				require.Equal(t, c.tries, op.Tries)
				for _, cmd := range seen {
					require.Equal(t, op.RequestID, cmd.RequestID, "every try is the same request")
				}
				if c.want == OutcomeDone {
					require.Equal(t, uint64(7), op.Position)
				}
			})
		})
	}
}

func TestOneTargetIsAskedOnce(t *testing.T) {
	var seen []*replication.Command
	client := NewHistory("h").Client(scripted("n1", &seen, replication.ErrNoLeader))
	op := client.Create(context.Background())
	require.Equal(t, OutcomeFailed, op.Outcome)
	require.Equal(t, 1, op.Tries)
	client.Use(scripted("n2", &seen, nil))
	again := client.Create(context.Background())
	require.Equal(t, OutcomeDone, again.Outcome)
	require.Equal(t, "n2", again.Node)
	require.NotEqual(t, op.RequestID, again.RequestID)
	require.NotEqual(t, op.NodeID, again.NodeID)
}

// TestAnOperationThatRunsIsUnknown, and orders are those of calls and returns.
func TestAnOperationThatRunsIsUnknown(t *testing.T) {
	h := NewHistory("h")
	begun, finish := make(chan struct{}), make(chan struct{})
	slow := Target{Replicator: &fakeReplicator{id: "n1", apply: func(*replication.Command) (uint64, error) {
		close(begun)
		<-finish
		return 9, nil
	}}}
	var wg sync.WaitGroup
	wg.Go(func() { h.Client(slow).Set(context.Background(), "n", "k", "v") })
	<-begun
	ops := h.Operations()
	require.Len(t, ops, 1)
	require.Equal(t, OutcomeUnknown, ops[0].Outcome)
	require.Zero(t, ops[0].Return)
	var seen []*replication.Command
	within := h.Client(scripted("n2", &seen, nil)).Set(context.Background(), "n", "k", "w")
	close(finish)
	wg.Wait()
	ops = h.Operations()
	require.Equal(t, OutcomeDone, ops[0].Outcome)
	require.Equal(t, `"v"`, ops[0].Value)
	require.Less(t, ops[0].Call, within.Call)
	require.Less(t, within.Return, ops[0].Return)
	require.Len(t, ops, 2)
}

func TestReadsRecordWhatTheyReadAndAtWhichLevel(t *testing.T) {
	s := NewMemStore()
	require.NoError(t, s.CreateNode(&replication.Node{ID: "n", Properties: map[string]any{"k": 1.0}}))
	barrier := func(replication.Consistency) (uint64, error) { return 5, nil }
	target := Target{Replicator: &fakeReplicator{id: "n1", read: barrier}, Property: s.Property}
	h := NewHistory("h")
	c := h.Client(target)
	ctx := context.Background()
	op := c.Get(ctx, replication.ConsistencyQuorum, "n", "k")
	require.Equal(t, "1.0", op.Value, "a float is told from an integer")
	require.Equal(t, uint64(5), op.Position)
	require.Equal(t, replication.ConsistencyQuorum, op.Level)
	require.Equal(t, "null", c.Get(ctx, replication.ConsistencyQuorum, "n", "none").Value)
	require.Equal(t, "null", c.Get(ctx, replication.ConsistencyQuorum, "nobody", "k").Value)
	c.Use(Target{Replicator: &fakeReplicator{id: "n1", read: func(replication.Consistency) (uint64, error) { return 0, replication.ErrNoLeader }}, Property: s.Property})
	op = c.Get(ctx, replication.ConsistencyQuorum, "n", "k")
	require.Equal(t, OutcomeFailed, op.Outcome)
	require.ErrorIs(t, op.Err, replication.ErrNoLeader)
	c.Use(Target{Replicator: struct{ replication.Replicator }{&fakeReplicator{id: "n1"}}, Property: s.Property})
	op = c.Get(ctx, replication.ConsistencyQuorum, "n", "k")
	require.Equal(t, replication.ConsistencyOne, op.Level, "no barrier was waited for, so it promises nothing")
	require.Equal(t, OutcomeDone, op.Outcome)
}

// TestBareReplicatorsAreAppliedTo: one without ApplyBatch gets what is left of
// the deadline.
func TestBareReplicatorsAreAppliedTo(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		r := &bareReplicator{}
		c := NewHistory("h").Client(Target{Replicator: r})
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		require.Equal(t, OutcomeDone, c.Create(ctx).Outcome)
		require.Equal(t, 3*time.Second, r.timeout)
		require.Equal(t, OutcomeDone, c.Create(context.Background()).Outcome)
		require.Equal(t, defaultOperationTimeout, r.timeout)
		time.Sleep(4 * time.Second)
		op := c.Create(ctx)
		require.Equal(t, OutcomeFailed, op.Outcome)
		require.ErrorIs(t, op.Err, replication.ErrTimeout)
	})
}

type bareReplicator struct {
	replication.Replicator
	timeout time.Duration
}

func (b *bareReplicator) NodeID() string { return "bare" }
func (b *bareReplicator) Apply(_ *replication.Command, timeout time.Duration) error {
	b.timeout = timeout
	return nil
}

func TestManyClientsRecordIntoOneHistory(t *testing.T) {
	h := NewHistory("h")
	var mu sync.Mutex
	position := uint64(0)
	target := Target{Replicator: &fakeReplicator{id: "n1", apply: func(*replication.Command) (uint64, error) {
		mu.Lock()
		defer mu.Unlock()
		position++
		return position, nil
	}}}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			c := h.Client(target)
			for range 50 {
				c.Create(context.Background())
			}
		})
	}
	wg.Wait()
	ops := h.Operations()
	require.Len(t, ops, 400)
	require.NoError(t, CheckOrder(ops))
	ids := map[string]bool{}
	for i, op := range ops {
		ids[op.RequestID] = true
		require.Less(t, op.Call, op.Return)
		require.True(t, i == 0 || ops[i-1].Call < op.Call)
	}
	require.Len(t, ids, 400)
}
