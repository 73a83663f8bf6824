//go:build !unix

package datadir

import "os"

// lockExclusive: the lock of the log store's own file has to do here.
func lockExclusive(*os.File) error { return nil }
