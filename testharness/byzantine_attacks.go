package testharness

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/nornicdb/replication"
)

// attack is one thing that a hostile peer does on a connection; what comes back
// after it is read until the target has no more to say.
type attack struct {
	name string
	run  func(b *Byzantine, v *victim) error
}

// slowBytes is how many bytes an attacker drips, one a second.
const slowBytes = 20

var attacks = []attack{
	{"replay", func(b *Byzantine, v *victim) error { return v.send(b.stream()) }},
	{"replay cut short", func(b *Byzantine, v *victim) error {
		s := b.stream()
		return v.send(s[:b.rng.IntN(len(s)+1)])
	}},
	{"two streams spliced", func(b *Byzantine, v *victim) error {
		s, t := b.stream(), b.stream()
		return v.send(append(s[:b.rng.IntN(len(s)+1)], t[b.rng.IntN(len(t)+1):]...))
	}},
	{"own Hello, then another's bytes", func(b *Byzantine, v *victim) error {
		if err := v.greet(b.hello()); err != nil {
			return err
		}
		s := b.stream()
		if len(s) > 4 { // what follows the first frame
			s = s[min(uint64(len(s)), 4+uint64(binary.BigEndian.Uint32(s))):]
		}
		return v.send(s)
	}},
	{"stream with one bit flipped", func(b *Byzantine, v *victim) error {
		s := b.stream()
		if len(s) > 0 {
			s[b.rng.IntN(len(s))] ^= 1 << b.rng.IntN(8)
		}
		return v.send(s)
	}},
	{"server's proof sent back", func(b *Byzantine, v *victim) error {
		if err := v.greet(b.hello()); err != nil {
			return err
		}
		var theirs struct{ P replication.HelloResponse }
		if err := json.Unmarshal(v.answers[len(v.answers)-1], &theirs); err != nil {
			return err
		}
		return v.message(b.helloFrame(&replication.HelloRequest{MAC: theirs.P.MAC}))
	}},
	{"wrong proof", func(b *Byzantine, v *victim) error {
		if err := v.greet(b.hello()); err != nil {
			return err
		}
		return v.message(b.helloFrame(&replication.HelloRequest{MAC: b.bytes(32)}))
	}},
	{"no proof", func(b *Byzantine, v *victim) error {
		if err := v.greet(b.hello()); err != nil {
			return err
		}
		return v.forge(b, replication.MsgApply)
	}},
	{"another cluster", func(b *Byzantine, v *victim) error {
		h := b.hello()
		h.ClusterID += "x"
		return v.greet(h)
	}},
	{"unknown stream", func(b *Byzantine, v *victim) error {
		h := b.hello()
		h.Stream = "x"
		return v.greet(h)
	}},
	{"Raft stream", func(b *Byzantine, v *victim) error {
		h := b.hello()
		h.Stream = replication.StreamRaft
		if err := v.greet(h); err != nil {
			return err
		}
		return v.send(b.bytes(1000))
	}},
	{"absurd Hello", func(b *Byzantine, v *victim) error { return v.forge(b, replication.MsgHello) }},
	{"forged terms", func(b *Byzantine, v *victim) error {
		return v.forge(b, replication.MsgVoteRequest, replication.MsgAppendEntries)
	}},
	{"forged epochs", func(b *Byzantine, v *victim) error {
		return v.forge(b, replication.MsgHeartbeat, replication.MsgWALBatch, replication.MsgFence, replication.MsgPromote)
	}},
	{"forged membership", func(b *Byzantine, v *victim) error {
		return v.forge(b, replication.MsgJoin, replication.MsgLeave)
	}},
	{"forged reads and writes", func(b *Byzantine, v *victim) error {
		return v.forge(b, replication.MsgApply, replication.MsgReadIndex, replication.MsgState, replication.MsgFetch)
	}},
	{"answers to no request", func(b *Byzantine, v *victim) error {
		return v.message(fmt.Sprintf(`{"t":%d,"n":%s,"i":%s,"p":{}}`, 2+2*b.rng.IntN(14), quote(b.name()), b.number()))
	}},
	{"message code out of range", func(b *Byzantine, v *victim) error {
		return v.message(fmt.Sprintf(`{"t":%s,"n":"x","p":{}}`, b.number()))
	}},
	{"deep nesting", func(b *Byzantine, v *victim) error {
		return v.message(`{"t":7,"n":"x","p":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `}`)
	}},
	{"not JSON", func(b *Byzantine, v *victim) error { return v.send(rawFrame(b.bytes(1 + b.rng.IntN(100)))) }},
	{"garbage", func(b *Byzantine, v *victim) error { return v.send(b.bytes(b.rng.IntN(10_000))) }},
	{"length zero", func(b *Byzantine, v *victim) error { return v.send(make([]byte, 4)) }},
	{"enormous length", func(b *Byzantine, v *victim) error { return v.send([]byte{0xff, 0xff, 0xff, 0xff, '{'}) }},
	{"announced, never sent", func(b *Byzantine, v *victim) error { return v.send([]byte{0, 0, 0x80, 0, '{'}) }},
	{"silence", func(b *Byzantine, v *victim) error { return nil }},
	{"one byte a second", func(b *Byzantine, v *victim) error {
		frame := rawFrame([]byte(b.helloFrame(b.hello())))
		for i := range slowBytes {
			if err := v.send(frame[i : i+1]); err != nil {
				return err
			}
			<-time.After(time.Second)
		}
		return nil
	}},
}

// hello is a Hello as a member would send it.
func (b *Byzantine) hello() *replication.HelloRequest {
	return &replication.HelloRequest{Version: 1, ClusterID: b.o.ClusterID, NodeID: b.name(), Stream: replication.StreamRPC,
		Nonce: b.bytes(32), MaxFrameSize: 1 << 20}
}

func (b *Byzantine) helloFrame(h *replication.HelloRequest) string {
	payload, err := json.Marshal(h)
	if err != nil { // a flat struct of this project has no error path
		panic(err)
	}
	return fmt.Sprintf(`{"t":%d,"n":%s,"p":%s}`, replication.MsgHello, quote(h.NodeID), payload)
}

// greet sends a Hello and waits for the answer.
func (v *victim) greet(h *replication.HelloRequest) error {
	if err := v.message(v.b.helloFrame(h)); err != nil {
		return err
	}
	return v.answer()
}

// forge sends an absurd message of each code.
func (v *victim) forge(b *Byzantine, codes ...replication.MessageType) error {
	for _, code := range codes {
		err := v.message(fmt.Sprintf(`{"t":%d,"n":%s,"i":%d,"e":%s,"o":%s,"q":{"Number":%s,"Owner":"x"},"p":%s}`, code, quote(b.name()),
			b.rng.Uint64(), b.number(), quote(b.name()), b.number(), b.absurd(code)))
		if err != nil {
			return err
		}
	}
	return nil
}

// payloads are the messages' forms; # stands for a number, $ for a string.
var payloads = map[replication.MessageType]string{
	replication.MsgVoteRequest: `{"Term":#,"CandidateID":$,"LastLogIndex":#,"LastLogTerm":#}`,
	replication.MsgAppendEntries: `{"Term":#,"LeaderID":$,"LeaderAddr":$,"PrevLogIndex":#,"PrevLogTerm":#,` +
		`"Entries":[{"Index":#,"Term":#,"Command":null}],"LeaderCommit":#}`,
	replication.MsgWALBatch: `[{"Position":#,"Timestamp":"0001-01-01T00:00:00Z","Command":{"Type":#,"Data":"AA==","RequestID":$},` +
		`"Epoch":{"Number":#,"Owner":$},"Origin":$,"Time":#,"Context":{$:#}}]`,
	replication.MsgHeartbeat: `{"NodeID":$,"Role":$,"WALPosition":#,"Timestamp":#}`,
	replication.MsgFence:     `{"Reason":$,"RequestID":$}`,
	replication.MsgPromote:   `{"Reason":$,"Force":true}`,
	replication.MsgJoin:      `{"NodeID":$,"Address":$,"Voter":true,"LastIndex":#}`,
	replication.MsgLeave:     `{"NodeID":$,"Force":true}`,
	replication.MsgStatus:    `{}`,
	replication.MsgApply:     `{"Commands":[{"Type":#,"Data":"AA==","Timestamp":"9999-12-31T23:59:59Z","RequestID":$}],"TimeoutMS":#,"Hops":#}`,
	replication.MsgHello:     `{"Version":#,"ClusterID":$,"NodeID":$,"Stream":"rpc","Nonce":$,"MaxFrameSize":#,"MAC":"AA=="}`,
	replication.MsgReadIndex: `{"Level":#}`,
	replication.MsgState:     `{}`,
	replication.MsgFetch:     `{"From":#,"Max":#}`,
}

// absurd is a payload of valid JSON and the right form whose values make no
// sense.
func (b *Byzantine) absurd(code replication.MessageType) string {
	var out strings.Builder
	for _, r := range payloads[code] {
		switch r {
		case '#':
			out.WriteString(b.number())
		case '$':
			out.WriteString(quote(b.word()))
		default:
			out.WriteRune(r)
		}
	}
	return out.String()
}

// number is a JSON number, one that fits its field more often than not.
func (b *Byzantine) number() string {
	numbers := []string{"0", "1", "2", "3", "255", "256", "2147483648", "4294967296", "9007199254740991", "9007199254740992",
		"9223372036854775807", "18446744073709551615", "18446744073709551616", "-1", "-9223372036854775808", "1.5", "1e308", "1e999"}
	return numbers[b.rng.IntN(len(numbers))]
}

func (b *Byzantine) word() string {
	words := []string{b.name(), "", "x", "\x00", "../../etc", strings.Repeat("é", 300), "127.0.0.1:1", b.o.Target}
	return words[b.rng.IntN(len(words))]
}

// name is that of a member.
func (b *Byzantine) name() string { return b.o.NodeIDs[b.rng.IntN(len(b.o.NodeIDs))] }

func (b *Byzantine) bytes(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(b.rng.Uint32())
	}
	return p
}

func quote(s string) string {
	q, err := json.Marshal(s)
	if err != nil { // strings have no error path
		panic(err)
	}
	return string(q)
}
