package conflict

import (
	"fmt"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// failing is a Store whose n-th call fails.
type failing struct {
	*memStore
	left int
	err  error
}

func (f *failing) call() error {
	if f.left--; f.left < 0 {
		return f.err
	}
	return nil
}

func (f *failing) GetMeta(key []byte) ([]byte, error) {
	if err := f.call(); err != nil {
		return nil, err
	}
	return f.memStore.GetMeta(key)
}

func (f *failing) SetMeta(key, value []byte) error {
	if err := f.call(); err != nil {
		return err
	}
	return f.memStore.SetMeta(key, value)
}

func (f *failing) ScanMeta(prefix []byte, fn func(k, v []byte) error) error {
	if err := f.call(); err != nil {
		return err
	}
	return f.memStore.ScanMeta(prefix, fn)
}

func (f *failing) CreateNode(n *replication.Node) error {
	if err := f.call(); err != nil {
		return err
	}
	return f.memStore.CreateNode(n)
}

func (f *failing) DeleteNode(id replication.NodeID) error {
	if err := f.call(); err != nil {
		return err
	}
	return f.memStore.DeleteNode(id)
}

func (f *failing) DeleteEdge(from, to replication.NodeID, relType string) error {
	if err := f.call(); err != nil {
		return err
	}
	return f.memStore.DeleteEdge(from, to, relType)
}

func (f *failing) SetProperty(id replication.NodeID, key string, value interface{}) error {
	if err := f.call(); err != nil {
		return err
	}
	return f.memStore.SetProperty(id, key, value)
}

// TestStorageFailure: wherever the Storage fails, the Core says so, not with a
// verdict, even where the Storage's error is one, and does nothing after it.
func TestStorageFailure(t *testing.T) {
	settings := regions(Manual, 3)
	p := newPair(t, settings)
	create := p.local(0, 1, createNode("x"), createNode("y"), edgeCmd(replication.CmdCreateEdge, "x", "y", nil))
	p.send(1, create)
	p.send(2, create)
	var mark *Entry
	mark, err := p.cores[2].Mark(1)
	require.NoError(t, err)
	p.send(1, p.local(0, 2, setProp("x", "k", 1)), mark)
	gone := p.local(0, 3, replication.NewDeleteNode("x"), createNode("z"))
	broken := fmt.Errorf("disk: %w", replication.ErrNotFound)
	for calls := 0; ; calls++ {
		s := &failing{memStore: p.store[1].clone(), left: 1, err: broken}
		c, err := Load(s, "eu", settings)
		require.NoError(t, err)
		s.left = calls
		_, err = c.Remote(1, gone)
		if err == nil {
			require.Greater(t, calls, 8)
			break
		}
		_, verdict := replication.Verdict(err)
		require.False(t, verdict)
		require.ErrorIs(t, err, ErrMismatch)
		s.left = 1000
		_, again := c.Local(1, createNode("new"))
		require.Equal(t, err, again)
		_, again = c.Remote(1, gone)
		require.Equal(t, err, again)
	}
}

// picky is a Store with a constraint of its own.
type picky struct{ *memStore }

type constraint struct{}

func (constraint) Error() string     { return "k must not be 13" }
func (constraint) ErrorCode() string { return "unlucky" }

func (p picky) SetProperty(id replication.NodeID, key string, value interface{}) error {
	if value == int64(13) {
		return constraint{}
	}
	return p.memStore.SetProperty(id, key, value)
}

// TestStorageVerdict: a verdict of the Storage's own is an answer to the client
// of a local write, after a rollback, but cannot refuse what another region
// has committed.
func TestStorageVerdict(t *testing.T) {
	p := newPair(t, regions(LastWriteWins, 2))
	p.send(1, p.local(0, 1, createNode("x")))
	unlucky := setProp("x", "k", 13)
	c, err := Load(picky{p.store[1].clone()}, "eu", regions(LastWriteWins, 2))
	require.NoError(t, err)
	_, err = c.Local(1, unlucky)
	require.ErrorIs(t, err, ErrRefused)
	code, verdict := replication.Verdict(err)
	require.True(t, verdict)
	require.Equal(t, "verdict:unlucky", code)
	_, again := c.Local(1, setProp("x", "k", 1))
	require.Equal(t, err, again)

	c, err = Load(picky{p.store[1].clone()}, "eu", regions(LastWriteWins, 2))
	require.NoError(t, err)
	_, err = c.Remote(1, p.local(0, 1, unlucky))
	require.ErrorIs(t, err, ErrMismatch)
	_, verdict = replication.Verdict(err)
	require.False(t, verdict)
}
