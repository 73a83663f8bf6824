package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/nornicdb/replication"
)

// handOverTimeout is what a primary that stops waits for its standby.
const handOverTimeout = 3 * time.Second

// handOver gives the primary's part to the standby, where there is one that can
// take it, so that a node that is stopped leaves no gap of a failover timeout.
// Raft mode does so itself when it is shut down.
func (n *node) handOver(logger *slog.Logger) {
	members, ok := n.repl.(replication.Membership)
	if !ok || n.repl.Mode() != replication.ModeHAStandby || !n.repl.IsLeader() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), handOverTimeout)
	defer cancel()
	if err := transferWhenReady(ctx, members); err != nil {
		logger.Warn("the standby did not take over; it does when its failover timeout is over, if it may", "error", err)
	}
}

// transferWhenReady hands leadership on, and waits for a standby that is about to be
// able to take it: it hears that it is admitted with the next heartbeat.
func transferWhenReady(ctx context.Context, members replication.Membership) error {
	for {
		err := members.TransferLeadership(ctx, "")
		if !errors.Is(err, replication.ErrNotReady) {
			return err
		}
		timer := time.NewTimer(50 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}
