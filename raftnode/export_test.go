package raftnode

// Mutants of this package, for TestMutant_*.
var (
	MutantReadsWithoutOwnTerm Option = func(o *options) { o.mutant.readsWithoutOwnTerm = true }
	MutantOldHeartbeats       Option = func(o *options) { o.mutant.oldHeartbeats = true }
	MutantWipedVotes          Option = func(o *options) { o.mutant.wipedVotes = true }
	MutantHungLeads           Option = func(o *options) { o.mutant.hungLeads = true }
)
