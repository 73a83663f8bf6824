package region

// mutantSet are deliberate faults, all off. Tests switch one on to show that
// the checks would see it (TestMutant_*).
type mutantSet struct {
	ackBeforeCommit  bool // a batch is answered when it came, not when it is committed
	trimUnread       bool // the outbox drops what not all regions have, and says nothing
	outboxFromLog    bool // the outbox is what the Raft log has: nothing from before a snapshot
	contextForgotten bool // a snapshot has the outbox without the contexts
}

var mutants mutantSet
