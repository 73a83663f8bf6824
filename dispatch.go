package replication

import (
	"encoding/json"
	"errors"
	"fmt"
)

// maxBatchCommands bounds the operations of one BatchWrite.
const maxBatchCommands = 1 << 20

// operation is one decoded call of a Storage.
type operation interface{ run(Storage) error }

type nodeOperation struct {
	t    CommandType
	node Node
}

type edgeOperation struct {
	t    CommandType
	edge Edge
}

type deleteNodeOperation struct{ id NodeID }

type deleteEdgeOperation struct{ deleteEdgeData }

type setPropertyOperation struct {
	id    NodeID
	key   string
	value any
}

// Dispatch decodes a command in NornicDB's forms and calls the operations of
// the Storage interface: what an embedder without a better idea makes its
// ApplyCommand of. A malformed or unknown command is the verdict
// [ErrInvalidCommand]. A PutNode is an UpdateNode, and a CreateNode where that finds
// none; a PutEdge likewise, which deletes the edge and creates it anew where the
// storage is no EdgeStorage. The commands of a BatchWrite run in order and stop at
// the first error; it is the StorageApplier that makes them all or none.
func Dispatch(s Storage, cmd *Command) error {
	if cmd == nil {
		return fmt.Errorf("%w: nil", ErrInvalidCommand)
	}
	if cmd.Type != CmdBatchWrite {
		op, err := decodeOperation(cmd)
		if err != nil {
			return err
		}
		return op.run(s)
	}
	ops, err := decodeBatch(cmd.Data)
	if err != nil {
		return err
	}
	for i, op := range ops {
		if err := op.run(s); err != nil {
			if len(ops) > 1 {
				return fmt.Errorf("operation %d of the batch: %w", i, err)
			}
			return err
		}
	}
	return nil
}

func decodeOperation(cmd *Command) (operation, error) {
	switch cmd.Type {
	case CmdCreateNode, CmdUpdateNode, CmdPutNode:
		return decodeNodeOperation(cmd.Type, cmd.Data)
	case CmdCreateEdge, CmdUpdateEdge, CmdPutEdge:
		return decodeEdgeOperation(cmd.Type, cmd.Data)
	case CmdDeleteNode:
		id := NodeID(cmd.Data)
		if err := checkID("node ID", string(id)); err != nil {
			return nil, err
		}
		return deleteNodeOperation{id}, nil
	case CmdDeleteEdge:
		return decodeDeleteEdge(cmd.Data)
	case CmdSetProperty:
		return decodeSetProperty(cmd.Data)
	default:
		return nil, fmt.Errorf("%w: no operation for type %s", ErrInvalidCommand, cmd.Type)
	}
}

func decodeNodeOperation(t CommandType, data []byte) (operation, error) {
	o := &nodeOperation{t: t}
	if err := o.node.UnmarshalJSON(data); err != nil {
		return nil, err
	}
	if err := checkID("node ID", string(o.node.ID)); err != nil {
		return nil, err
	}
	return o, nil
}

func decodeEdgeOperation(t CommandType, data []byte) (operation, error) {
	o := &edgeOperation{t: t}
	e := &o.edge
	if err := e.UnmarshalJSON(data); err != nil {
		return nil, err
	}
	if err := errors.Join(checkID("start node ID", string(e.StartNode)),
		checkID("end node ID", string(e.EndNode)), checkID("edge type", e.Type)); err != nil {
		return nil, err
	}
	return o, nil
}

func decodeDeleteEdge(data []byte) (operation, error) {
	r := plainReader{data: data}
	d := r.deleteEdge()
	if !r.done() {
		var slow deleteEdgeData
		if err := json.Unmarshal(data, &slow); err != nil {
			return nil, fmt.Errorf("%w: DeleteEdge: %v", ErrInvalidCommand, err)
		}
		d = slow
	}
	if d.EdgeID == "" {
		d.EdgeID = d.ID
	}
	if d.EdgeID == "" {
		if err := errors.Join(checkID("start node ID", string(d.StartNode)),
			checkID("end node ID", string(d.EndNode)), checkID("edge type", d.Type)); err != nil {
			return nil, err
		}
	}
	return &deleteEdgeOperation{d}, nil
}

func decodeSetProperty(data []byte) (operation, error) {
	r := plainReader{data: data}
	if d, value := r.setProperty(); r.done() {
		return &setPropertyOperation{d.NodeID, d.Key, value}, nil
	}
	var d setPropertyData
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, fmt.Errorf("%w: SetProperty: %v", ErrInvalidCommand, err)
	}
	if err := checkID("node ID", string(d.NodeID)); err != nil {
		return nil, err
	}
	if err := checkID("property key", d.Key); err != nil {
		return nil, err
	}
	var value any
	if len(d.Value) > 0 {
		v, err := DecodeValue(d.Value)
		if err != nil {
			return nil, err
		}
		value = v
	}
	return &setPropertyOperation{d.NodeID, d.Key, value}, nil
}

func decodeBatch(data []byte) ([]operation, error) {
	r := plainReader{data: data}
	if ops := r.batch(); r.done() {
		return ops, nil
	}
	var d batchData
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, fmt.Errorf("%w: BatchWrite: %v", ErrInvalidCommand, err)
	}
	count := len(d.Commands) + len(d.Nodes) + len(d.Edges)
	if count > maxBatchCommands {
		return nil, fmt.Errorf("%w: BatchWrite of %d operations, at most %d", ErrInvalidCommand, count, maxBatchCommands)
	}
	ops := make([]operation, 0, count)
	add := func(op operation, err error) error {
		ops = append(ops, op)
		return err
	}
	for i, c := range d.Commands {
		if c == nil {
			return nil, fmt.Errorf("%w: command %d of the batch is null", ErrInvalidCommand, i)
		}
		if err := add(decodeOperation(c)); err != nil {
			return nil, fmt.Errorf("command %d of the batch: %w", i, err)
		}
	}
	for i, raw := range d.Nodes {
		if err := add(decodeNodeOperation(CmdCreateNode, raw)); err != nil {
			return nil, fmt.Errorf("node %d of the batch: %w", i, err)
		}
	}
	for i, raw := range d.Edges {
		if err := add(decodeEdgeOperation(CmdCreateEdge, raw)); err != nil {
			return nil, fmt.Errorf("edge %d of the batch: %w", i, err)
		}
	}
	return ops, nil
}

func (o *nodeOperation) run(s Storage) error {
	switch o.t {
	case CmdCreateNode:
		return s.CreateNode(&o.node)
	case CmdUpdateNode:
		return s.UpdateNode(&o.node)
	default:
		return putNode(s, &o.node)
	}
}

func (o *edgeOperation) run(s Storage) error {
	switch o.t {
	case CmdCreateEdge:
		return s.CreateEdge(&o.edge)
	case CmdUpdateEdge:
		return updateEdge(s, &o.edge)
	default:
		return putEdge(s, &o.edge)
	}
}

func (o deleteNodeOperation) run(s Storage) error { return s.DeleteNode(o.id) }

func (o *deleteEdgeOperation) run(s Storage) error {
	if o.EdgeID != "" {
		return deleteEdgeByID(s, o.EdgeID)
	}
	return s.DeleteEdge(o.StartNode, o.EndNode, o.Type)
}

func (o *setPropertyOperation) run(s Storage) error { return s.SetProperty(o.id, o.key, o.value) }

func putNode(s Storage, n *Node) error {
	err := s.UpdateNode(n)
	if errors.Is(err, ErrNotFound) {
		return s.CreateNode(n)
	}
	return err
}

func updateEdge(s Storage, e *Edge) error {
	if es, ok := s.(EdgeStorage); ok {
		return es.UpdateEdge(e)
	}
	if e.ID != "" {
		return fmt.Errorf("%w: this storage has no edge IDs", ErrInvalidCommand)
	}
	if err := s.DeleteEdge(e.StartNode, e.EndNode, e.Type); err != nil {
		return err
	}
	return s.CreateEdge(e)
}

func putEdge(s Storage, e *Edge) error {
	err := updateEdge(s, e)
	if errors.Is(err, ErrNotFound) {
		return s.CreateEdge(e)
	}
	return err
}

func deleteEdgeByID(s Storage, id EdgeID) error {
	if es, ok := s.(EdgeStorage); ok {
		return es.DeleteEdgeByID(id)
	}
	return fmt.Errorf("%w: this storage has no edge IDs", ErrInvalidCommand)
}
