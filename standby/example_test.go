package standby_test

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
	"github.com/nornicdb/replication/standby"
)

// A pair. What was acknowledged is read on the standby, and a planned switch loses
// nothing of it.
func ExampleNew() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var addrs [2]string
	for i := range addrs {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			panic(err)
		}
		defer l.Close()
		addrs[i] = l.Addr().String()
		l.Close()
	}
	var nodes [2]replication.Replicator
	var stores [2]*boltgraph.Store
	for i, role := range []string{"primary", "standby"} { // on the first start; later they know
		cfg := replication.DefaultConfig()
		cfg.Mode, cfg.NodeID, cfg.BindAddr, cfg.DataDir = replication.ModeHAStandby, fmt.Sprint("n", i), addrs[i], filepath.Join(dir, role)
		cfg.HA.Role, cfg.HA.PeerAddr, cfg.HA.SyncMode = role, addrs[1-i], replication.SyncFull
		cfg.HA.Heartbeat, cfg.HA.FailoverTimeout, cfg.HA.ReconnectInterval = 100*time.Millisecond, 10*time.Second, 100*time.Millisecond
		if stores[i], err = boltgraph.Open(filepath.Join(dir, role+".db")); err != nil {
			panic(err)
		}
		defer stores[i].Close()
		logger := slog.New(slog.NewTextHandler(io.Discard, nil))
		if nodes[i], err = replication.New(cfg, stores[i], replication.Modes{replication.ModeHAStandby: standby.New}, replication.WithLogger(logger)); err != nil {
			panic(err)
		}
		if err := nodes[i].Start(ctx); err != nil {
			panic(err)
		}
		defer nodes[i].Shutdown()
	}
	fmt.Println("leader:", nodes[1].WaitForLeader(30*time.Second), nodes[1].LeaderID())

	cmd, err := replication.NewNodeCommand(replication.CmdPutNode, &replication.Node{ID: "urd"})
	if err != nil {
		panic(err)
	}
	cmd.RequestID = "example-1" // a retry after ErrUnknownOutcome, an UnconfirmedError say, is applied once
	fmt.Println("written:", nodes[0].Apply(cmd, 30*time.Second))
	_, err = nodes[1].(replication.ConsistentReader).ReadBarrier(ctx, replication.ConsistencyQuorum)
	fmt.Println("barrier:", err)
	n, err := stores[1].Node("urd")
	if err != nil {
		panic(err)
	}
	fmt.Println("read:", n.ID)

	for err = replication.ErrNotReady; err != nil && ctx.Err() == nil; { // until the standby is admitted
		err = nodes[1].(replication.Promoter).Promote(ctx, false)
	}
	fmt.Println("switched:", err, nodes[1].LeaderID())
	// Output:
	// leader: <nil> n0
	// written: <nil>
	// barrier: <nil>
	// read: urd
	// switched: <nil> n1
}
