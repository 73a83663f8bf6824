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
	"github.com/nornicdb/replication/walstream"
)

const (
	stateFileName    = "standby.json"
	stateFileVersion = 1
	maxStateBytes    = 1 << 20
	// maxEpochNumber bounds epoch numbers: what every JSON reader keeps exact.
	maxEpochNumber = 1 << 53
)

// states keeps what a node has promised: what save was given last, load returns,
// after a crash too.
type states interface {
	load() (Stored, error)
	save(Stored) error
}

// stateFile is the small file with what a node has promised. It is replaced
// atomically, before the node acts on what it says.
type stateFile struct{ path string }

type storedFile struct {
	Version int `json:"version"`
	Stored
}

// load returns what the file says; nothing where there is none. A file that does
// not parse is an error: guessing would break a promise.
func (f stateFile) load() (Stored, error) {
	data, err := os.ReadFile(f.path)
	if errors.Is(err, os.ErrNotExist) {
		return Stored{}, nil
	}
	if err != nil {
		return Stored{}, fmt.Errorf("state file: %w", err)
	}
	return parseState(data)
}

func parseState(data []byte) (Stored, error) {
	var s storedFile
	if len(data) > maxStateBytes {
		return Stored{}, fmt.Errorf("%w: state file of %d bytes", replication.ErrInvalidConfig, len(data))
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return Stored{}, fmt.Errorf("%w: the state file is damaged: %v", replication.ErrInvalidConfig, err)
	}
	if s.Version != stateFileVersion {
		return Stored{}, fmt.Errorf("%w: the state file has version %d, this program knows %d", replication.ErrInvalidConfig, s.Version, stateFileVersion)
	}
	if err := checkEpochs(s.Epoch, s.Epochs); err != nil {
		return Stored{}, fmt.Errorf("%w: the state file is damaged: %w", replication.ErrInvalidConfig, err)
	}
	return s.Stored, nil
}

// checkEpochs checks an epoch and an epoch list from outside: in range, ascending.
func checkEpochs(e replication.Epoch, list []EpochStart) error {
	if e.Number >= maxEpochNumber || len(list) > maxEpochs {
		return fmt.Errorf("%w: epoch %s, %d epochs", replication.ErrInvalidCommand, e, len(list))
	}
	for i, x := range list {
		if x.Epoch.Number >= maxEpochNumber || x.Start == 0 || x.Epoch.Compare(e) > 0 ||
			i > 0 && (x.Epoch.Compare(list[i-1].Epoch) <= 0 || x.Start < list[i-1].Start) {
			return fmt.Errorf("%w: epoch %s from position %d", replication.ErrInvalidCommand, x.Epoch, x.Start)
		}
	}
	return nil
}

func formatState(s Stored) ([]byte, error) {
	data, err := json.Marshal(storedFile{stateFileVersion, s})
	return append(data, '\n'), err
}

func (f stateFile) save(s Stored) error {
	data, err := formatState(s)
	if err != nil {
		return err
	}
	temp := f.path + ".new"
	if err := writeSynced(temp, os.O_TRUNC, data); err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	if err := os.Rename(temp, f.path); err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	if err := syncDir(filepath.Dir(f.path)); err != nil {
		return fmt.Errorf("state file: %w", err)
	}
	return nil
}

func writeSynced(path string, flag int, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|flag, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
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
	f, err := createNew(dir, fmt.Sprintf("%d-%s", epoch.Number, safeName(epoch.Owner)))
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

// savedTails are the files in dir and the entries in them; of one that a crash
// cut short those that are whole.
func savedTails(dir string) (paths []string, entries int, err error) {
	if paths, err = filepath.Glob(filepath.Join(dir, "*.jsonl")); err != nil {
		return nil, 0, err
	}
	for _, path := range paths {
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
func createNew(dir, name string) (*os.File, error) {
	for i := 1; ; i++ {
		file := name
		if i > 1 {
			file = fmt.Sprintf("%s.%d", name, i)
		}
		f, err := os.OpenFile(filepath.Join(dir, file+".jsonl"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
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
