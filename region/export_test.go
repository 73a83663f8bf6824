package region

import "github.com/nornicdb/replication"

// Faults of this package that a test switches on.
func AckBeforeCommit(on bool)  { mutants.ackBeforeCommit = on }
func TrimUnread(on bool)       { mutants.trimUnread = on }
func OutboxFromLog(on bool)    { mutants.outboxFromLog = on }
func ContextForgotten(on bool) { mutants.contextForgotten = on }

// Stamps are those of what a node has applied of each region's stream.
func (n *Node) Stamps() map[string]uint64 {
	v, _ := n.machine.now()
	return v.head.Stamps
}

// SettingsHash is what a node with this configuration says in its handshake.
func SettingsHash(cfg *replication.Config) string {
	s, err := settingsOf(cfg)
	if err != nil {
		panic(err)
	}
	return s.hash()
}
