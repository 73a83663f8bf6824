package replication_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/nornicdb/replication/raftnode"
)

// server is an embedding server: it has a storage of its own and knows nothing
// of how it is replicated.
type server struct {
	storage *boltgraph.Store
	repl    replication.Replicator
}

func startServer(cfg *replication.Config, dir string) (*server, error) {
	storage, err := boltgraph.Open(filepath.Join(dir, cfg.NodeID+".db"))
	if err != nil {
		return nil, err
	}
	cfg.DataDir = filepath.Join(dir, cfg.NodeID)
	repl, err := replication.New(cfg, storage, replication.Modes{replication.ModeRaft: raftnode.New}, replication.WithLogger(quiet()))
	if err != nil {
		return nil, err
	}
	return &server{storage: storage, repl: repl}, nil
}

func (s *server) stop() { _ = s.repl.Shutdown(); _ = s.storage.Close() }

// A server that starts alone, writes, and mounts the HTTP handler.
func ExampleNew_standalone() {
	dir, _ := os.MkdirTemp("", "example")
	defer os.RemoveAll(dir)
	cfg := replication.DefaultConfig()
	cfg.NodeID = "alone"
	s, err := startServer(cfg, dir)
	if err != nil {
		panic(err)
	}
	defer s.stop()
	if err := s.repl.Start(context.Background()); err != nil {
		panic(err)
	}
	cmd, _ := replication.NewNodeCommand(replication.CmdPutNode, &replication.Node{ID: "urd", Labels: []string{"Norn"}})
	fmt.Println(s.repl.Apply(cmd, 5*time.Second))

	mux := http.NewServeMux()
	mux.Handle("/admin/", replication.NewHTTPHandler(s.repl, replication.HTTPOptions{}))
	fmt.Println(s.repl.Health().State)
	// Output:
	// <nil>
	// healthy
}

// Three servers that form a Raft cluster; what is written through one is read
// on another.
func ExampleNew_raft() {
	dir, _ := os.MkdirTemp("", "example")
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	addrs := exampleAddrs(3)
	servers := make([]*server, 3)
	for i := range servers {
		cfg := replication.DefaultConfig()
		cfg.Mode, cfg.NodeID, cfg.BindAddr = replication.ModeRaft, fmt.Sprint("n", i), addrs[i]
		cfg.Raft.Bootstrap = i == 0
		for j, addr := range addrs {
			if j != i {
				cfg.Raft.Peers = append(cfg.Raft.Peers, replication.RaftPeer{ID: fmt.Sprint("n", j), Addr: addr})
			}
		}
		s, err := startServer(cfg, dir)
		if err != nil {
			panic(err)
		}
		defer s.stop()
		servers[i] = s
	}
	started := make(chan error, len(servers))
	for _, s := range servers { // a cluster is founded when all nodes are up
		go func() { started <- s.repl.Start(ctx) }()
	}
	for range servers {
		if err := <-started; err != nil {
			panic(err)
		}
	}
	cmd, _ := replication.NewNodeCommand(replication.CmdPutNode, &replication.Node{ID: "skuld"})
	cmd.RequestID = "example-1"
	position, err := servers[1].repl.(replication.BatchApplier).ApplyBatch(ctx, []*replication.Command{cmd})
	fmt.Println("written:", err)

	// Read your own write on another node, by its position …
	reader := servers[2].repl.(replication.ConsistentReader)
	fmt.Println("applied:", reader.WaitApplied(ctx, position))
	// … or everything that was acknowledged before the call.
	_, err = reader.ReadBarrier(ctx, replication.ConsistencyQuorum)
	fmt.Println("barrier:", err)
	n, err := servers[2].storage.Node("skuld")
	if err != nil {
		panic(err)
	}
	fmt.Println("read:", n.ID)
	// Output:
	// written: <nil>
	// applied: <nil>
	// barrier: <nil>
	// read: skuld
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
