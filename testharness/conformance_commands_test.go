package testharness

import (
	"github.com/nornicdb/replication"
	"pgregory.net/rapid"
)

type rapidChooser struct{ t *rapid.T }

func (c rapidChooser) choose(n int) int { return rapid.IntRange(0, n-1).Draw(c.t, "choice") }

func drawCommand(t *rapid.T, edgeIDs bool) *replication.Command {
	return randomCommand(rapidChooser{t}, edgeIDs)
}
