package boltgraph

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// asVictim makes the test binary write to the store named by it until it is
// killed, and print each position once it is durable.
const asVictim = "BOLTGRAPH_TEST_VICTIM"

func beVictim(path string) error {
	s, err := Open(path)
	if err != nil {
		return err
	}
	from, err := s.GetWALPosition()
	if err != nil {
		return err
	}
	for p := from + 1; ; p++ {
		err := s.Update(func(tx replication.Tx) error {
			id := replication.NodeID(fmt.Sprint("n", p))
			if err := tx.CreateNode(&replication.Node{ID: id}); err != nil {
				return err
			}
			if p > 1 {
				if err := tx.CreateEdge(&replication.Edge{StartNode: id, EndNode: replication.NodeID(fmt.Sprint("n", p-1)), Type: "NEXT"}); err != nil {
					return err
				}
			}
			if err := tx.SetMeta([]byte("last"), []byte(fmt.Sprint(p))); err != nil {
				return err
			}
			return tx.SetWALPosition(p)
		})
		if err != nil {
			return err
		}
		fmt.Println(p)
	}
}

// TestKilledProcessLeavesWholeTransactions: after kill -9 graph, counts, digest,
// metadata and position are those of one transaction, and no older one than the
// last that was reported.
func TestKilledProcessLeavesWholeTransactions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "g.db")
	for round := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), asVictim+"="+path)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(out)
		last := uint64(0)
		for range 20 + 7*round {
			require.True(t, lines.Scan())
			last, err = strconv.ParseUint(lines.Text(), 10, 64)
			require.NoError(t, err)
		}
		require.NoError(t, cmd.Process.Kill())
		for lines.Scan() { // what it still managed to say
			if n, err := strconv.ParseUint(lines.Text(), 10, 64); err == nil {
				last = n
			}
		}
		_ = cmd.Wait() // it was killed: that is its error

		s, err := Open(path)
		require.NoError(t, err)
		st, err := s.Stats()
		require.NoError(t, err)
		require.GreaterOrEqual(t, st.Position, last)
		require.Equal(t, st.Position, st.Nodes)
		require.Equal(t, st.Position-1, st.Edges)
		check(t, s)
		require.NoError(t, s.View(func(m replication.Meta) error {
			v, err := m.GetMeta([]byte("last"))
			require.Equal(t, fmt.Sprint(st.Position), string(v))
			return err
		}))
		require.NoError(t, s.Close())
	}
}
