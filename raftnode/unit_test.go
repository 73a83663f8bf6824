package raftnode

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

func TestDecideEntry(t *testing.T) {
	silent := peerView{addr: "p", err: errors.New("refused")}
	empty := peerView{addr: "e", id: "e"}
	virgin := peerView{addr: "v", id: "v", founded: true, virgin: true, namesMe: true}
	lived := peerView{addr: "l", id: "l", founded: true, namesMe: true}
	foreign := peerView{addr: "f", id: "f", founded: true}
	for _, tc := range []struct {
		name             string
		bootstrap, force bool
		views            []peerView
		want             entry
	}{
		{"founder, all empty", true, false, []peerView{empty, empty}, entryFound},
		{"founder alone in the world", true, false, nil, entryFound},
		{"founder, one silent", true, false, []peerView{empty, silent}, entryWait},
		{"founder, one silent, forced", true, true, []peerView{empty, silent}, entryFound},
		{"founder where a cluster is", true, false, []peerView{empty, foreign}, entryRefuse},
		{"founder that is wiped", true, false, []peerView{lived, empty}, entryJoin},
		{"founder that is wiped, forced, sees silence", true, true, []peerView{lived, silent}, entryJoin},
		{"first start beside a new founder", false, false, []peerView{virgin, empty}, entryBegin},
		{"first start, third node silent: it may know more", false, false, []peerView{virgin, silent}, entryWait},
		{"forced founder never passes over a founded peer", true, true, []peerView{virgin, silent}, entryWait},
		{"wiped voter, one peer was down all along", false, false, []peerView{virgin, lived}, entryJoin},
		{"wiped voter", false, false, []peerView{lived, lived}, entryJoin},
		{"wiped voter, nobody answers", false, false, []peerView{silent, silent}, entryWait},
		{"new node", false, false, []peerView{foreign, foreign}, entryJoin},
		{"nobody has founded", false, false, []peerView{empty, empty}, entryWait},
	} {
		got, _ := decideEntry(tc.bootstrap, tc.force, tc.views)
		require.Equal(t, tc.want, got, tc.name)
	}
}

// TestOldAnswersDoNotConfirmARound: an answer counts for a round only if its
// request was sent after the round began, in the same term.
func TestOldAnswersDoNotConfirmARound(t *testing.T) {
	o := &observedTransport{followers: make(map[raft.ServerID]*followerState), answered: make(chan struct{})}
	voters := []raft.ServerID{"b", "c"}
	count := func(term, round uint64) int { n, _ := o.confirmed(voters, term, round); return n }
	sentBefore := o.round.Load()
	round := o.round.Add(1)
	o.note("b", 5, sentBefore, &raft.AppendEntriesResponse{Term: 5, Success: true})
	require.Zero(t, count(5, round), "an answer to a heartbeat that was sent before")
	o.note("b", 5, o.round.Load(), &raft.AppendEntriesResponse{Term: 6})
	require.Zero(t, count(5, round), "the follower knows a later term")
	_, changed := o.confirmed(voters, 5, round)
	o.note("b", 5, o.round.Load(), &raft.AppendEntriesResponse{Term: 5, Success: true})
	require.Equal(t, 1, count(5, round))
	<-changed
	require.Zero(t, count(6, round), "another term is another matter")
	o.note("stranger", 5, o.round.Load(), &raft.AppendEntriesResponse{Term: 5, Success: true})
	require.Equal(t, 1, count(5, round), "only voters count")
}

func TestProposalErrors(t *testing.T) {
	for err, want := range map[error]error{
		raft.ErrNotLeader:                    replication.ErrNotLeader,
		raft.ErrLeadershipTransferInProgress: replication.ErrNotLeader,
		raft.ErrLeadershipLost:               replication.ErrUnknownOutcome,
		raft.ErrRaftShutdown:                 replication.ErrUnknownOutcome,
		errors.New("disk full"):              replication.ErrUnknownOutcome,
	} {
		require.ErrorIs(t, proposalError(err), want)
	}
}

// stuckStore hangs in StoreLogs until released.
type stuckStore struct {
	raft.InmemStore
	release chan struct{}
}

func (s *stuckStore) StoreLogs(l []*raft.Log) error { <-s.release; return s.InmemStore.StoreLogs(l) }

func TestWatchedStoreKnowsHowLongAWriteHangs(t *testing.T) {
	now := time.Unix(0, 0)
	s := &stuckStore{InmemStore: *raft.NewInmemStore(), release: make(chan struct{})}
	w := newWatchedStore(s, func() time.Time { return now })
	require.Zero(t, w.stuckFor())
	done := make(chan error)
	go func() { done <- w.StoreLog(&raft.Log{Index: 1, Data: []byte("x")}) }()
	require.Eventually(t, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.calls) == 1
	}, 10*time.Second, time.Millisecond)
	w.mu.Lock() // the store reads the clock under its lock
	now = now.Add(3 * time.Second)
	w.mu.Unlock()
	require.Equal(t, 3*time.Second, w.stuckFor())
	close(s.release)
	require.NoError(t, <-done)
	require.Zero(t, w.stuckFor())
	var l raft.Log
	require.NoError(t, w.GetLog(1, &l))
	require.NoError(t, w.DeleteRange(1, 1))
	require.ErrorIs(t, w.GetLog(1, &l), raft.ErrLogNotFound, "the cache forgets what is deleted")
}

func TestLagIsMeasuredFromWhenItBegan(t *testing.T) {
	var l lagTracker
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	l.polled(10, 10, at(0))
	n, s := l.lag(10, at(5))
	require.Zero(t, n)
	require.Zero(t, s)
	l.polled(10, 30, at(6))
	n, s = l.lag(20, at(8))
	require.Equal(t, uint64(10), n)
	require.Equal(t, 2.0, s)
	l.polled(30, 40, at(9)) // what lacked has come, something newer lacks
	_, s = l.lag(35, at(10))
	require.Equal(t, 1.0, s)
}

func TestExpiredProposalsAreAnsweredAndNotTaken(t *testing.T) {
	s := &submitter{atomic: true, slots: make(chan struct{}, 8)}
	expired, cancel := context.WithCancel(t.Context())
	cancel()
	queue := func(ctx context.Context) *proposal {
		s.slots <- struct{}{}
		p := &proposal{ctx: ctx, done: make(chan replication.Result, 1), group: replication.NewGroup(&replication.Command{})}
		s.queue = append(s.queue, p)
		return p
	}
	gone, alive := queue(expired), queue(t.Context())
	require.Equal(t, []*proposal{alive}, s.next())
	require.ErrorIs(t, (<-gone.done).Err, replication.ErrTimeout)
	require.Len(t, s.slots, 1)
}

func TestEntriesJoinUpToTheirBounds(t *testing.T) {
	s := &submitter{atomic: true, slots: make(chan struct{}, 1000)}
	add := func(bytes int, alone bool) {
		s.queue = append(s.queue, &proposal{ctx: t.Context(), bytes: bytes, alone: alone, group: replication.NewGroup(&replication.Command{})})
	}
	for range 300 {
		add(10, false)
	}
	require.Len(t, s.next(), maxJoinedCommands)
	require.Len(t, s.next(), 300-maxJoinedCommands)
	add(10, false)
	add(10, true)
	add(10, false)
	add(10*maxJoinedBytes, false)
	add(10, false)
	for _, want := range []int{1, 1, 1, 1, 1} {
		require.Len(t, s.next(), want)
	}
	require.Empty(t, s.next())
}

func TestSilenceIsNoticedOnceForEachContact(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(100, 0).Add(time.Duration(ms) * time.Millisecond) }
	s := silence{timeout: time.Second}
	look := func(contact, now time.Time) (int, bool) {
		again, over := s.look(contact, now, 0.4)
		return int(again.Milliseconds()), over
	}
	for _, step := range []struct {
		contact, now time.Time
		again        int
		over         bool
	}{
		{time.Time{}, at(0), 250, false}, // never heard of a leader, or not a follower
		{at(100), at(200), 1000, false},  // a second and 0.4 quarters after the contact
		{at(1000), at(1200), 900, false},
		{at(1000), at(2099), 1, false},
		{at(1000), at(2100), 250, true},
		{at(1000), at(2350), 250, false},
		{at(2400), at(2600), 900, false},
		{at(2400), at(9000), 250, true},
		{time.Time{}, at(9250), 250, false},
	} {
		again, over := look(step.contact, step.now)
		require.Equal(t, step.again, again, step)
		require.Equal(t, step.over, over, step)
	}
}

func TestPaceOfEntries(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(100, 0).Add(time.Duration(ms) * time.Millisecond) }
	one := func(ms int) *proposal {
		return &proposal{since: at(ms), bytes: 100, group: replication.NewGroup(&replication.Command{})}
	}
	var p pace
	require.Zero(t, p.wait(one(0), 1, at(0)), "nothing is under way")
	p.open++
	require.Equal(t, joinWait, p.wait(one(5), 1, at(5)), "the first that comes after it waits for it")
	require.Equal(t, joinWait-3*time.Millisecond, p.wait(one(5), 9, at(8)))
	require.LessOrEqual(t, p.wait(one(5), 1, at(15)), time.Duration(0), "but not for ever")
	alone := one(5)
	alone.alone = true
	require.Zero(t, p.wait(alone, 1, at(5)), "what cannot be joined has nothing to wait for")

	p.answered(3, 8*time.Millisecond, at(20))
	require.Equal(t, time.Millisecond, p.wait(one(20), 1, at(20)), "the two others are coming back")
	require.Zero(t, p.wait(one(20), 3, at(20)), "all are back")
	require.LessOrEqual(t, p.wait(one(20), 1, at(21)), time.Duration(0), "they are not coming back")
	p.open++
	p.answered(3, time.Minute, at(20))
	require.Equal(t, lingerMost, p.wait(one(20), 1, at(20)))

	p.open++
	for range maxJoinedCommands {
		p.queued(1, one(0))
	}
	require.Zero(t, p.wait(one(30), maxJoinedCommands, at(30)), "a full entry waits for nothing")
	p.queued(-1, one(0))
	require.Positive(t, p.wait(one(30), maxJoinedCommands-1, at(30)))
	big := one(30)
	big.bytes = maxJoinedBytes
	p.queued(1, big)
	require.Zero(t, p.wait(big, 1, at(30)))
}

// TestRequestsBehindASnapshotFitWithoutLookUp: see incoming.
func TestRequestsBehindASnapshotFitWithoutLookUp(t *testing.T) {
	entries := []*raft.Log{{Index: 4}, {Index: 5}, {Index: 6}}
	for _, tc := range []struct{ first, prev, wantPrev, wantEntries uint64 }{
		{first: 5, prev: 3, wantPrev: 0, wantEntries: 2}, // the snapshot covers 4
		{first: 4, prev: 3, wantPrev: 0, wantEntries: 3}, // begins where the log does
		{first: 9, prev: 3, wantPrev: 0, wantEntries: 0}, // covers everything
		{first: 3, prev: 3, wantPrev: 3, wantEntries: 3}, // can be looked up
		{first: 0, prev: 3, wantPrev: 3, wantEntries: 3}, // an empty log: Raft compares with the snapshot
		{first: 5, prev: 0, wantPrev: 0, wantEntries: 3}, // nothing before it
	} {
		request := &raft.AppendEntriesRequest{PrevLogEntry: tc.prev, PrevLogTerm: 1, Entries: entries, LeaderCommitIndex: 6}
		rpc := raft.RPC{Command: request}
		(&incoming{first: func() (uint64, error) { return tc.first, nil }}).correct(&rpc)
		got := rpc.Command.(*raft.AppendEntriesRequest)
		require.Equal(t, tc.wantPrev, got.PrevLogEntry)
		require.Len(t, got.Entries, int(tc.wantEntries))
		require.Equal(t, uint64(6), got.LeaderCommitIndex)
		require.Len(t, request.Entries, 3, "the sender's own is left alone")
	}
}
