package fsm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
)

// A snapshot is: the magic and a version byte; a chunk with the header; chunks
// with what the Storage wrote; a chunk of length 0. A chunk is its length and
// the CRC-32C of all bytes of the snapshot's chunks so far, this one's
// included (4 bytes each, big endian), and its bytes. So a snapshot that was
// cut, spliced or flipped anywhere does not reach its end.
const (
	snapshotMagic   = "NRSS"
	snapshotVersion = 1
	chunkBytes      = 64 << 10
	maxHeaderBytes  = 64 << 20
	chunkHeadBytes  = 8
)

// ErrCorruptSnapshot: a snapshot does not decode.
var ErrCorruptSnapshot = errors.New("corrupt snapshot")

// Header says what a snapshot holds.
type Header struct {
	Identity replication.Identity
	// Position of the storage in the snapshot. It can be above the Raft index
	// under which the snapshot is filed, after a restart, and below, as no-ops
	// and configuration entries do not reach the storage.
	Position uint64
	// Outcomes of requests and Wishes for members, where the storage keeps no
	// metadata rows.
	Outcomes [][]byte
	Wishes   map[string]bool
}

type wireHeader struct {
	//lint:ignore U1000 the codec reads its tag by reflection
	_struct  bool `codec:",toarray"`
	History  string
	Base     uint64
	Position uint64
	Outcomes [][]byte
	Wishes   map[string]bool
}

// Snapshot is a pinned state of a Storage.
type Snapshot struct {
	snap    replication.StorageSnapshot
	storage replication.Storage
	header  Header
}

var _ raft.FSMSnapshot = (*Snapshot)(nil)

// Header of the snapshot.
func (s *Snapshot) Header() Header { return s.header }

// Persist implements raft.FSMSnapshot: it streams the state in bounded memory.
func (s *Snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.Write(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// Write streams the snapshot to w.
func (s *Snapshot) Write(w io.Writer) error {
	var head []byte
	h := wireHeader{History: s.header.Identity.History, Base: s.header.Identity.Base,
		Position: s.header.Position, Outcomes: s.header.Outcomes, Wishes: s.header.Wishes}
	if err := codec.NewEncoderBytes(&head, handle).Encode(h); err != nil {
		return fmt.Errorf("encoding a snapshot header: %w", err)
	}
	if _, err := w.Write(append([]byte(snapshotMagic), snapshotVersion)); err != nil {
		return err
	}
	cw := &chunkWriter{w: w, buf: make([]byte, chunkHeadBytes, chunkHeadBytes+chunkBytes)}
	if err := cw.chunk(head); err != nil {
		return err
	}
	if _, err := s.snap.WriteTo(cw); err != nil {
		return fmt.Errorf("writing the storage: %w", err)
	}
	if err := flush(s.storage); err != nil {
		return err
	}
	return cw.finish()
}

// flush makes what a storage has applied durable, if it defers that: before a
// snapshot is whole, as the log is then cut below its position.
func flush(storage replication.Storage) error {
	if d, ok := storage.(replication.DeferringStorage); ok {
		if err := d.Flush(); err != nil {
			return fmt.Errorf("flushing the storage: %w", err)
		}
	}
	return nil
}

// Release implements raft.FSMSnapshot.
func (s *Snapshot) Release() { s.snap.Release() }

// chunkWriter cuts what it is given into chunks.
type chunkWriter struct {
	w   io.Writer
	sum uint32
	buf []byte // head and bytes of the chunk being filled
}

func (c *chunkWriter) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		n := min(len(p), cap(c.buf)-len(c.buf))
		c.buf = append(c.buf, p[:n]...)
		p = p[n:]
		if len(c.buf) == cap(c.buf) {
			if err := c.flush(); err != nil {
				return written, err
			}
		}
		written += n
	}
	return written, nil
}

func (c *chunkWriter) flush() error {
	if len(c.buf) == chunkHeadBytes {
		return nil
	}
	return c.emit()
}

func (c *chunkWriter) emit() error {
	c.sum = crc32.Update(c.sum, castagnoli, c.buf[chunkHeadBytes:])
	binary.BigEndian.PutUint32(c.buf, uint32(len(c.buf)-chunkHeadBytes))
	binary.BigEndian.PutUint32(c.buf[4:], c.sum)
	_, err := c.w.Write(c.buf)
	c.buf = c.buf[:chunkHeadBytes]
	return err
}

// chunk writes b, whatever its size, as a chunk of its own.
func (c *chunkWriter) chunk(b []byte) error {
	whole := &chunkWriter{w: c.w, sum: c.sum, buf: append(make([]byte, chunkHeadBytes), b...)}
	err := whole.emit()
	c.sum = whole.sum
	return err
}

func (c *chunkWriter) finish() error {
	if err := c.flush(); err != nil {
		return err
	}
	return c.emit()
}

// Body reads the storage's part of a snapshot and checks it: an error other
// than io.EOF says that what was read is not the whole.
type Body struct {
	r    io.Reader
	sum  uint32
	left int // bytes of the present chunk not yet returned
	want uint32
	err  error
}

// ReadHeader reads the beginning of a snapshot and returns its header and a
// reader of the rest. Errors wrap ErrCorruptSnapshot or are those of r.
func ReadHeader(r io.Reader) (*Header, *Body, error) {
	var magic [len(snapshotMagic) + 1]byte
	if _, err := io.ReadFull(r, magic[:]); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrCorruptSnapshot, unexpected(err))
	}
	if string(magic[:len(snapshotMagic)]) != snapshotMagic || magic[len(snapshotMagic)] != snapshotVersion {
		return nil, nil, fmt.Errorf("%w: unknown format or version", ErrCorruptSnapshot)
	}
	body := &Body{r: r}
	size, err := body.next()
	if err != nil {
		return nil, nil, err
	}
	if size == 0 || size > maxHeaderBytes {
		return nil, nil, fmt.Errorf("%w: header of %d bytes", ErrCorruptSnapshot, size)
	}
	raw, err := io.ReadAll(io.LimitReader(body, int64(size)))
	if err != nil {
		return nil, nil, err
	}
	var wire wireHeader
	if err := decodeBytes(raw, &wire); err != nil {
		return nil, nil, fmt.Errorf("%w: header: %w", ErrCorruptSnapshot, err)
	}
	return &Header{
		Identity: replication.Identity{History: wire.History, Base: wire.Base},
		Position: wire.Position, Outcomes: wire.Outcomes, Wishes: wire.Wishes,
	}, body, nil
}

// next reads the head of the next chunk; 0 is the last.
func (b *Body) next() (int, error) {
	var head [chunkHeadBytes]byte
	if _, err := io.ReadFull(b.r, head[:]); err != nil {
		return 0, b.fail(unexpected(err))
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxHeaderBytes {
		return 0, b.fail(fmt.Errorf("chunk of %d bytes", size))
	}
	b.left, b.want = int(size), binary.BigEndian.Uint32(head[4:])
	if size == 0 && b.want != b.sum {
		return 0, b.fail(errors.New("checksum of the end"))
	}
	return int(size), nil
}

func (b *Body) fail(err error) error {
	b.err = fmt.Errorf("%w: %w", ErrCorruptSnapshot, err)
	return b.err
}

// Read implements io.Reader. The bytes of a chunk are returned before its
// checksum is known: a reader must not accept them before io.EOF.
func (b *Body) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.left == 0 {
		size, err := b.next()
		if err != nil {
			return 0, err
		}
		if size == 0 {
			b.err = io.EOF
			return 0, io.EOF
		}
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.sum = crc32.Update(b.sum, castagnoli, p[:n])
	b.left -= n
	if b.left == 0 && b.sum != b.want {
		return n, b.fail(errors.New("checksum"))
	}
	if err != nil && b.left > 0 {
		return n, b.fail(unexpected(err))
	}
	return n, nil
}

// drain reads the rest; nil says that the snapshot is whole.
func (b *Body) drain() error {
	_, err := io.Copy(io.Discard, b)
	return err
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
