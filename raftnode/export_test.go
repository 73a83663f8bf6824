package raftnode

import "github.com/nornicdb/replication"

// HoldChanges keeps every change of the membership waiting on a node.
func HoldChanges(r replication.Replicator) { r.(*Node).changing <- struct{}{} }

// Mutants of this package, for TestMutant_*.
var (
	MutantReadsWithoutOwnTerm Option = func(o *options) { o.mutant.readsWithoutOwnTerm = true }
	MutantOldHeartbeats       Option = func(o *options) { o.mutant.oldHeartbeats = true }
	MutantWipedVotes          Option = func(o *options) { o.mutant.wipedVotes = true }
	MutantHungLeads           Option = func(o *options) { o.mutant.hungLeads = true }
)
