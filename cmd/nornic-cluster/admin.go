package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nornicdb/replication"
	"github.com/spf13/cobra"
)

// adminTimeout bounds an admin command; the node answers within its own 30 s.
const adminTimeout = 35 * time.Second

// adminCommands are the commands that call the admin endpoints.
func adminCommands() []*cobra.Command {
	return []*cobra.Command{addCommand(), removeCommand(), transferCommand(), promoteCommand(), conflictsCommand(), regionCommand(),
		order("snapshot", "Take a snapshot on the node now", "snapshot --addr http://127.0.0.1:7475", "/admin/cluster/snapshot", 0, nil, "snapshot taken"),
		order("solo", "Certify that the peer is down (hot standby)", "solo --addr http://127.0.0.1:7474", "/admin/solo", 0, nil, "going on alone"),
	}
}

// order is a command that posts to one endpoint and says what it did; {} in path
// is the first argument. fill puts the arguments into the body; it may be nil.
func order(use, short, example, path string, args int, fill func(args []string, body map[string]any) error, done string) *cobra.Command {
	var addr string
	cmd := &cobra.Command{Use: use, Short: short, Args: exactArgs(args), Example: "  nornic-cluster " + example,
		RunE: func(cmd *cobra.Command, args []string) error {
			body := make(map[string]any)
			if fill != nil {
				if err := fill(args, body); err != nil {
					return err
				}
			}
			path := path
			if len(args) > 0 {
				path = strings.ReplaceAll(path, "{}", url.PathEscape(args[0]))
			}
			if err := postAdmin(cmd.Context(), addr, path, body); err != nil {
				return err
			}
			fmt.Println(done)
			return nil
		}}
	addrFlag(cmd, &addr)
	return cmd
}

func addrFlag(cmd *cobra.Command, addr *string) {
	cmd.Flags().StringVar(addr, "addr", "http://127.0.0.1:7474", "any node's HTTP address")
}

func addCommand() *cobra.Command {
	var voter bool
	cmd := order("add NODE ADDRESS", "Add a node, or change its address", "add --addr http://127.0.0.1:7474 n4 127.0.0.1:7691",
		"/admin/cluster/add", 2, func(args []string, body map[string]any) error {
			if _, port, err := net.SplitHostPort(args[1]); err != nil || port == "" {
				return fmt.Errorf("%w: ADDRESS %q is not host:port", errUsage, args[1])
			}
			body["node_id"], body["address"], body["voter"] = args[0], args[1], voter
			return nil
		}, "added; a voter starts as a non-voter and is promoted when it has caught up (status --watch)")
	cmd.Flags().BoolVar(&voter, "voter", true, "make it a voter when it has caught up; --voter=false: it stays a non-voter")
	return cmd
}

func removeCommand() *cobra.Command {
	var force bool
	cmd := order("remove NODE", "Remove a node", "remove --addr http://127.0.0.1:7474 n4",
		"/admin/cluster/remove", 1, func(args []string, body map[string]any) error {
			body["node_id"], body["force"] = args[0], force
			return nil
		}, "removed")
	cmd.Flags().BoolVar(&force, "force", false, "also where the rest would have no quorum that answers")
	return cmd
}

func transferCommand() *cobra.Command {
	cmd := order("transfer [NODE]", "Hand leadership to a node, or to any", "transfer --addr http://127.0.0.1:7474 n2",
		"/admin/cluster/transfer-leadership", 0, func(args []string, body map[string]any) error {
			if len(args) == 1 {
				body["node_id"] = args[0]
			}
			return nil
		}, "leadership was handed over")
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return fmt.Errorf("%w: one node at most", errUsage)
		}
		return nil
	}
	return cmd
}

func promoteCommand() *cobra.Command {
	var force bool
	cmd := order("promote", "Make a standby the primary (hot standby)", "promote --addr http://127.0.0.1:7475",
		"/admin/promote", 0, func(_ []string, body map[string]any) error { body["force"] = force; return nil }, "promoted")
	cmd.Flags().BoolVar(&force, "force", false, "also where the primary cannot be reached or the standby may lack writes: those are lost to the pair")
	cmd.PostRun = func(*cobra.Command, []string) {
		if force {
			fmt.Fprintln(os.Stderr, forcedPromotion)
		}
	}
	return cmd
}

// forcedPromotion is what may be lost by one.
const forcedPromotion = "forced: writes that the old primary acknowledged and this node had not received are not in its graph; " +
	"if that node comes back, they are in its diverged/ directory"

// postAdmin sends an order to a node once. Whether one whose answer was lost was
// carried out is the operator's to find out: ErrUnknownOutcome says so.
func postAdmin(ctx context.Context, addr, path string, body any) error {
	c, err := newClient([]string{addr})
	if err != nil {
		return err
	}
	defer c.http.CloseIdleConnections()
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.addrs[0]+path, bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	req.Header.Set("Content-Type", "application/json")
	c.authorize(req)
	resp, err := c.http.Do(req)
	switch {
	case err == nil:
	case unsent(err):
		return err
	default:
		return fmt.Errorf("%w: %w", replication.ErrUnknownOutcome, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	return refusal(resp)
}
