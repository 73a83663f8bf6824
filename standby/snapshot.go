package standby

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm"
	"github.com/nornicdb/replication/internal/report"
	"github.com/nornicdb/replication/walstream"
)

// A snapshot stream is the length of a head (4 bytes, big endian), the head as
// JSON, and the snapshot as package fsm writes it.

// stallTimeout bounds how long a snapshot stream may stand still.
const stallTimeout = 30 * time.Second

// stallConn ends a stream that stands still.
type stallConn struct{ net.Conn }

func (c stallConn) Read(p []byte) (int, error) {
	_ = c.SetReadDeadline(time.Now().Add(stallTimeout))
	return c.Conn.Read(p)
}

func (c stallConn) Write(p []byte) (int, error) {
	_ = c.SetWriteDeadline(time.Now().Add(stallTimeout))
	return c.Conn.Write(p)
}

// acceptSnapshot serves a snapshot stream; it owns the connection.
func (n *Node) acceptSnapshot(peer replication.Peer, conn net.Conn) {
	started := n.spawn(func() {
		defer conn.Close()
		stop := context.AfterFunc(n.ctx, func() { _ = conn.Close() })
		defer stop()
		if err := n.sendSnapshot(peer, stallConn{conn}); err != nil {
			n.rt.Logger.Warn("the snapshot was not sent", "error", err)
		}
	})
	if !started {
		_ = conn.Close()
	}
}

// transfer is a snapshot on its way to the standby, and what follows until that has
// caught up. The log is kept for it from where the snapshot stands: else one that
// takes longer than the log is kept would be sent again for ever.
//
// What is kept for it is bounded by maxRetainBytes or, where that is more, by what
// was sent of the snapshot: a log that grows faster than the snapshot moves is one
// that the standby would not catch up with either. So a log never takes more of the
// disk than the Storage for it, and a peer that takes nothing gets nothing kept.
type transfer struct {
	position uint64       // of the snapshot
	sent     atomic.Int64 // bytes of it
	began    time.Duration
	ends     time.Duration // when nothing is kept for it any more; 0: it is being sent
}

// minGrace is how long, after a snapshot was sent, and after each time the standby
// has made progress, the log is kept for it; for as long as sending it took, where
// that is longer, as it may have to be put in its place.
const minGrace = time.Minute

func (t *transfer) Write(p []byte) (int, error) {
	t.sent.Add(int64(len(p)))
	return len(p), nil
}

// beginTransfer makes the log be kept from a position. n.feed stands still.
func (n *Node) beginTransfer(position uint64) *transfer {
	t := &transfer{position: position, began: n.now().boot}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.transfer = t // an earlier one was given up by the standby
	return t
}

// endTransfer: the snapshot was sent, or not.
func (n *Node) endTransfer(t *transfer, sent bool) {
	now := n.now().boot
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case sent:
		t.ends = now + max(minGrace, now-t.began)
	case n.transfer == t:
		n.transfer = nil
	}
}

// kept is from where, and as how many bytes, the log is kept for a snapshot; 0:
// there is none.
func (n *Node) kept() (position uint64, bytes int64) {
	now := n.now().boot
	n.mu.Lock()
	defer n.mu.Unlock()
	m, t := &n.seen, n.transfer
	if t == nil || m.role != RolePrimary || m.stored.PeerAdmitted || t.ends > 0 && now >= t.ends {
		n.transfer = nil
		return 0, 0
	}
	if p := m.ack.Persisted; p > t.position { // it catches up
		t.position, t.ends = p, now+minGrace
	}
	return t.position, max(maxRetainBytes, t.sent.Load())
}

func (n *Node) sendSnapshot(peer replication.Peer, w io.Writer) error {
	err := n.trusted(&replication.Request{Type: replication.MsgState, Peer: peer})
	if err == nil {
		if r := n.step(event{kind: evSnapshotAsked}); !r.granted {
			err = n.notLeader()
		}
	}
	if err != nil {
		return errors.Join(err, writeHead(w, &snapshotHead{Error: err.Error()}))
	}
	n.signal(n.kick)
	var snap *fsm.Snapshot
	var t *transfer
	err = n.feed.Still(func() (err error) {
		t = n.beginTransfer(n.applier.Position())
		snap, err = fsm.TakeSnapshot(n.storage, n.applier)
		return err
	})
	sent := false
	defer func() { n.endTransfer(t, sent) }()
	if err != nil {
		return errors.Join(err, writeHead(w, &snapshotHead{Error: err.Error()}))
	}
	defer snap.Release()
	m := n.view()
	head := &snapshotHead{Mark: walstream.Mark{Position: snap.Header().Position}, Epoch: m.stored.Epoch, Epochs: m.stored.Epochs}
	if head.Mark.Epoch, err = n.log.EpochAt(head.Mark.Position); err != nil {
		return errors.Join(err, writeHead(w, &snapshotHead{Error: err.Error()}))
	}
	if err := writeHead(w, head); err != nil {
		return err
	}
	n.publish(replication.Event{Type: replication.EventSnapshotTaken, Peer: peer.NodeID, Position: head.Mark.Position})
	if err := snap.Write(io.MultiWriter(w, t)); err != nil {
		return err
	}
	sent = true
	report.Snapshot("sent")
	return nil
}

func writeHead(w io.Writer, h *snapshotHead) error {
	data, err := json.Marshal(h)
	if err != nil {
		return err
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...))
	return err
}

func readHead(r io.Reader) (*snapshotHead, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	length := binary.BigEndian.Uint32(size[:])
	if length == 0 || length > maxHeadBytes {
		return nil, fmt.Errorf("%w: head of %d bytes", fsm.ErrCorruptSnapshot, length)
	}
	data, err := io.ReadAll(io.LimitReader(r, int64(length)))
	if err != nil {
		return nil, err
	}
	h := new(snapshotHead)
	if err := json.Unmarshal(data, h); err != nil {
		return nil, fmt.Errorf("%w: head: %v", fsm.ErrCorruptSnapshot, err)
	}
	if h.Error != "" {
		return nil, &replication.RemoteError{Code: "internal", Message: h.Error}
	}
	return h, checkEpochs(h.Epoch, h.Epochs)
}

// rebuild replaces Storage and log by a snapshot of the peer. The state file says
// so from before the first byte; a crash anywhere begins again.
func (n *Node) rebuild() {
	head, err := n.installSnapshot()
	ev := event{kind: evRebuilt}
	if err == nil {
		ev = event{kind: evRebuilt, fenced: true, base: head.Mark, epoch: head.Epoch, epochs: head.Epochs}
		report.Snapshot("received")
		n.publish(replication.Event{Type: replication.EventSnapshotInstalled, Position: head.Mark.Position})
	} else if n.ctx.Err() == nil {
		n.rt.Logger.Warn("this node was not rebuilt", "error", err)
	}
	n.step(ev)
}

func (n *Node) installSnapshot() (*snapshotHead, error) {
	mux := n.transport.(replication.Mux)
	conn, err := mux.OpenStream(n.ctx, n.cfg.HA.PeerAddr, replication.StreamSnapshot)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(n.ctx, func() { _ = conn.Close() })
	defer stop()
	r := stallConn{conn}
	head, err := readHead(r)
	if err != nil {
		return nil, err
	}
	header, body, err := fsm.ReadHeader(r)
	if err != nil {
		return nil, err
	}
	if want := n.view().stored.History; header.Identity.History != want || header.Position != head.Mark.Position {
		return nil, fmt.Errorf("%w: a snapshot at %d of %q, wanted %q", replication.ErrForeignHistory, header.Position, header.Identity.History, want)
	}
	if err := n.storage.(replication.StorageSnapshotter).Restore(body); err != nil {
		return nil, fmt.Errorf("restoring the storage: %w", err)
	}
	if _, err := io.Copy(io.Discard, body); err != nil { // what stands behind the end the storage saw
		return nil, n.applier.Fail(err)
	}
	if err := n.applier.Reload(); err != nil {
		return nil, n.applier.Fail(err)
	}
	if err := n.applier.ImportOutcomes(header.Outcomes); err != nil {
		return nil, n.applier.Fail(err)
	}
	if !n.applier.Atomic() {
		n.applier.Adopt(header.Identity)
	}
	if p := n.applier.Position(); p != head.Mark.Position {
		return nil, n.applier.Fail(fmt.Errorf("restored storage stands at %d, the snapshot at %d", p, head.Mark.Position))
	}
	if n.deferring != nil { // from now on, where it was not whole at the start
		if err := n.deferring.Defer(true); err != nil {
			return nil, n.applier.Fail(err)
		}
	}
	ctx, cancel := context.WithTimeout(n.ctx, diskTimeout)
	defer cancel()
	if err := n.log.Sync(ctx); err != nil {
		return nil, err
	}
	return head, n.log.Reset(head.Mark)
}
