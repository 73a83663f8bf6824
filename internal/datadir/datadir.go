// Package datadir keeps what makes a data directory one node's: a lock against
// a second process and a small identity file that is replaced atomically.
package datadir

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nornicdb/replication"
)

const (
	lockFile     = "LOCK"
	identityFile = "node.json"
)

// Identity is what the directory was first used with.
type Identity struct {
	Version  int    `json:"version"`
	Mode     string `json:"mode"`
	NodeID   string `json:"node_id"`
	LogStore string `json:"log_store"`
	// History is that of the replicated log, for a storage that cannot keep it.
	History string `json:"history,omitempty"`
	Base    uint64 `json:"base,omitempty"`
	// Recovery is a recovery that was begun and not finished.
	Recovery *Recovery `json:"recovery,omitempty"`
}

// Recovery is what a recovery of a cluster that lost its quorum makes of the
// directory.
type Recovery struct {
	History string   `json:"history"`
	Address string   `json:"address"`
	Lost    []string `json:"lost"`
}

const identityVersion = 1

// Dir is a locked data directory.
type Dir struct {
	path     string
	lock     *os.File
	identity Identity
}

// Open creates the directory (mode 0700) where it is missing and locks it:
// ErrLocked where another process has it. want fills what a new directory does
// not have yet; what it has and want contradicts is ErrInvalidConfig. An empty
// NodeID in want takes the stored one, or for a new directory fallback's.
func Open(path string, want Identity, fallback func() string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(path, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := lockExclusive(lock); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %s", err, path), lock.Close())
	}
	d := &Dir{path: path, lock: lock}
	if err := d.settle(want, fallback); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// OpenExisting locks a directory that a node has used, and creates nothing:
// ErrLocked where a process has it, ErrInvalidConfig where it is no data
// directory.
func OpenExisting(path string) (*Dir, error) {
	for _, name := range []string{identityFile, lockFile} {
		if info, err := os.Stat(filepath.Join(path, name)); err != nil || !info.Mode().IsRegular() {
			return nil, fmt.Errorf("%w: %s is no data directory of a node: it has no file %s", replication.ErrInvalidConfig, path, name)
		}
	}
	return Open(path, Identity{}, func() string { return "" })
}

// settle reconciles the stored identity with the configured one.
func (d *Dir) settle(want Identity, fallback func() string) error {
	data, err := os.ReadFile(d.Path(identityFile))
	if errors.Is(err, os.ErrNotExist) {
		want.Version = identityVersion
		if want.NodeID == "" {
			want.NodeID = fallback()
		}
		return d.Save(want)
	}
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	var have Identity
	if err := json.Unmarshal(data, &have); err != nil {
		return fmt.Errorf("data directory: %s is damaged: %w", d.Path(identityFile), err)
	}
	if have.Version != identityVersion {
		return fmt.Errorf("%w: %s has version %d, this program knows %d", replication.ErrInvalidConfig, d.Path(identityFile), have.Version, identityVersion)
	}
	for _, c := range []struct{ name, have, want string }{
		{"NODE_ID", have.NodeID, want.NodeID}, {"MODE", have.Mode, want.Mode}, {"LOG_STORE", have.LogStore, want.LogStore},
	} {
		if c.want != "" && c.want != c.have {
			return fmt.Errorf("%w: NORNICDB_CLUSTER_%s=%q, but %s was first used with %q",
				replication.ErrInvalidConfig, c.name, c.want, d.path, c.have)
		}
	}
	d.identity = have
	return nil
}

// Identity is the directory's.
func (d *Dir) Identity() Identity { return d.identity }

// Path of a file in the directory.
func (d *Dir) Path(name string) string { return filepath.Join(d.path, name) }

// Save replaces the identity file: written, synced, renamed, directory synced.
func (d *Dir) Save(id Identity) error {
	data, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	if err := replaceFile(d.Path(identityFile), append(data, '\n')); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	d.identity = id
	return nil
}

// Close unlocks the directory.
func (d *Dir) Close() error { return d.lock.Close() }

func replaceFile(path string, data []byte) error {
	temp := path + ".new"
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
