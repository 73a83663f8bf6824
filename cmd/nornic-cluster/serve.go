package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/raftnode"
	"github.com/spf13/cobra"
)

func serveCommand() *cobra.Command {
	var httpAddr, dataDir string
	var force bool
	cmd := &cobra.Command{
		Use: "serve", Short: "Run one node, configured by NORNICDB_CLUSTER_*", Args: exactArgs(0),
		Example: "  NORNICDB_CLUSTER_MODE=standalone nornic-cluster serve --http 127.0.0.1:7474 --data ./data/n1",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkServeFlags(httpAddr, cmd.Flags().Changed("data") && dataDir == ""); err != nil {
				return err
			}
			cfg, err := replication.LoadFromEnv()
			if err != nil {
				return err
			}
			if dataDir != "" {
				cfg.DataDir = dataDir
			}
			if err := checkModeIsMeant(cfg); err != nil {
				return err
			}
			logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
			var opts []raftnode.Option
			if force {
				opts = append(opts, raftnode.WithForce())
			}
			return serve(cmd.Context(), cfg, httpAddr, logger, opts...)
		},
	}
	cmd.Flags().StringVar(&httpAddr, "http", "127.0.0.1:7474", "HTTP address")
	cmd.Flags().BoolVar(&force, "force", false, "found a cluster although a listed peer cannot be asked whether it has one")
	cmd.Flags().StringVar(&dataDir, "data", "", "data directory (instead of NORNICDB_CLUSTER_DATA_DIR)")
	return cmd
}

// serve runs a node until ctx ends.
func serve(ctx context.Context, cfg *replication.Config, httpAddr string, logger *slog.Logger, opts ...raftnode.Option) error {
	n, err := openNode(cfg, httpAddr, logger, opts...)
	if err != nil {
		return err
	}
	where := []any{"http", n.url, "cluster", cfg.BindAddr, "mode", string(cfg.Mode)}
	logger.Info("starting", where...) // its health can be asked for while it waits for its peers
	if err := n.start(ctx); err != nil {
		if ctx.Err() != nil {
			err = nil // stopped while it waited
		}
		return errors.Join(err, n.stop())
	}
	logger.Info("serving", where...)
	<-ctx.Done()
	logger.Info("stopping")
	if err := n.leave(logger); err != nil {
		return err
	}
	logger.Info("stopped")
	return nil
}

// checkServeFlags refuses what is otherwise taken for something else: no HTTP
// address is any port of all interfaces, no directory that of the environment.
func checkServeFlags(httpAddr string, noData bool) error {
	_, port, err := net.SplitHostPort(httpAddr)
	if err == nil {
		_, err = net.LookupPort("tcp", port)
	}
	if err != nil || port == "" {
		return fmt.Errorf("%w: --http=%q is not host:port", errUsage, httpAddr)
	}
	if noData {
		return fmt.Errorf("%w: --data names no directory", errUsage)
	}
	return nil
}

// checkModeIsMeant refuses a node of a cluster that is started without any mode, in
// an environment that was forgotten say: alone it would leave its cluster's history,
// for good.
func checkModeIsMeant(cfg *replication.Config) error {
	if os.Getenv("NORNICDB_CLUSTER_MODE") != "" {
		return nil
	}
	path := filepath.Join(cfg.DataDir, "node.json")
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // new, or never a node of a cluster
	}
	var first struct {
		Mode string `json:"mode"`
	}
	if err == nil {
		err = json.Unmarshal(data, &first)
	}
	if err != nil { // in mode standalone nobody else reads it
		return fmt.Errorf("%w: NORNICDB_CLUSTER_MODE is not set, and what %s says cannot be read: %w; set it to the node's mode, or to standalone to take the data out of the cluster",
			replication.ErrInvalidConfig, path, err)
	}
	if first.Mode != string(cfg.Mode) {
		return fmt.Errorf("%w: NORNICDB_CLUSTER_MODE is not set, and %s is that of a node in mode %s: set it to that, or to standalone to take the data out of the cluster",
			replication.ErrInvalidConfig, cfg.DataDir, first.Mode)
	}
	return nil
}

type demoOptions struct {
	dir, importFile       string
	httpPort, clusterPort int
	regions               int
	verbose               bool
}

func demoCommand() *cobra.Command {
	var o demoOptions
	cmd := &cobra.Command{
		Use: "demo", Short: "Run three Raft nodes in this process, or several regions of them", Args: exactArgs(0),
		Example: "  nornic-cluster demo --import cmd/nornic-cluster/testdata/small.jsonl\n  nornic-cluster demo --regions 2",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.regions < 1 || o.regions > 5 {
				return fmt.Errorf("%w: --regions=%d, allowed are 1 to 5", errUsage, o.regions)
			}
			if err := o.checkPorts(); err != nil {
				return err
			}
			return demo(cmd.Context(), &o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", "", "directory of the nodes (a temporary one if empty)")
	f.StringVar(&o.importFile, "import", "", "load this graph first")
	f.IntVar(&o.httpPort, "http-port", 7474, "first of the nodes' HTTP ports; 0 picks free ones")
	f.IntVar(&o.clusterPort, "cluster-port", 7688, "first of the nodes' cluster ports; 0 picks free ones")
	f.IntVar(&o.regions, "regions", 1, "number of regions, three nodes each; 1: mode raft")
	f.BoolVar(&o.verbose, "verbose", false, "log what the nodes do")
	return cmd
}

func (o *demoOptions) checkPorts() error {
	count := demoNodes * o.regions
	for flag, port := range map[string]int{"http-port": o.httpPort, "cluster-port": o.clusterPort} {
		if last := 1<<16 - count; port < 0 || port > last {
			return fmt.Errorf("%w: --%s=%d, allowed are 0 to %d", errUsage, flag, port, last)
		}
	}
	if o.httpPort != 0 && o.clusterPort != 0 && max(o.httpPort-o.clusterPort, o.clusterPort-o.httpPort) < count {
		return fmt.Errorf("%w: --http-port=%d and --cluster-port=%d: %d ports from there on are the same in part", errUsage, o.httpPort, o.clusterPort, count)
	}
	return nil
}

func demo(ctx context.Context, o *demoOptions) (err error) {
	if o.importFile != "" && o.importFile != "-" { // before anything is started for it
		in, err := openGraph(o.importFile)
		if err != nil {
			return fmt.Errorf("--import: %w", err)
		}
		_ = in.Close() // read later
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "nornic-demo-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	}
	cluster, err := loopbackAddrs(o.clusterPort, demoNodes*o.regions)
	if err != nil {
		return fmt.Errorf("--cluster-port: %w", err)
	}
	web, err := loopbackAddrs(o.httpPort, demoNodes*o.regions)
	if err != nil {
		return fmt.Errorf("--http-port: %w", err)
	}
	logger := slog.New(slog.DiscardHandler)
	if o.verbose {
		logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	var nodes []*node
	defer func() {
		err = errors.Join(err, eachNode(nodes, (*node).stop))
	}()
	for i := range cluster {
		n, err := openNode(demoConfig(i, cluster, o.dir), web[i], logger.With("node", i+1))
		if err != nil {
			return err
		}
		nodes = append(nodes, n)
		fmt.Printf("node%d  %s  cluster %s  %s\n", i+1, n.url, cluster[i], n.repl.Mode())
	}
	if err := startAll(ctx, nodes); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if o.importFile != "" {
		if err := demoImport(ctx, nodes, o.importFile); err != nil {
			return err
		}
	}
	followLeaders(ctx, nodes)
	return nil
}

// demoNodes is the number of nodes of a region.
const demoNodes = 3

func demoRegion(node int) string { return fmt.Sprintf("region%d", node/demoNodes+1) }

func demoConfig(i int, addrs []string, dir string) *replication.Config {
	cfg := replication.DefaultConfig()
	cfg.Mode = replication.ModeRaft
	cfg.NodeID = fmt.Sprintf("node%d", i+1)
	cfg.BindAddr = addrs[i]
	cfg.DataDir = filepath.Join(dir, cfg.NodeID)
	cfg.Raft.Bootstrap = i%demoNodes == 0
	if len(addrs) > demoNodes {
		cfg.Mode = replication.ModeMultiRegion
		cfg.Region.RegionID = demoRegion(i)
		cfg.Raft.ClusterID = "demo-" + demoRegion(i)
	}
	for j, addr := range addrs {
		switch {
		case j/demoNodes != i/demoNodes:
			cfg.Region.RemoteRegions = append(cfg.Region.RemoteRegions, replication.RemoteRegion{Region: demoRegion(j), Addr: addr})
		case j != i:
			cfg.Raft.Peers = append(cfg.Raft.Peers, replication.RaftPeer{ID: fmt.Sprintf("node%d", j+1), Addr: addr})
		}
	}
	return cfg
}

// loopbackAddrs are addresses from a port on, none of which is taken, or free ones.
func loopbackAddrs(port, count int) ([]string, error) {
	addrs := make([]string, count)
	for i := range addrs {
		at := 0
		if port != 0 {
			at = port + i
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", at))
		if err != nil {
			return nil, err
		}
		defer l.Close() // all are held until all are known
		addrs[i] = l.Addr().String()
	}
	return addrs, nil
}

// startAll ends with the first node that cannot start: the others would wait for it.
func startAll(ctx context.Context, nodes []*node) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	limited, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := eachNode(nodes, func(n *node) error {
		err := n.start(limited)
		if err != nil {
			fail(err)
		}
		return err
	}); err != nil {
		return context.Cause(ctx)
	}
	return eachNode(nodes, func(n *node) error { return n.repl.WaitForLeader(30 * time.Second) })
}

// eachNode runs f on all nodes at once and waits for all.
func eachNode(nodes []*node, f func(*node) error) error {
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { errs[i] = f(n) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func demoImport(ctx context.Context, nodes []*node, file string) error {
	urls := make([]string, len(nodes))
	for i, n := range nodes {
		urls[i] = n.url
	}
	// Through one region: the edges need nodes that another has not got yet.
	if err := importFile(ctx, &importOptions{addrs: urls[:demoNodes], file: file, writers: 16, batch: 64}); err != nil {
		return err
	}
	return verify(ctx, urls, time.Minute, false)
}

// followLeaders prints who leads, in each region, whenever that changes, until
// ctx ends.
func followLeaders(ctx context.Context, nodes []*node) {
	var wg sync.WaitGroup
	for i := 0; i < len(nodes); i += demoNodes {
		what := "leads"
		if len(nodes) > demoNodes {
			what += " " + demoRegion(i)
		}
		wg.Go(func() { followLeader(ctx, nodes[i].repl, what) })
	}
	wg.Wait()
}

func followLeader(ctx context.Context, repl replication.Replicator, what string) {
	events, cancel := repl.(replication.Subscriber).Subscribe(64)
	defer cancel()
	said := ""
	for {
		if id := repl.LeaderID(); id != said && id != "" {
			fmt.Println(id, what)
			said = id
		}
		select {
		case <-events:
		case <-ctx.Done():
			return
		}
	}
}
