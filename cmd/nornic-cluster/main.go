// Command nornic-cluster shows and operates the replication library: a
// three-node cluster in one process (demo), one node of any cluster (serve),
// and the tools to load, export, watch and compare graphs.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/nornicdb/replication"
	"github.com/spf13/cobra"
)

// errUsage marks errors that end with status 2.
var errUsage = errors.New("bad usage")

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use: "nornic-cluster", Short: "Run and operate replicated graph stores",
		SilenceUsage: true, SilenceErrors: true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", errUsage, err) })
	root.AddCommand(demoCommand(), serveCommand(), importCommand(), exportCommand(), statusCommand(), verifyCommand(), benchCommand())
	root.AddCommand(adminCommands()...)
	root.AddCommand(recoverCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "nornic-cluster:", err)
		if errors.Is(err, errUsage) || errors.Is(err, replication.ErrInvalidConfig) {
			return 2
		}
		return 1
	}
	return 0
}

// exactArgs is cobra.ExactArgs with status 2.
func exactArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := cobra.ExactArgs(n)(cmd, args); err != nil {
			return fmt.Errorf("%w: %w", errUsage, err)
		}
		return nil
	}
}
