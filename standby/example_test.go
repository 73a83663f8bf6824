package standby_test

import (
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/standby"
)

// A server offers hot standby by passing the mode to New.
func Example() {
	open := func(cfg *replication.Config, storage replication.Storage) (replication.Replicator, error) {
		return replication.New(cfg, storage, replication.Modes{replication.ModeHAStandby: standby.New})
	}
	_ = open
}
