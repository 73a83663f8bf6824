package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func verifyCommand() *cobra.Command {
	var addrs []string
	var timeout time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use: "verify", Short: "Say whether all nodes hold the same graph", Args: exactArgs(0),
		Long: "Waits until the nodes stand at one position and compares the digests of what they hold. Each region\n" +
			"has positions of its own: with nodes of several, it also waits until what they hold is the same.",
		Example: "  nornic-cluster verify --addr http://127.0.0.1:7474,http://127.0.0.1:7475,http://127.0.0.1:7476",
		RunE:    func(cmd *cobra.Command, _ []string) error { return verify(cmd.Context(), addrs, timeout, asJSON) },
	}
	cmd.Flags().StringSliceVar(&addrs, "addr", nil, "the nodes' HTTP addresses")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to wait until they stand at one position")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

var errDiffer = errors.New("the nodes do not hold the same graph")

// verify waits until all nodes of a region stand at one position, and compares
// them there. Regions that differ may only lack what is under way between them.
func verify(ctx context.Context, addrs []string, timeout time.Duration, asJSON bool) error {
	c, err := newClient(addrs)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var nodes []statsView
	var before error // of the last time that ctx did not end; nil: all answered
	for {
		found, err := c.contents(ctx)
		if ctx.Err() == nil {
			before = err
		}
		if err == nil {
			if nodes = found; samePositions(nodes) && (!sameWithinRegions(nodes) || sameContent(nodes)) {
				return c.tell(nodes, asJSON)
			}
		}
		timer := time.NewTimer(100 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			if nodes != nil && samePositions(nodes) { // what is under way between regions did not come
				return fmt.Errorf("after %s: %w", timeout, c.tell(nodes, asJSON))
			}
			if before == nil {
				before = errors.New(c.positions(nodes))
			}
			return fmt.Errorf("the nodes did not come to one position within %s (%w): %w", timeout, ctx.Err(), before)
		}
	}
}

// positions says where each node stood.
func (c *client) positions(nodes []statsView) string {
	list := make([]string, len(nodes))
	for i, n := range nodes {
		list[i] = fmt.Sprintf("%s at %d", c.addrs[i], n.Position)
	}
	text := strings.Join(list, ", ")
	if len(nodes) > 0 && sameContent(nodes) {
		text += "; there they hold the same graph: each cluster has positions of its own, name the nodes of one"
	}
	return text
}

// tell prints what the nodes hold; errDiffer where it is not the same.
func (c *client) tell(nodes []statsView, asJSON bool) error {
	same := sameContent(nodes)
	if asJSON {
		byAddr := make(map[string]statsView, len(nodes))
		for i, n := range nodes {
			byAddr[c.addrs[i]] = n
		}
		if err := json.NewEncoder(os.Stdout).Encode(map[string]any{"same": same, "nodes": byAddr}); err != nil {
			return err
		}
	} else {
		for i, n := range nodes {
			if n.Region != "" {
				fmt.Printf("region %s  ", n.Region)
			}
			fmt.Printf("%s  position %d  %d nodes  %d edges  digest %s\n", c.addrs[i], n.Position, n.Nodes, n.Edges, n.Digest)
		}
	}
	if !same {
		return errDiffer
	}
	if regions := countRegions(nodes); !asJSON && regions > 1 {
		fmt.Printf("all %d nodes in %d regions hold the same graph\n", len(nodes), regions)
	} else if !asJSON {
		fmt.Printf("all %d nodes hold the same graph\n", len(nodes))
	}
	return nil
}

// contents asks every node.
func (c *client) contents(ctx context.Context) ([]statsView, error) {
	nodes := make([]statsView, len(c.addrs))
	for i, a := range c.addrs {
		if err := get(ctx, a+"/graph/stats?consistency=ONE", &nodes[i]); err != nil {
			return nil, err
		}
	}
	return nodes, nil
}

// alike says whether same holds for each two nodes of one region, or, across, of
// all.
func alike(nodes []statsView, across bool, same func(a, b *statsView) bool) bool {
	for i := range nodes {
		first := 0
		if !across {
			first = slices.IndexFunc(nodes, func(n statsView) bool { return n.Region == nodes[i].Region })
		}
		if !same(&nodes[first], &nodes[i]) {
			return false
		}
	}
	return true
}

func samePositions(nodes []statsView) bool {
	return alike(nodes, false, func(a, b *statsView) bool { return a.Position == b.Position })
}

func sameWithinRegions(nodes []statsView) bool { return alike(nodes, false, equalContent) }

func sameContent(nodes []statsView) bool { return alike(nodes, true, equalContent) }

func equalContent(a, b *statsView) bool {
	return a.Nodes == b.Nodes && a.Edges == b.Edges && a.Digest == b.Digest
}

func countRegions(nodes []statsView) int {
	regions := make(map[string]bool)
	for _, n := range nodes {
		regions[n.Region] = true
	}
	return len(regions)
}
