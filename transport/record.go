package transport

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"net"
	"sync"
)

// A record is the length of its bytes (4 bytes, big endian), a checksum, and
// the bytes. The checksum is CRC-32C over length and bytes (4 bytes) or, with a
// secret, HMAC-SHA-256 over a sequence number, length and bytes, cut to 16.
const (
	maxRecordBytes = 64 << 10
	crcBytes       = 4
	macBytes       = 16
)

// errRecord: a record's checksum is wrong, so bytes were changed, lost,
// repeated or made up. The connection ends.
var errRecord = errors.New("bad record")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sealer computes the checksums of one direction of a connection.
type sealer struct {
	mac hash.Hash // nil: CRC-32C
	seq uint64    // of the next record
	sum []byte
}

func newSealer(key []byte) *sealer {
	s := &sealer{}
	if key != nil {
		s.mac = hmac.New(sha256.New, key)
	}
	return s
}

func (s *sealer) size() int {
	if s.mac == nil {
		return crcBytes
	}
	return macBytes
}

// seal returns the checksum of the next record; valid until the next call.
func (s *sealer) seal(length [4]byte, data []byte) []byte {
	if s.mac == nil {
		sum := crc32.Update(crc32.Update(0, castagnoli, length[:]), castagnoli, data)
		s.sum = binary.BigEndian.AppendUint32(s.sum[:0], sum)
		return s.sum
	}
	var seq [8]byte
	binary.BigEndian.PutUint64(seq[:], s.seq)
	s.seq++
	s.mac.Reset()
	s.mac.Write(seq[:])
	s.mac.Write(length[:])
	s.mac.Write(data)
	s.sum = s.mac.Sum(s.sum[:0])
	return s.sum[:macBytes]
}

// recordConn carries a byte stream in records. Like any net.Conn it may be
// read, written and closed by several goroutines.
type recordConn struct {
	net.Conn
	onBad func() // told once of a bad record
	// trusting: checksums are not looked at; see Options.skipsChecksums.
	trusting bool

	// rmu guards the reading side.
	rmu  sync.Mutex
	r    *bufio.Reader
	in   *sealer
	buf  []byte // bytes of the present record
	left []byte // those not yet read
	rerr error

	// wmu guards the writing side.
	wmu  sync.Mutex
	out  *sealer
	wbuf []byte
	werr error
}

// newRecordConn continues conn, whose bytes are read through r, in records.
func newRecordConn(conn net.Conn, r *bufio.Reader, inKey, outKey []byte, onBad func()) *recordConn {
	return &recordConn{Conn: conn, r: r, in: newSealer(inKey), out: newSealer(outKey), onBad: onBad}
}

func (c *recordConn) Read(p []byte) (int, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	if len(c.left) == 0 {
		if c.rerr != nil {
			return 0, c.rerr
		}
		if err := c.readRecord(); err != nil {
			if errors.Is(err, errRecord) {
				c.rerr = err
				c.onBad()
				_ = c.Conn.Close()
			}
			return 0, err
		}
	}
	n := copy(p, c.left)
	c.left = c.left[n:]
	return n, nil
}

// readRecord reads one record. A deadline that strikes within a record leaves
// the stream without its place, so it ends the connection like a bad record.
func (c *recordConn) readRecord() error {
	if _, err := c.r.Peek(1); err != nil {
		return err
	}
	var head [4 + macBytes]byte
	head4 := head[:4+c.in.size()]
	if _, err := io.ReadFull(c.r, head4); err != nil {
		c.rerr = cutShort(err)
		return c.rerr
	}
	length := [4]byte(head4[:4])
	size := binary.BigEndian.Uint32(length[:])
	if size == 0 || size > maxRecordBytes {
		return fmt.Errorf("%w: length %d", errRecord, size)
	}
	if cap(c.buf) < int(size) {
		c.buf = make([]byte, max(int(size), min(2*cap(c.buf), maxRecordBytes)))
	}
	data := c.buf[:size]
	if _, err := io.ReadFull(c.r, data); err != nil {
		c.rerr = cutShort(err)
		return c.rerr
	}
	if !hmac.Equal(c.in.seal(length, data), head4[4:]) && !c.trusting {
		return fmt.Errorf("%w: checksum", errRecord)
	}
	c.left = data
	return nil
}

func cutShort(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (c *recordConn) Write(p []byte) (int, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	written := 0
	for len(p) > 0 {
		if c.werr != nil {
			return written, c.werr
		}
		n := min(len(p), maxRecordBytes)
		var length [4]byte
		binary.BigEndian.PutUint32(length[:], uint32(n))
		c.wbuf = append(c.wbuf[:0], length[:]...)
		c.wbuf = append(c.wbuf, c.out.seal(length, p[:n])...)
		c.wbuf = append(c.wbuf, p[:n]...)
		if _, err := c.Conn.Write(c.wbuf); err != nil {
			c.werr = err // part of a record may be out: nothing can follow it
			return written, err
		}
		written += n
		p = p[n:]
	}
	return written, nil
}
