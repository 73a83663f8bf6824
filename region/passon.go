package region

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nornicdb/replication"
)

// passOnEvery is how often a leader that cannot do its office looks for another
// one.
const passOnEvery = 10 * time.Second

// passing is what a node does about an office that it cannot do.
type passing struct {
	wg   sync.WaitGroup
	last time.Time
}

// misplaced says whether the node's environment is not its region's.
func (n *Node) misplaced() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.alarm != nil
}

// passOn hands leadership to a voter that says that it is well. Where there is
// none the office stays, as another node that cannot do it would only hand it
// back.
func (n *Node) passOn(p *passing) {
	if !p.last.IsZero() && time.Since(p.last) < passOnEvery {
		return
	}
	p.last = time.Now()
	p.wg.Go(func() {
		ctx, cancel := context.WithTimeout(n.ctx, passOnEvery)
		defer cancel()
		to, err := n.successor(ctx)
		if err == nil && n.inner.IsLeader() {
			err = n.inner.TransferLeadership(ctx, to)
		}
		if err != nil {
			n.rt.Logger.Warn("this node leads a region that is not the one its environment describes, and leadership was not handed on", "error", err)
		}
	})
}

// successor is another voter that says that it is well.
func (n *Node) successor(ctx context.Context) (id string, err error) {
	status, err := n.inner.ClusterStatus(ctx)
	if err != nil {
		return "", err
	}
	for _, m := range status.Members {
		if m.ID == n.inner.NodeID() || !m.Voter || !m.Healthy {
			continue
		}
		if h, err := n.healthOf(ctx, m.Address); err == nil && h.NodeID == m.ID && h.Healthy {
			return m.ID, nil
		}
	}
	return "", fmt.Errorf("%w: no other voter is well", replication.ErrQuorumAtRisk)
}

// healthOf asks a node of this region how it is.
func (n *Node) healthOf(ctx context.Context, addr string) (*replication.HealthStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, passOnEvery/4)
	defer cancel()
	conn, err := n.transport().Connect(ctx, addr)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	h := new(replication.HealthStatus)
	return h, conn.(replication.Caller).Call(ctx, replication.MsgStatus, &replication.StatusRequest{}, h)
}
