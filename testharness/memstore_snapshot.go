package testharness

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync/atomic"

	"github.com/nornicdb/replication"
)

// A snapshot is the magic; records, each a kind byte and two byte strings with
// their lengths (uvarint) before them: 'r' metadata rows (key, value), 'n' nodes
// (empty, JSON), 'e' edges (empty, JSON), each sorted; and the end: 's', the
// position (8 bytes, big endian), and the SHA-256 of all records and the
// position. So equal states have equal bytes, and a snapshot that was cut or
// changed is not accepted.
const (
	memMagic         = "NMS1"
	maxMemFieldBytes = 1 << 30
)

var (
	errMemSnapshot = errors.New("memstore: malformed snapshot")
	errReleased    = errors.New("memstore: the snapshot was released")
)

type memSnapshot struct {
	position uint64
	state    atomic.Pointer[memState] // nil when released
}

// Snapshot implements replication.StorageSnapshotter.
func (s *MemStore) Snapshot() (replication.StorageSnapshot, error) {
	st := s.state.Load()
	snap := &memSnapshot{position: st.position}
	snap.state.Store(st)
	return snap, nil
}

// Position implements replication.StorageSnapshot.
func (s *memSnapshot) Position() uint64 { return s.position }

// Release implements replication.StorageSnapshot.
func (s *memSnapshot) Release() { s.state.Store(nil) }

// WriteTo implements replication.StorageSnapshot.
func (s *memSnapshot) WriteTo(w io.Writer) (int64, error) {
	st := s.state.Load()
	if st == nil {
		return 0, errReleased
	}
	rw := &recordWriter{w: w, sum: sha256.New()}
	bw := bufio.NewWriterSize(rw, 64<<10)
	err := st.write(bw)
	if err == nil {
		err = bw.Flush()
	}
	if err == nil {
		position := binary.BigEndian.AppendUint64(nil, st.position)
		rw.sum.Write(position)
		_, err = rw.Write(append(append([]byte{'s'}, position...), rw.sum.Sum(nil)...))
	}
	return rw.n, err
}

// recordWriter counts and hashes what it passes on.
type recordWriter struct {
	w   io.Writer
	sum hash.Hash
	n   int64
}

func (r *recordWriter) Write(p []byte) (int, error) {
	n, err := r.w.Write(p)
	r.n += int64(n)
	r.sum.Write(p[:n])
	return n, err
}

func (s *memState) write(w *bufio.Writer) error {
	if _, err := w.WriteString(memMagic); err != nil {
		return err
	}
	for k, v := range s.rows.all() {
		if err := writeMemRecord(w, 'r', []byte(k), v); err != nil {
			return err
		}
	}
	for _, n := range s.nodes.all() {
		if err := writeMemElement(w, 'n', &n.Node); err != nil {
			return err
		}
	}
	for _, e := range s.out.all() {
		if err := writeMemElement(w, 'e', &e.Edge); err != nil {
			return err
		}
	}
	return nil
}

func writeMemElement(w *bufio.Writer, kind byte, v interface{ MarshalJSON() ([]byte, error) }) error {
	data, err := v.MarshalJSON()
	if err != nil {
		return err
	}
	return writeMemRecord(w, kind, nil, data)
}

func writeMemRecord(w *bufio.Writer, kind byte, k, v []byte) error {
	head := binary.AppendUvarint([]byte{kind}, uint64(len(k)))
	head = binary.AppendUvarint(append(head, k...), uint64(len(v)))
	if _, err := w.Write(head); err != nil {
		return err
	}
	_, err := w.Write(v)
	return err
}

// Restore implements replication.StorageSnapshotter: the new state is built
// beside the old one and takes its place at the end.
func (s *MemStore) Restore(r io.Reader) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	t := &memTx{memState: emptyMemState()}
	if err := t.fill(&recordReader{r: bufio.NewReaderSize(r, 64<<10), sum: sha256.New()}); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("memstore: restore: %w", err)
	}
	s.state.Store(t.memState)
	return nil
}

// recordReader hashes what it reads.
type recordReader struct {
	r   *bufio.Reader
	sum hash.Hash
}

// ReadByte implements io.ByteReader.
func (r *recordReader) ReadByte() (byte, error) {
	b, err := r.r.ReadByte()
	if err == nil {
		r.sum.Write([]byte{b})
	}
	return b, err
}

// field reads n bytes; memory grows with what arrives, not with n.
func (r *recordReader) field() ([]byte, error) {
	size, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, err
	}
	if size > maxMemFieldBytes {
		return nil, fmt.Errorf("%w: field of %d bytes", errMemSnapshot, size)
	}
	var buf bytes.Buffer
	if _, err := io.CopyN(io.MultiWriter(&buf, r.sum), r.r, int64(size)); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func (t *memTx) fill(r *recordReader) error {
	magic := make([]byte, len(memMagic))
	if _, err := io.ReadFull(r.r, magic); err != nil {
		return err
	}
	if string(magic) != memMagic {
		return fmt.Errorf("%w: not a snapshot of a MemStore", errMemSnapshot)
	}
	r.sum.Write(magic)
	for {
		kind, err := r.r.ReadByte()
		if err != nil {
			return err
		}
		if kind == 's' {
			return t.fillEnd(r)
		}
		r.sum.Write([]byte{kind})
		if err := t.fillRecord(kind, r); err != nil {
			return err
		}
	}
}

func (t *memTx) fillEnd(r *recordReader) error {
	end := make([]byte, 8+sha256.Size)
	if _, err := io.ReadFull(r.r, end); err != nil {
		return err
	}
	r.sum.Write(end[:8])
	if !bytes.Equal(end[8:], r.sum.Sum(nil)) {
		return fmt.Errorf("%w: checksum", errMemSnapshot)
	}
	t.position = binary.BigEndian.Uint64(end)
	switch _, err := r.r.ReadByte(); err { // the reader's own end check runs here too
	case io.EOF:
		return nil
	case nil:
		return fmt.Errorf("%w: data after the end", errMemSnapshot)
	default:
		return err
	}
}

func (t *memTx) fillRecord(kind byte, r *recordReader) error {
	k, err := r.field()
	if err != nil {
		return err
	}
	v, err := r.field()
	if err != nil {
		return err
	}
	switch kind {
	case 'r':
		return t.SetMeta(k, append([]byte{}, v...)) // an empty row is a row
	case 'n':
		n := new(replication.Node)
		if err := n.UnmarshalJSON(v); err != nil {
			return fmt.Errorf("%w: %w", errMemSnapshot, err)
		}
		return t.CreateNode(n)
	case 'e':
		e := new(replication.Edge)
		if err := e.UnmarshalJSON(v); err != nil {
			return fmt.Errorf("%w: %w", errMemSnapshot, err)
		}
		return t.CreateEdge(e)
	default:
		return fmt.Errorf("%w: record %q", errMemSnapshot, kind)
	}
}
