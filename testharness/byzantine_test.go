package testharness_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/internal/bubble"
	th "github.com/nornicdb/replication/testharness"
	"github.com/nornicdb/replication/transport"
	"github.com/stretchr/testify/require"
)

func attacker(n *th.Network, seed uint64, target string) *th.Byzantine {
	return th.NewByzantine(n, th.ByzantineOptions{ID: "evil", Target: target, ClusterID: "c", NodeIDs: []string{"n1", "n2", "n3"}, Seed: seed})
}

// attackOnSink runs all attacks on a port that only listens, and returns what
// it got.
func attackOnSink(t *testing.T, seed uint64) (names []string, got [][]byte) {
	bubble.Test(t, func(t *testing.T) {
		n := th.NewNetwork(1)
		l, err := n.Host("sink").Listen(t.Context(), "sink:1")
		require.NoError(t, err)
		evil := attacker(n, seed, "sink:1")
		victim, err := n.Host("n1").Dial(t.Context(), "sink:1") // to be overheard
		require.NoError(t, err)
		write(t, victim, "\x00\x00\x00\x04some bytes of a member")
		require.NoError(t, victim.Close())
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				data, err := io.ReadAll(c)
				require.NoError(t, err)
				got = append(got, data)
				require.NoError(t, c.Close())
			}
		})
		results, err := evil.Attack(t.Context())
		require.NoError(t, err)
		for _, r := range results {
			names = append(names, r.Name)
			require.True(t, r.Refused(), r.Name)
		}
		require.NoError(t, l.Close())
		wg.Wait()
	})
	return names, got
}

func TestSameSeedSameAttacks(t *testing.T) {
	names, got := attackOnSink(t, 1)
	again, gotAgain := attackOnSink(t, 1)
	require.Equal(t, names, again)
	require.Equal(t, got, gotAgain)
	other, gotOther := attackOnSink(t, 2)
	require.ElementsMatch(t, names, other)
	require.NotEqual(t, got, gotOther)
	require.Contains(t, string(got[1+indexOf(names, "replay")]), "some bytes of a member")
	require.Contains(t, string(got[1+indexOf(names, "another cluster")]), `"ClusterID":"cx"`)
}

func indexOf(names []string, name string) int {
	for i := range names {
		if names[i] == name {
			return i
		}
	}
	return -1
}

// TestAttacksFromOutsideGetNothing: without the secret nothing of what a peer
// sends reaches a handler, and the target serves its members afterwards.
func TestAttacksFromOutsideGetNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		server, client := node(t, n, "n1", clusterSecret), node(t, n, "n2", clusterSecret)
		handled := 0
		for code := replication.MsgVoteRequest; code <= replication.MsgFetch; code += 2 {
			server.Handle(code, func(context.Context, *replication.Request) (any, error) { handled++; return nil, nil })
		}
		server.HandleStream(replication.StreamRaft, func(_ replication.Peer, c net.Conn) { handled++; _ = c.Close() })
		evil := attacker(n, 1, "n1:7688")
		c := connectAnyhow(t, client, "n1:7688")
		require.NoError(t, c.Call(t.Context(), replication.MsgFetch, struct{}{}, nil))
		require.Equal(t, 1, handled)
		for range 5 {
			results, err := evil.Attack(t.Context())
			require.NoError(t, err)
			for _, r := range results {
				require.True(t, r.Refused(), "%s: %s", r.Name, r.Answers)
				require.True(t, errors.Is(r.Err, io.EOF) || errors.Is(r.Err, syscall.EPIPE), "%s is not shown the door: %v", r.Name, r.Err)
			}
		}
		require.Equal(t, 1, handled)
		require.Zero(t, server.Stats().Unproven)
		require.NoError(t, c.Call(t.Context(), replication.MsgFetch, struct{}{}, nil))
	})
}

// TestAttacksOnAnOpenPort: without a secret a node speaks to anybody, but it
// stays up, forgets its attackers and grants no vote.
func TestAttacksOnAnOpenPort(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		server := node(t, n, "n1", "")
		var office postOffice
		office.serve(server)
		evil := attacker(n, 1, "n1:7688")
		for range 5 {
			results, err := evil.Attack(t.Context())
			require.NoError(t, err)
			for _, r := range results {
				if r.Name == "forged terms" || r.Name == "another cluster" || r.Name == "forged membership" {
					require.True(t, r.Refused(), "%s: %s", r.Name, r.Answers)
				}
			}
		}
		virtual(time.Hour)
		require.Zero(t, server.Stats().Open)
	})
}

func TestAttackEndsWithItsContext(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		node(t, n, "n1", clusterSecret)
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		_, err := attacker(n, 1, "n1:7688").Attack(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 3*time.Second, time.Since(start))
	})
}

// TestRaftClusterUnderAttack: attacks from outside and a member gone bad move
// neither leader nor term, and writes go on.
func TestRaftClusterUnderAttack(t *testing.T) {
	inBubble(t, func(t *testing.T, n *th.Network) {
		c := newRaftCluster(t, n, 1)
		leader := c.leader()
		term := leader.repl.Health().Term
		for _, m := range c.members {
			evil := th.NewByzantine(n, th.ByzantineOptions{ID: "evil", Target: m.addr, ClusterID: m.cfg.Raft.ClusterID, NodeIDs: []string{"n1", "n2", "n3"}})
			require.NoError(t, leader.repl.Apply(putNode(t, "before "+m.id), time.Minute))
			results, err := evil.Attack(t.Context())
			require.NoError(t, err)
			for _, r := range results {
				require.True(t, r.Refused(), "%s: %s", r.Name, r.Answers)
			}
			answers, err := evil.AttackInside(t.Context(), transport.Options{NodeID: "n2", ClusterID: m.cfg.Raft.ClusterID,
				Secret: []byte(clusterSecret), Logger: quiet()},
				replication.MsgVoteRequest, replication.MsgAppendEntries, replication.MsgWALBatch, replication.MsgHeartbeat, replication.MsgFence,
				replication.MsgPromote, replication.MsgStatus, replication.MsgApply, replication.MsgReadIndex, replication.MsgState, replication.MsgFetch)
			require.NoError(t, err)
			require.Len(t, answers, 8*11)
		}
		require.True(t, leader.repl.IsLeader())
		require.Equal(t, term, leader.repl.Health().Term)
		c.requireEverywhere([]string{"before n1", "before n2", "before n3"}, nil)
	})
}
