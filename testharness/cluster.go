package testharness

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/transport"
)

// ClusterConfig describes a cluster. Zero fields get what stands beside them.
type ClusterConfig struct {
	Seed  uint64
	Nodes int // 3
	// Configure makes a member's configuration what its mode needs. Before it,
	// the configuration has the node's ID, addresses and data directory.
	Configure func(m *Member, cfg *replication.Config)
	// Modes of a member; it is called anew for every incarnation.
	Modes func(m *Member) replication.Modes
	// Wrap stands between a member's replicator and its storage; nil: nothing
	// does. It is called anew for every incarnation.
	Wrap func(m *Member, s replication.TxStorage) replication.Storage
	// Deferring makes the members' storages able to defer, see OpenDeferring.
	Deferring bool
	// Transport changes the options of a member's transport.
	Transport func(m *Member, o *transport.Options)
	// Secret of the cluster; one of the harness's own.
	Secret string
}

const (
	defaultSecret = "a secret of the test harness"
	clusterPort   = ":7688"
)

// Cluster is some nodes on one simulated network, each with a simulated disk
// and a MemStore on it. Make it inside a testing/synctest bubble. Its methods
// may be called from any goroutine; for one member, one at a time.
type Cluster struct {
	Net        *Network
	Members    []*Member
	Transcript *Transcript

	tb  testing.TB
	cfg ClusterConfig
}

// Member is one node of a cluster, through all its incarnations.
type Member struct {
	ID, Addr string
	Config   *replication.Config

	c        *Cluster
	index    int
	starting chan struct{} // holds a token while nobody starts the node

	// mu guards the fields below.
	mu     sync.Mutex
	disk   *Disk
	store  *MemStore
	volume *FaultyStorage
	offset time.Duration
	life   *incarnation // nil: the node is down
	dying  []*incarnation
	number int // of incarnations so far
}

// incarnation is one process of a node.
type incarnation struct {
	repl   replication.Replicator
	tr     *transport.Transport
	served chan error    // Listen's end
	gone   chan struct{} // closed when everything of it has ended, and err is set
	err    error
	events func() // ends the subscription
	buried bool   // somebody ends it; guarded by the member's mu
}

// NewCluster makes a cluster; no node of it is started. At the test's end all
// are stopped, and where it failed the transcript is kept.
func NewCluster(tb testing.TB, cfg ClusterConfig) *Cluster {
	tb.Helper()
	if cfg.Nodes == 0 {
		cfg.Nodes = 3
	}
	if cfg.Secret == "" {
		cfg.Secret = defaultSecret
	}
	c := &Cluster{Net: NewNetwork(cfg.Seed), Transcript: NewTranscript(), tb: tb, cfg: cfg}
	c.Net.SetLog(func(e NetworkEvent) {
		c.Transcript.Add("network", "%s→%s #%d %s %s", e.From, e.To, e.Conn, e.Kind, e.Detail)
	})
	for i := range cfg.Nodes {
		id := fmt.Sprint("n", i+1)
		m := &Member{ID: id, Addr: id + clusterPort, c: c, index: i, starting: make(chan struct{}, 1)}
		m.starting <- struct{}{}
		c.Members = append(c.Members, m)
	}
	for _, m := range c.Members {
		m.freshDisk()
		m.Config = replication.DefaultConfig()
		m.Config.NodeID, m.Config.BindAddr, m.Config.DataDir = m.ID, m.Addr, tb.TempDir()
		if cfg.Configure != nil {
			cfg.Configure(m, m.Config)
		}
	}
	tb.Cleanup(func() {
		c.Net.Heal()
		c.Net.ClearFaults()
		for _, m := range c.Members {
			m.Disk().Release()
			if err := c.Stop(m); err != nil {
				tb.Errorf("stopping %s: %v", m.ID, err)
			}
			m.waitGone()
		}
		c.Transcript.Keep(tb)
	})
	return c
}

// freshDisk gives a member an empty disk.
func (m *Member) freshDisk() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.disk = NewDisk(m.c.cfg.Seed + uint64(m.index) + uint64(m.number)<<32)
	m.disk.SetLog(func(e DiskEvent) { m.c.Transcript.Add(m.ID, "disk %s %s", e.Kind, e.Detail) })
	m.store = NewMemStore()
	m.volume = m.disk.NewStorage(m.store)
}

// Peers are the other members.
func (m *Member) Peers() (list []*Member) {
	for _, o := range m.c.Members {
		if o != m {
			list = append(list, o)
		}
	}
	return list
}

// Disk is the member's disk; another one after Wipe.
func (m *Member) Disk() *Disk {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.disk
}

// Store is what the member's disk holds of the graph; another one after Wipe.
func (m *Member) Store() *MemStore {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.store
}

// Replicator is that of the present incarnation; nil while the node is down.
func (m *Member) Replicator() replication.Replicator {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.life == nil {
		return nil
	}
	return m.life.repl
}

// Running says whether the node is up.
func (m *Member) Running() bool { return m.Replicator() != nil }

// SetClockOffset puts the member's wall clock off by d.
func (m *Member) SetClockOffset(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.offset = d
	m.c.Transcript.Add(m.ID, "clock offset %v", d)
}

func (m *Member) now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return time.Now().Add(m.offset)
}

// Start starts a node as what its disk has made of it. It blocks as
// Replicator.Start does: a cluster that is founded needs its nodes started
// together, see StartAll. Of several calls at once one starts it.
func (c *Cluster) Start(ctx context.Context, m *Member) error {
	<-m.starting // a mutex would hold virtual time up
	defer func() { m.starting <- struct{}{} }()
	if m.Running() {
		return nil
	}
	m.waitGone()
	life, err := c.open(ctx, m)
	if err != nil {
		return err
	}
	if err := life.repl.Start(ctx); err != nil {
		c.Transcript.Add(m.ID, "did not start: %v", err)
		m.bury(life)
		return err
	}
	return nil
}

// open makes the next incarnation of a node and begins to serve its port.
func (c *Cluster) open(ctx context.Context, m *Member) (*incarnation, error) {
	h := c.Net.Host(m.ID)
	logger := nodeLogger{c.Transcript, m.ID}
	o, err := transport.OptionsFromConfig(m.Config, logger)
	if err != nil {
		return nil, err
	}
	o.Secret, o.Listen, o.Dial = []byte(c.cfg.Secret), h.Listen, h.Dial
	if c.cfg.Transport != nil {
		c.cfg.Transport(m, &o)
	}
	tr, err := transport.New(o)
	if err != nil {
		return nil, err
	}
	if _, err := tr.Bind(ctx, m.Addr); err != nil {
		return nil, errors.Join(err, tr.Close())
	}
	life := &incarnation{tr: tr, served: make(chan error, 1), gone: make(chan struct{}), events: func() {}}
	go func() { life.served <- tr.Listen(context.Background(), m.Addr, nil) }()
	m.mu.Lock()
	m.number++
	storage := replication.Storage(m.volume.Open())
	if c.cfg.Deferring {
		if storage, err = m.volume.OpenDeferring(); err != nil {
			c.tb.Errorf("%s: what was flushed: %v", m.ID, err)
		}
	}
	if c.cfg.Wrap != nil {
		m.mu.Unlock() // Wrap may ask the member for its store
		storage = c.cfg.Wrap(m, storage.(replication.TxStorage))
		m.mu.Lock()
	}
	c.Transcript.Add(m.ID, "incarnation %d starts", m.number)
	m.mu.Unlock()
	life.repl, err = replication.New(m.Config, storage, c.cfg.Modes(m), replication.WithLogger(logger),
		replication.WithTransport(tr), replication.WithClock(m.now))
	if err != nil {
		err = errors.Join(err, tr.Close())
		<-life.served
		return nil, err
	}
	if s, ok := life.repl.(replication.Subscriber); ok {
		events, cancel := s.Subscribe(1024)
		life.events = cancel
		go c.Transcript.events(m.ID, events)
	}
	m.mu.Lock()
	m.life = life
	m.mu.Unlock()
	return life, nil
}

// StartAll starts all nodes together; it fails the test where one does not.
func (c *Cluster) StartAll(ctx context.Context) {
	c.tb.Helper()
	errs := make(chan error, len(c.Members))
	for _, m := range c.Members {
		go func() { errs <- c.Start(ctx, m) }()
	}
	for range c.Members {
		if err := <-errs; err != nil {
			c.tb.Fatalf("start: %v", err)
		}
	}
}

// Stop stops a node cleanly; nil if it is down.
func (c *Cluster) Stop(m *Member) error {
	life := m.takeLife()
	if life == nil {
		return nil
	}
	c.Transcript.Add(m.ID, "stops")
	return m.bury(life)
}

// takeLife makes the node count as down.
func (m *Member) takeLife() *incarnation {
	m.mu.Lock()
	defer m.mu.Unlock()
	life := m.life
	m.life = nil
	if life != nil {
		m.dying = append(m.dying, life)
	}
	return life
}

// bury ends everything of an incarnation. A crash in the middle of a start calls
// it twice.
func (m *Member) bury(life *incarnation) error {
	m.mu.Lock()
	if m.life == life {
		m.life = nil
	}
	again := life.buried
	life.buried = true
	m.mu.Unlock()
	if again {
		<-life.gone
		return life.err
	}
	err := life.repl.Shutdown()
	life.events()
	life.err = errors.Join(err, life.tr.Close(), <-life.served)
	close(life.gone)
	return life.err
}

// waitGone waits until nothing of earlier incarnations is left: the lock on the
// data directory, above all, which a process that really died would not hold.
func (m *Member) waitGone() {
	m.mu.Lock()
	dying := m.dying
	m.dying = nil
	m.mu.Unlock()
	for _, life := range dying {
		<-life.gone
	}
}
