package standby

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/walstream"
	"github.com/stretchr/testify/require"
)

func TestStateFile(t *testing.T) {
	f := stateFile{filepath.Join(t.TempDir(), "s.json")}
	s, err := f.load()
	require.NoError(t, err)
	require.Equal(t, Stored{}, s)
	want := with(ep(2, "b"), func(s *Stored) {
		s.Admitted, s.Rebuilding, s.Base = true, true, walstream.Mark{Position: 4, Epoch: ep(1, "a")}
	})
	require.NoError(t, f.save(want))
	require.NoError(t, os.WriteFile(f.path+".new", []byte("half a sta"), 0o600), "a crash while the next one was written")
	got, err := f.load()
	require.NoError(t, err)
	require.Equal(t, want, got)
	for name, damaged := range map[string]string{
		"cut":            `{"version":1,"epoch":{"Num`,
		"version":        `{"version":2}`,
		"number":         `{"version":1,"epoch":{"Number":9007199254740992}}`,
		"epochs go back": `{"version":1,"epoch":{"Number":5},"epochs":[{"epoch":{"Number":2},"start":1},{"epoch":{"Number":1},"start":2}]}`,
	} {
		require.NoError(t, os.WriteFile(f.path, []byte(damaged), 0o600))
		_, err := f.load()
		require.ErrorIs(t, err, replication.ErrInvalidConfig, name)
	}
}

// A node whose log ends before an epoch that it had noted, since a power failure
// took the entries between, begins another: what it saves is what it can load, and
// the common prefix with who has those entries ends where its log ended.
func TestBeginDropsEpochsTheLogNeverReached(t *testing.T) {
	f := stateFile{filepath.Join(t.TempDir(), "s.json")}
	s := Stored{History: "h", Epoch: ep(1, "a"), Epochs: []EpochStart{{ep(1, "a"), 1}}}
	s.begin(ep(2, "a"), 10)
	other := s.Epochs // of a standby that took epoch 2 as far as 12
	s.begin(ep(3, "a"), 6)
	require.NoError(t, f.save(s))
	got, err := f.load()
	require.NoError(t, err)
	require.Equal(t, []EpochStart{{ep(1, "a"), 1}, {ep(3, "a"), 6}}, got.Epochs)
	prefix, ok := commonPrefix(got.Epochs, 8, other, 12)
	require.True(t, ok)
	require.EqualValues(t, 5, prefix)

	s.begin(ep(4, "a"), 6) // no write came in epoch 3
	require.NoError(t, checkEpochs(s.Epoch, s.Epochs))
	require.Equal(t, []EpochStart{{ep(1, "a"), 1}, {ep(4, "a"), 6}}, s.Epochs)
}

// Epochs without entries leave no trace in the list, whatever their number, and what
// two logs have in common is the same as if they did.
func TestBeginDropsEpochsWithoutEntries(t *testing.T) {
	founded := Stored{History: "h", Epoch: ep(1, "a"), Epochs: []EpochStart{{ep(1, "a"), 2}}}
	for _, last := range []uint64{1, 9} { // where the other's log ends, which was away meanwhile
		s := founded
		for n := uint64(2); n < 1000; n++ {
			s.begin(ep(n, "a"), last+1)
			require.NoError(t, checkEpochs(s.Epoch, s.Epochs))
		}
		require.Len(t, s.Epochs, 2)
		prefix, ok := commonPrefix(s.Epochs, last+7, founded.Epochs, last)
		require.True(t, ok)
		require.Equal(t, last, prefix)
		prefix, ok = commonPrefix(s.Epochs, last+7, founded.Epochs, last+3) // it wrote some that were lost here
		require.True(t, ok)
		require.Equal(t, last, prefix)
	}
	s := founded
	for n := uint64(2); n < 1000; n++ {
		s.begin(ep(n, "a"), 2*n)
	}
	require.NoError(t, checkEpochs(s.Epoch, s.Epochs))
	require.Len(t, s.Epochs, maxEpochs)
	_, ok := commonPrefix(s.Epochs, 3000, founded.Epochs, 3)
	require.False(t, ok)
}

func TestTailFileIsExclusive(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "diverged")
	log, err := walstream.OpenLog(raft.NewInmemStore(), walstream.LogOptions{})
	require.NoError(t, err)
	defer log.Close()
	for i := range 5 {
		_, err := log.Append(t.Context(), ep(3, "node/1"), time.Now(), replication.NewGroup(&replication.Command{Type: replication.CmdEmbedder, Data: []byte{byte(i)}}))
		require.NoError(t, err)
	}
	first, count, err := saveTail(dir, ep(3, "node/1"), log, 2)
	require.NoError(t, err)
	require.Equal(t, 3, count)
	require.Equal(t, "3-node_1.jsonl", filepath.Base(first))
	second, _, err := saveTail(dir, ep(3, "node/1"), log, 2)
	require.NoError(t, err)
	require.NotEqual(t, first, second, "what was put aside is never written over")
	data, err := os.ReadFile(first)
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	require.Len(t, lines, 3)
	var e tailEntry
	require.NoError(t, json.Unmarshal([]byte(lines[0]), &e))
	require.EqualValues(t, 3, e.Position)
	require.Equal(t, []byte{2}, e.Group.Commands[0].Data)
}

func FuzzParseState(f *testing.F) {
	f.Add([]byte(`{"version":1,"history":"h","epoch":{"Number":2,"Owner":"b"},"epochs":[{"epoch":{"Number":1},"start":1}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := parseState(data)
		if err != nil {
			return
		}
		require.NoError(t, checkEpochs(s.Epoch, s.Epochs))
		again, err := json.Marshal(storedFile{stateFileVersion, s})
		require.NoError(t, err)
		back, err := parseState(again)
		require.NoError(t, err)
		require.Equal(t, s.Epoch, back.Epoch)
	})
}

// A machine takes whatever passes the checks without a panic.
func FuzzHeartbeat(f *testing.F) {
	f.Add([]byte(`{"Peer":{"NodeID":"b","History":"h","Epoch":{"Number":3,"Owner":"b"},"Role":"primary","Epochs":[{"epoch":{"Number":1,"Owner":"a"},"start":1},{"epoch":{"Number":3,"Owner":"b"},"start":4}]},"Commit":4,"Admit":true}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := decode(data, func(h *heartbeatRequest) *Peer { return &h.Peer })
		if err != nil {
			return
		}
		log := logView{last: walstream.Mark{Position: 9, Epoch: ep(2, "b")}, durable: 9, applied: 5}
		for _, role := range []Role{RoleStarting, RoleStandby, RolePrimary, RoleFencing} {
			for _, k := range []eventKind{evHeartbeat, evPeer, evFence, evFenceAck, evHeartbeatAck} {
				m := starter(func(m *machine) { m.role, m.follows, m.stored = role, true, with(ep(2, "b"), nil) })
				next, _ := m.step(event{kind: k, now: at(101 * time.Second), log: log, peer: h.Peer, epoch: h.Peer.Epoch, commit: h.Commit, admit: h.Admit, follows: true, fenced: true})
				require.True(t, next.stored.Epoch.Compare(m.stored.Epoch) >= 0, "a promise is never taken back")
			}
		}
	})
}

func FuzzReadHead(f *testing.F) {
	var b bytes.Buffer
	require.NoError(f, writeHead(&b, &snapshotHead{Mark: walstream.Mark{Position: 3}, Epoch: ep(2, "b")}))
	f.Add(b.Bytes())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, '{'})
	f.Fuzz(func(t *testing.T, data []byte) {
		if h, err := readHead(bytes.NewReader(data)); err == nil {
			require.NoError(t, checkEpochs(h.Epoch, h.Epochs))
		}
	})
}
