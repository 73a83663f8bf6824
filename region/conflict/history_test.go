package conflict

import (
	"flag"
	"fmt"
	"strings"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// fail reports a history that fails, shrunk.
func fail(t *testing.T, h *history) {
	t.Helper()
	small := h.shrink()
	err := small.trace(t.Logf)
	t.Fatalf("%v\n%v", err, small)
}

var (
	firstSeed = flag.Uint64("histories.from", 0, "seed of the first random history; with histories.count=1, the one to replay")
	seedCount = flag.Uint64("histories.count", 20000, "number of random histories")
)

// TestHistories runs random histories of two to five regions: all operations,
// batches, clocks that are off, links that are down in one direction,
// duplicates, entries out of turn, resolutions, state transfers, collection on
// and off. After each step the region is compared with the oracle.
func TestHistories(t *testing.T) {
	count := *seedCount
	if testing.Short() {
		count = min(count, 600)
	}
	for seed := *firstSeed; seed < *firstSeed+count; seed++ {
		if h := makeHistory(seed, historyLength(seed)); h.run() != nil {
			fail(t, h)
		}
	}
}

// historyLength in steps: most are short, which finds more in the same time.
func historyLength(seed uint64) int {
	if seed%100 == 99 {
		return 200
	}
	return 10 + int(seed%60)
}

// script runs lines such as
//
//	A create a     A set a k 5     A unset a k     A delete a
//	A edge a b     A unedge a b    A mark          A>B (all that B lacks)
//
// a millisecond apart, or in the same one where the verb has "=" before it,
// and checks every step as in a random history.
func (s *sim) script(text string) error {
	for _, line := range strings.Split(text, ";") {
		w := strings.Fields(line)
		if err := s.line(w); err != nil {
			return fmt.Errorf("%q: %w", w, err)
		}
	}
	return nil
}

func (s *sim) line(w []string) error {
	r := int(w[0][0] - 'A')
	if len(w) == 1 {
		to := int(w[0][2] - 'A')
		for s.regions[to].applied[r] < uint64(len(s.regions[r].stream)) {
			if err := s.deliver(r, to); err != nil {
				return err
			}
		}
		return nil
	}
	verb, same := strings.CutPrefix(w[1], "=")
	if !same {
		s.now++
	}
	var cmd *replication.Command
	var err error
	switch verb {
	case "mark":
		return s.mark(r)
	case "create":
		cmd, err = replication.NewNodeCommand(replication.CmdCreateNode, &replication.Node{ID: replication.NodeID(w[2])})
	case "delete":
		cmd = replication.NewDeleteNode(replication.NodeID(w[2]))
	case "set":
		cmd, err = replication.NewSetProperty(replication.NodeID(w[2]), w[3], w[4])
	case "unset":
		cmd, err = replication.NewSetProperty(replication.NodeID(w[2]), w[3], nil)
	case "edge":
		cmd, err = replication.NewEdgeCommand(replication.CmdCreateEdge,
			&replication.Edge{StartNode: replication.NodeID(w[2]), EndNode: replication.NodeID(w[3]), Type: "T"})
	case "unedge":
		cmd, err = replication.NewDeleteEdge(replication.NodeID(w[2]), replication.NodeID(w[3]), "T")
	}
	if err != nil {
		return err
	}
	entries := len(s.regions[r].stream)
	if err := s.submit(r, cmd, []*replication.Command{cmd}); err != nil {
		return err
	}
	if len(s.regions[r].stream) == entries {
		return fmt.Errorf("refused")
	}
	return nil
}

// directed are histories in which a rule of the design decides.
var directed = map[string]struct {
	regions int
	script  string
}{
	// A write that was replaced arrives after the one that replaced it.
	"overtaken": {3, `A create a; A>B; A>C; A set a k 1; A>B; B set a k 2; B>C; A>C`},
	// Of two writes at the same time, all regions prefer the same.
	"tie": {2, `A create a; A>B; A set a k 1; B =set a k 2; A>B; B>A`},
	// C has acknowledged A's first write, and B its second, but B's second is
	// still on its way to A when C writes without it.
	"acknowledgement overtakes": {3, `A create a; A>B; A>C; B mark; C mark; B>A; C>A; B>C; C>B; A set a k 1; C set a k 2;
		A>B; A>C; B mark; B>A; C>A`},
	// All have the deletion of a, not all have the edge that it replaced with
	// it: C, who creates a again, does not replace the edge.
	"edge behind a deletion": {4, `A create a; A create b; A>B; A>C; A>D; B mark; C mark; D mark; B>A; B>C; B>D; C>A; C>B; C>D; D>A; D>B; D>C;
		A edge a b; A>B; A>D; B delete a; B>A; B>C; B>D; A mark; A>B; A>D; C mark; C>B; C>D; D mark; D>B; B mark; B>D; D>A; C>A; B>A;
		C create a; C>D; C>B; C>A`},
	// A uses a node that B created again; its write reaches C and D before the
	// creation. C has collected the deletion, D has not.
	"use before the second creation": {4, `B create a; B set a k 1; B>A; B>C; B>D; A mark; C mark; D mark; A>B; A>C; A>D; C>A; C>B; C>D; D>A; D>B; D>C;
		B delete a; B>A; B>C; B>D; A mark; D mark; A>C; D>C; B mark; B>C;
		C mark; B create a; B>A; A set a l 2; A>C; A>D`},
	// C has collected the deletion of a, A has not: A's edge must not come back
	// when C creates a again.
	"creation after the tombstone": {3, `A create a; A create b; A edge a b; A>B; A>C; B delete a; B>A; B>C; A mark; A>C; C mark; B mark; B>C;
		C create a; C>A; C>B`},
}

func runDirected(name string) error {
	d := directed[name]
	for _, strategy := range []Strategy{LastWriteWins, FirstWriteWins, Manual} {
		s := newSim(&history{regions: d.regions, strategy: strategy, collect: true})
		if err := s.script(d.script); err != nil {
			return err
		}
		if err := s.end(); err != nil {
			return err
		}
	}
	return nil
}

func TestDirectedHistories(t *testing.T) {
	for name := range directed {
		t.Run(name, func(t *testing.T) { require.NoError(t, runDirected(name)) })
	}
}
