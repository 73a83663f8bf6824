package boltgraph

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/nornicdb/replication"
)

// A snapshot is the magic and records: a kind byte, then two byte strings with
// their lengths (uvarint) before them. The kinds come in this order: 'r' a
// metadata row, 'n' a node (ID, JSON), 'e' an edge (identity, properties), and
// once 's', the state, whose counts and digest must be those of the records
// before it.
const (
	snapshotMagic  = "NBG1"
	maxFieldBytes  = 1 << 30
	restoreSuffix  = ".restoring"
	restoreTxBytes = 4 << 20 // what one transaction of a restore takes
)

var errSnapshot = errors.New("boltgraph: malformed snapshot")

// snapshot is a read transaction that stays open.
type snapshot struct {
	t    *tx
	once sync.Once
}

// Snapshot implements replication.StorageSnapshotter.
func (s *Store) Snapshot() (replication.StorageSnapshot, error) {
	t, _, err := s.begin(false)
	if err != nil {
		return nil, err
	}
	return &snapshot{t: t}, nil
}

func (s *snapshot) Position() uint64 { return s.t.position }

func (s *snapshot) Release() { s.once.Do(func() { _ = s.t.btx.Rollback() }) }

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func (s *snapshot) WriteTo(w io.Writer) (int64, error) {
	count := &countingWriter{w: w}
	bw := bufio.NewWriterSize(count, 64<<10)
	err := s.write(bw)
	if err == nil {
		err = bw.Flush()
	}
	return count.n, err
}

func (s *snapshot) write(w *bufio.Writer) error {
	if _, err := w.WriteString(snapshotMagic); err != nil {
		return err
	}
	for _, part := range []struct {
		kind byte
		b    *bucket
	}{{'r', s.t.rows()}, {'n', s.t.nodeRows()}, {'e', s.t.out()}} {
		if err := part.b.scan(nil, func(k, v []byte) error { return writeRecord(w, part.kind, k, v) }); err != nil {
			return err
		}
	}
	return writeRecord(w, 's', keyState, s.t.state.encode())
}

func writeRecord(w *bufio.Writer, kind byte, k, v []byte) error {
	head := binary.AppendUvarint([]byte{kind}, uint64(len(k)))
	head = binary.AppendUvarint(append(head, k...), uint64(len(v)))
	if _, err := w.Write(head); err != nil {
		return err
	}
	_, err := w.Write(v)
	return err
}

// readRecord reads one record; memory grows with what arrives, not with what a
// length announces.
func readRecord(r *bufio.Reader) (kind byte, k, v []byte, err error) {
	if kind, err = r.ReadByte(); err != nil {
		return 0, nil, nil, err
	}
	if k, err = readField(r); err == nil {
		v, err = readField(r)
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return kind, k, v, err
}

func readField(r *bufio.Reader) ([]byte, error) {
	size, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, err
	}
	if size > maxFieldBytes {
		return nil, fmt.Errorf("%w: field of %d bytes", errSnapshot, size)
	}
	var buf bytes.Buffer
	_, err = io.CopyN(&buf, r, int64(size))
	return buf.Bytes(), err
}

// Restore implements replication.StorageSnapshotter: it builds a new file
// beside the old one and puts it in its place with a rename, so that a crash
// leaves one or the other.
func (s *Store) Restore(r io.Reader) error {
	temp := s.path + restoreSuffix
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := s.build(temp, r); err != nil {
		return errors.Join(fmt.Errorf("boltgraph: restore: %w", err), os.Remove(temp))
	}
	s.flushing.Lock()
	defer s.flushing.Unlock()
	s.writer.Lock()
	defer s.writer.Unlock()
	return s.replaceBy(temp)
}

// replaceBy puts a file, whole and synced, in the place of this one. The caller
// holds flushing and writer.
func (s *Store) replaceBy(temp string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Rename(temp, s.path); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	// From here on the file at path is the new one, whatever happens.
	old := s.db
	db, state, err := openFile(s.path, s.options)
	if err = errors.Join(err, syncDir(filepath.Dir(s.path))); err != nil {
		if db != nil {
			err = errors.Join(err, db.Close())
		}
		s.failed = fmt.Errorf("%w: %w", replication.ErrRestoreIncomplete, err)
		return s.failed
	}
	s.db, s.latest, s.frozen, s.failed = db, &table{state: state, written: state}, nil, nil
	s.closing.Add(1)
	go func() { // waits for snapshots of the old file; Close waits for this
		defer s.closing.Done()
		_ = old.Close()
	}()
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// build fills a new file from a snapshot, syncs and closes it.
func (s *Store) build(path string, r io.Reader) error {
	options := *s.options
	options.NoSync = true // one sync at the end
	temp, err := openStore(path, &options)
	if err != nil {
		return err
	}
	err = temp.fill(bufio.NewReaderSize(r, 64<<10))
	if err == nil {
		err = temp.db.Sync()
	}
	return errors.Join(err, temp.db.Close())
}

func (s *Store) fill(r *bufio.Reader) error {
	magic := make([]byte, len(snapshotMagic))
	if _, err := io.ReadFull(r, magic); err == io.EOF {
		return io.ErrUnexpectedEOF
	} else if err != nil {
		return err
	}
	if string(magic) != snapshotMagic {
		return fmt.Errorf("%w: not a snapshot of this package, or of another version", errSnapshot)
	}
	for done := false; !done; {
		err := s.update(func(t *tx) (err error) {
			done, err = t.fill(r)
			return err
		})
		if err != nil {
			return err
		}
	}
	if _, err := r.ReadByte(); err != io.EOF { // the reader's own end check runs here too
		if err == nil {
			err = fmt.Errorf("%w: data after the end", errSnapshot)
		}
		return err
	}
	return nil
}

// fill takes records until the transaction is large or the state has come.
func (t *tx) fill(r *bufio.Reader) (done bool, err error) {
	for size := 0; size < restoreTxBytes; {
		kind, k, v, err := readRecord(r)
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return false, err
		}
		size += len(k) + len(v) + 64
		if kind == 's' {
			return true, t.fillState(v)
		}
		if err := t.fillRecord(kind, k, v); err != nil {
			return false, err
		}
	}
	return false, nil
}

func (t *tx) fillRecord(kind byte, k, v []byte) error {
	switch kind {
	case 'r':
		if len(k) == 0 {
			return fmt.Errorf("%w: row without key", errSnapshot)
		}
		return t.SetMeta(k, append([]byte{}, v...)) // nil would delete the row
	case 'n':
		n := new(replication.Node)
		if err := n.UnmarshalJSON(v); err != nil || string(n.ID) != string(k) {
			return fmt.Errorf("%w: node %q: %v", errSnapshot, k, err)
		}
		return t.CreateNode(n)
	case 'e':
		e, err := edgeFromOutKey(k)
		if err != nil {
			return fmt.Errorf("%w: %w", errSnapshot, err)
		}
		if e, err = edgeWith(e, v); err != nil {
			return fmt.Errorf("%w: %w", errSnapshot, err)
		}
		return t.CreateEdge(e)
	default:
		return fmt.Errorf("%w: record %q", errSnapshot, kind)
	}
}

// fillState takes over the position, if the content is what the state says.
func (t *tx) fillState(v []byte) error {
	if len(v) != stateBytes || v[0] != formatVersion {
		return fmt.Errorf("%w: state", errSnapshot)
	}
	have := t.state
	have.position = binary.BigEndian.Uint64(v[1:])
	want := state{position: have.position, nodes: binary.BigEndian.Uint64(v[9:]),
		edges: binary.BigEndian.Uint64(v[17:]), digest: digestFromBytes(v[25:])}
	if have != want {
		return fmt.Errorf("%w: content differs from its counts or digest", errSnapshot)
	}
	t.position = want.position
	return nil
}
