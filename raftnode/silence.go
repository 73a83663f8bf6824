package raftnode

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/raft"
)

// spawnSilenceWatch makes a follower stand for election soon after its leader
// has been silent for the follower timeout T. hashicorp/raft looks every T to
// 2T whether that is so, and notices it after T to 3T; and a quorum has to have
// noticed before one of it is elected. The function it returns ends it.
func (n *Node) spawnSilenceWatch() (stop func()) {
	ctx, cancel := context.WithCancel(n.ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w := silence{timeout: n.cfg.Raft.FollowerTimeout()}
		timer := time.NewTimer(w.timeout)
		defer timer.Stop()
		for {
			select {
			case <-timer.C:
			case <-ctx.Done():
				return
			}
			contact := time.Time{}
			if n.raft.State() == raft.Follower {
				contact = n.raft.LastContact()
			}
			wait, over := w.look(contact, time.Now(), rand.Float64())
			if over {
				n.lookAtTimer()
			}
			timer.Reset(wait)
		}
	}()
	return func() { cancel(); <-done }
}

// silence decides when a leader has been silent for too long. It has no clock
// of its own.
type silence struct {
	timeout time.Duration
	contact time.Time     // the last one seen
	extra   time.Duration // above the timeout, different on every node: those who stand at once split the vote
	over    bool          // said for this contact already
}

// look says when to look again, and whether the silence is over the limit now;
// once for each contact. random is from 0 to 1.
func (s *silence) look(contact, now time.Time, random float64) (again time.Duration, over bool) {
	if !contact.Equal(s.contact) {
		s.contact, s.over = contact, false
		s.extra = time.Duration(random * float64(s.timeout) / 4)
	}
	left := contact.Add(s.timeout + s.extra).Sub(now)
	if contact.IsZero() || s.over {
		return s.timeout / 4, false
	}
	if left > 0 {
		return left, false
	}
	s.over = true
	return s.timeout / 4, true
}

// lookAtTimer makes hashicorp/raft look at once how long its leader has been
// silent: it does when its timeout is lowered. A configuration in which it
// cannot be, as it equals the lease, keeps hashicorp/raft's own time.
func (n *Node) lookAtTimer() {
	set := n.raft.ReloadableConfig()
	lowered := set
	lowered.HeartbeatTimeout--
	if n.raft.ReloadConfig(lowered) == nil {
		if err := n.raft.ReloadConfig(set); err != nil { // it was set before
			n.rt.Logger.Warn("the follower timeout was not set back", "error", err)
		}
	}
}
