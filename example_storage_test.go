package replication_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nornicdb/replication"
)

// mapStorage is the least that a Storage can be: it forgets everything at the end of
// the process, has no transactions and no snapshots. What NornicDB's commands mean is
// left to Dispatch; a command of the server's own is decoded here.
type mapStorage struct {
	mu       sync.RWMutex // a replicator is the only writer; readers come from elsewhere
	nodes    map[replication.NodeID]*replication.Node
	edges    map[edgeKey]*replication.Edge
	position uint64
	greeting string // what the server's own command changes
}

type edgeKey struct {
	from, to replication.NodeID
	relType  string
}

// cmdGreet is a command of the server's own.
const cmdGreet = replication.CmdEmbedder

// errTooRude is a verdict of the server's own: every node gives the same one.
type errTooRude struct{}

func (errTooRude) Error() string     { return "too rude a greeting" }
func (errTooRude) ErrorCode() string { return "too_rude" }

func (s *mapStorage) ApplyCommand(cmd *replication.Command) error {
	if cmd.Type != cmdGreet {
		return replication.Dispatch(s, cmd)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if string(cmd.Data) == "hey" {
		return errTooRude{}
	}
	s.greeting = string(cmd.Data)
	return nil
}

func (s *mapStorage) GetWALPosition() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.position, nil
}

func (s *mapStorage) SetWALPosition(pos uint64) error {
	return s.change(func() error { s.position = pos; return nil })
}

func (s *mapStorage) CreateNode(n *replication.Node) error {
	return s.change(func() error {
		if s.nodes[n.ID] != nil {
			return replication.ErrExists
		}
		s.nodes[n.ID] = copyOf(n)
		return nil
	})
}

func (s *mapStorage) UpdateNode(n *replication.Node) error {
	return s.change(func() error {
		if s.nodes[n.ID] == nil {
			return replication.ErrNotFound
		}
		s.nodes[n.ID] = copyOf(n)
		return nil
	})
}

func (s *mapStorage) DeleteNode(id replication.NodeID) error {
	return s.change(func() error {
		if s.nodes[id] == nil {
			return replication.ErrNotFound
		}
		delete(s.nodes, id)
		maps.DeleteFunc(s.edges, func(k edgeKey, _ *replication.Edge) bool { return k.from == id || k.to == id })
		return nil
	})
}

func (s *mapStorage) CreateEdge(e *replication.Edge) error {
	return s.change(func() error {
		key := edgeKey{e.StartNode, e.EndNode, e.Type}
		switch {
		case s.nodes[e.StartNode] == nil || s.nodes[e.EndNode] == nil:
			return replication.ErrMissingEnd
		case s.edges[key] != nil:
			return replication.ErrExists
		}
		s.edges[key] = copyOf(e)
		return nil
	})
}

func (s *mapStorage) DeleteEdge(from, to replication.NodeID, relType string) error {
	return s.change(func() error {
		key := edgeKey{from, to, relType}
		if s.edges[key] == nil {
			return replication.ErrNotFound
		}
		delete(s.edges, key)
		return nil
	})
}

func (s *mapStorage) SetProperty(id replication.NodeID, key string, value any) error {
	return s.change(func() error {
		if s.nodes[id] == nil {
			return replication.ErrNotFound
		}
		n := copyOf(s.nodes[id])
		if n.Properties == nil {
			n.Properties = make(map[string]any)
		}
		n.Properties[key] = value
		if value == nil {
			delete(n.Properties, key)
		}
		s.nodes[id] = n
		return nil
	})
}

func (s *mapStorage) change(do func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return do()
}

// copyOf copies a node or an edge: arguments stay the caller's. Their JSON keeps
// integers and floats apart.
func copyOf[T any](v *T) *T {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // what came through a command can be written
	}
	c := new(T)
	if err := json.Unmarshal(data, c); err != nil {
		panic(err)
	}
	return c
}

// A storage of the server's own, with a command and a verdict of its own. The suite
// testharness.TestStorage says whether such a storage keeps what it promises.
func ExampleStorage() {
	storage := &mapStorage{nodes: make(map[replication.NodeID]*replication.Node), edges: make(map[edgeKey]*replication.Edge)}
	cfg := replication.DefaultConfig() // mode standalone
	logger := slog.New(slog.NewTextHandler(io.Discard, nil))
	r, err := replication.New(cfg, storage, replication.Modes{}, replication.WithLogger(logger))
	if err != nil {
		panic(err)
	}
	if err := r.Start(context.Background()); err != nil {
		panic(err)
	}
	defer r.Shutdown()

	for _, id := range []replication.NodeID{"urd", "skuld"} {
		cmd, err := replication.NewNodeCommand(replication.CmdPutNode, &replication.Node{ID: id})
		if err != nil {
			panic(err)
		}
		fmt.Println("node:", r.Apply(cmd, 10*time.Second))
	}
	edge, err := replication.NewEdgeCommand(replication.CmdPutEdge, &replication.Edge{StartNode: "urd", Type: "SISTER_OF", EndNode: "nobody"})
	if err != nil {
		panic(err)
	}
	err = r.Apply(edge, 10*time.Second)
	fmt.Println("edge:", err, errors.Is(err, replication.ErrMissingEnd))

	fmt.Println("greet:", r.Apply(&replication.Command{Type: cmdGreet, Data: []byte("good morning")}, 10*time.Second), storage.greeting)
	err = r.Apply(&replication.Command{Type: cmdGreet, Data: []byte("hey")}, 10*time.Second)
	var own interface{ ErrorCode() string } // from another node, or the log, comes the code alone
	fmt.Println("verdict:", errors.As(err, &own) && own.ErrorCode() == "too_rude")
	fmt.Println(slices.Sorted(maps.Keys(storage.nodes)), storage.position)
	// Output:
	// node: <nil>
	// node: <nil>
	// edge: edge end missing true
	// greet: <nil> good morning
	// verdict: true
	// [skuld urd] 5
}
