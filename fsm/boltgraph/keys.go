package boltgraph

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/nornicdb/replication"
	"go.etcd.io/bbolt"
)

// MaxIDBytes bounds a node ID, an edge type and an edge ID; bbolt's keys are
// limited, and every replica must give the same verdict.
const MaxIDBytes = 4096

// A key of several strings: each with 0x00 written as 0x00 0xFF, and 0x00 0x01
// behind it. So keys sort as their strings do, no key is a prefix of another,
// and any byte may occur.
var (
	terminator = []byte{0, 1}
	escapeFrom = []byte{0}
	escapeTo   = []byte{0, 0xff}
)

var errKey = errors.New("damaged key")

func appendPart(key []byte, s string) []byte {
	key = append(key, bytes.ReplaceAll([]byte(s), escapeFrom, escapeTo)...)
	return append(key, terminator...)
}

func joinKey(parts ...string) []byte {
	var key []byte
	for _, p := range parts {
		key = appendPart(key, p)
	}
	return key
}

// splitKey is the inverse of joinKey for four parts.
func splitKey(key []byte) (parts [4]string, err error) {
	for i := range parts {
		end := bytes.Index(key, terminator)
		if end < 0 {
			return parts, errKey
		}
		parts[i] = string(bytes.ReplaceAll(key[:end], escapeTo, escapeFrom))
		key = key[end+len(terminator):]
	}
	if len(key) > 0 {
		return parts, errKey
	}
	return parts, nil
}

func outKey(e *replication.Edge) []byte {
	return joinKey(string(e.StartNode), e.Type, string(e.EndNode), string(e.ID))
}

func inKey(e *replication.Edge) []byte {
	return joinKey(string(e.EndNode), e.Type, string(e.StartNode), string(e.ID))
}

func edgeFromOutKey(key []byte) (*replication.Edge, error) {
	p, err := splitKey(key)
	return &replication.Edge{StartNode: replication.NodeID(p[0]), Type: p[1], EndNode: replication.NodeID(p[2]), ID: replication.EdgeID(p[3])}, err
}

func edgeFromInKey(key []byte) (*replication.Edge, error) {
	p, err := splitKey(key)
	return &replication.Edge{EndNode: replication.NodeID(p[0]), Type: p[1], StartNode: replication.NodeID(p[2]), ID: replication.EdgeID(p[3])}, err
}

// checkIDs gives the verdict on identifiers that cannot be stored. The last
// one, an edge ID, may be empty.
func checkIDs(ids ...string) error {
	for _, id := range ids {
		if id == "" {
			return fmt.Errorf("%w: empty identifier", replication.ErrInvalidCommand)
		}
		if len(id) > MaxIDBytes {
			return fmt.Errorf("%w: identifier of %d bytes, at most %d", replication.ErrInvalidCommand, len(id), MaxIDBytes)
		}
	}
	return nil
}

func checkEdgeIDs(e *replication.Edge) error {
	if len(e.ID) > MaxIDBytes {
		return fmt.Errorf("%w: edge ID of %d bytes, at most %d", replication.ErrInvalidCommand, len(e.ID), MaxIDBytes)
	}
	if err := checkIDs(string(e.StartNode), e.Type, string(e.EndNode)); err != nil {
		return err
	}
	// Escaping can double each of them.
	if n := len(outKey(e)); n > bbolt.MaxKeySize {
		return fmt.Errorf("%w: identifiers of %d bytes in all, at most %d", replication.ErrInvalidCommand, n, bbolt.MaxKeySize)
	}
	return nil
}
