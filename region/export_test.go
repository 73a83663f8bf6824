package region

// AckBeforeCommit and TrimUnread switch faults of this package on.
func AckBeforeCommit(on bool) { mutants.ackBeforeCommit = on }

// TrimUnread: see AckBeforeCommit.
func TrimUnread(on bool) { mutants.trimUnread = on }
