package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/raftnode"
	"github.com/spf13/cobra"
)

func recoverCommand() *cobra.Command {
	var req raftnode.RecoverRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use: "recover", Short: "Make a cluster of the one node that is left (offline)", Args: exactArgs(0),
		Long: "Makes a cluster of one out of a node whose cluster has lost its quorum for good. The node is stopped.\n" +
			"Writes that were acknowledged and did not reach this node are lost. The lost members must never come back\n" +
			"with what they have: start them with empty directories, and they join the recovered cluster.",
		Example: "  nornic-cluster recover --data ./data/n2 --lost n1,n3",
		RunE: func(*cobra.Command, []string) error {
			if req.DataDir == "" {
				return fmt.Errorf("%w: --data names no directory", errUsage)
			}
			req.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
			rec, err := recoverNode(req)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(os.Stdout).Encode(map[string]any{"node_id": rec.NodeID, "address": rec.Address, "lost": rec.Lost,
					"last_index": rec.LastIndex, "term": rec.LastTerm, "position": rec.Position, "history": rec.History})
			}
			fmt.Printf("%s is a cluster of one at %s, with everything up to index %d of term %d\n", rec.NodeID, rec.Address, rec.LastIndex, rec.LastTerm)
			fmt.Printf("start it; then start %v with empty directories, without NORNICDB_CLUSTER_RAFT_BOOTSTRAP\n", rec.Lost)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&req.DataDir, "data", "", "data directory of the node that is left")
	f.StringSliceVar(&req.Lost, "lost", nil, "every other member, by ID: lost for good, or to be started with an empty directory")
	f.StringVar(&req.NodeID, "node", "", "the node's ID, to make sure that it is the right directory")
	f.StringVar(&req.Address, "address", "", "cluster address of the node from now on (as before if empty)")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// recoverNode recovers over the graph store in the data directory.
func recoverNode(req raftnode.RecoverRequest) (*raftnode.Recovery, error) {
	var store *boltgraph.Store
	rec, err := raftnode.Recover(req, func() (replication.Storage, error) {
		path := filepath.Join(req.DataDir, "graph.db")
		if _, err := os.Stat(path); err != nil {
			return nil, err
		}
		var err error
		store, err = boltgraph.Open(path)
		return store, err
	}, raftnode.WithLogStore(walName, openWAL))
	if store != nil {
		err = errors.Join(err, store.Close())
	}
	return rec, err
}
