package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

type clusterView struct {
	ClusterID string `json:"cluster_id"`
	Mode      string `json:"mode"`
	Leader    struct {
		ID      string `json:"id"`
		Address string `json:"address"`
	} `json:"leader"`
	Members []struct {
		ID      string `json:"id"`
		Address string `json:"address"`
		State   string `json:"state"`
		Healthy bool   `json:"healthy"`
		Voter   bool   `json:"voter"`
		Lag     int64  `json:"lag"`
	} `json:"members"`
	CommitIndex uint64 `json:"commit_index"`
	Term        uint64 `json:"term"`
	Source      string `json:"source"`
	// In multi-region mode:
	Region      string       `json:"region,omitempty"`
	WriteRegion string       `json:"write_region,omitempty"`
	RegionEpoch uint64       `json:"region_epoch,omitempty"`
	Regions     []regionView `json:"regions,omitempty"`
	// Node is what the node that was asked says of itself.
	Node nodeView `json:"node"`
}

type nodeView struct {
	ID      string   `json:"node_id"`
	State   string   `json:"state"`
	Reasons []string `json:"reasons,omitempty"`
}

type regionView struct {
	ID         string  `json:"id"`
	Address    string  `json:"address"`
	State      string  `json:"state"`
	Healthy    bool    `json:"healthy"`
	Lag        uint64  `json:"lag"`
	LagSeconds float64 `json:"lag_seconds"`
}

func statusCommand() *cobra.Command {
	var addr string
	var watch, asJSON bool
	cmd := &cobra.Command{
		Use: "status", Short: "Show the cluster", Args: exactArgs(0),
		Example: "  nornic-cluster status --addr http://127.0.0.1:7474 --watch",
		RunE: func(cmd *cobra.Command, _ []string) error {
			for {
				err := showStatus(cmd.Context(), addr, asJSON)
				if !watch {
					return err
				}
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
				}
				timer := time.NewTimer(time.Second)
				select {
				case <-timer.C:
				case <-cmd.Context().Done():
					timer.Stop()
					return nil
				}
			}
		},
	}
	cmd.Flags().StringVar(&addr, "addr", "http://127.0.0.1:7474", "a node's HTTP address")
	cmd.Flags().BoolVar(&watch, "watch", false, "again every second, until stopped")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func showStatus(ctx context.Context, addr string, asJSON bool) error {
	c, err := newClient([]string{addr})
	if err != nil {
		return err
	}
	var v clusterView
	if err := get(ctx, c.addrs[0]+"/admin/cluster/status", &v); err != nil {
		return err
	}
	if v.Node, err = nodeHealth(ctx, c.addrs[0]); err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(os.Stdout).Encode(v)
	}
	fmt.Printf("cluster %s  mode %s  term %d  commit %d  as seen by %s\n", v.ClusterID, v.Mode, v.Term, v.CommitIndex, v.Source)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tADDRESS\tROLE\tHEALTHY\tVOTER\tLAG")
	for _, m := range v.Members {
		fmt.Fprintf(w, "%s\t%s\t%s\t%t\t%t\t%d\n", m.ID, m.Address, m.State, m.Healthy, m.Voter, m.Lag)
	}
	if v.Region != "" {
		writers := "all regions accept writes"
		if v.WriteRegion != "" {
			writers = fmt.Sprintf("%s accepts writes (region epoch %d)", v.WriteRegion, v.RegionEpoch)
		}
		fmt.Fprintf(w, "\nregion %s; %s\n", v.Region, writers)
		fmt.Fprintln(w, "OTHER REGION\tADDRESS\tSTATE\tHEALTHY\tLAG\tLAG SECONDS")
		for _, r := range v.Regions {
			fmt.Fprintf(w, "%s\t%s\t%s\t%t\t%d\t%.1f\n", r.ID, r.Address, r.State, r.Healthy, r.Lag, r.LagSeconds)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, reason := range v.Node.Reasons {
		fmt.Printf("%s (%s): %s\n", v.Node.ID, v.Node.State, reason)
	}
	return nil
}

// nodeHealth asks a node about itself: the status may be that of its leader, and
// does not say what a node waits for.
func nodeHealth(ctx context.Context, addr string) (nodeView, error) {
	var v struct {
		Replication nodeView `json:"replication"`
	}
	err := get(ctx, addr+"/health", &v, http.StatusServiceUnavailable)
	return v.Replication, err
}
