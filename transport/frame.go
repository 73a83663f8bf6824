package transport

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	frameHeadBytes = 4
	// firstStepBytes is what a frame's announced length may cost before bytes
	// of it have arrived; after that the buffer is at most stepFactor times as
	// large as what has arrived.
	firstStepBytes = 16 << 10
	stepFactor     = 4
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
	buf := make([]byte, min(size, firstStepBytes))
	for n := 0; ; {
		m, err := io.ReadFull(r, buf[n:])
		if n += m; n == size {
			return buf, nil
		}
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		grown := make([]byte, min(size, stepFactor*n))
		copy(grown, buf)
		buf = grown
	}
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
