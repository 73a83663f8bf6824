package replication

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Validate checks the whole configuration and returns one error, wrapping
// [ErrInvalidConfig], that names every mistake. It reads no file and asks no
// network: what needs the disk is checked where it is opened.
func (c *Config) Validate() error { return configError(c.problems(nil, false)) }

// Advertise is the address that peers are told.
func (c *Config) Advertise() string {
	if c.AdvertiseAddr != "" {
		return c.AdvertiseAddr
	}
	return c.BindAddr
}

// checker collects the mistakes of a configuration, passing over variables
// that are known to be bad.
type checker struct {
	c    *Config
	skip map[string]bool
	list []string
}

func (k *checker) check(ok bool, name, format string, args ...any) {
	if ok || k.skip[name] {
		return
	}
	value := ""
	if i := slices.IndexFunc(variables, func(v variable) bool { return v.name == name }); i >= 0 {
		value = show(name, variables[i].get(k.c))
	}
	k.list = append(k.list, problem(name, value, fmt.Sprintf(format, args...)))
}

// problems are the mistakes, those of skip aside. The numbers of modes that are
// not in use are checked where all is set: in what comes from the environment.
func (c *Config) problems(skip map[string]bool, all bool) []string {
	k := &checker{c: c, skip: skip}
	k.words()
	k.general()
	k.tls()
	if all || c.Mode == ModeHAStandby {
		k.hotStandbyNumbers()
	}
	if all || c.Mode == ModeRaft || c.Mode == ModeMultiRegion {
		k.raftNumbers()
	}
	if all || c.Mode == ModeMultiRegion {
		k.regionNumbers()
	}
	switch c.Mode {
	case ModeHAStandby:
		k.hotStandby()
	case ModeRaft:
		k.raft()
	case ModeMultiRegion:
		k.raft()
		k.region()
	}
	k.consistency()
	return k.list
}

// words checks every field that is one of a few words, and the ranges that
// hold in every mode, by setting each variable to its own text.
func (k *checker) words() {
	scratch := *k.c
	for _, v := range variables {
		text := v.get(k.c)
		if text == "" {
			k.check(!k.c.needsWord(v.name), v.name, "must be %s", v.allowed)
			continue
		}
		if err := v.set(&scratch, text); err != nil {
			k.check(false, v.name, "%v; allowed: %s", err, v.allowed)
		}
	}
}

// needsWord says whether an empty text in place of a word would leave open what
// is to happen: WRITE_CONSISTENCY may be empty, and what is not in use.
func (c *Config) needsWord(name string) bool {
	switch name {
	case "MODE", "READ_CONSISTENCY":
		return true
	case "HA_SYNC_MODE", "HA_PARTITION_POLICY":
		return c.Mode == ModeHAStandby
	case "CROSS_REGION_MODE", "CLOCK_SKEW_POLICY", "CONFLICT_STRATEGY":
		return c.Mode == ModeMultiRegion
	case "TLS_MIN_VERSION":
		return c.TLS.Enabled
	default:
		return false
	}
}

func (k *checker) general() {
	c := k.c
	k.check(validID(c.NodeID, true), "NODE_ID", "must be printable text without ':', ',' or white space, at most 128 bytes")
	k.check(c.DataDir != "", "DATA_DIR", "must not be empty")
	k.check(c.LogStore != "", "LOG_STORE", "must not be empty")
	k.check(c.MaxFrameSize >= 1<<20 && c.MaxFrameSize <= 1<<30, "MAX_FRAME_SIZE", "must be from 1048576 to 1073741824 bytes")
	k.check(c.Secret == "" || len(c.Secret) >= 16, "SECRET", "must have at least 16 bytes")
	k.check(c.Secret == "" || c.SecretFile == "", "SECRET_FILE", "SECRET is set too; give one of them")
	k.check(addrProblem(c.BindAddr, true) == nil, "BIND_ADDR", "%v", addrProblem(c.BindAddr, true))
	if c.AdvertiseAddr != "" {
		err := addrProblem(c.AdvertiseAddr, false)
		k.check(err == nil, "ADVERTISE_ADDR", "%v", err)
	}
	if c.Mode == ModeStandalone {
		return
	}
	if host, _, err := net.SplitHostPort(c.Advertise()); err == nil {
		ip := net.ParseIP(host)
		k.check(host != "" && (ip == nil || !ip.IsUnspecified()), "ADVERTISE_ADDR",
			"peers cannot dial %s; give the address of this host", c.Advertise())
	}
}

func (k *checker) tls() {
	t := k.c.TLS
	if !t.Enabled {
		// Who names a certificate takes the traffic for encrypted.
		const plain = "set without TLS_ENABLED=true: traffic would not be encrypted; set that, or leave this out"
		k.check(t.CertFile == "", "TLS_CERT_FILE", plain)
		k.check(t.KeyFile == "", "TLS_KEY_FILE", plain)
		k.check(t.CAFile == "", "TLS_CA_FILE", plain)
		return
	}
	k.check(t.CertFile != "", "TLS_CERT_FILE", "required with TLS_ENABLED")
	k.check(t.KeyFile != "", "TLS_KEY_FILE", "required with TLS_ENABLED")
	k.check(!t.VerifyClient || t.CAFile != "", "TLS_CA_FILE", "required with TLS_VERIFY_CLIENT")
	for _, name := range t.CipherSuites {
		secure := slices.ContainsFunc(tls.CipherSuites(), func(s *tls.CipherSuite) bool { return s.Name == name })
		k.check(secure, "TLS_CIPHER_SUITES", "%s is unknown or insecure", name)
	}
}

func (k *checker) hotStandby() {
	h := k.c.HA
	k.check(h.Role != "", "HA_ROLE", "required: primary or standby")
	err := addrProblem(h.PeerAddr, false)
	k.check(err == nil, "HA_PEER_ADDR", "%v", err)
	k.check(h.PeerAddr == "" || h.PeerAddr != k.c.Advertise(), "HA_PEER_ADDR", "is this node's own address")
}

func (k *checker) hotStandbyNumbers() {
	h := k.c.HA
	k.check(h.Heartbeat > 0, "HA_HEARTBEAT_MS", "must be positive")
	k.check(h.FailoverTimeout >= 3*h.Heartbeat && h.FailoverTimeout > 0, "HA_FAILOVER_TIMEOUT",
		"must be at least 3 heartbeats of %s", h.Heartbeat)
	k.check(h.WALBatchSize > 0, "HA_WAL_BATCH_SIZE", "must be positive")
	k.check(h.WALBatchTimeout > 0, "HA_WAL_BATCH_TIMEOUT", "must be positive")
	k.check(h.MaxUnconfirmed > 0, "HA_MAX_UNCONFIRMED", "must be positive")
	k.check(h.WALRetain > 0, "HA_WAL_RETAIN", "must be positive")
	k.check(h.ReconnectInterval > 0, "HA_RECONNECT_INTERVAL", "must be positive")
	k.check(h.MaxReconnectBackoff >= h.ReconnectInterval, "HA_MAX_RECONNECT_BACKOFF",
		"must not be below HA_RECONNECT_INTERVAL, %s", h.ReconnectInterval)
	k.check(h.PartitionPolicy != "consistency" || h.SyncMode != SyncAsync, "HA_SYNC_MODE",
		"async does not go with HA_PARTITION_POLICY=consistency")
}

func (k *checker) raftNumbers() {
	r := k.c.Raft
	k.check(validID(r.ClusterID, false), "RAFT_CLUSTER_ID", "must be printable text without ':', ',' or white space, at most 128 bytes")
	k.check(r.HeartbeatTimeout >= time.Millisecond, "RAFT_HEARTBEAT_TIMEOUT", "must be at least 1ms")
	k.check(r.ElectionTimeout >= 3*r.HeartbeatTimeout && r.ElectionTimeout >= 5*time.Millisecond, "RAFT_ELECTION_TIMEOUT",
		"must be at least 5ms and 3 heartbeats of %s", r.HeartbeatTimeout)
	limit := r.FollowerTimeout()
	k.check(r.LeaderLeaseTimeout >= 5*time.Millisecond && r.LeaderLeaseTimeout <= limit, "RAFT_LEADER_LEASE_TIMEOUT",
		"must be from 5ms to %s, the smaller of 10 heartbeats of %s and the election timeout of %s", limit, r.HeartbeatTimeout, r.ElectionTimeout)
	k.check(r.SnapshotInterval >= 5*time.Millisecond, "RAFT_SNAPSHOT_INTERVAL", "must be at least 5ms")
	k.check(r.SnapshotThreshold > 0, "RAFT_SNAPSHOT_THRESHOLD", "must be positive")
	k.check(r.SnapshotRetain > 0, "RAFT_SNAPSHOT_RETAIN", "must be positive")
	k.check(r.MaxAppendEntries > 0 && r.MaxAppendEntries <= 1024, "RAFT_MAX_APPEND_ENTRIES", "must be from 1 to 1024")
	k.check(r.CommitTimeout >= time.Millisecond, "RAFT_COMMIT_TIMEOUT", "must be at least 1ms")
	k.check(r.MaxInflightLogs > 0, "RAFT_MAX_INFLIGHT_LOGS", "must be positive")
}

func (k *checker) raft() {
	ids, addrs := make(map[string]bool), make(map[string]bool)
	for _, p := range k.c.Raft.Peers {
		err := addrProblem(p.Addr, false)
		k.check(err == nil, "RAFT_PEERS", "%s: %v", p.Addr, err)
		k.check(validID(p.ID, true), "RAFT_PEERS", "%q is not a node ID", p.ID)
		k.check(p.ID == "" || !ids[p.ID], "RAFT_PEERS", "node ID %s is there twice", p.ID)
		k.check(!addrs[p.Addr], "RAFT_PEERS", "address %s is there twice", p.Addr)
		self := p.Addr == k.c.Advertise() || p.ID != "" && p.ID == k.c.NodeID
		k.check(!self, "RAFT_PEERS", "%s:%s is this node", p.ID, p.Addr)
		ids[p.ID], addrs[p.Addr] = true, true
	}
}

// FollowerTimeout is hashicorp/raft's HeartbeatTimeout: how long a follower
// waits before it stands for election. hashicorp/raft sends heartbeats at a
// random interval from a tenth to a fifth of it, so ten times the configured
// interval, and never more than the election timeout.
func (r *RaftConfig) FollowerTimeout() time.Duration {
	return min(10*r.HeartbeatTimeout, r.ElectionTimeout)
}

func (k *checker) region() {
	r := k.c.Region
	k.check(r.RegionID != "" && validID(r.RegionID, false), "REGION_ID", "required: printable text without ':' or ','")
	k.check(validID(r.FederationID, false), "FEDERATION_ID", "must be printable text without ':', ',' or white space, at most 128 bytes")
	known := map[string]bool{r.RegionID: true}
	addrs := make(map[string]bool)
	for _, p := range r.RemoteRegions {
		err := addrProblem(p.Addr, false)
		k.check(err == nil, "REMOTE_REGIONS", "%s: %v", p.Addr, err)
		k.check(validID(p.Region, false), "REMOTE_REGIONS", "%q is not a region ID", p.Region)
		k.check(p.Region != r.RegionID, "REMOTE_REGIONS", "%s is this region", p.Region)
		k.check(!addrs[p.Addr], "REMOTE_REGIONS", "address %s is there twice", p.Addr)
		known[p.Region], addrs[p.Addr] = true, true
	}
	k.check(len(known) <= 5, "REMOTE_REGIONS", "names %d regions with this one, at most 5", len(known))
	k.check(r.WriteRegion == "" || known[r.WriteRegion], "WRITE_REGION", "is neither this region nor a remote one")
}

func (k *checker) regionNumbers() {
	r := k.c.Region
	k.check(r.BatchSize > 0, "CROSS_REGION_BATCH_SIZE", "must be positive")
	k.check(r.BatchTimeout > 0, "CROSS_REGION_BATCH_TIMEOUT", "must be positive")
	k.check(r.MaxClockOffset >= 0, "MAX_CLOCK_OFFSET", "must not be negative")
	k.check(r.OutboxMaxEntries > 0, "OUTBOX_MAX_ENTRIES", "must be positive")
	k.check(r.OutboxMaxBytes > 0, "OUTBOX_MAX_BYTES", "must be positive")
}

// consistency refuses levels that the mode cannot give. Reads: all modes give
// ONE and LOCAL_ONE from the local node; standalone and Raft give every level;
// hot standby gives all, QUORUM being what the primary has acknowledged; the
// regions give what stays within one of them. Writes: what the mode and its
// sync mode promise, and nothing else, so that nobody is promised less.
func (k *checker) consistency() {
	c := k.c
	if c.Mode == ModeMultiRegion {
		local := c.ReadConsistency == ConsistencyOne || c.ReadConsistency == ConsistencyLocalOne ||
			c.ReadConsistency == ConsistencyLocalQuorum
		k.check(local, "READ_CONSISTENCY", "mode multi_region gives ONE, LOCAL_ONE, LOCAL_QUORUM")
	}
	if c.WriteConsistency == "" {
		return
	}
	given := writeLevels(c)
	k.check(slices.Contains(given, c.WriteConsistency), "WRITE_CONSISTENCY", "mode %s gives %v", c.Mode, given)
}

func writeLevels(c *Config) []Consistency {
	switch c.Mode {
	case ModeStandalone:
		return levels
	case ModeHAStandby:
		if c.HA.SyncMode == SyncFull {
			return []Consistency{ConsistencyQuorum, ConsistencyLocalQuorum, ConsistencyAll}
		}
		return []Consistency{ConsistencyOne, ConsistencyLocalOne}
	case ModeRaft:
		return []Consistency{ConsistencyQuorum, ConsistencyLocalQuorum}
	default:
		return []Consistency{ConsistencyLocalQuorum}
	}
}

func validID(id string, emptyToo bool) bool {
	if id == "" {
		return emptyToo
	}
	return len(id) <= 128 && utf8.ValidString(id) && !strings.ContainsFunc(id, func(r rune) bool {
		return r <= ' ' || r == 0x7f || r == ':' || r == ','
	})
}

// addrProblem says what is wrong with host:port. Port 0, "any", is for a
// listener only.
func addrProblem(addr string, listener bool) error {
	if addr == "" {
		return errors.New("required: host:port")
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return errors.New("must be host:port")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return errors.New("the port must be a number up to 65535")
	}
	if !listener && (n == 0 || host == "") {
		return errors.New("needs a host and a port above 0")
	}
	if strings.ContainsAny(host, " ,/") {
		return errors.New("the host is malformed")
	}
	return nil
}

func parsePeers(s string) ([]RaftPeer, error) {
	var peers []RaftPeer
	for _, item := range splitList(s) {
		id, addr, err := splitNamed(item)
		if err != nil {
			return nil, err
		}
		peers = append(peers, RaftPeer{ID: id, Addr: addr})
	}
	return peers, nil
}

func formatPeers(peers []RaftPeer) string {
	list := make([]string, len(peers))
	for i, p := range peers {
		list[i] = p.Addr
		if p.ID != "" {
			list[i] = p.ID + ":" + p.Addr
		}
	}
	return strings.Join(list, ",")
}

func parseRegions(s string) ([]RemoteRegion, error) {
	var regions []RemoteRegion
	for _, item := range splitList(s) {
		id, addr, err := splitNamed(item)
		if err != nil {
			return nil, err
		}
		if id == "" {
			return nil, fmt.Errorf("%s names no region", item)
		}
		regions = append(regions, RemoteRegion{Region: id, Addr: addr})
	}
	return regions, nil
}

func formatRegions(regions []RemoteRegion) string {
	list := make([]string, len(regions))
	for i, r := range regions {
		list[i] = r.Region + ":" + r.Addr
	}
	return strings.Join(list, ",")
}

// splitNamed splits "name:host:port", "host:port", "name:[v6]:port" or
// "[v6]:port".
func splitNamed(item string) (name, addr string, err error) {
	addr = item
	if i := strings.Index(item, ":"); i >= 0 && !strings.HasPrefix(item, "[") {
		rest := item[i+1:]
		if strings.HasPrefix(rest, "[") || strings.Count(rest, ":") == 1 {
			name, addr = item[:i], rest
		}
	}
	if err := addrProblem(addr, false); err != nil {
		return "", "", fmt.Errorf("%s: %w", item, err)
	}
	return name, addr, nil
}
