package replication_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// noStorage takes every operation and does nothing.
type noStorage struct{ replication.Storage }

func (noStorage) CreateNode(*replication.Node) error                       { return nil }
func (noStorage) UpdateNode(*replication.Node) error                       { return nil }
func (noStorage) CreateEdge(*replication.Edge) error                       { return nil }
func (noStorage) DeleteEdge(from, to replication.NodeID, typ string) error { return nil }
func (noStorage) SetProperty(replication.NodeID, string, any) error        { return nil }

// benchNode is a PutNode of 256 bytes with a number of properties.
func benchNode(tb testing.TB, properties int) *replication.Command {
	node := &replication.Node{ID: "n000001", Labels: []string{"Person"}, Properties: map[string]any{"name": ""}}
	for i, more := range []any{int64(1234567), 1.5, true}[:properties-1] {
		node.Properties[fmt.Sprintf("property%d", i)] = more
	}
	cmd, err := replication.NewNodeCommand(replication.CmdPutNode, node)
	require.NoError(tb, err)
	node.Properties["name"] = strings.Repeat("some words ", 256)[:256-len(cmd.Data)]
	cmd, err = replication.NewNodeCommand(replication.CmdPutNode, node)
	require.NoError(tb, err)
	return cmd
}

// benchCommands are commands as this project's writers make them.
func benchCommands(tb testing.TB) map[string]*replication.Command {
	commands := make(map[string]*replication.Command)
	for _, properties := range []int{1, 4} {
		commands[fmt.Sprintf("PutNode/properties=%d", properties)] = benchNode(tb, properties)
	}
	var err error
	commands["PutEdge"], err = replication.NewEdgeCommand(replication.CmdPutEdge, &replication.Edge{StartNode: "n000001", EndNode: "n000002",
		Type: "KNOWS", Properties: map[string]any{"since": int64(2020)}})
	require.NoError(tb, err)
	commands["DeleteEdge"], err = replication.NewDeleteEdge("n000001", "n000002", "KNOWS")
	require.NoError(tb, err)
	commands["SetProperty"], err = replication.NewSetProperty("n000001", "name", "a name")
	require.NoError(tb, err)
	commands["BatchWrite/commands=10"], err = replication.NewBatchWrite(slicesOf(10, benchNode(tb, 4)))
	require.NoError(tb, err)
	return commands
}

func slicesOf(n int, c *replication.Command) []*replication.Command {
	list := make([]*replication.Command, n)
	for i := range list {
		list[i] = c
	}
	return list
}

// BenchmarkDecode is what each node does to apply a command.
func BenchmarkDecode(b *testing.B) {
	for name, cmd := range benchCommands(b) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := replication.Dispatch(noStorage{}, cmd); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkValidate is what the node does that proposes a command.
func BenchmarkValidate(b *testing.B) {
	for name, cmd := range benchCommands(b) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := cmd.Validate(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The plain form is what the project's own writers make, and it is checked
// without allocations; only the data of a batch's commands has to go somewhere.
func TestValidateDoesNotAllocate(t *testing.T) {
	for name, cmd := range benchCommands(t) {
		t.Run(name, func(t *testing.T) {
			limit := 0.0
			if cmd.Type == replication.CmdBatchWrite {
				limit = 1
			}
			require.LessOrEqual(t, testing.AllocsPerRun(100, func() {
				if err := cmd.Validate(); err != nil {
					t.Error(err)
				}
			}), limit)
		})
	}
}
