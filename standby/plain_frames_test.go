package standby_test

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
)

// framePeer speaks the documented frames alone: length, then t, n and p. Answers
// come in the order of the requests.
type framePeer struct {
	t    *testing.T
	conn net.Conn
}

func (p *pair) framePeer(n *node) *framePeer {
	conn, err := p.net.dialer("10.0.0.9:1")(p.t.Context(), n.addr)
	require.NoError(p.t, err)
	return &framePeer{p.t, conn}
}

// ask sends a request and returns the answer's payload, whose code must be the
// request's plus one.
func (f *framePeer) ask(code int, payload string) map[string]any {
	f.t.Helper()
	frame := fmt.Appendf(nil, `{"t":%d,"n":"old","p":%s}`, code, payload)
	_, err := f.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...))
	require.NoError(f.t, err)
	var size [4]byte
	_, err = io.ReadFull(f.conn, size[:])
	require.NoError(f.t, err)
	answer := make([]byte, binary.BigEndian.Uint32(size[:]))
	_, err = io.ReadFull(f.conn, answer)
	require.NoError(f.t, err)
	var e struct {
		T int            `json:"t"`
		N string         `json:"n"`
		P map[string]any `json:"p"`
	}
	require.NoError(f.t, json.Unmarshal(answer, &e), "%s", answer)
	require.Equal(f.t, code+1, e.T, "%s", answer)
	require.NotEmpty(f.t, e.N)
	require.NotNil(f.t, e.P, "%s", answer)
	return e.P
}

const (
	plainHeartbeat = `{"NodeID":"old","Role":"primary","WALPosition":2,"Timestamp":1}`
	plainFence     = `{"Reason":"test","RequestID":"r"}`
	plainPromote   = `{"Reason":"test"}`
)

// plainBatch is entries that put a node each, called x and the position.
func plainBatch(t *testing.T, positions ...uint64) string {
	var list []map[string]any
	for _, i := range positions {
		list = append(list, map[string]any{"Position": i, "Timestamp": time.Now(), "Command": map[string]any{"Type": replication.CmdPutNode,
			"Data": fmt.Appendf(nil, `{"id":"x%d","labels":["T"],"properties":{}}`, i), "Timestamp": time.Now()}})
	}
	data, err := json.Marshal(list)
	require.NoError(t, err)
	return string(data)
}

func withoutSecret(c *replication.Config) { c.Secret, c.HA.SyncMode = "", replication.SyncAsync }

// A standby without a history takes part in a pair of plain peers: it stores and
// applies, answers heartbeats, is not fenced, and is promoted.
func TestPlainFramesToAStandbyWithoutHistory(t *testing.T) {
	inBubble(t, withoutSecret, func(t *testing.T, p *pair) {
		p.start(p.b)
		old := p.framePeer(p.b)
		defer old.conn.Close()
		require.Equal(t, map[string]any{"NodeID": "b", "Role": "standby", "WALPosition": 0.0, "Lag": 2.0}, old.ask(7, plainHeartbeat))
		require.Equal(t, map[string]any{"AckedPosition": 2.0, "ReceivedPosition": 2.0}, old.ask(5, plainBatch(t, 1, 2)))
		p.until("applied", func() bool { return p.has(p.b, "x2") })
		require.Equal(t, map[string]any{"AckedPosition": 2.0, "ReceivedPosition": 2.0}, old.ask(5, plainBatch(t, 2)), "once more")
		require.Equal(t, 2.0, old.ask(7, plainHeartbeat)["WALPosition"])
		fenced := old.ask(9, plainFence)
		require.Equal(t, false, fenced["Fenced"])
		require.Equal(t, 2.0, fenced["WALPosition"])
		require.Contains(t, fmt.Sprint(p.b.repl.Health().Reasons), "unfenced")
		require.Equal(t, true, old.ask(11, plainPromote)["Ready"])
		require.True(t, p.b.repl.IsLeader())
		p.write(p.b, "own")
	})
}

// A promotion waits for what was taken to be applied.
func TestPlainPromotionRightAfterABatch(t *testing.T) {
	inBubble(t, withoutSecret, func(t *testing.T, p *pair) {
		p.start(p.b)
		old := p.framePeer(p.b)
		defer old.conn.Close()
		var positions []uint64
		for i := range uint64(2000) {
			positions = append(positions, i+1)
		}
		require.Equal(t, 2000.0, old.ask(5, plainBatch(t, positions...))["AckedPosition"])
		promoted := old.ask(11, plainPromote)
		require.Equal(t, true, promoted["Ready"], promoted)
		require.True(t, p.has(p.b, "x2000"))
		p.write(p.b, "own")
	})
}

// A node that was configured as primary takes nothing from a plain peer, though
// it has no history yet.
func TestPlainFramesToAPrimaryWithoutHistory(t *testing.T) {
	inBubble(t, withoutSecret, func(t *testing.T, p *pair) {
		p.start(p.a)
		old := p.framePeer(p.a)
		defer old.conn.Close()
		require.Equal(t, map[string]any{"AckedPosition": 0.0, "ReceivedPosition": 0.0}, old.ask(5, plainBatch(t, 1, 2)))
		require.Equal(t, "starting", old.ask(7, plainHeartbeat)["Role"])
		require.Equal(t, false, old.ask(9, plainFence)["Fenced"])
		promoted := old.ask(11, plainPromote)
		require.Equal(t, false, promoted["Ready"])
		require.NotEmpty(t, promoted["Error"])
		require.False(t, p.a.repl.IsLeader())
		require.False(t, p.has(p.a, "x1"))
	})
}

// Once there are epochs, a plain peer gets the documented answers from either
// node, changes nothing, and is no contact: the standby takes over from a silent
// primary, whatever heartbeats it gets without an epoch.
func TestPlainFramesToAPairWithEpochs(t *testing.T) {
	inBubble(t, withoutSecret, func(t *testing.T, p *pair) {
		p.start(p.a, p.b)
		p.admitted(p.a)
		p.write(p.a, "n1", "n2")
		p.same()
		before := [2]replication.HealthStatus{*p.a.repl.Health(), *p.b.repl.Health()}
		for i, n := range []*node{p.a, p.b} {
			old := p.framePeer(n)
			position := float64(before[i].AppliedIndex)
			require.Equal(t, map[string]any{"AckedPosition": position, "ReceivedPosition": position},
				old.ask(5, plainBatch(t, before[i].AppliedIndex+1, before[i].AppliedIndex+2)))
			require.Equal(t, map[string]any{"NodeID": n.id, "Role": before[i].Role, "WALPosition": position, "Lag": 0.0}, old.ask(7, plainHeartbeat))
			fenced := old.ask(9, plainFence)
			require.Equal(t, false, fenced["Fenced"])
			require.Equal(t, position, fenced["WALPosition"])
			promoted := old.ask(11, plainPromote)
			require.Equal(t, false, promoted["Ready"])
			require.NotEmpty(t, promoted["Error"])
			require.NoError(t, old.conn.Close())
			h := n.repl.Health()
			require.Equal(t, [3]any{before[i].Role, before[i].Term, before[i].AppliedIndex}, [3]any{h.Role, h.Term, h.AppliedIndex})
			require.NotContains(t, fmt.Sprint(h.Reasons), "unfenced")
		}
		p.net.isolate(p.a.addr, true)
		old := p.framePeer(p.b)
		defer old.conn.Close()
		took := p.until("failover", func() bool {
			old.ask(7, plainHeartbeat)
			return p.b.repl.IsLeader()
		})
		require.Less(t, took, failover+3*heartbeat)
		require.False(t, p.has(p.b, "x4"))
		p.write(p.b, "n3")
	})
}

// Where there is something to prove, who skips the handshake is sent away.
func TestPlainFramesWithASecret(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, p *pair) {
		p.start(p.b)
		old := p.framePeer(p.b)
		defer old.conn.Close()
		frame := []byte(`{"t":5,"n":"old","p":` + plainBatch(t, 1) + `}`)
		go func() {
			_, _ = old.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...))
		}() // it may be closed meanwhile
		said, err := io.ReadAll(old.conn)
		require.NoError(t, err, "one answer, then the connection ends")
		require.Contains(t, string(said), "unauthenticated")
		require.False(t, p.has(p.b, "x1"))
		require.Zero(t, p.b.repl.Health().AppliedIndex)
	})
}
