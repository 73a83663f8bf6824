package conflict

// mutantSet are deliberate faults, all off. Tests switch one on to show that
// the checks would see it (TestMutant_*).
type mutantSet struct {
	tieBreak           bool  // equal times: each region prefers its own write
	self               uint8 // the region that is at work, for tieBreak
	pendingForgotten   bool  // a register does not remember what it has replaced
	cutFromAcks        bool  // the stable cut follows acknowledgements beside the streams
	acks               [MaxRegions]Vector
	freshFromTombstone bool // a creation is fresh only where a tombstone is found
	dropWithoutEdges   bool // a deleted node goes before its edges are settled
	birthNotCarried    bool // a write does not say on which re-creation it stands
	noDedupe           bool // an entry that was applied is applied again
	clockStandsStill   bool // a remote time is not observed
	valueNotKept       bool // what a delete hides is not kept
	queueForgotten     bool // what could not settle is not looked at again
	stateKeepsRemoved  bool // a state transfer keeps what the sender has replaced
	stateLosesSettled  bool // a state transfer drops what the sender has settled
	collectNothing     bool // nothing is ever settled: not wrong, but metadata grows
}

var mutants mutantSet
