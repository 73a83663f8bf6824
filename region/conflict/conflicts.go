package conflict

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/nornicdb/replication"
)

// Key names a thing that regions can write at once.
type Key struct {
	Field    Field
	Node     string // node ID; start of the edge
	Property string
	Type, To string // of the edge
}

var fieldCodes = []Field{FieldNode, FieldLabels, FieldProperty, FieldEdge}

// String is the key as one word, for paths and cursors; see ParseKey.
func (k Key) String() string {
	return base64.RawURLEncoding.EncodeToString(joinKey("", string(k.Field[:1]), k.Node, k.Property, k.Type, k.To))
}

// ParseKey is the inverse of String. The error wraps ErrInvalidCommand.
func ParseKey(s string) (Key, error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	r := &reader{b: b}
	letter := r.string()
	k := Key{Node: r.string(), Property: r.string(), Type: r.string(), To: r.string()}
	for _, f := range fieldCodes {
		if letter == string(f[:1]) {
			k.Field = f
		}
	}
	if err != nil || r.done() != nil || !k.valid() {
		return Key{}, fmt.Errorf("%w: conflict key %.80q", replication.ErrInvalidCommand, s)
	}
	return k, nil
}

func (k *Key) valid() bool {
	isEdge, isProperty := k.Field == FieldEdge, k.Field == FieldProperty
	return k.Field != "" && k.Node != "" && isEdge == (k.Type != "") && isEdge == (k.To != "") && (isProperty || k.Property == "")
}

func (k *Key) row() []byte {
	if k.Field == FieldEdge {
		return edgeKey{k.Node, k.Type, k.To}.row()
	}
	return nodeRow(k.Node)
}

// compare orders keys as they are listed.
func (k *Key) compare(o *Key) int {
	return cmp.Or(bytes.Compare(k.row(), o.row()),
		cmp.Compare(slices.Index(fieldCodes, k.Field), slices.Index(fieldCodes, o.Field)), cmp.Compare(k.Property, o.Property))
}

// VersionID names a version of a thing: the write's place in a region's stream.
type VersionID struct {
	Region string
	Pos    uint64
}

// Version is one of the values in conflict.
type Version struct {
	VersionID
	WallMS uint64 // when it was written, Unix milliseconds by the region's clock
	// Deleted: the thing is deleted, or unset. Value is nil then.
	Deleted bool
	// Value is JSON: labels, the property, the edge's properties; nil for a
	// node that exists.
	Value json.RawMessage
	// Shown is the version that is shown until the conflict is settled.
	Shown bool
}

// Conflict is a thing that regions wrote without having each other's write.
type Conflict struct {
	Key      Key
	Versions []Version // by region
}

// Filter selects conflicts.
type Filter struct {
	Field Field  // empty: all
	Node  string // empty: all; else conflicts of the node and of edges that start there
	After *Key   // only what comes after this key
	Limit int    // 0: DefaultConflictLimit
}

// DefaultConflictLimit and MaxConflictLimit bound a page of conflicts.
const (
	DefaultConflictLimit = 100
	MaxConflictLimit     = 10_000
)

var errPageFull = errors.New("page is full")

// Conflicts lists the open conflicts in the order of their keys: those of the
// manual strategy, as the others settle by themselves. Conflicts within a node
// that all versions have deleted are not listed: nobody can see it.
func Conflicts(m replication.Meta, f Filter) ([]Conflict, error) {
	row, err := m.GetMeta([]byte(rowHeader))
	if err != nil || row == nil {
		return nil, err
	}
	h, err := decodeHeader(row)
	if err != nil {
		return nil, err
	}
	l := &lister{m: m, h: &h, f: f, limit: min(cmp.Or(max(f.Limit, 0), DefaultConflictLimit), MaxConflictLimit)}
	prefix := []byte(rowConflict)
	if err := m.ScanMeta(prefix, func(k, _ []byte) error {
		return l.row(append([]byte(rowPrefix), k[len(prefix):]...))
	}); err != nil && !errors.Is(err, errPageFull) {
		return nil, err
	}
	return l.found, nil
}

type lister struct {
	m     replication.Meta
	h     *header
	f     Filter
	limit int
	found []Conflict
}

// row lists the conflicts of one node or edge row.
func (l *lister) row(key []byte) error {
	kind, p, err := splitRow(key)
	if err != nil || l.f.Node != "" && p[0] != l.f.Node || l.f.After != nil && bytes.Compare(key, l.f.After.row()) < 0 {
		return err
	}
	row, err := l.m.GetMeta(key)
	if err != nil {
		return err
	}
	if kind == rowEdge[len(rowPrefix)] {
		e, err := decodeEdge(edgeKey{p[0], p[1], p[2]}, row)
		if err != nil {
			return err
		}
		visible, err := edgeAlive(l.m, e.id)
		if err != nil || !visible {
			return err
		}
		return l.add(Key{Field: FieldEdge, Node: p[0], Type: p[1], To: p[2]}, &e.reg)
	}
	n, err := decodeNode(p[0], row)
	if err != nil || !n.life.any() {
		return err
	}
	if err := errors.Join(l.add(Key{Field: FieldNode, Node: n.id}, &n.life),
		l.add(Key{Field: FieldLabels, Node: n.id}, &n.labels)); err != nil {
		return err
	}
	for i := range n.props {
		p := &n.props[i]
		if err := l.add(Key{Field: FieldProperty, Node: n.id, Property: p.name}, &p.register); err != nil {
			return err
		}
	}
	return nil
}

// edgeAlive: neither end is deleted for all versions.
func edgeAlive(m replication.Meta, k edgeKey) (bool, error) {
	for _, id := range []string{k.from, k.to} {
		row, err := m.GetMeta(nodeRow(id))
		if err != nil {
			return false, err
		}
		if row == nil { // settled, and there: a settled deletion takes its edges along
			continue
		}
		n, err := decodeNode(id, row)
		if err != nil || !n.life.any() {
			return false, err
		}
	}
	return true, nil
}

func (l *lister) add(k Key, r *register) error {
	if !r.conflicting() || l.f.Field != "" && l.f.Field != k.Field || l.f.After != nil && k.compare(l.f.After) <= 0 {
		return nil
	}
	if len(l.found) == l.limit {
		return errPageFull
	}
	l.found = append(l.found, l.h.settings.conflict(k, r))
	return nil
}

func (s *Settings) conflict(k Key, r *register) Conflict {
	c := Conflict{Key: k}
	shown := r.winning(s.Strategy)
	for i := range r.versions {
		v := &r.versions[i]
		out := Version{VersionID: VersionID{s.Regions[v.dot.Region], v.dot.Pos}, WallMS: WallMS(v.time),
			Deleted: v.value == "", Shown: v == shown}
		if !out.Deleted && k.Field != FieldNode {
			out.Value = json.RawMessage(v.value)
		}
		c.Versions = append(c.Versions, out)
	}
	return c
}

// Resolution settles a conflict. Exactly one of Keep, Value, Deleted is set.
type Resolution struct {
	// Expect are the versions that the operator saw.
	Expect []VersionID
	// Keep: one of them.
	Keep *VersionID
	// Value: labels ([]string), a property, or the properties of an edge.
	Value any
	// Deleted: the node, the property or the edge is to go.
	Deleted bool
}

// Resolve settles a conflict by a write of this thing alone, which replaces
// all versions that this region has. ErrNoConflict; ErrVersionsChanged where
// the versions are not the expected ones; ErrInvalidCommand.
func (c *Core) Resolve(wallMS uint64, k Key, res Resolution) (*Entry, error) {
	return c.own(wallMS, true, func(l *local) error {
		if !k.valid() {
			return fmt.Errorf("%w: conflict key %+v", replication.ErrInvalidCommand, k)
		}
		r, err := l.conflicting(k)
		if err != nil {
			return err
		}
		value, err := c.head.settings.resolved(k, r, res)
		if err != nil {
			return err
		}
		return l.fix(k, value)
	})
}

// conflicting finds the register of a listed conflict.
func (l *local) conflicting(k Key) (*register, error) {
	var r *register
	visible := true
	if k.Field == FieldEdge {
		key := edgeKey{k.Node, k.Type, k.To}
		e, err := l.c.edge(key)
		if err != nil {
			return nil, err
		}
		if visible, err = edgeAlive(l.c.store, key); err != nil {
			return nil, err
		}
		r = &e.reg
	} else {
		n, err := l.c.node(k.Node)
		if err != nil {
			return nil, err
		}
		visible = n.life.any()
		r = map[Field]*register{FieldNode: &n.life, FieldLabels: &n.labels, FieldProperty: n.property(k.Property)}[k.Field]
	}
	if r == nil || !visible || !r.conflicting() {
		return nil, fmt.Errorf("%w: %+v", ErrNoConflict, k)
	}
	return r, nil
}

// resolved is the value that a resolution gives a thing.
func (s *Settings) resolved(k Key, r *register, res Resolution) (string, error) {
	now := make(map[VersionID]string)
	for i := range r.versions {
		v := &r.versions[i]
		now[VersionID{s.Regions[v.dot.Region], v.dot.Pos}] = v.value
	}
	seen := make(map[VersionID]struct{})
	for _, id := range res.Expect {
		seen[id] = struct{}{}
		if _, ok := now[id]; !ok {
			return "", fmt.Errorf("%w: %+v is not there", ErrVersionsChanged, id)
		}
	}
	if len(seen) != len(now) {
		return "", fmt.Errorf("%w: %d versions, expected %d", ErrVersionsChanged, len(now), len(seen))
	}
	switch {
	case res.Keep != nil && res.Value == nil && !res.Deleted:
		value, ok := now[*res.Keep]
		if !ok {
			return "", fmt.Errorf("%w: %+v is not there", ErrVersionsChanged, *res.Keep)
		}
		return value, nil
	case res.Keep == nil && res.Value == nil && res.Deleted && k.Field != FieldLabels:
		return "", nil
	case res.Keep == nil && res.Value != nil && !res.Deleted:
		return k.encode(res.Value)
	}
	return "", fmt.Errorf("%w: a resolution keeps a version, gives a value, or deletes", replication.ErrInvalidCommand)
}

// encode is the canonical form of a value for the thing.
func (k *Key) encode(value any) (string, error) {
	s, err := canonical(value)
	if err != nil {
		return "", err
	}
	switch k.Field {
	case FieldProperty:
		return s, nil
	case FieldEdge:
		if m, ok := value.(map[string]any); ok {
			return canonicalMap(m)
		}
	case FieldLabels:
		if labels, err := decodeLabels(s); err == nil {
			return canonicalLabels(labels), nil
		}
	}
	return "", fmt.Errorf("%w: not a value for %s: %.40s", replication.ErrInvalidCommand, k.Field, s)
}

func (l *local) fix(k Key, value string) error {
	o := op{node: k.Node, to: k.To, relType: k.Type, key: k.Property, value: value}
	switch {
	case k.Field == FieldEdge && value == "":
		o.kind = opDeleteEdge
	case k.Field == FieldEdge:
		o.kind = opFixEdge
	case k.Field == FieldNode && value == "":
		o.kind = opDeleteNode
	case k.Field == FieldNode:
		o.kind, o.value = opFixLife, ""
		n, err := l.c.node(k.Node)
		if err != nil {
			return err
		}
		o.births[0] = l.birth(n)
	case k.Field == FieldLabels:
		o.kind = opFixLabels
	default:
		o.kind = opFixProperty
	}
	return l.do(o)
}
