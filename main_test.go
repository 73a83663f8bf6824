package replication_test

import (
	"io"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm/boltgraph"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func quiet() replication.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func openStore(t *testing.T) *boltgraph.Store {
	t.Helper()
	s, err := boltgraph.Open(filepath.Join(t.TempDir(), "graph.db"), boltgraph.WithNoSync())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// TestLayering holds the rule of who may import whom: nobody below imports
// what stands above.
func TestLayering(t *testing.T) {
	const module = "github.com/nornicdb/replication"
	allowed := map[string][]string{
		"":                    nil,
		"/internal/bubble":    nil,
		"/internal/datadir":   {""},
		"/transport":          {""},
		"/fsm":                {""},
		"/fsm/boltgraph":      {""},
		"/walstream":          {""},
		"/internal/report":    {""},
		"/internal/forward":   {"", "/internal/report"},
		"/internal/testca":    nil,
		"/internal/testchild": nil,
		"/standby":            {"", "/walstream", "/transport", "/fsm", "/internal/datadir", "/internal/forward", "/internal/report"},
		"/raftnode":           {"", "/fsm", "/transport", "/internal/datadir", "/internal/forward", "/internal/report"},
		"/testharness":        {"", "/fsm", "/fsm/boltgraph", "/raftnode", "/transport", "/internal/datadir"},
		"/region/conflict":    {""},
		"/region":             {"", "/region/conflict", "/raftnode", "/transport", "/walstream", "/internal/forward", "/internal/report"},
		"/cmd/nornic-cluster": {"", "/fsm", "/fsm/boltgraph", "/raftnode", "/standby", "/region", "/transport", "/internal/report"},
	}
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}: {{join .Imports " "}}`, "./...").Output()
	require.NoError(t, err)
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		path, imports, _ := strings.Cut(line, ": ")
		name := strings.TrimPrefix(path, module)
		may, known := allowed[name]
		require.True(t, known, "package %s has no place in the layering", path)
		for _, imp := range strings.Fields(imports) {
			if below, ours := strings.CutPrefix(imp, module); ours {
				require.Contains(t, may, below, "%s imports %s", path, imp)
			} else if name == "" {
				require.NotContains(t, imp, ".", "the root package imports the standard library only")
			}
		}
	}
}
