package transport

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	frameHeadBytes = 4
	// firstStepBytes is what a frame's announced length may cost before bytes
	// of it have arrived; after that the buffer grows with what arrives.
	firstStepBytes = 4 << 10
)

// errFrame: the frame breaks the protocol; the connection is not usable.
var errFrame = errors.New("bad frame")

// readFrame reads one frame of at most limit bytes. io.EOF means that the
// connection ended between frames, io.ErrUnexpectedEOF that it ended within.
func readFrame(r *bufio.Reader, limit int) ([]byte, error) {
	size, err := readFrameHead(r, limit)
	if err != nil {
		return nil, err
	}
	return readFrameBody(r, size)
}

// readFrameHead reads the length of a frame and checks it.
func readFrameHead(r *bufio.Reader, limit int) (int, error) {
	var head [frameHeadBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size == 0 || uint64(size) > uint64(limit) {
		return 0, fmt.Errorf("%w: length %d, allowed are 1 to %d", errFrame, size, limit)
	}
	return int(size), nil
}

// readFrameBody reads what follows the length.
func readFrameBody(r *bufio.Reader, size int) ([]byte, error) {
	var buf bytes.Buffer
	buf.Grow(min(size, firstStepBytes))
	n, err := io.CopyN(&buf, r, int64(size))
	if err == io.EOF && n < int64(size) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// beginFrame starts a frame in dst; endFrame fills in its length.
func beginFrame(dst []byte) []byte { return append(dst, 0, 0, 0, 0) }

func endFrame(frame []byte, limit int) ([]byte, error) {
	size := len(frame) - frameHeadBytes
	if size > limit {
		return nil, fmt.Errorf("%w: frame of %d bytes, the peer takes %d", errTooLarge, size, limit)
	}
	binary.BigEndian.PutUint32(frame, uint32(size))
	return frame, nil
}
