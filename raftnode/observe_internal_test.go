package raftnode

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication/internal/bubble"
	"github.com/stretchr/testify/require"
)

// narrowPipeline has room for one request under way, as hashicorp/raft's has by
// default; it answers each as it is told.
type narrowPipeline struct {
	sent, answered chan raft.AppendFuture
	done           chan struct{}
}

type answeredAppend struct {
	raft.AppendFuture
	args *raft.AppendEntriesRequest
	resp *raft.AppendEntriesResponse
}

func (f *answeredAppend) Error() error                          { return nil }
func (f *answeredAppend) Start() time.Time                      { return time.Time{} }
func (f *answeredAppend) Request() *raft.AppendEntriesRequest   { return f.args }
func (f *answeredAppend) Response() *raft.AppendEntriesResponse { return f.resp }

func newNarrowPipeline(answer func(*raft.AppendEntriesResponse)) *narrowPipeline {
	p := &narrowPipeline{sent: make(chan raft.AppendFuture), answered: make(chan raft.AppendFuture), done: make(chan struct{})}
	go func() {
		for {
			select {
			case f := <-p.sent:
				answer(f.Response())
				select {
				case p.answered <- f:
				case <-p.done:
					return
				}
			case <-p.done:
				return
			}
		}
	}()
	return p
}

func (p *narrowPipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	f := &answeredAppend{args: args, resp: resp}
	select {
	case p.sent <- f:
		return f, nil
	case <-p.done:
		return nil, raft.ErrPipelineShutdown
	}
}

func (p *narrowPipeline) Consumer() <-chan raft.AppendFuture { return p.answered }
func (p *narrowPipeline) Close() error                       { close(p.done); return nil }

// TestSenderDoesNotWaitForAReaderThatHasLeft: hashicorp/raft's reader of answers
// leaves at the first that ends the pipeline, while its sender may send on.
func TestSenderDoesNotWaitForAReaderThatHasLeft(t *testing.T) {
	for name, answer := range map[string]func(*raft.AppendEntriesResponse){
		"refused":      func(r *raft.AppendEntriesResponse) { r.Term = 3 },
		"a later term": func(r *raft.AppendEntriesResponse) { r.Term, r.Success = 4, true },
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) { // a sender that waits for ever is a deadlock
				o := &observedTransport{followers: make(map[raft.ServerID]*followerState), answered: make(chan struct{})}
				p := o.observe("n2", newNarrowPipeline(answer))
				send := func() error {
					_, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 3}, &raft.AppendEntriesResponse{})
					return err
				}
				require.NoError(t, send())
				require.NoError(t, send(), "one is under way")
				<-p.Consumer() // and the reader leaves
				var err error
				for range 10 {
					if err = send(); err != nil {
						break
					}
				}
				require.ErrorIs(t, err, raft.ErrPipelineShutdown)
				require.NoError(t, p.Close())
			})
		})
	}
}
