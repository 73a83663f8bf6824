package region

import (
	"testing"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region/conflict"
	"github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// solo is the state machine of one region without a cluster around it: what it
// answers to an entry of its log.
type solo struct {
	*machine
	applier *replication.StorageApplier
}

func newSolo(t testing.TB, self string, outboxMax uint64) *solo {
	return newSoloOver(t, testharness.NewMemStore(), self, outboxMax)
}

func newSoloOver(t testing.TB, storage replication.Storage, self string, outboxMax uint64) *solo {
	return newSoloOf(t, storage, self, func(s *settings) { s.OutboxMaxEntries = outboxMax })
}

// newSoloOf is newSolo with other settings.
func newSoloOf(t testing.TB, storage replication.Storage, self string, change func(*settings)) *solo {
	m, err := newMachine(storage)
	require.NoError(t, err)
	a, err := replication.NewStorageApplier(m.storage())
	require.NoError(t, err)
	s := &solo{m, a}
	settings := settings{Federation: "f", Self: self, OutboxMaxEntries: 10, OutboxMaxBytes: 1 << 30, MaxEntryBytes: 1 << 20,
		Conflict: conflict.Settings{Regions: []string{"asia", "eu", "us"}, Strategy: conflict.Manual}}
	change(&settings)
	require.NoError(t, s.do(t, &logCommand{kind: kindSettings, body: jsonBody(&settings)}))
	return s
}

// do applies one entry; it fails the test where the Storage fails.
func (s *solo) do(t testing.TB, c *logCommand) error {
	return s.group(t, replication.Group{Commands: []*replication.Command{c.encode()}})
}

func (s *solo) group(t testing.TB, g replication.Group) error {
	res, err := s.applier.Apply([]replication.Entry{{Position: s.applier.Position() + 1, Groups: []replication.Group{g}}})
	require.NoError(t, err)
	return res[0][0].Err
}

func (s *solo) put(t testing.TB, id, request string) error {
	return s.write(t, replication.CmdPutNode, id, request)
}

// write is a client's write of a node without properties.
func (s *solo) write(t testing.TB, kind replication.CommandType, id, request string) error {
	cmd, err := replication.NewNodeCommand(kind, &replication.Node{ID: replication.NodeID(id), Labels: []string{"L"}})
	require.NoError(t, err)
	c := &logCommand{kind: kindWrite, wallMS: 1000, request: request, commands: []*replication.Command{cmd}}
	g := replication.Group{Commands: []*replication.Command{c.encode()}, RequestID: request, Hash: replication.CommandHash(c.commands)}
	if request != "" {
		c.hash = g.Hash
	}
	g.Commands[0] = c.encode()
	return s.group(t, g)
}

// FuzzTransfer: whatever a peer sends as a part of its state, the answer is a
// verdict or the part is staged, and what is staged is merged or refused: the
// Storage of the region does not fail.
func FuzzTransfer(f *testing.F) {
	peer := newSolo(f, "eu", 10)
	require.NoError(f, peer.put(f, "x", "r"))
	require.NoError(f, peer.put(f, "y", ""))
	var rows []row
	give := func(k, v []byte) error {
		rows = append(rows, row{K: append([]byte(nil), k...), V: append([]byte(nil), v...)})
		return nil
	}
	require.NoError(f, peer.View(func(m replication.Meta) error {
		if err := conflict.ExportState(m.(conflict.ReadStore), give); err != nil {
			return err
		}
		return exportRequests(m, give)
	}))
	for i := range rows {
		f.Add(rows[i].K, rows[i].V, false)
	}
	f.Add(rows[0].K, []byte("more"), true)
	f.Add([]byte(rowHeader), []byte("{}"), false)
	f.Fuzz(func(t *testing.T, key, value []byte, more bool) {
		s := newSolo(t, "us", 10)
		require.NoError(t, s.put(t, "x", ""))
		// The row goes over those of a state that is sound.
		require.NoError(t, s.do(t, &logCommand{kind: kindStage, body: jsonBody(&part{Region: "eu", ID: "t", Rows: rows})}))
		verdict := func(err error) {
			if _, ok := replication.Verdict(err); err != nil {
				require.True(t, ok, "%v", err)
			}
		}
		hostile := part{Region: "eu", ID: "t", Number: 1, Rows: []row{{K: key, V: value, More: more}}}
		verdict(s.do(t, &logCommand{kind: kindStage, body: jsonBody(&hostile)}))
		v, _ := s.now()
		verdict(s.do(t, &logCommand{kind: kindMerge, wallMS: 1, body: jsonBody(&part{Region: "eu", ID: "t", Number: v.head.Staged["eu"].Next})}))
		require.NoError(t, s.put(t, "z", ""))
	})
}

// TestDoneIsKeptOfTwoOutcomes: a request that one region refused and another one
// did counts as done in both, whichever way they hear of it.
func TestDoneIsKeptOfTwoOutcomes(t *testing.T) {
	eu, us, asia := newSolo(t, "eu", 10), newSolo(t, "us", 10), newSolo(t, "asia", 10)
	create := func(s *solo) error { return s.write(t, replication.CmdCreateNode, "x", "r") }
	require.NoError(t, us.put(t, "x", ""))
	require.ErrorIs(t, create(us), replication.ErrExists)
	require.ErrorIs(t, create(us), replication.ErrExists, "the first answer")
	require.NoError(t, asia.do(t, asia.stageAll(t, us)))
	require.ErrorIs(t, create(asia), replication.ErrExists, "what us has told")

	require.NoError(t, create(eu))
	batch, err := outbox{eu.machine}.Read(0, 10, 1<<20)
	require.NoError(t, err)
	entry, err := eu.view.settings.Conflict.FromWAL(&batch.Entries[0].WALEntry)
	require.NoError(t, err)
	for _, s := range []*solo{us, asia} {
		require.NoError(t, s.do(t, &logCommand{kind: kindRemote, wallMS: 1000, entries: []*conflict.Entry{entry}}))
		require.NoError(t, create(s))
		require.ErrorIs(t, s.put(t, "x", "r"), replication.ErrRequestIDReused)
	}
}

// FuzzDecodeRequest: what decodes encodes to the same bytes.
func FuzzDecodeRequest(f *testing.F) {
	f.Add(encodeRequest(&replication.RequestOutcome{ID: "r", Hash: [16]byte{1}, Code: "exists"}))
	f.Add(encodeRequest(&replication.RequestOutcome{ID: "r"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := decodeRequest(data)
		if err != nil {
			require.ErrorIs(t, err, replication.ErrInvalidCommand)
			return
		}
		again, err := decodeRequest(encodeRequest(o))
		require.NoError(t, err)
		require.Equal(t, o, again)
		if o.Code != "" {
			_, verdict := replication.Verdict(o.Answer(o.Hash))
			require.True(t, verdict)
		}
	})
}

// TestTheClockIsNotDrivenIntoItsEnd: whatever times other regions write, without a
// bound too, what this one writes then is taken by the others.
func TestTheClockIsNotDrivenIntoItsEnd(t *testing.T) {
	eu, us := newSolo(t, "eu", 10), newSolo(t, "us", 10)
	unbound := uint64(0)
	for _, s := range []*solo{eu, us} {
		require.NoError(t, s.do(t, &logCommand{kind: kindChange, body: jsonBody(&settingsChange{MaxClockOffsetMS: &unbound})}))
	}
	last := &conflict.Entry{Dot: conflict.Dot{Region: 0, Pos: 1}, Time: 1<<63 - 1}
	require.NoError(t, eu.do(t, &logCommand{kind: kindRemote, wallMS: 1000, entries: []*conflict.Entry{last}}))
	require.NoError(t, eu.put(t, "x", ""))
	batch, err := outbox{eu.machine}.Read(0, 10, 1<<20)
	require.NoError(t, err)
	entry, err := eu.view.settings.Conflict.FromWAL(&batch.Entries[0].WALEntry)
	require.NoError(t, err)
	require.NoError(t, us.do(t, &logCommand{kind: kindRemote, wallMS: 1000, entries: []*conflict.Entry{entry}}))
}

// TestTheEpochCanBeFollowed: what another region can announce at most leaves an
// epoch to promote this one to, that the others take over.
func TestTheEpochCanBeFollowed(t *testing.T) {
	at := func(self string, c *logCommand) *solo {
		s := newSoloOf(t, testharness.NewMemStore(), self, func(s *settings) { s.WriteRegion = "us" })
		_ = s.do(t, c)
		return s
	}
	for number := uint64(1<<62 - 3); number <= 1<<62+3; number++ {
		told := &logCommand{kind: kindEpoch, body: jsonBody(&replication.Epoch{Number: number, Owner: "us"})}
		eu := at("eu", told)
		err := eu.do(t, &logCommand{kind: kindPromote})
		v, _ := eu.now()
		if v.head.Epoch.Owner != "eu" {
			require.Error(t, err, "it was not promoted")
			continue
		}
		us := at("us", told)
		require.NoError(t, us.do(t, &logCommand{kind: kindEpoch, body: jsonBody(&v.head.Epoch)}), number)
		followed, _ := us.now()
		require.Equal(t, v.head.Epoch, followed.head.Epoch)
	}
}
