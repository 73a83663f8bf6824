package standby

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/fsm"
	"github.com/nornicdb/replication/internal/report"
	"github.com/nornicdb/replication/walstream"
)

// putAside writes the entries after a position to a file of their own. Of entries
// that the log no longer has, as it is kept for a peer that is away only up to a
// bound, the Storage is what is left: it is put aside, too, as a snapshot, since it
// is about to be replaced.
func (n *Node) putAside(after uint64) error {
	if n.log.Last().Position <= after {
		return nil
	}
	epoch := n.log.Last().Epoch
	missing := n.log.First() - 1 - min(after, n.log.First()-1)
	if missing > 0 {
		if err := n.putStorageAside(epoch, after+1, after+missing); err != nil {
			return fmt.Errorf("putting aside the storage, as the log no longer has what the primary does not have: %w", err)
		}
	}
	path, count, err := saveTail(n.tailDir(), epoch, n.log, after)
	if err != nil {
		return fmt.Errorf("putting aside what the primary does not have: %w", err)
	}
	n.mu.Lock()
	n.tails, n.tailed = append(n.tails, path), n.tailed+count
	n.mu.Unlock()
	n.rt.Logger.Warn("entries that the primary does not have were put aside", "file", path, "entries", count)
	report.Diverged(count + int(missing))
	n.publish(replication.Event{Type: replication.EventDiverged, Detail: path, Position: after})
	return nil
}

// putStorageAside writes the Storage to a file, for the entries from one position
// to another.
func (n *Node) putStorageAside(epoch replication.Epoch, from, to uint64) error {
	var snap *fsm.Snapshot
	if err := n.feed.Still(func() (err error) { snap, err = fsm.TakeSnapshot(n.storage, n.applier); return err }); err != nil {
		return err
	}
	defer snap.Release()
	path, err := saveStorage(n.tailDir(), epoch, from, to, snap)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.tails = append(n.tails, path)
	n.mu.Unlock()
	n.rt.Logger.Warn("entries that the primary does not have are no longer in the log: the storage with what they did was put aside",
		"file", path, "from", from, "to", to)
	n.publish(replication.Event{Type: replication.EventDiverged, Detail: path, Position: from - 1})
	return nil
}

// tailEntry is a line of a diverged-tail file.
type tailEntry struct {
	Position uint64
	Epoch    replication.Epoch
	Group    replication.Group
}

// saveTail writes the entries after a position to a new file in dir, durably. A
// crash leaves a file that is not whole; the next try writes another.
func saveTail(dir string, epoch replication.Epoch, log *walstream.Log, after uint64) (path string, count int, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", 0, err
	}
	f, err := createNew(dir, fmt.Sprintf("%d-%s", epoch.Number, safeName(epoch.Owner)), ".jsonl")
	if err != nil {
		return "", 0, err
	}
	enc := json.NewEncoder(f)
	at := max(after, log.First()-1)
	for last := log.Last().Position; at < last && err == nil; {
		var entries []*walstream.Entry
		if entries, err = log.Read(at, 1000, 8<<20); err != nil {
			break
		}
		for _, e := range entries {
			err = errors.Join(err, enc.Encode(tailEntry{e.Position, e.Epoch, e.Group}))
			at, count = e.Position, count+1
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = errors.Join(syncDir(dir), syncDir(filepath.Dir(dir)))
	}
	return f.Name(), count, err
}

// saveStorage writes a snapshot of the Storage to a new file in dir, durably: what
// is left of diverged entries that the log no longer has. Its name says which.
func saveStorage(dir string, epoch replication.Epoch, from, to uint64, snap *fsm.Snapshot) (path string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	f, err := createNew(dir, fmt.Sprintf("%d-%s.entries-%d-to-%d", epoch.Number, safeName(epoch.Owner), from, to), ".snapshot")
	if err != nil {
		return "", err
	}
	if err = snap.Write(f); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name())) // it can be large, and the next try writes another
	}
	return f.Name(), errors.Join(syncDir(dir), syncDir(filepath.Dir(dir)))
}

// savedTails are the files in dir and the entries in them; of one that a crash
// cut short those that are whole.
func savedTails(dir string) (paths []string, entries int, err error) {
	logs, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil {
		return nil, 0, err
	}
	if paths, err = filepath.Glob(filepath.Join(dir, "*.snapshot")); err != nil {
		return nil, 0, err
	}
	paths = append(paths, logs...)
	for _, path := range logs {
		f, err := os.Open(path)
		if err != nil {
			return nil, 0, err
		}
		_, err = io.Copy((*lineCount)(&entries), f)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, 0, err
		}
	}
	return paths, entries, nil
}

// lineCount counts the lines written to it.
type lineCount int

func (c *lineCount) Write(p []byte) (int, error) {
	*c += lineCount(bytes.Count(p, []byte("\n")))
	return len(p), nil
}

// createNew creates a file that was not there.
func createNew(dir, name, ext string) (*os.File, error) {
	for i := 1; ; i++ {
		file := name
		if i > 1 {
			file = fmt.Sprintf("%s.%d", name, i)
		}
		f, err := os.OpenFile(filepath.Join(dir, file+ext), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err == nil || !errors.Is(err, os.ErrExist) || i == 10000 {
			return f, err
		}
	}
}

// safeName makes a node ID part of a file name.
func safeName(id string) string {
	b := []byte(id)
	for i, c := range b {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			b[i] = '_'
		}
	}
	return string(b[:min(len(b), 64)])
}
