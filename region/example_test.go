package region_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/region"
)

// Two regions, of one node each to be short: each takes writes, and has the other's a
// moment later.
func ExampleNew() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	names, addrs := []string{"eu", "us"}, exampleAddrs(2)
	nodes, stores := make([]replication.Replicator, 2), make([]*boltgraph.Store, 2)
	for i, name := range names {
		cfg := replication.DefaultConfig()
		cfg.Mode, cfg.NodeID, cfg.BindAddr = replication.ModeMultiRegion, name+"1", addrs[i]
		cfg.DataDir = filepath.Join(dir, name)
		cfg.Raft.ClusterID, cfg.Raft.Bootstrap = name, true // a Raft cluster of each region's own
		cfg.Region.RegionID = name
		cfg.Region.RemoteRegions = []replication.RemoteRegion{{Region: names[1-i], Addr: addrs[1-i]}}
		if stores[i], err = boltgraph.Open(filepath.Join(dir, name+".db")); err != nil {
			panic(err)
		}
		defer stores[i].Close()
		logger := slog.New(slog.NewTextHandler(io.Discard, nil))
		if nodes[i], err = replication.New(cfg, stores[i], replication.Modes{replication.ModeMultiRegion: region.New}, replication.WithLogger(logger)); err != nil {
			panic(err)
		}
		if err := nodes[i].Start(ctx); err != nil { // the other region need not be there
			panic(err)
		}
		defer nodes[i].Shutdown()
	}
	for i, id := range []replication.NodeID{"urd", "skuld"} {
		if err := nodes[i].WaitForLeader(10 * time.Second); err != nil {
			panic(err)
		}
		cmd, err := replication.NewNodeCommand(replication.CmdPutNode, &replication.Node{ID: id})
		if err != nil {
			panic(err)
		}
		fmt.Println(names[i], "wrote:", nodes[i].Apply(cmd, 10*time.Second))
	}
	// There is no wait for another region's write, which has a position of its own
	// here: whoever needs it looks again.
	for i, id := range []replication.NodeID{"skuld", "urd"} {
		for err = replication.ErrNotFound; err != nil && ctx.Err() == nil; {
			_, err = stores[i].Node(id)
		}
		fmt.Println(names[i], "has", id)
	}
	// Output:
	// eu wrote: <nil>
	// us wrote: <nil>
	// eu has skuld
	// us has urd
}

func exampleAddrs(n int) []string {
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs
}
