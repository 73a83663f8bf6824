package region

// Faults of this package that a test switches on.
func AckBeforeCommit(on bool)  { mutants.ackBeforeCommit = on }
func TrimUnread(on bool)       { mutants.trimUnread = on }
func OutboxFromLog(on bool)    { mutants.outboxFromLog = on }
func ContextForgotten(on bool) { mutants.contextForgotten = on }
