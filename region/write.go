package region

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/nornicdb/replication"
)

var (
	// ErrUnconfirmed: the write is committed in this region, and no other region
	// has said in time that its quorum has it (semi_sync). It wraps
	// replication.ErrUnknownOutcome, as the write is on its way nevertheless.
	ErrUnconfirmed = fmt.Errorf("%w: committed here, unconfirmed there", replication.ErrUnknownOutcome)

	errActiveActive = fmt.Errorf("%w: all regions accept writes (active-active), there is none to be promoted", replication.ErrUnsupported)
)

// checkCommands refuses what must not be proposed.
func checkCommands(cmds []*replication.Command) error {
	if len(cmds) == 1 && cmds[0] != nil {
		switch cmds[0].Type {
		case cmdPromote:
			return nil
		case cmdChange:
			_, err := decodeChange(cmds[0].Data)
			return err
		case cmdResolve:
			var r resolveRequest
			if err := json.Unmarshal(cmds[0].Data, &r); err != nil {
				return fmt.Errorf("%w: %v", replication.ErrInvalidCommand, err)
			}
			_, _, err := r.decode()
			return err
		}
	}
	return checkWrites(cmds)
}

// checkWrites refuses what a client must not send.
func checkWrites(cmds []*replication.Command) error {
	if err := replication.ValidateBatch(cmds); err != nil {
		return err
	}
	for _, c := range cmds {
		if c.Type >= replication.CmdEmbedder {
			return fmt.Errorf("%w: %s", replication.ErrOpaqueWrite, c.Type)
		}
	}
	return nil
}

// wrap makes what goes into the log of what was sent. It runs on the leader,
// whose wall reading the write gets.
func (n *Node) wrap(g replication.Group) (replication.Group, error) {
	if err := n.alarmedBy(); err != nil {
		if n.misplaced() { // the next leader may take it
			return g, fmt.Errorf("%w: %w", replication.ErrNotReady, err)
		}
		return g, fmt.Errorf("%w: %w", replication.ErrUnsupported, err)
	}
	if v, _ := n.machine.now(); v.settings == nil {
		return g, fmt.Errorf("%w: the region's settings are not founded yet", replication.ErrNotReady)
	}
	c := &logCommand{kind: kindWrite, wallMS: n.wallMS(), commands: g.Commands}
	if g.RequestID != "" {
		c.request, c.hash = g.RequestID, g.Hash
	}
	if len(g.Commands) == 1 {
		switch g.Commands[0].Type {
		case cmdResolve:
			c.kind, c.body = kindResolve, g.Commands[0].Data
		case cmdPromote:
			c.kind = kindPromote
		case cmdChange:
			c.kind, c.body = kindChange, g.Commands[0].Data
		}
	}
	if c.kind == kindWrite {
		if err := n.links.skewed(n.cfg.Region.ClockSkewPolicy, n.clockBound(), n.rt.Now()); err != nil {
			return g, err
		}
	}
	g.Commands = []*replication.Command{c.encode()}
	return g, nil
}

// Apply implements replication.Replicator.
func (n *Node) Apply(cmd *replication.Command, timeout time.Duration) error {
	if timeout <= 0 {
		return fmt.Errorf("%w: %s", replication.ErrInvalidTimeout, timeout)
	}
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	_, err := n.ApplyBatch(ctx, []*replication.Command{cmd})
	return err
}

// ApplyBatch implements replication.BatchApplier. Where another region is the
// write region it is sent there; the position then is one of that region.
func (n *Node) ApplyBatch(ctx context.Context, cmds []*replication.Command) (uint64, error) {
	if err := n.astray(); err != nil {
		return 0, err
	}
	if owner := n.writeRegion(); owner != "" && owner != n.settings.Self {
		if err := checkWrites(cmds); err != nil {
			return 0, err
		}
		return n.applyAtOwner(ctx, cmds)
	}
	for _, c := range cmds { // all else is checked by checkCommands, which takes requests of this package too
		switch {
		case c == nil:
		case c.Type >= replication.CmdEmbedder:
			return 0, fmt.Errorf("%w: %s", replication.ErrOpaqueWrite, c.Type)
		case c.Type >= cmdLog: // of this package, whatever it may come to have
			return 0, fmt.Errorf("%w: no operation for type %s", replication.ErrInvalidCommand, c.Type)
		}
	}
	return n.inner.ApplyBatch(ctx, cmds)
}

// writeRegion is the region that accepts writes as far as this node knows;
// empty: all do.
func (n *Node) writeRegion() string {
	v, _ := n.machine.now()
	if v.settings == nil {
		return n.settings.WriteRegion
	}
	return v.head.Epoch.Owner
}

// astray is why the node takes no writes at all, not to send them on either: it
// takes itself for another region's, so it does not know who accepts them. nil: it
// does.
func (n *Node) astray() error {
	v, _ := n.machine.now()
	if v.settings == nil || v.settings.Self == n.settings.Self {
		return nil
	}
	return fmt.Errorf("%w: %w", replication.ErrNotReady, n.settings.differs(v.settings))
}

// committed holds the answer of a semi_sync write back until another region has
// it. The leader waits for all that its outbox held when the write was applied,
// which the write is part of. A promotion waits for nobody: it is made when the
// other region is lost; nor does a change of settings, which stays in the region.
func (n *Node) committed(ctx context.Context, sent []*replication.Command) error {
	if n.cfg.Region.CrossRegionMode != replication.SyncSemi || len(sent) == 1 && (sent[0].Type == cmdPromote || sent[0].Type == cmdChange) {
		return nil
	}
	v, _ := n.machine.now()
	if v.settings == nil || len(v.settings.others()) == 0 {
		return nil
	}
	if err := n.acks.wait(ctx, n.ctx, v.head.Last, v.head.Cursors); err != nil {
		return fmt.Errorf("%w: %w", ErrUnconfirmed, err)
	}
	return nil
}

// acks are how far other regions have said they are in this region's stream;
// the leader writes it into the replicated cursors now and then.
type acks struct {
	// mu guards the fields below.
	mu      sync.Mutex
	at      cursors
	changed chan struct{} // closed and replaced when at changes
}

func newAcks() *acks { return &acks{at: make(cursors), changed: make(chan struct{})} }

func (a *acks) learn(region string, pos uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if pos <= a.at[region] {
		return
	}
	a.at[region] = pos
	close(a.changed)
	a.changed = make(chan struct{})
}

// beyond returns what is further than the cursors; nil: nothing.
func (a *acks) beyond(have cursors, last uint64) cursors {
	a.mu.Lock()
	defer a.mu.Unlock()
	var more cursors
	for region, pos := range have {
		if acked := min(a.at[region], last); acked > pos {
			if more == nil {
				more = make(cursors)
			}
			more[region] = acked
		}
	}
	return more
}

// wait waits until one region has pos.
func (a *acks) wait(ctx, life context.Context, pos uint64, have cursors) error {
	for _, p := range have {
		if p >= pos {
			return nil
		}
	}
	for {
		a.mu.Lock()
		changed := a.changed
		done := false
		for _, p := range a.at {
			done = done || p >= pos
		}
		a.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-life.Done():
			return replication.ErrClosed
		}
	}
}
