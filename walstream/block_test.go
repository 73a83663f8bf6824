package walstream

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/nornicdb/replication"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// logModel is what a log must hold.
type logModel struct {
	base  Mark
	first uint64 // no entry below it need be there
	marks []Mark // of entries base+1 …; those below first are not compared
	data  []string
}

func (m *logModel) last() Mark {
	if len(m.marks) == 0 {
		return m.base
	}
	return m.marks[len(m.marks)-1]
}

func (m *logModel) cut(after uint64) {
	n := after - m.base.Position
	m.marks, m.data = m.marks[:n:n], m.data[:n:n]
}

// logRun is a log under test, its disk, and the model.
type logRun struct {
	store *crashStore
	log   *Log
	model logModel
	epoch uint64
	wrote int
}

func (r *logRun) open(t *rapid.T) {
	var err error
	r.log, err = OpenLog(r.store, LogOptions{Base: r.model.base, CacheEntries: rapid.IntRange(1, 5).Draw(t, "cache"),
		SyncEntries: rapid.IntRange(1, 9).Draw(t, "sync"), blockEntries: rapid.IntRange(1, 4).Draw(t, "block")})
	require.NoError(t, err)
}

func (r *logRun) propose(t *rapid.T, n int) {
	for range n {
		r.wrote++
		e, err := r.log.Propose(epoch(r.epoch, "a"), time.Unix(1, 0), group(r.wrote))
		require.NoError(t, err)
		r.model.marks = append(r.model.marks, e.Mark())
		r.model.data = append(r.model.data, string(e.Group.Commands[0].Data))
	}
}

// check reads all that must be there, in pieces.
func (r *logRun) check(t *rapid.T) {
	m := &r.model
	require.Equal(t, m.last(), r.log.Last())
	require.LessOrEqual(t, r.log.First(), m.first, "more was let go than allowed")
	total := int64(0)
	for after := r.log.First() - 1; after < m.last().Position; {
		entries, err := r.log.Read(after, rapid.IntRange(1, 7).Draw(t, "read"), rapid.SampledFrom([]int{1, 90, 1 << 20}).Draw(t, "bytes"))
		require.NoError(t, err)
		require.NotEmpty(t, entries)
		for _, e := range entries {
			i := e.Position - m.base.Position - 1
			require.Equal(t, after+1, e.Position)
			require.Equal(t, m.marks[i], e.Mark())
			require.Equal(t, m.data[i], string(e.Group.Commands[0].Data))
			total += int64(e.size)
			after++
		}
	}
	require.Equal(t, total, r.log.Bytes())
	_, err := r.log.Read(m.last().Position+1, 1, 1)
	require.ErrorIs(t, err, ErrAhead)
}

func (r *logRun) compact(t *rapid.T) error {
	last := r.model.last().Position
	if last == r.model.base.Position {
		return nil
	}
	ret := Retention{Applied: rapid.Uint64Range(r.model.base.Position, last).Draw(t, "applied"),
		Peer: rapid.Uint64Range(0, last).Draw(t, "peer"), MaxEntries: rapid.Uint64Range(0, 9).Draw(t, "max"), MaxBytes: 1 << 30}
	r.model.first = max(r.model.first, min(ret.Applied, last))
	return r.log.Compact(ret)
}

func (r *logRun) cutPoint(t *rapid.T) uint64 {
	low := r.model.base.Position
	if r.log.First() > low+1 {
		low = r.log.First() // of what is before it the log has no epoch
	}
	return rapid.Uint64Range(low, max(low, r.model.last().Position)).Draw(t, "cut")
}

// reopen goes on after an end of the log that was meant or not.
func (r *logRun) reopen(t *rapid.T, crashed *crashStore) {
	_ = r.log.Close()
	r.store = crashed
	r.open(t)
}

// What a log holds is what was appended to it and neither cut nor let go, whatever
// it was packed in, and after every crash.
func TestLogAgainstItsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := &logRun{store: newCrashStore(), epoch: 1}
		r.model.base = Mark{rapid.Uint64Range(0, 3).Draw(t, "base"), epoch(1, "")}
		r.model.first = r.model.base.Position + 1
		r.open(t)
		defer func() { _ = r.log.Close() }()
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				r.epoch += rapid.Uint64Range(0, 1).Draw(t, "epoch")
				r.propose(t, rapid.IntRange(1, 12).Draw(t, "entries"))
				require.NoError(t, r.log.Sync(t.Context()))
			},
			"cut": func(t *rapid.T) {
				after := r.cutPoint(t)
				require.NoError(t, r.log.Truncate(after))
				r.model.cut(min(after, r.model.last().Position))
				r.epoch++
			},
			"let go":  func(t *rapid.T) { require.NoError(t, r.compact(t)) },
			"restart": func(t *rapid.T) { r.reopen(t, r.store) },
			"reset": func(t *rapid.T) {
				base := Mark{rapid.Uint64Range(0, 50).Draw(t, "base"), epoch(r.epoch, "b")}
				require.NoError(t, r.log.Reset(base))
				r.epoch++
				r.model = logModel{base: base, first: base.Position + 1}
			},
			"crash while appending": func(t *rapid.T) {
				durable := r.model.last().Position
				r.store.fail, r.store.failKeeps = errDisk, rapid.IntRange(0, 3).Draw(t, "kept")
				r.propose(t, 1) // more are refused once the log has failed
				require.ErrorIs(t, r.log.Sync(t.Context()), ErrFailed)
				r.store.fail = nil
				r.reopen(t, r.store)
				require.GreaterOrEqual(t, r.log.Last().Position, durable, "a durable entry is lost")
				r.model.cut(r.log.Last().Position)
			},
			"crash while cutting": func(t *rapid.T) {
				after := r.cutPoint(t)
				r.store.fail, r.store.failKeeps = errDisk, rapid.IntRange(0, 1).Draw(t, "kept")
				err := r.log.Truncate(after)
				kept := r.store.failKeeps == 1
				r.store.fail = nil
				if err == nil {
					return // there was nothing to cut
				}
				r.reopen(t, r.store)
				if kept {
					r.model.cut(after)
					r.epoch++
				}
			},
			"crash while letting go": func(t *rapid.T) {
				r.store.deletes = 1
				if r.compact(t) != nil {
					r.reopen(t, r.store)
				}
				r.store.deletes = 0
			},
			"": r.check,
		})
	})
}

// A log that has one entry to a raft.Log, as the first version wrote it, is read,
// and written on.
func TestFirstVersionOfTheLog(t *testing.T) {
	store := newCrashStore()
	for p := uint64(4); p <= 6; p++ {
		s, err := encode(e1, time.Unix(1, 0), group(int(p)))
		require.NoError(t, err)
		require.NoError(t, store.StoreLog(&raft.Log{Index: p, Term: 1, Data: s.seal(p).data}))
	}
	l := openLog(t, store, LogOptions{Base: Mark{Position: 3}, CacheEntries: 1})
	require.Equal(t, Mark{6, e1}, l.Last())
	require.NoError(t, l.Truncate(5))
	appendN(t, l, epoch(2, "b"), 2)
	require.NoError(t, l.Close())
	l = openLog(t, store, LogOptions{Base: Mark{Position: 3}})
	entries, err := l.Read(3, 10, 1<<20)
	require.NoError(t, err)
	require.Len(t, entries, 4)
	require.Equal(t, "write 5", string(entries[1].Group.Commands[0].Data))
	require.Equal(t, Mark{6, epoch(2, "b")}, entries[2].Mark())
}

func FuzzOpenBlock(f *testing.F) {
	var list []stored
	for p := uint64(8); p < 11; p++ {
		s, err := encode(e1, time.Unix(1, 2), replication.NewGroup(command(int(p))))
		require.NoError(f, err)
		list = append(list, s.seal(p))
	}
	f.Add(uint64(7), newBlock(7, 8, 1, list).Data)
	f.Add(uint64(7), newBlock(7, 8, 1, nil).Data)
	f.Add(uint64(8), list[0].data)
	f.Add(uint64(1), []byte{2, 0, 0, 0, 0, 0x99})
	f.Fuzz(func(t *testing.T, index uint64, data []byte) {
		if len(data) >= blockHeadBytes && data[0] == blockVersion2 { // behind the checksum, too
			sealed := newBlock(index, 0, 1, nil).Data[:0]
			sealed = append(sealed, data...)
			sum := headChecksum(index, sealed)
			sealed[1], sealed[2], sealed[3], sealed[4] = byte(sum>>24), byte(sum>>16), byte(sum>>8), byte(sum)
			data = sealed
		}
		b, err := openBlock(index, data)
		if err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
			return
		}
		size := blockHeadBytes
		if data[0] == entryVersion1 {
			size = -4
		}
		for i, entry := range b.entries {
			size += 4 + len(entry)
			_, _ = decode(b.first+uint64(i), entry)
		}
		require.Equal(t, len(data), size, "an entry is all of its bytes, and nobody else's")
	})
}
