package main

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// walNodes are three nodes of one cluster on the log store, not yet open.
func walConfigs(t *testing.T, store string) []*replication.Config {
	t.Helper()
	addrs := freeAddrs(t, demoNodes)
	dir := t.TempDir()
	var list []*replication.Config
	for i := range addrs {
		cfg := demoConfig(i, addrs, dir)
		cfg.LogStore = store
		cfg.Raft.TrailingLogs = 5
		list = append(list, cfg)
	}
	return list
}

func openStarted(t *testing.T, cfgs ...*replication.Config) []*node {
	t.Helper()
	nodes := make([]*node, len(cfgs))
	for i, cfg := range cfgs {
		n, err := openNode(cfg, "127.0.0.1:0", slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		nodes[i] = n
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	require.NoError(t, eachNode(nodes, func(n *node) error { return n.start(ctx) }))
	return nodes
}

func write(t *testing.T, n *node, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		cmd, err := replication.NewNodeCommand(replication.CmdPutNode, &replication.Node{ID: replication.NodeID(fmt.Sprint("n", i))})
		require.NoError(t, err)
		cmd.RequestID = fmt.Sprint("request-", i)
		require.NoError(t, n.repl.Apply(cmd, patience))
	}
}

// TestClusterOnWALStore: writes, a follower that was away while the log was cut
// and gets a snapshot, restarts of all.
func TestClusterOnWALStore(t *testing.T) {
	cfgs := walConfigs(t, walName)
	nodes := openStarted(t, cfgs...)
	write(t, nodes[0], 0, 50)
	require.NoError(t, nodes[2].stop())
	write(t, nodes[0], 50, 150)
	for _, n := range nodes[:2] {
		require.NoError(t, n.repl.(replication.Snapshotter).TakeSnapshot(t.Context()))
	}
	nodes[2] = openStarted(t, cfgs[2])[0]
	write(t, nodes[1], 150, 160)
	for range 2 {
		digest := ""
		for _, n := range nodes {
			_, err := n.repl.(replication.ConsistentReader).ReadBarrier(t.Context(), replication.ConsistencyQuorum)
			require.NoError(t, err)
			st, err := n.store.Stats()
			require.NoError(t, err)
			require.Equal(t, uint64(160), st.Nodes)
			require.True(t, digest == "" || digest == st.Digest)
			digest = st.Digest
		}
		require.NoError(t, eachNode(nodes, (*node).stop))
		nodes = openStarted(t, cfgs...)
	}
	require.NoError(t, eachNode(nodes, (*node).stop))
}

// TestDirectoryOfOneLogStoreIsRefusedByTheOther, in both directions.
func TestDirectoryOfOneLogStoreIsRefusedByTheOther(t *testing.T) {
	other := map[string]string{"bolt": walName, walName: "bolt"}
	for first, second := range other {
		cfg := walConfigs(t, first)[0]
		cfg.Raft.Peers = nil
		require.NoError(t, openStarted(t, cfg)[0].stop())
		cfg.LogStore = second
		n, err := openNode(cfg, "127.0.0.1:0", slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		err = n.start(t.Context())
		require.ErrorIs(t, err, replication.ErrInvalidConfig)
		require.ErrorContains(t, err, fmt.Sprintf("NORNICDB_CLUSTER_LOG_STORE=%q", second))
		require.ErrorContains(t, err, fmt.Sprintf("first used with %q", first))
		require.NoError(t, n.stop())
		cfg.LogStore = first
		n = openStarted(t, cfg)[0]
		require.NoError(t, n.stop(), "the refusal did no harm")
	}
}

func TestWALRefusesWhatItCouldNotReadAgain(t *testing.T) {
	s, err := openWAL(t.TempDir())
	require.NoError(t, err)
	require.Error(t, s.StoreLog(&raft.Log{Index: 1, Term: 1, Data: make([]byte, maxWALEntry+1)}))
	require.NoError(t, s.StoreLog(&raft.Log{Index: 1, Term: 1, Data: make([]byte, maxWALEntry)}))
	var l raft.Log
	require.NoError(t, s.GetLog(1, &l))
	require.Len(t, l.Data, maxWALEntry)
	require.NoError(t, s.(walStore).Close())
	cfg := replication.DefaultConfig()
	cfg.LogStore = walName
	require.NoError(t, checkWAL(cfg), "the default fits")
	cfg.MaxFrameSize = 128 << 20
	require.ErrorIs(t, checkWAL(cfg), replication.ErrInvalidConfig)
	cfg.LogStore = "bolt"
	require.NoError(t, checkWAL(cfg))
}

// TestWALKeepsWhatPrecedesADeletedTail: a follower deletes what conflicts with
// its leader's log. raft-wal 0.4.0 could not read the entries before it any more
// once it was opened again.
func TestWALKeepsWhatPrecedesADeletedTail(t *testing.T) {
	dir := t.TempDir()
	s, err := openWAL(dir)
	require.NoError(t, err)
	for i := range uint64(10) {
		require.NoError(t, s.StoreLog(&raft.Log{Index: 1 + i, Term: 1, Data: []byte("old")}))
	}
	require.NoError(t, s.DeleteRange(6, 10))
	require.NoError(t, s.StoreLog(&raft.Log{Index: 6, Term: 2, Data: []byte("new")}))
	for range 2 {
		for i := range uint64(6) {
			var l raft.Log
			require.NoError(t, s.GetLog(1+i, &l))
			require.Equal(t, 1+i/5, l.Term)
		}
		require.NoError(t, s.(walStore).Close())
		s, err = openWAL(dir)
		require.NoError(t, err)
	}
	require.NoError(t, s.(walStore).Close())
}
