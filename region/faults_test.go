package region

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region/conflict"
	"github.com/nornicdb/replication/testharness"
	"github.com/stretchr/testify/require"
)

// fault is a way in which a Storage fails.
type fault int

const (
	failsPlainly fault = iota
	tooLarge           // once; the transaction is tried again in parts
	panics
	commitFails   // nothing of it is there
	commitUnknown // all of it is there
	faults
)

var (
	errDisk  = errors.New("the disk has failed")
	errFault = [faults]error{errDisk, replication.ErrTxTooLarge, errDisk, errDisk, errDisk}
	faultOf  = [faults]string{"an error", "too large", "a panic", "no commit", "a commit that says it is none"}
)

// faultyStore is a MemStore of which the call number left fails.
type faultyStore struct {
	*testharness.MemStore
	kind fault
	left int // until the fault; below 0: it has been
}

func (s *faultyStore) call() error {
	s.left--
	switch {
	case s.left != -1:
		return nil
	case s.kind == panics:
		panic(errDisk)
	}
	return errFault[s.kind]
}

func (s *faultyStore) commits() bool { return s.kind == commitFails || s.kind == commitUnknown }

func (s *faultyStore) Update(fn func(replication.Tx) error) error {
	if !s.commits() {
		return s.MemStore.Update(func(tx replication.Tx) error { return fn(&faultyTx{tx, tx.(conflict.Store), s}) })
	}
	failed := error(nil)
	err := s.MemStore.Update(func(tx replication.Tx) error {
		err := fn(tx)
		if err == nil {
			failed = s.call()
		}
		if s.kind == commitFails {
			err = errors.Join(err, failed)
		}
		return err
	})
	return errors.Join(err, failed)
}

func (s *faultyStore) View(fn func(replication.Meta) error) error {
	if !s.commits() {
		if err := s.call(); err != nil {
			return err
		}
	}
	return s.MemStore.View(fn)
}

// faultyTx is a transaction of it.
type faultyTx struct {
	replication.Tx
	store conflict.Store
	s     interface{ call() error }
}

var _ conflict.Store = (*faultyTx)(nil)

func (t *faultyTx) do(fn func() error) error {
	if err := t.s.call(); err != nil {
		return err
	}
	return fn()
}

func (t *faultyTx) GetMeta(key []byte) (v []byte, err error) {
	err = t.do(func() error { v, err = t.Tx.GetMeta(key); return err })
	return v, err
}
func (t *faultyTx) ScanMeta(prefix []byte, fn func(k, v []byte) error) error {
	return t.do(func() error { return t.Tx.ScanMeta(prefix, fn) })
}
func (t *faultyTx) SetMeta(key, value []byte) error {
	return t.do(func() error { return t.Tx.SetMeta(key, value) })
}
func (t *faultyTx) SetWALPosition(pos uint64) error {
	return t.do(func() error { return t.Tx.SetWALPosition(pos) })
}
func (t *faultyTx) CreateNode(n *replication.Node) error {
	return t.do(func() error { return t.Tx.CreateNode(n) })
}
func (t *faultyTx) UpdateNode(n *replication.Node) error {
	return t.do(func() error { return t.Tx.UpdateNode(n) })
}
func (t *faultyTx) DeleteNode(id replication.NodeID) error {
	return t.do(func() error { return t.Tx.DeleteNode(id) })
}
func (t *faultyTx) CreateEdge(e *replication.Edge) error {
	return t.do(func() error { return t.Tx.CreateEdge(e) })
}
func (t *faultyTx) DeleteEdge(from, to replication.NodeID, relType string) error {
	return t.do(func() error { return t.Tx.DeleteEdge(from, to, relType) })
}
func (t *faultyTx) SetProperty(id replication.NodeID, key string, value any) error {
	return t.do(func() error { return t.Tx.SetProperty(id, key, value) })
}
func (t *faultyTx) HasNode(id replication.NodeID) (has bool, err error) {
	err = t.do(func() error { has, err = t.store.HasNode(id); return err })
	return has, err
}
func (t *faultyTx) GetNode(id replication.NodeID) (n *replication.Node, err error) {
	err = t.do(func() error { n, err = t.store.GetNode(id); return err })
	return n, err
}
func (t *faultyTx) GetEdge(from, to replication.NodeID, relType string) (e *replication.Edge, err error) {
	err = t.do(func() error { e, err = t.store.GetEdge(from, to, relType); return err })
	return e, err
}
func (t *faultyTx) ScanEdges(id replication.NodeID, fn func(*replication.Edge) error) error {
	return t.do(func() error { return t.store.ScanEdges(id, fn) })
}

// script is what a region's log says, and what comes of it.
type script struct {
	entries []replication.Entry
	results []replication.Result // of the one group of each
	rows    string               // and graph, in the end
	last    *solo
}

// content is all that a store holds.
func content(t testing.TB, s *testharness.MemStore) string {
	var b strings.Builder
	require.NoError(t, s.View(func(m replication.Meta) error {
		return m.ScanMeta(nil, func(k, v []byte) error {
			fmt.Fprintf(&b, "%q %q\n", k, v)
			return nil
		})
	}))
	pos, err := s.GetWALPosition()
	require.NoError(t, err)
	fmt.Fprintln(&b, pos, s.Stats().Digest)
	return b.String()
}

// trial applies the script to a store that fails, as a node does that is started
// again where it failed; it says whether the fault came.
func (sc *script) trial(t *testing.T, start *testharness.MemStore, kind fault, n, batch int) (met bool) {
	store := &faultyStore{MemStore: start.Clone(), kind: kind, left: n}
	answered := 0
	for life := 0; ; life++ {
		require.Less(t, life, 3, "it fails again")
		done := func() (done bool) {
			defer func() {
				if p := recover(); p != nil && !errors.Is(p.(error), errDisk) {
					panic(p)
				}
			}()
			m, err := newMachine(store)
			if err != nil {
				require.ErrorIs(t, err, errFault[kind])
				return false
			}
			a, err := replication.NewStorageApplier(m.storage())
			if err != nil {
				require.ErrorIs(t, err, errFault[kind])
				return false
			}
			for next := int(a.Position() - sc.entries[0].Position + 1); next < len(sc.entries); {
				part := sc.entries[next:min(next+batch, len(sc.entries))]
				results, err := a.Apply(part)
				for i, r := range results {
					require.Equal(t, answerOf(sc.results[next+i]), answerOf(r[0]), "entry %d", next+i)
					answered = next + i + 1
				}
				pos, posErr := store.GetWALPosition()
				require.NoError(t, posErr)
				require.GreaterOrEqual(t, pos, sc.entries[0].Position+uint64(answered)-1, "what was answered is there")
				if err != nil {
					require.ErrorIs(t, err, replication.ErrStorageFailed)
					require.ErrorIs(t, err, errFault[kind])
					_, again := a.Apply(part)
					require.Error(t, again)
					return false
				}
				next += len(part)
				var is view
				require.NoError(t, store.MemStore.View(func(m replication.Meta) (err error) { is, err = readView(m); return err }))
				shown, _ := m.now()
				require.Equal(t, jsonBody(&is.head), jsonBody(&shown.head), "what readers see is what is there")
				require.Equal(t, is.status, shown.status)
			}
			return true
		}()
		if done {
			break
		}
		store.MemStore = store.MemStore.Clone()
	}
	if have := content(t, store.MemStore); have != sc.rows {
		require.Equal(t, strings.Split(sc.rows, "\n"), strings.Split(have, "\n"))
	}
	return store.left < 0
}

func answerOf(r replication.Result) string {
	code, _ := replication.Verdict(r.Err)
	return fmt.Sprint(r.Position, code)
}

// add applies an entry and notes it.
func (sc *script) add(t testing.TB, g replication.Group) error {
	e := replication.Entry{Position: sc.last.applier.Position() + 1, Groups: []replication.Group{g}}
	res, err := sc.last.applier.Apply([]replication.Entry{e})
	require.NoError(t, err)
	sc.entries, sc.results = append(sc.entries, e), append(sc.results, res[0][0])
	return res[0][0].Err
}

func (sc *script) log(t testing.TB, c *logCommand) error {
	return sc.add(t, replication.Group{Commands: []*replication.Command{c.encode()}})
}

func (sc *script) write(t testing.TB, request string, cmds ...*replication.Command) error {
	c := &logCommand{kind: kindWrite, wallMS: 1000, request: request, commands: cmds}
	g := replication.Group{RequestID: request, Hash: replication.CommandHash(cmds)}
	if request != "" {
		c.hash = g.Hash
	}
	g.Commands = []*replication.Command{c.encode()}
	return sc.add(t, g)
}

// stream is what a region has written.
func (s *solo) stream(t testing.TB, after uint64) (list []*conflict.Entry) {
	batch, err := outbox{s.machine}.Read(after, 1000, 1<<30)
	require.NoError(t, err)
	for _, w := range batch.Entries {
		e, err := s.view.settings.Conflict.FromWAL(&w.WALEntry)
		require.NoError(t, err)
		list = append(list, e)
	}
	return list
}

func nodeCmd(t testing.TB, kind replication.CommandType, id string, props map[string]any) *replication.Command {
	cmd, err := replication.NewNodeCommand(kind, &replication.Node{ID: replication.NodeID(id), Labels: []string{"L"}, Properties: props})
	require.NoError(t, err)
	return cmd
}

func propCmd(t testing.TB, id, key string, value any) *replication.Command {
	cmd, err := replication.NewSetProperty(replication.NodeID(id), key, value)
	require.NoError(t, err)
	return cmd
}

func edgeCmd(t testing.TB, from, to string, props map[string]any) *replication.Command {
	cmd, err := replication.NewEdgeCommand(replication.CmdPutEdge, &replication.Edge{StartNode: replication.NodeID(from),
		EndNode: replication.NodeID(to), Type: "T", Properties: props})
	require.NoError(t, err)
	return cmd
}

func remote(list ...*conflict.Entry) *logCommand {
	return &logCommand{kind: kindRemote, wallMS: 1000, entries: list}
}

func withBody(k kind, v any) *logCommand {
	return &logCommand{kind: k, wallMS: 1000, body: jsonBody(v)}
}

// everything is a script of all that a region's log can say, and the store at its
// beginning.
func everything(t *testing.T) (*script, *testharness.MemStore) {
	small := func(s *settings) {
		s.OutboxMaxEntries, s.MaxEntryBytes, s.WriteRegion = 6, 8<<10, "eu"
	}
	begin := testharness.NewMemStore()
	eu, asia := newSoloOf(t, testharness.NewMemStore(), "eu", small), newSoloOf(t, testharness.NewMemStore(), "asia", small)
	sc := &script{last: newSoloOf(t, begin, "us", small)}
	start := begin.Clone()
	sc.writes(t, eu, asia)
	sc.orders(t)
	sc.state(t, eu, asia)
	sc.losses(t)
	sc.rows = content(t, begin)
	return sc, start
}

// writes are writes of this region and of the others.
func (sc *script) writes(t *testing.T, eu, asia *solo) {
	require.NoError(t, sc.write(t, "r1", nodeCmd(t, replication.CmdPutNode, "x", map[string]any{"k": 1}), nodeCmd(t, replication.CmdPutNode, "y", nil), edgeCmd(t, "x", "y", nil)))
	require.NoError(t, sc.write(t, "r1", nodeCmd(t, replication.CmdPutNode, "x", map[string]any{"k": 1}), nodeCmd(t, replication.CmdPutNode, "y", nil), edgeCmd(t, "x", "y", nil)))
	require.Error(t, sc.write(t, "r2", propCmd(t, "x", "k", 2), nodeCmd(t, replication.CmdCreateNode, "y", nil)))
	require.Error(t, sc.write(t, "r3", propCmd(t, "x", "k", strings.Repeat("v", 20<<10))), "too large")
	for i := range 3 {
		require.NoError(t, eu.put(t, fmt.Sprint("eu", i), fmt.Sprint("e", i)))
		require.NoError(t, asia.put(t, fmt.Sprint("asia", i), ""))
	}
	require.NoError(t, eu.put(t, "x", "e"))
	require.NoError(t, asia.put(t, "x", ""))
	require.NoError(t, sc.log(t, remote(eu.stream(t, 0)...)))
	require.NoError(t, sc.log(t, remote(eu.stream(t, 2)...)), "duplicates")
	require.NoError(t, sc.log(t, remote(asia.stream(t, 0)...)))
	require.NoError(t, sc.log(t, &logCommand{kind: kindMark, wallMS: 1100}))
	require.NoError(t, sc.write(t, "e1", nodeCmd(t, replication.CmdPutNode, "eu1", nil)), "known from eu")
	require.NoError(t, sc.write(t, "", propCmd(t, "y", "long", strings.Repeat("v", 3<<10))))
	require.NoError(t, sc.write(t, "", propCmd(t, "y", "long", nil), replication.NewDeleteNode("asia0")))
	for i := range 6 { // beyond the cap
		require.NoError(t, sc.write(t, fmt.Sprint("w", i), propCmd(t, "y", fmt.Sprint("k", i), i), nodeCmd(t, replication.CmdPutNode, fmt.Sprint("n", i), nil)))
	}
}

// orders are those of an operator and of the region's leader.
func (sc *script) orders(t *testing.T) {
	require.NoError(t, sc.log(t, withBody(kindCursors, cursors{"eu": 8, "asia": 7})))
	require.NoError(t, sc.log(t, withBody(kindCursors, cursors{"asia": 8})))
	require.Error(t, sc.log(t, remote(&conflict.Entry{Dot: conflict.Dot{Region: 1, Pos: 50}, Time: 1, Context: conflict.Vector{0, 49}})), "a gap")
	require.NoError(t, sc.log(t, withBody(kindPromote, nil)))
	require.NoError(t, sc.log(t, withBody(kindEpoch, &replication.Epoch{Number: 7, Owner: "asia"})))
	require.NoError(t, sc.log(t, withBody(kindChange, &settingsChange{OutboxMaxEntries: 5})))
	require.NoError(t, sc.log(t, &logCommand{kind: kindCollect}))

	// Of x there are three versions.
	list, err := (&Node{machine: sc.last.machine}).Conflicts(t.Context(), replication.ConflictFilter{})
	require.NoError(t, err)
	require.NotEmpty(t, list)
	res := replication.Resolution{}
	for _, v := range list[0].Versions {
		res.Expect = append(res.Expect, v.VersionID)
	}
	res.Keep = &res.Expect[0]
	require.NoError(t, sc.log(t, withBody(kindResolve, &resolveRequest{Key: list[0].Key, Resolution: res})))
	require.Error(t, sc.log(t, withBody(kindResolve, &resolveRequest{Key: list[0].Key, Resolution: res})), "again")
}

// state is that of eu, in parts.
func (sc *script) state(t *testing.T, eu, asia *solo) {
	require.NoError(t, eu.put(t, "only-eu", "late"))
	require.NoError(t, eu.do(t, remote(asia.stream(t, 0)...)))
	require.NoError(t, eu.write(t, replication.CmdUpdateNode, "x", "e-update"))
	sp, err := (&Node{cfg: &replication.Config{DataDir: t.TempDir()}, machine: eu.machine}).collect()
	require.NoError(t, err)
	v, _ := eu.now()
	p := part{Region: "eu", ID: sp.id}
	rows := []row(nil)
	for range sp.parts {
		require.NoError(t, sp.read(&p))
		rows = append(rows, p.Rows...)
		p.Rows = nil
	}
	sp.close()
	require.NoError(t, sc.log(t, withBody(kindStage, &part{Region: "eu", ID: "given up", Rows: rows[:3]})))
	for i, r := range slices.Collect(slices.Chunk(rows, 4)) {
		p.Number, p.Rows = uint64(i), r
		require.NoError(t, sc.log(t, withBody(kindStage, &p)))
	}
	require.NoError(t, sc.log(t, withBody(kindStage, &p)), "again")
	p.Number, p.Rows, p.Stamps = p.Number+1, nil, v.head.Stamps
	require.NoError(t, sc.log(t, withBody(kindMerge, &p)))
	require.Error(t, sc.log(t, withBody(kindMerge, &p)), "again")
	require.NoError(t, sc.write(t, "late", nodeCmd(t, replication.CmdPutNode, "only-eu", nil)), "known from eu")
	require.NoError(t, sc.log(t, &logCommand{kind: kindMark, wallMS: 1200}))
	require.NoError(t, sc.write(t, "", replication.NewDeleteNode("y")))
}

// losses are found out about, and are none any more.
func (sc *script) losses(t *testing.T) {
	now, _ := sc.last.now()
	require.NoError(t, sc.log(t, withBody(kindMeet, &meeting{Region: "asia", Pos: now.head.Last + 3, Stamp: 5})))
	require.Error(t, sc.write(t, "r4", nodeCmd(t, replication.CmdPutNode, "lost", nil)), "it has lost writes")
	require.NoError(t, sc.log(t, withBody(kindMeet, &meeting{Region: "asia", Pos: now.head.Last, Stamp: now.head.Stamps["us"]})))
	require.NoError(t, sc.write(t, "r5", nodeCmd(t, replication.CmdPutNode, "end", nil)))
}

// TestStorageFailsAnywhere: wherever the Storage fails while a region applies its
// log, a node that is started again ends where one ends that never failed, and
// nothing was answered before that is not there.
func TestStorageFailsAnywhere(t *testing.T) {
	sc, start := everything(t)
	stride := 1
	if testing.Short() {
		stride = 7
	}
	for kind := range faults {
		for _, batch := range []int{1, 7, len(sc.entries)} {
			t.Run(fmt.Sprint(faultOf[kind], ", entries at a time: ", batch), func(t *testing.T) {
				n := 0
				for sc.trial(t, start, kind, n, batch) {
					n += stride
				}
				require.Positive(t, n)
			})
		}
	}
}
