package datadir

import (
	"os"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDirectoryKeepsWhatItWasFirstUsedWith(t *testing.T) {
	path := t.TempDir() + "/data"
	generated := func() string { return "generated" }
	d, err := Open(path, Identity{Mode: "raft", LogStore: "bolt"}, generated)
	require.NoError(t, err)
	require.Equal(t, "generated", d.Identity().NodeID)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), info.Mode().Perm())
	_, err = Open(path, Identity{}, generated)
	require.ErrorIs(t, err, replication.ErrLocked)
	require.NoError(t, d.Close())

	for _, want := range []Identity{{NodeID: "other"}, {Mode: "ha_standby"}, {LogStore: "wal"}} {
		_, err = Open(path, want, generated)
		require.ErrorIs(t, err, replication.ErrInvalidConfig)
	}
	d, err = Open(path, Identity{Mode: "raft", LogStore: "bolt"}, func() string { return "new host name" })
	require.NoError(t, err)
	require.Equal(t, "generated", d.Identity().NodeID)
	require.NoError(t, d.Close())

	require.NoError(t, os.WriteFile(path+"/node.json", []byte("{"), 0o600))
	_, err = Open(path, Identity{}, generated)
	require.ErrorContains(t, err, "damaged")
}
