package region

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region/conflict"
	"github.com/stretchr/testify/require"
)

// What a write goes through.
const (
	stagePlain  = iota // Raft mode's state machine, to compare with
	stageLocal         // the state machine of its region
	stageStream        // out of the outbox and into what the other region proposes
	stageMerge         // the state machine there
	stageSettle        // a mark comes back, and all that waited for it is settled
	stageCount
)

// stages measures each of them, with a store that syncs nothing: processor time.
type stages struct {
	b      *testing.B
	eu, us *solo
	plain  *replication.StorageApplier
	writes int
	took   [stageCount]time.Duration
}

func newStages(b *testing.B) *stages {
	s := &stages{b: b}
	for name, to := range map[string]**solo{"eu": &s.eu, "us": &s.us} {
		m, err := newMachine(openStore(b, name))
		require.NoError(b, err)
		a, err := replication.NewStorageApplier(m.storage())
		require.NoError(b, err)
		*to = &solo{m, a}
		settings := settings{Federation: "f", Self: name, OutboxMaxEntries: 1 << 20, OutboxMaxBytes: 1 << 30, MaxEntryBytes: 1 << 20,
			Conflict: conflict.Settings{Regions: []string{"eu", "us"}, Strategy: conflict.LastWriteWins}}
		require.NoError(b, (*to).do(b, &logCommand{kind: kindSettings, body: jsonBody(&settings)}))
	}
	var err error
	s.plain, err = replication.NewStorageApplier(openStore(b, "plain"))
	require.NoError(b, err)
	return s
}

// stage runs one of the stages.
func (s *stages) stage(number int, do func()) {
	start := time.Now()
	do()
	s.took[number] += time.Since(start)
}

func (s *stages) apply(a *replication.StorageApplier, groups []replication.Group) {
	res, err := a.Apply([]replication.Entry{{Position: a.Position() + 1, Groups: groups}})
	require.NoError(s.b, err)
	for i := range res[0] {
		require.NoError(s.b, res[0][i].Err)
	}
}

// deliver brings what a region's outbox has to the other one.
func (s *stages) deliver(from, to *solo, stream, merge int) {
	c := &logCommand{kind: kindRemote, wallMS: uint64(time.Now().UnixMilli())}
	s.stage(stream, func() {
		v, _ := to.now()
		sender, _ := from.now()
		batch, err := outbox{from.machine}.Read(v.applied(sender.settings.Self), 1000, 1<<20)
		require.NoError(s.b, err)
		for _, w := range batch.Entries {
			e, err := v.settings.Conflict.FromWAL(&w.WALEntry)
			require.NoError(s.b, err)
			c.entries = append(c.entries, e)
		}
	})
	s.stage(merge, func() { require.NoError(s.b, to.do(s.b, c)) })
}

// round is an entry of a busy leader's log, and every so often what follows in
// a second: cursors, and a mark.
func (s *stages) round(number int) {
	const writes, nodes, cursorsEach, markEach = 256, 100000, 6, 60
	value := strings.Repeat("x", 180)
	var local, plain []replication.Group
	for range writes {
		s.writes++
		cmd := &replication.Command{Type: replication.CmdPutNode, Data: fmt.Appendf(nil,
			`{"id":"n%06d","labels":["Bench"],"properties":{"v":"%s","i":%d}}`, s.writes%nodes, value, s.writes)}
		c := &logCommand{kind: kindWrite, wallMS: uint64(time.Now().UnixMilli()), commands: []*replication.Command{cmd}}
		local = append(local, replication.Group{Commands: []*replication.Command{c.encode()}})
		plain = append(plain, replication.Group{Commands: []*replication.Command{cmd}})
	}
	s.stage(stagePlain, func() { s.apply(s.plain, plain) })
	s.stage(stageLocal, func() { s.apply(s.eu.applier, local) })
	s.deliver(s.eu, s.us, stageStream, stageMerge)
	if number%cursorsEach == 0 {
		v, _ := s.us.now()
		c := &logCommand{kind: kindCursors, body: jsonBody(cursors{"us": v.applied("eu")})}
		s.stage(stageLocal, func() { require.NoError(s.b, s.eu.do(s.b, c)) })
	}
	if number%markEach == 0 {
		mark := &logCommand{kind: kindMark, wallMS: uint64(time.Now().UnixMilli())}
		s.stage(stageSettle, func() { require.NoError(s.b, s.us.do(s.b, mark)) })
		s.deliver(s.us, s.eu, stageSettle, stageSettle)
	}
}

// BenchmarkStages: what a write costs in the state machine of its region, on its
// way into the other one, and there, beside what it costs in Raft mode's; each with
// its share of what the store brings to its file.
func BenchmarkStages(b *testing.B) {
	s := newStages(b)
	number := 0
	for ; number < 400; number++ { // all nodes are there
		s.round(number)
	}
	s.took, s.writes = [stageCount]time.Duration{}, 0
	for b.Loop() {
		s.round(number)
		number++
	}
	for i, name := range []string{"raft", "local", "stream", "merge", "settle"} {
		b.ReportMetric(s.took[i].Seconds()*1e6/float64(s.writes), "us_"+name)
	}
	b.ReportMetric(0, "ns/op") // means nothing here
}
