package replication

import "time"

// HealthStatus is what a node says of itself. On the wire (code 18) it has the
// Go field names.
type HealthStatus struct {
	Mode   ReplicationMode
	NodeID string
	// Role is the node's part in its mode: leader, follower, candidate,
	// nonvoter, primary, standby, standalone, …
	Role     string
	IsLeader bool
	// State is one word for people: "healthy", or why not, e.g. "no_leader",
	// "storage_failed", "lagging", "cut_off", "closed".
	State string
	// Healthy: the node serves its role. Ready: it has also caught up.
	Healthy bool
	Ready   bool
	// Reasons says in sentences what limits the node: why it is not healthy,
	// and warnings that do not make it so.
	Reasons []string `json:",omitempty"`

	LeaderID   string
	LeaderAddr string
	ClusterID  string `json:",omitempty"`

	// History of the node's replicated log, where it has one.
	History string `json:",omitempty"`
	// Founded: the node has a replicated log; Virgin: nothing has been appended
	// to it since its founding.
	Founded bool
	Virgin  bool
	// Founder: the node was told to found a cluster, and has not yet.
	Founder bool `json:",omitempty"`

	Term         uint64
	CommitIndex  uint64 // ≥ AppliedIndex
	AppliedIndex uint64
	// LagEntries is how many entries this node still has to apply, LagSeconds
	// how old the news it lacks is (0 where it lacks none).
	LagEntries uint64
	LagSeconds float64
	// LastContact is when the node last heard from its leader or peer; zero
	// for a leader and where it never did.
	LastContact time.Time
	Peers       []PeerHealth `json:",omitempty"`
	// Federation is nil but in multi-region mode.
	Federation *FederationHealth `json:",omitempty"`
}

// FederationHealth is a node's view of its region among the others.
type FederationHealth struct {
	Region string // the node's own
	// Epoch says which region accepts writes, as far as this one knows; zero: all
	// do.
	Epoch   Epoch
	Regions []RegionHealth // the others, by name
}

// RegionHealth is a node's view of another region.
type RegionHealth struct {
	Region  string
	Address string // the one in use, or tried next
	// Healthy: it answers. Only the leader asks; on other nodes it is false and
	// State "unknown".
	Healthy bool
	State   string
	// LagEntries is what of this region's writes the other has not acknowledged,
	// LagSeconds how old the first of them is: 0 where it has all.
	LagEntries uint64
	LagSeconds float64
}

// PeerHealth is a node's view of one of its peers.
type PeerHealth struct {
	ID      string
	Address string
	Voter   bool
	// Healthy: it answers. A Raft follower asks its leader alone: of its other peers
	// it is false, and State "unknown".
	Healthy bool
	// Lag in entries, as far as this node can know it; -1 where it cannot.
	Lag   int64
	State string
}

// ClusterStatus is the cluster as one node sees it.
type ClusterStatus struct {
	ClusterID   string
	Mode        ReplicationMode
	LeaderID    string
	LeaderAddr  string
	Members     []PeerHealth
	CommitIndex uint64
	Term        uint64
	// Source is the ID of the node whose view this is: the leader's where
	// there is one.
	Source string
	// Federation is nil but in multi-region mode.
	Federation *FederationHealth
}
