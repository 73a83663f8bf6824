package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nornicdb/replication"
	"github.com/spf13/cobra"
)

func conflictsCommand() *cobra.Command {
	var addr, field, node string
	var asJSON bool
	cmd := &cobra.Command{Use: "conflicts", Short: "List conflicts between regions that wait for a decision", Args: exactArgs(0),
		Long: "Lists what regions wrote without having each other's write, a line for each version (strategy\n" +
			"manual). SHOWN marks the version that is shown until the conflict is settled: by resolve, or by\n" +
			"any later write of the same thing.",
		Example: "  nornic-cluster conflicts --addr http://127.0.0.1:7474\n" +
			"  nornic-cluster conflicts resolve KEY --expect eu:17,us:4 --keep eu:17",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listConflicts(cmd.Context(), addr, url.Values{"field": {field}, "node": {node}}, asJSON)
		}}
	cmd.Flags().StringVar(&field, "field", "", "only those of a node, labels, property or edge")
	cmd.Flags().StringVar(&node, "node", "", "only those of this node, and of edges that start there")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	addrFlag(cmd, &addr)
	cmd.AddCommand(resolveCommand())
	return cmd
}

func resolveCommand() *cobra.Command {
	var expect []string
	var keep, value string
	var deleted bool
	cmd := order("resolve KEY", "Settle a conflict, everywhere", "conflicts resolve --addr http://127.0.0.1:7474 KEY --expect eu:17,us:4 --keep eu:17",
		"/admin/conflicts/{}/resolve", 1, func(_ []string, body map[string]any) error { return resolution(body, expect, keep, value, deleted) }, "settled")
	cmd.Long = "Settles a conflict by a write that replaces all versions: it keeps one, sets another value, or deletes.\n" +
		"--expect names the versions that conflicts has shown; where there are others by now, nothing is done."
	cmd.Flags().StringSliceVar(&expect, "expect", nil, "the versions that are there, REGION:POSITION each")
	cmd.Flags().StringVar(&keep, "keep", "", "the version that is to stay")
	cmd.Flags().StringVar(&value, "value", "", "JSON: a value of the property; labels; or an edge's properties")
	cmd.Flags().BoolVar(&deleted, "deleted", false, "delete it, or unset the property")
	return cmd
}

// resolution makes the body of a decision.
func resolution(body map[string]any, expect []string, keep, value string, deleted bool) error {
	choices := 0
	for _, chosen := range []bool{keep != "", value != "", deleted} {
		if chosen {
			choices++
		}
	}
	if choices != 1 || len(expect) == 0 {
		return fmt.Errorf("%w: resolve takes --expect, and one of --keep, --value and --deleted", errUsage)
	}
	var seen []replication.VersionID
	for _, text := range expect {
		id, err := parseVersion(text)
		if err != nil {
			return err
		}
		seen = append(seen, id)
	}
	body["expect"] = seen
	switch {
	case keep != "":
		id, err := parseVersion(keep)
		if err == nil && !slices.Contains(seen, id) {
			err = fmt.Errorf("%w: --keep %s is none of the versions of --expect", errUsage, keep)
		}
		body["keep"] = id
		return err
	case value != "":
		if !json.Valid([]byte(value)) {
			return fmt.Errorf("%w: --value %q is not JSON (a text has quotes: '\"a\"')", errUsage, value)
		}
		body["value"] = json.RawMessage(value)
	default:
		body["deleted"] = true
	}
	return nil
}

func parseVersion(text string) (id replication.VersionID, err error) {
	region, pos, found := strings.Cut(text, ":")
	id.Region = region
	if id.Pos, err = strconv.ParseUint(pos, 10, 64); !found || region == "" || err != nil {
		return id, fmt.Errorf("%w: version %q is not REGION:POSITION", errUsage, text)
	}
	return id, nil
}

// listConflicts reads all pages and prints them.
func listConflicts(ctx context.Context, addr string, query url.Values, asJSON bool) error {
	c, err := newClient([]string{addr})
	if err != nil {
		return err
	}
	all := []replication.Conflict{}
	for {
		var page struct {
			Conflicts []replication.Conflict `json:"conflicts"`
			Next      string                 `json:"next"`
		}
		if err := get(ctx, c.addrs[0]+"/admin/conflicts?"+query.Encode(), &page); err != nil {
			return err
		}
		all = append(all, page.Conflicts...)
		if page.Next == "" {
			break
		}
		query.Set("after", page.Next)
	}
	if asJSON {
		return json.NewEncoder(os.Stdout).Encode(map[string]any{"conflicts": all})
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KEY\tOF\tVERSION\tWRITTEN\tVALUE\tSHOWN")
	for i := range all {
		for _, v := range all[i].Versions {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", all[i].Key, thing(&all[i]), v.VersionID,
				v.Time.Format(time.RFC3339Nano), versionValue(&all[i], &v), map[bool]string{true: "shown"}[v.Shown])
		}
	}
	return w.Flush()
}

// thing says in words what is in conflict.
func thing(c *replication.Conflict) string {
	switch c.Field {
	case "property":
		return fmt.Sprintf("property %q of %q", c.Property, c.Node)
	case "edge":
		return fmt.Sprintf("edge %q %q %q", c.Node, c.Type, c.To)
	default:
		return fmt.Sprintf("%s %q", c.Field, c.Node)
	}
}

func versionValue(c *replication.Conflict, v *replication.ConflictVersion) string {
	switch {
	case v.Deleted:
		return "(deleted)"
	case len(v.Value) == 0 && c.Field == "node":
		return "(exists)"
	}
	return string(v.Value)
}
