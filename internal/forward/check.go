package forward

import (
	"fmt"

	"github.com/nornicdb/replication"
)

// Limits are what a node takes of a write.
type Limits struct {
	Storage  replication.Storage
	Atomic   bool // the Storage has transactions
	MaxBytes int  // of the commands together
}

// commandOverhead is what a command takes in a message beside its data.
const commandOverhead = 256

// Check refuses commands that the node cannot take. They are valid otherwise.
func (l Limits) Check(cmds []*replication.Command) error {
	size := 0
	for _, c := range cmds {
		size += len(c.Data) + commandOverhead
		if c.Type == replication.CmdCypher {
			if _, ok := l.Storage.(replication.EffectRecorder); !ok || len(cmds) > 1 {
				return fmt.Errorf("%w: the storage cannot record what a Cypher command does", replication.ErrOpaqueWrite)
			}
		}
	}
	if size > l.MaxBytes {
		return fmt.Errorf("%w: %d bytes, at most %d", replication.ErrCommandTooLarge, size, l.MaxBytes)
	}
	if (len(cmds) > 1 || cmds[0].Type == replication.CmdBatchWrite) && !l.Atomic {
		return fmt.Errorf("%w: atomic batches need a storage with transactions", replication.ErrUnsupported)
	}
	return nil
}
