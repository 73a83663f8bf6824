package standby

import (
	"context"

	"github.com/nornicdb/replication"
)

// StateDisk keeps a value under a key.
type StateDisk interface {
	Get(key []byte) ([]byte, error)
	Set(key, value []byte) error
}

// WithStates puts the state file on a simulated disk: a crash can come before each
// of its writes, and no test waits for a real one.
func WithStates(open func() StateDisk) Option {
	return func(o *options) { o.states = func(string) states { return diskStates{open()} } }
}

type diskStates struct{ disk StateDisk }

func (d diskStates) load() (Stored, error) {
	data, err := d.disk.Get([]byte(stateFileName))
	if err != nil || data == nil {
		return Stored{}, err
	}
	return parseState(data)
}

func (d diskStates) save(s Stored) error {
	data, err := formatState(s)
	if err != nil {
		return err
	}
	return d.disk.Set([]byte(stateFileName), data)
}

// CommitPlain is the end of a batch without epoch that has waited for the disk.
func CommitPlain(ctx context.Context, r replication.Replicator, position uint64) error {
	return r.(*Node).commitPlain(ctx, position)
}

// Committed is how far a node's Storage may go.
func Committed(r replication.Replicator) uint64 { return r.(*Node).feed.Committed() }

// OpenBolt opens the built-in log store.
var OpenBolt = openBolt
