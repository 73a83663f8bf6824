package standby

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nornicdb/replication"
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
