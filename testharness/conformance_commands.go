package testharness

import (
	"fmt"

	"github.com/nornicdb/replication"
)

// chooser makes choices: rapid's generators in properties, a seeded source in
// the suite.
type chooser interface {
	// choose returns a number from 0 up to n-1.
	choose(n int) int
}

// The universe of the random commands: small, so that they meet.
const (
	universeNodes   = 5
	universeTypes   = 2
	universeEdgeIDs = 3
)

func universeNode(i int) replication.NodeID { return replication.NodeID(fmt.Sprintf("node/%d", i)) }
func universeType(i int) string             { return fmt.Sprintf("TYPE_%d", i) }

// universeEdgeID is empty for the first, which every storage has.
func universeEdgeID(i int) replication.EdgeID {
	if i == 0 {
		return ""
	}
	return replication.EdgeID(fmt.Sprintf("edge/%d", i))
}

// randomCommand makes a command in the universe; with edgeIDs also those that
// only an EdgeStorage knows.
func randomCommand(c chooser, edgeIDs bool) *replication.Command {
	var cmd *replication.Command
	var err error
	switch c.choose(11) {
	case 0, 1:
		cmd, err = replication.NewNodeCommand(replication.CmdCreateNode, randomNode(c))
	case 2:
		cmd, err = replication.NewNodeCommand(replication.CmdUpdateNode, randomNode(c))
	case 3:
		cmd, err = replication.NewNodeCommand(replication.CmdPutNode, randomNode(c))
	case 4:
		cmd = replication.NewDeleteNode(universeNode(c.choose(universeNodes)))
	case 5, 6:
		cmd, err = replication.NewEdgeCommand(replication.CmdCreateEdge, randomEdge(c, edgeIDs))
	case 7:
		types := []replication.CommandType{replication.CmdPutEdge, replication.CmdUpdateEdge}
		cmd, err = replication.NewEdgeCommand(types[c.choose(len(types))], randomEdge(c, edgeIDs))
	case 8:
		e := randomEdge(c, edgeIDs)
		if e.ID != "" {
			cmd, err = replication.NewDeleteEdgeByID(e.ID)
		} else {
			cmd, err = replication.NewDeleteEdge(e.StartNode, e.EndNode, e.Type)
		}
	default:
		cmd, err = replication.NewSetProperty(universeNode(c.choose(universeNodes)), fmt.Sprint("k", c.choose(3)), randomValue(c))
	}
	if err != nil {
		panic(err) // every value above has a JSON form
	}
	return cmd
}

func randomNode(c chooser) *replication.Node {
	return &replication.Node{ID: universeNode(c.choose(universeNodes)), Labels: []string{"B", "A", "B"}[:c.choose(4)],
		Properties: map[string]any{"k0": randomValue(c), "k1": randomValue(c)}}
}

func randomEdge(c chooser, edgeIDs bool) *replication.Edge {
	e := &replication.Edge{StartNode: universeNode(c.choose(universeNodes)), EndNode: universeNode(c.choose(universeNodes)),
		Type: universeType(c.choose(universeTypes)), Properties: map[string]any{"k0": randomValue(c)}}
	if edgeIDs {
		e.ID = universeEdgeID(c.choose(universeEdgeIDs))
	}
	return e
}

func randomValue(c chooser) any {
	switch c.choose(7) {
	case 0:
		return nil
	case 1:
		return c.choose(2) == 0
	case 2:
		return int64(1)<<62 + int64(c.choose(3))
	case 3:
		return float64(c.choose(3))
	case 4:
		return fmt.Sprintf("<é\x00\u2028> %d", c.choose(3))
	case 5:
		return []any{int64(c.choose(2)), "x", nil}
	default:
		return map[string]any{"b": c.choose(3), "a": []any{1.5}}
	}
}
