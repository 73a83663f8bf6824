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
	"strings"
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
	group(root)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "nornic-cluster:", err)
		if errors.Is(err, errUsage) || errors.Is(err, replication.ErrInvalidConfig) {
			return 2
		}
		return 1
	}
	return 0
}

// group makes a command that only holds others show its help, and refuse what it
// does not know.
func group(cmd *cobra.Command) {
	cmd.SuggestionsMinimumDistance = 2
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		err := fmt.Errorf("%w: unknown command %q for %q", errUsage, args[0], cmd.CommandPath())
		if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
			err = fmt.Errorf("%w; did you mean %s?", err, strings.Join(like, " or "))
		}
		return err
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
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
