package testharness

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// stageState brings the store into one of several states, which differ in all
// that a snapshot holds, and returns what is seen of it.
func (c *suite) stageState(s replication.Storage, stage int) string {
	c.Helper()
	c.within("writing, maybe while a snapshot is pinned", func() error { return writeStage(s, stage) })
	return c.observe(s)
}

func writeStage(s replication.Storage, stage int) error {
	for i := range universeNodes {
		if i%2 != stage%2 {
			if err := s.DeleteNode(universeNode(i)); err != nil && !errors.Is(err, replication.ErrNotFound) {
				return err
			}
			continue
		}
		node := fmt.Sprintf(`{"id":"node/%d","labels":["S"],"properties":{"stage":%d,"f":1.0}}`, i, stage)
		edge := fmt.Sprintf(`{"startNode":"node/%d","endNode":"node/%d","type":"TYPE_0","properties":{"stage":%d}}`, i, i, stage)
		if err := errors.Join(s.ApplyCommand(&replication.Command{Type: replication.CmdPutNode, Data: []byte(node)}),
			s.ApplyCommand(&replication.Command{Type: replication.CmdPutEdge, Data: []byte(edge)})); err != nil {
			return err
		}
	}
	if tx, ok := s.(replication.TxStorage); ok {
		err := tx.Update(func(tx replication.Tx) error {
			return errors.Join(tx.SetMeta([]byte("stage"), fmt.Append(nil, stage)), tx.SetMeta(fmt.Append(nil, "only ", stage), []byte{}),
				tx.SetMeta(fmt.Append(nil, "only ", stage-1), nil))
		})
		if err != nil {
			return err
		}
	}
	return s.SetWALPosition(uint64(10 + stage))
}

func (c *suite) snapshot(s replication.Storage) replication.StorageSnapshot {
	c.Helper()
	snap, err := s.(replication.StorageSnapshotter).Snapshot()
	require.NoError(c, err, "Snapshot")
	return snap
}

// written is a snapshot as bytes.
func (c *suite) written(snap replication.StorageSnapshot, wrap func(io.Writer) io.Writer) []byte {
	c.Helper()
	var buf bytes.Buffer
	n, err := snap.WriteTo(wrap(&buf))
	require.NoError(c, err, "WriteTo")
	require.Equal(c, int64(buf.Len()), n, "WriteTo counts what it wrote")
	return buf.Bytes()
}

func asIs(w io.Writer) io.Writer { return w }

// restored is a fresh store restored from a snapshot.
func (c *suite) restored(data []byte) replication.Storage {
	c.Helper()
	s := c.open().Storage
	require.NoError(c, s.(replication.StorageSnapshotter).Restore(bytes.NewReader(data)), "Restore")
	return s
}

// checkSnapshot: a snapshot holds exactly the state in which it was taken,
// though writes go on before and while it is written.
func checkSnapshot(c *suite) {
	empty := c.observe(c.Storage)
	zero := c.snapshot(c.Storage)
	defer zero.Release()
	c.stageState(c.Storage, 1)
	big := strings.Repeat("x", 300<<10) // so that it is written in several pieces
	c.within("a large write", func() error { return c.Storage.SetProperty(universeNode(1), "big", big) })
	first := c.observe(c.Storage)
	one := c.snapshot(c.Storage)
	defer one.Release()
	second := c.stageState(c.Storage, 2)
	two := c.snapshot(c.Storage)
	defer two.Release()
	require.Equal(c, []uint64{0, 11, 12}, []uint64{zero.Position(), one.Position(), two.Position()})

	stage := 2
	data := c.written(one, func(w io.Writer) io.Writer {
		return hookWriter{w, func() {
			stage++
			c.within("a write while a snapshot is written", func() error { return c.Storage.SetProperty(universeNode(2), "stage", stage) })
		}}
	})
	require.Greater(c, stage, 2, "the snapshot came in one piece")
	require.Equal(c, first, c.observe(c.restored(data)), "the state that was pinned, and what was restored")
	require.Equal(c, second, c.observe(c.restored(c.written(two, asIs))))
	require.Equal(c, empty, c.observe(c.restored(c.written(zero, asIs))), "a snapshot of nothing")
	_, err := two.WriteTo(hookWriter{w: nil})
	require.Error(c, err, "WriteTo tells of its writer's error")
	one.Release()
	one.Release()
}

// hookWriter calls before each write; without a writer it fails.
type hookWriter struct {
	w      io.Writer
	before func()
}

func (h hookWriter) Write(p []byte) (int, error) {
	if h.w == nil {
		return 0, errOnPurpose
	}
	h.before()
	return h.w.Write(p)
}

// checkSnapshotHoldsNothingUp: the store grows while a snapshot is pinned, as
// it may be for as long as it takes to send it to a slow peer.
func checkSnapshotHoldsNothingUp(c *suite) {
	want := c.stageState(c.Storage, 1)
	snap := c.snapshot(c.Storage)
	defer snap.Release()
	c.within("4 MiB of writes while a snapshot is pinned", func() error {
		value := strings.Repeat("x", 64<<10)
		for i := range 64 {
			n := &replication.Node{ID: replication.NodeID(fmt.Sprint("grow/", i)), Properties: map[string]any{"v": value}}
			if err := c.Storage.CreateNode(n); err != nil {
				return err
			}
		}
		return nil
	})
	require.Equal(c, want, c.observe(c.restored(c.written(snap, asIs))))
}

// checkRestore: what was there is gone; r is read to its end; a snapshot that is
// pinned stays what it was.
func checkRestore(c *suite) {
	want := c.stageState(c.Storage, 1)
	snap := c.snapshot(c.Storage)
	data := c.written(snap, asIs)
	snap.Release()
	target := c.open().Storage
	old := c.stageState(target, 4)
	pinned := c.snapshot(target)
	defer pinned.Release()
	r := &scriptReader{data: data}
	require.NoError(c, target.(replication.StorageSnapshotter).Restore(r))
	require.True(c, r.ended, "Restore reads to the end, which is where a reader tells of damage")
	require.Equal(c, want, c.observe(target))
	require.Equal(c, old, c.observe(c.restored(c.written(pinned, asIs))), "a snapshot that was pinned before the restore")
	c.stageState(target, 2) // writes go on
	require.NoError(c, target.(replication.StorageSnapshotter).Restore(bytes.NewReader(data)))
	require.Equal(c, want, c.observe(target))
}

// scriptReader gives data in small pieces, calls at before each, and ends with
// an error: io.EOF if none is given.
type scriptReader struct {
	data  []byte
	step  int // bytes at a time; 0: as many as fit
	at    func()
	err   error
	ended bool
}

func (r *scriptReader) Read(p []byte) (int, error) {
	if r.at != nil {
		r.at()
	}
	if len(r.data) == 0 {
		r.ended = true
		if r.err != nil {
			return 0, r.err
		}
		return 0, io.EOF
	}
	n := len(p)
	if r.step > 0 {
		n = min(n, r.step)
	}
	n = copy(p[:n], r.data)
	r.data = r.data[n:]
	return n, nil
}

// oldOrIncomplete requires the old state, or the word that the restore is not
// finished.
func (c *suite) oldOrIncomplete(s replication.Storage, old, what string) {
	c.Helper()
	if _, err := s.GetWALPosition(); err != nil {
		require.ErrorIs(c, err, replication.ErrRestoreIncomplete, what)
		return
	}
	require.Equal(c, old, c.observe(s), what)
}

func checkRestoreAllOrNothing(c *suite) {
	want := c.stageState(c.Storage, 1)
	snap := c.snapshot(c.Storage)
	data := c.written(snap, asIs)
	snap.Release()
	target := c.open().Storage
	old := c.stageState(target, 4)
	fails := func(r io.Reader, what string) {
		c.Helper()
		require.Error(c, target.(replication.StorageSnapshotter).Restore(r), what)
		c.oldOrIncomplete(target, old, what)
	}
	for cut := 0; cut < len(data); cut += 1 + len(data)/20 {
		fails(bytes.NewReader(data[:cut]), fmt.Sprintf("a stream that ends after %d of %d bytes", cut, len(data)))
		fails(&scriptReader{data: data[:cut], err: errOnPurpose}, fmt.Sprintf("a stream that fails after %d of %d bytes", cut, len(data)))
		flipped := bytes.Clone(data)
		flipped[cut] ^= 0x80
		fails(&scriptReader{data: flipped, err: errOnPurpose}, fmt.Sprintf("a stream that was changed at byte %d and says so at its end", cut))
	}
	fails(bytes.NewReader(data[:len(data)-1]), "a stream that lacks one byte")
	fails(&scriptReader{data: data, err: errOnPurpose}, "a stream that is complete and then fails")
	fails(strings.NewReader("no snapshot at all, but long enough to hold a header"), "garbage")
	require.NoError(c, target.(replication.StorageSnapshotter).Restore(bytes.NewReader(data)), "after all that")
	require.Equal(c, want, c.observe(target))
}

// checkRestoreCrash: a process that dies in a restore leaves the old state, or
// the word that the restore is not finished; when it has returned, the new one.
func checkRestoreCrash(c *suite) {
	other := c.open().Storage
	c.stageState(other, 1)
	snap := c.snapshot(other)
	data := c.written(snap, asIs)
	snap.Release()
	old := c.stageState(c.Storage, 4)
	err := c.Storage.(replication.StorageSnapshotter).Restore(&scriptReader{data: data, step: 1 + len(data)/8,
		at: func() { c.oldOrIncomplete(c.crash(), old, "the process died in a restore") }})
	require.NoError(c, err)
	require.Equal(c, c.observe(other), c.observe(c.crash()), "the process died after a restore")
}
