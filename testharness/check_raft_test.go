package testharness

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	"github.com/stretchr/testify/require"
)

// raftTrio starts three Raft nodes.
func raftTrio(t *testing.T) (c *Cluster, targets []Target) {
	t.Helper()
	c = NewCluster(t, RaftConfig(1))
	c.StartAll(t.Context())
	for _, m := range c.Members {
		targets = append(targets, Target{m.Replicator(), m.Store().Property})
	}
	return c, targets
}

// raftClients lets clients work for a time, each beginning with another node.
func raftClients(h *History, targets []Target, clients int, until time.Time) *sync.WaitGroup {
	var wg sync.WaitGroup
	for c := range clients {
		own := append(append([]Target{}, targets[c%len(targets):]...), targets[:c%len(targets)]...)
		client := h.Client(own...)
		wg.Go(func() {
			for i := 0; time.Now().Before(until); i++ {
				ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				id := registerID(i % 2)
				client.Set(ctx, id, "k", fmt.Sprintf("%d/%d", c, i))
				client.Get(ctx, replication.ConsistencyQuorum, id, "k")
				client.Create(ctx)
				cancel()
				time.Sleep(50 * time.Millisecond) // virtual
			}
		})
	}
	return &wg
}

// TestChecksHoldOnARaftCluster: three nodes whose leader is cut off again and
// again, in virtual time. Everything that is checked must hold.
func TestChecksHoldOnARaftCluster(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c, targets := raftTrio(t)
		var apps Applications
		var seen Observations
		for _, m := range c.Members {
			apps.Watch(m.ID, m.Store())
			t.Cleanup(seen.Watch(m.Replicator(), 20*time.Millisecond))
		}
		h := NewHistory("raft")
		for i := range 2 {
			cmd, err := replication.NewNodeCommand(replication.CmdCreateNode, &replication.Node{ID: registerID(i)})
			require.NoError(t, err)
			require.NoError(t, c.Members[i].Replicator().Apply(cmd, time.Minute))
		}
		clients := raftClients(h, targets, 3, time.Now().Add(12*time.Second))
		for range 2 {
			time.Sleep(2 * time.Second)
			cut := c.WaitLeader(time.Minute)
			c.Net.Isolate(cut.ID)
			time.Sleep(3 * time.Second)
			c.Net.Reconnect(cut.ID)
		}
		clients.Wait()
		_, err := CheckProgress(10*time.Second, func(ctx context.Context) error { return allAgree(ctx, h, c, &seen) })
		require.NoError(t, err)
		for _, m := range c.Members {
			require.NoError(t, CheckOutcomes(h.Operations(), Has(m.Store())), m.ID)
		}
		checkHistory(t, h, c.Members[0].Store())
		require.NoError(t, apps.Check())
		require.NoError(t, seen.Err())
		require.Greater(t, seen.Terms(), 1, "the leader was cut off and replaced")
		t.Log(len(h.Operations()), "operations", countOutcomes(h.Operations()), seen.Terms(), "terms")
	})
}

// allAgree makes a write through each node, waits for it everywhere and notes
// what the nodes hold.
func allAgree(ctx context.Context, h *History, c *Cluster, seen *Observations) error {
	var last uint64
	for _, m := range c.Members {
		op := h.Client(Target{m.Replicator(), m.Store().Property}).Create(ctx)
		if op.Outcome != OutcomeDone {
			return fmt.Errorf("through %s: %w", op.Node, op.Err)
		}
		last = max(last, op.Position)
	}
	for _, m := range c.Members {
		if err := m.Reader().WaitApplied(ctx, last); err != nil {
			return err
		}
		st := m.Store().Stats()
		seen.State(m.ID, st.Position, st.Digest)
	}
	return nil
}

// hastyReader is a node whose reads at QUORUM wait for nobody.
type hastyReader struct{ replication.Replicator }

func (h hastyReader) ReadBarrier(context.Context, replication.Consistency) (uint64, error) {
	return 0, nil
}
func (h hastyReader) WaitApplied(context.Context, uint64) error { return nil }

// TestAStaleReadOfACutOffLeaderIsFound: the same cluster, a node that does not
// ask the others before it answers.
func TestAStaleReadOfACutOffLeaderIsFound(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pictures")
	bubble.Test(t, func(t *testing.T) {
		c, _ := raftTrio(t)
		old := c.WaitLeader(time.Minute)
		self := Target{old.Replicator(), old.Store().Property}
		cmd, err := replication.NewNodeCommand(replication.CmdCreateNode, &replication.Node{ID: registerID(0)})
		require.NoError(t, err)
		require.NoError(t, old.Replicator().Apply(cmd, time.Minute))
		h := NewHistory("stale")
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		require.Equal(t, OutcomeDone, h.Client(self).Set(ctx, registerID(0), "k", "old").Outcome)
		c.Net.Isolate(old.ID)
		var others []Target
		for _, m := range old.Peers() {
			others = append(others, Target{m.Replicator(), m.Store().Property})
		}
		require.Equal(t, OutcomeDone, h.Client(others...).Set(ctx, registerID(0), "k", "new").Outcome)
		honest := h.Client(self)
		short, cancelShort := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancelShort()
		require.Equal(t, OutcomeFailed, honest.Get(short, replication.ConsistencyQuorum, registerID(0), "k").Outcome)
		require.NoError(t, CheckLinearizable(h.Operations(), dir))
		honest.Use(Target{hastyReader{old.Replicator()}, old.Store().Property})
		require.Equal(t, `"old"`, honest.Get(ctx, replication.ConsistencyQuorum, registerID(0), "k").Value)
		require.ErrorIs(t, CheckLinearizable(h.Operations(), dir), ErrNotLinearizable)
	})
}
