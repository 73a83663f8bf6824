package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/nornicdb/replication"
	"github.com/spf13/cobra"
)

// regionCommand groups what operates regions.
func regionCommand() *cobra.Command {
	region := &cobra.Command{Use: "region", Short: "Operate regions", Args: exactArgs(0),
		Example: "  nornic-cluster region promote --addr http://127.0.0.1:7477",
		RunE: func(*cobra.Command, []string) error {
			return fmt.Errorf("%w: region promote, region settings, or region remove REGION", errUsage)
		}}
	region.AddCommand(
		order("promote", "Make the node's region the one that accepts writes", "region promote --addr http://127.0.0.1:7477", "/admin/region/promote", 0, nil, "this region accepts the writes now"),
		order("remove REGION", "Remove a region (not built yet: it is refused)", "region remove eu-west", "/admin/region/remove", 1,
			func(args []string, body map[string]any) error { body["region_id"] = args[0]; return nil }, "region removed"),
		settingsCommand())
	return region
}

// settingsCommand shows the settings of a region, and changes those that are named.
func settingsCommand() *cobra.Command {
	var addr string
	var asJSON bool
	var change replication.RegionSettingsChange
	cmd := &cobra.Command{Use: "settings", Short: "Show the settings of the node's region, or change some", Args: exactArgs(0),
		Long: "Shows the settings that steer the region's state machine. With a flag they are changed, on all nodes of\n" +
			"the region: set the environment of each to the same before it starts again. All regions must have one clock\n" +
			"bound: change it in each; until then connections between them are refused. The other settings are founded.",
		Example: "  nornic-cluster region settings --addr http://127.0.0.1:7474\n" +
			"  nornic-cluster region settings --outbox-max-entries 5000000",
		RunE: func(cmd *cobra.Command, _ []string) error {
			flags := cmd.Flags()
			for _, name := range []string{"outbox-max-entries", "outbox-max-bytes"} {
				if flags.Changed(name) && flags.Lookup(name).Value.String() == "0" {
					return fmt.Errorf("%w: --%s must be positive", errUsage, name)
				}
			}
			if flags.Changed("max-clock-offset") || flags.Changed("outbox-max-entries") || flags.Changed("outbox-max-bytes") {
				if err := postAdmin(cmd.Context(), addr, "/admin/region/settings", &change); err != nil {
					return err
				}
			}
			return showSettings(cmd.Context(), addr, asJSON, &change)
		}}
	cmd.Flags().StringVar(&change.MaxClockOffset, "max-clock-offset", "", "a duration; 0: no bound")
	cmd.Flags().Uint64Var(&change.OutboxMaxEntries, "outbox-max-entries", 0, "beyond it a region that is away is caught up by state transfer")
	cmd.Flags().Uint64Var(&change.OutboxMaxBytes, "outbox-max-bytes", 0, "the same in bytes")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	addrFlag(cmd, &addr)
	return cmd
}

// showSettings prints what the node has applied; what was changed through its
// leader may come a moment later, and is waited for.
func showSettings(ctx context.Context, addr string, asJSON bool, changed *replication.RegionSettingsChange) error {
	c, err := newClient([]string{addr})
	if err != nil {
		return err
	}
	defer c.http.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	var s replication.RegionSettings
	for {
		if err := get(ctx, c.addrs[0]+"/admin/region/settings", &s); err != nil {
			return err
		}
		if tookEffect(&s, changed) {
			break
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if asJSON {
		return json.NewEncoder(os.Stdout).Encode(&s)
	}
	writeRegion := s.WriteRegion
	if writeRegion == "" {
		writeRegion = "all"
	}
	fmt.Printf("region              %s of %s\nwrite region        %s at first\nconflict strategy   %s\nmax clock offset    %s\noutbox max entries  %d\noutbox max bytes    %d\n",
		s.Region, strings.Join(s.Regions, ", "), writeRegion, s.ConflictStrategy, s.MaxClockOffset, s.OutboxMaxEntries, s.OutboxMaxBytes)
	return nil
}

// tookEffect says whether settings are what they were changed to.
func tookEffect(s *replication.RegionSettings, changed *replication.RegionSettingsChange) bool {
	bound := true
	if changed.MaxClockOffset != "" {
		want, err := time.ParseDuration(changed.MaxClockOffset)
		have, haveErr := time.ParseDuration(s.MaxClockOffset)
		bound = err == nil && haveErr == nil && want == have
	}
	return bound && (changed.OutboxMaxEntries == 0 || changed.OutboxMaxEntries == s.OutboxMaxEntries) &&
		(changed.OutboxMaxBytes == 0 || changed.OutboxMaxBytes == s.OutboxMaxBytes)
}
