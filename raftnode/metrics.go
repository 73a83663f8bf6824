package raftnode

import (
	"io/fs"
	"os"
	"path/filepath"

	"github.com/nornicdb/replication/internal/report"
)

// reportGauges refreshes what this node reports of itself.
func (n *Node) reportGauges() {
	n.gauges.Report(n.Health())
	report.WALBytes(n.logBytes())
}

// logBytes is the size of the log store's files: the built-in one's, or those in
// a folder of the log store's name.
func (n *Node) logBytes() int64 {
	if info, err := os.Stat(filepath.Join(n.cfg.DataDir, boltFile)); err == nil {
		return info.Size()
	}
	var size int64
	_ = filepath.WalkDir(filepath.Join(n.cfg.DataDir, n.cfg.LogStore), func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil { // it may be gone again
				size += info.Size()
			}
		}
		return nil
	})
	return size
}

// countFailover counts changes from one leader to another.
func (n *Node) countFailover(leader string) {
	if leader == "" {
		return
	}
	if n.lastLeader != "" && n.lastLeader != leader {
		report.Failover()
	}
	n.lastLeader = leader
}
