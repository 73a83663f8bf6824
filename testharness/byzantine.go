package testharness

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/transport"
)

const (
	// recordedStreams and recordedBytes bound what a Byzantine has overheard:
	// the first streams, and the beginning of each.
	recordedStreams = 32
	recordedBytes   = 64 << 10
	// answerBytes and maxAnswers bound what it reads of the answers.
	answerBytes = 1 << 20
	maxAnswers  = 16
)

// ByzantineOptions say whom a Byzantine attacks and what it knows.
type ByzantineOptions struct {
	ID        string   // its host
	Target    string   // the address under attack
	ClusterID string   // of the target
	NodeIDs   []string // members, whose names it takes; at least one
	Seed      uint64
	// Patience is how long it waits for an answer, 10 s where it is 0.
	Patience time.Duration
}

// Byzantine is a hostile peer: it overhears what is sent to its target, and
// speaks to the target's port by itself. The order of its attacks and
// everything in them is drawn from the seed.
type Byzantine struct {
	o    ByzantineOptions
	host *Host
	to   string // host of the target

	// mu serializes attacks, and guards rng.
	mu  sync.Mutex
	rng *rand.Rand

	// The network's mutex guards it.
	heard []*recording
}

// recording is what a dialer sent to the target on one connection.
type recording struct {
	conn *connection
	data []byte
}

// NewByzantine puts a hostile peer on the network. The target has been listened
// on.
func NewByzantine(n *Network, o ByzantineOptions) *Byzantine {
	if o.Patience == 0 {
		o.Patience = 10 * time.Second
	}
	b := &Byzantine{o: o, host: n.Host(o.ID), rng: rand.New(rand.NewPCG(o.Seed, 0))}
	n.mu.Lock()
	defer n.mu.Unlock()
	b.to = n.owners[o.Target]
	n.taps = append(n.taps, b.overhear)
	return b
}

// overhear is a tap of the network.
func (b *Byzantine) overhear(h *half, data []byte) {
	c := h.conn
	if h != c.halves[0] || h.link.to != b.to || h.link.from == b.o.ID {
		return
	}
	i := slices.IndexFunc(b.heard, func(r *recording) bool { return r.conn == c })
	if i < 0 {
		if len(b.heard) == recordedStreams {
			return
		}
		i = len(b.heard)
		b.heard = append(b.heard, &recording{conn: c})
	}
	r := b.heard[i]
	r.data = append(r.data, data[:min(len(data), recordedBytes-len(r.data))]...)
}

// stream is one of the overheard streams; empty where there is none.
func (b *Byzantine) stream() []byte {
	n := b.host.n
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(b.heard) == 0 {
		return nil
	}
	return slices.Clone(b.heard[b.rng.IntN(len(b.heard))].data)
}

// AttackResult is what came of an attack.
type AttackResult struct {
	Name    string
	Answers [][]byte // JSON of the frames that came back, at most 16
	// Err ended the attack: io.EOF where the target closed the connection, a
	// timeout where it just did not answer.
	Err error
}

// Refused says that the target gave nothing away: it answered with errors, with
// its own Hello, or with the documented refusals of codes 1 and 3.
func (r *AttackResult) Refused() bool {
	for _, frame := range r.Answers {
		var a struct {
			T int              `json:"t"`
			X *json.RawMessage `json:"x"`
			P struct{ VoteGranted, Success bool }
		}
		if json.Unmarshal(frame, &a) != nil {
			return false
		}
		refusal := a.X != nil || a.T == int(replication.MsgHelloResponse) ||
			(a.T == int(replication.MsgVoteResponse) || a.T == int(replication.MsgAppendEntriesResponse)) && !a.P.VoteGranted && !a.P.Success
		if !refusal {
			return false
		}
	}
	return true
}

// Attack runs every attack once, each on a connection of its own, and returns
// what came of them, in the order in which they ran. The error is ctx's, or
// says that the target could not be reached.
func (b *Byzantine) Attack(ctx context.Context) ([]AttackResult, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	order := slices.Clone(attacks)
	b.rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	var results []AttackResult
	for _, a := range order {
		c, err := b.host.Dial(ctx, b.o.Target)
		if err != nil {
			return results, err
		}
		v := &victim{b: b, c: c}
		stop := context.AfterFunc(ctx, func() { _ = c.Close() })
		err = a.run(b, v)
		for err == nil {
			err = v.answer()
		}
		stop()
		_ = c.Close() // the target may have closed it before
		if ctx.Err() != nil {
			return results, ctx.Err()
		}
		results = append(results, AttackResult{Name: a.name, Answers: v.answers, Err: err})
	}
	return results, nil
}

// AttackInside speaks as a member that has gone bad: o says who it is and holds
// its secret. It sends absurd requests of the given codes, each several times,
// under forged epochs, and returns the errors that they were answered with, nil
// where they were taken. A member may do harm by Fence, Promote, Join and Leave.
func (b *Byzantine) AttackInside(ctx context.Context, o transport.Options, codes ...replication.MessageType) ([]error, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	o.Listen, o.Dial = b.host.Listen, b.host.Dial
	t, err := transport.New(o)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	conn, err := t.Connect(ctx, b.o.Target)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	const times = 8
	var answers []error
	for _, code := range codes {
		for range times {
			epoch := replication.Epoch{Number: b.rng.Uint64N(1 << 53), Owner: b.name()}
			t.SetEpoch(func() replication.Epoch { return epoch })
			callCtx, cancel := context.WithTimeout(ctx, b.o.Patience)
			answers = append(answers, conn.(replication.Caller).Call(callCtx, code, json.RawMessage(b.absurd(code)), nil))
			cancel()
		}
	}
	return answers, ctx.Err()
}

// victim is a raw connection to the target.
type victim struct {
	b       *Byzantine
	c       net.Conn
	answers [][]byte
}

// send writes bytes; the target may have had enough.
func (v *victim) send(data []byte) error {
	_ = v.c.SetDeadline(time.Now().Add(v.b.o.Patience)) // fails with the Write
	_, err := v.c.Write(data)
	return err
}

// message sends a frame.
func (v *victim) message(envelope string) error { return v.send(rawFrame([]byte(envelope))) }

func rawFrame(payload []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(payload))), payload...)
}

var errEnough = errors.New("enough answers")

// answer waits for a frame.
func (v *victim) answer() error {
	if len(v.answers) == maxAnswers {
		return errEnough
	}
	_ = v.c.SetDeadline(time.Now().Add(v.b.o.Patience)) // fails with the Read
	frame, err := readRawFrame(v.c)
	if err != nil {
		return err
	}
	v.answers = append(v.answers, frame)
	return nil
}

// readRawFrame reads a frame of bounded size.
func readRawFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > answerBytes {
		return nil, fmt.Errorf("answer of %d bytes", size)
	}
	frame := make([]byte, size)
	if _, err := io.ReadFull(r, frame); err != nil {
		return nil, err
	}
	return frame, nil
}
