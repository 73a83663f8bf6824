//go:build unix

package datadir

import (
	"errors"
	"os"
	"syscall"

	"github.com/nornicdb/replication"
)

// lockExclusive takes the lock, which the kernel frees when the process ends.
func lockExclusive(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return replication.ErrLocked
	}
	return err
}
