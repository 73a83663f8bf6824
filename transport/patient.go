package transport

import (
	"net"
	"sync"
	"time"
)

// patientChunkBytes is what a patientConn writes under one deadline.
const patientChunkBytes = 64 << 10

// patientConn is an outgoing Raft stream. hashicorp/raft gives every request
// the same time, a heartbeat and 64 entries of the largest size alike. An entry
// that takes longer on its way would be sent again and again, and nothing behind
// it would ever be committed. So a deadline for writing moves on while bytes go
// out, and one for an answer by what the bytes that it answers may take on the
// slowest line. The time that is given holds for the rest.
type patientConn struct {
	net.Conn

	// mu guards the fields below.
	mu       sync.Mutex
	readBy   time.Time // zero: no deadline
	writeBy  time.Time
	writeFor time.Duration // what was left until writeBy when it was set
	owed     int           // bytes written since the last bytes read
	before   int           // … and between those and the ones before
}

func (c *patientConn) SetDeadline(t time.Time) error {
	if err := c.SetWriteDeadline(t); err != nil {
		return err
	}
	return c.SetReadDeadline(t)
}

func (c *patientConn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writeBy, c.writeFor = t, time.Until(t)
	return c.Conn.SetWriteDeadline(t)
}

func (c *patientConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readBy = t
	return c.waitForAnswer()
}

// waitForAnswer sets the deadline of the next read. c.mu is held.
func (c *patientConn) waitForAnswer() error {
	if c.readBy.IsZero() {
		return c.Conn.SetReadDeadline(c.readBy)
	}
	return c.Conn.SetReadDeadline(c.readBy.Add(lineTime(c.owed + c.before)))
}

func (c *patientConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	err := c.waitForAnswer()
	c.mu.Unlock()
	if err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.mu.Lock()
		c.before, c.owed = c.owed, 0
		c.mu.Unlock()
	}
	return n, err
}

func (c *patientConn) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		chunk := p[:min(len(p), patientChunkBytes)]
		if err := c.beginChunk(len(chunk)); err != nil {
			return written, err
		}
		n, err := c.Conn.Write(chunk)
		written += n
		if err != nil {
			return written, err
		}
		p = p[n:]
	}
	return written, nil
}

func (c *patientConn) beginChunk(size int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owed += size
	if c.writeBy.IsZero() {
		return nil
	}
	by := time.Now().Add(c.writeFor)
	if by.Before(c.writeBy) {
		by = c.writeBy
	}
	return c.Conn.SetWriteDeadline(by)
}
