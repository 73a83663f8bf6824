package conflict

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/nornicdb/replication"
)

// opKind is the kind of an effect.
type opKind uint8

// Effects. What depended on the state of the origin (create or update? which
// edge?) is decided there, so that a remote region merges without checks. The
// numbers are the format.
const (
	opCreateNode  opKind = 1 // a fresh creation
	opUpdateNode  opKind = 2 // also a creation that is not fresh
	opDeleteNode  opKind = 3
	opSetProperty opKind = 4
	opPutEdge     opKind = 5
	opDeleteEdge  opKind = 6
	// Resolutions: they write one thing only, and do not say that a node exists.
	opFixLife     opKind = 7 // this one does, and nothing else
	opFixLabels   opKind = 8
	opFixProperty opKind = 9
	opFixEdge     opKind = 10
)

// exists is the value of a node's life; deleted is "".
const exists = "1"

// birth is what a region knows of the re-creations of a node: their dots, and
// the union of their contexts, that is everything of the node they replaced.
// A write that says "the node exists" carries it until all regions have the
// re-creations (DESIGN.md, "Births").
type birth struct {
	past Vector
	dots Vector
}

func (b *birth) join(o *birth) {
	b.past.Join(&o.past)
	b.dots.Join(&o.dots)
}

func (b *birth) known() bool { return b.dots != Vector{} }

// op is one effect.
type op struct {
	kind    opKind
	node    string // node ID, or start of the edge
	to      string
	relType string
	key     string
	value   string // canonical JSON: property, labels, or the edge's properties; "": unset
	props   []prop // of a whole-node write, sorted
	births  [2]birth
}

type prop struct{ name, value string }

func (k opKind) isEdge() bool { return k == opPutEdge || k == opDeleteEdge || k == opFixEdge }

// ends says how many births the effect carries.
func (k opKind) ends() int {
	switch k {
	case opCreateNode, opUpdateNode, opSetProperty, opFixLife:
		return 1
	case opPutEdge:
		return 2
	default:
		return 0
	}
}

// canonical encodes a property value; nil becomes "".
func canonical(v any) (string, error) {
	if v == nil {
		return "", nil
	}
	b, err := replication.AppendValue(nil, v)
	return string(b), err
}

// labelSet is what labels are: sorted, each once; never nil.
func labelSet(labels []string) []string {
	set := append(make([]string, 0, len(labels)), labels...)
	slices.Sort(set)
	return slices.Compact(set)
}

// canonicalLabels encodes labels as the set they are.
func canonicalLabels(labels []string) string { return string(appendLabels(nil, labelSet(labels))) }

// appendLabels encodes a set of labels: a list of strings.
func appendLabels(dst []byte, set []string) []byte {
	dst = append(dst, '[')
	for i, l := range set {
		if i > 0 {
			dst = append(dst, ',')
		}
		var err error
		if dst, err = replication.AppendValue(dst, l); err != nil { // a string is a value
			panic(err)
		}
	}
	return append(dst, ']')
}

func decodeLabels(s string) ([]string, error) {
	if labels, ok := plainLabels(s); ok {
		return labels, nil
	}
	var labels []string
	if err := json.Unmarshal([]byte(s), &labels); err != nil {
		return nil, fmt.Errorf("labels: %v", err)
	}
	return labels, nil
}

// canonicalNode encodes labels, which are a set, and properties, sorted. What is
// null is not there. They share the memory of one string; buf is room to make it.
func canonicalNode(buf []byte, set []string, values map[string]any) (labels string, props []prop, room []byte, err error) {
	props = make([]prop, 0, len(values))
	for name, v := range values {
		if v != nil {
			props = append(props, prop{name: name})
		}
	}
	slices.SortFunc(props, func(a, b prop) int { return strings.Compare(a.name, b.name) })
	buf = appendLabels(buf[:0], set)
	start, ends := len(buf), make([]int, len(props), 16)
	for i := range props {
		if buf, err = replication.AppendValue(buf, values[props[i].name]); err != nil {
			return "", nil, buf, err
		}
		ends[i] = len(buf)
	}
	text := string(buf)
	labels = text[:start]
	for i := range props {
		props[i].value = text[start:ends[i]]
		start = ends[i]
	}
	return labels, props, buf, nil
}

func canonicalMap(m map[string]any) (string, error) {
	clean := make(map[string]any, len(m))
	for k, v := range m {
		if v != nil {
			clean[k] = v
		}
	}
	return canonical(clean)
}

func decodeMap(s string) (map[string]any, error) {
	v, err := replication.DecodeValue([]byte(s))
	if err != nil {
		return nil, err
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%w: properties %q", replication.ErrInvalidCommand, s)
	}
	return m, nil
}

func (o *op) tooLong() bool { return max(len(o.node), len(o.to), len(o.relType)) > MaxIDBytes }

// check says whether the effect is one that this package makes.
func (o *op) check() error {
	if o.node == "" || o.kind.isEdge() && (o.to == "" || o.relType == "") {
		return fmt.Errorf("%w: effect %d with an empty ID", ErrInvalidEntry, o.kind)
	}
	if o.tooLong() {
		return fmt.Errorf("%w: effect %d with an ID of more than %d bytes", ErrInvalidEntry, o.kind, MaxIDBytes)
	}
	switch o.kind {
	case opCreateNode, opUpdateNode:
		for i, p := range o.props {
			if i > 0 && o.props[i-1].name >= p.name {
				return fmt.Errorf("%w: properties are not sorted", ErrInvalidEntry)
			}
			if err := checkValue(p.value); err != nil {
				return err
			}
		}
		return checkLabels(o.value)
	case opFixLabels:
		return checkLabels(o.value)
	case opSetProperty, opFixProperty:
		if o.value == "" {
			return nil
		}
		return checkValue(o.value)
	case opPutEdge, opFixEdge:
		m, err := decodeMap(o.value)
		if err != nil {
			return fmt.Errorf("%w: %v", ErrInvalidEntry, err)
		}
		if c, err := canonicalMap(m); err != nil || c != o.value {
			return fmt.Errorf("%w: edge properties are not canonical", ErrInvalidEntry)
		}
	case opDeleteNode, opDeleteEdge, opFixLife:
	default:
		return fmt.Errorf("%w: effect %d is not known here", ErrInvalidEntry, o.kind)
	}
	return nil
}

// checkValue: equal values must have equal bytes, or equal writes would look
// like conflicts and digests would differ.
func checkValue(s string) error {
	if _, ok := plainValue(s); ok {
		return nil
	}
	v, err := replication.DecodeValue([]byte(s))
	if err != nil {
		return fmt.Errorf("%w: %v", ErrInvalidEntry, err)
	}
	if c, err := canonical(v); err != nil || c != s {
		return fmt.Errorf("%w: value %.40q is not canonical", ErrInvalidEntry, s)
	}
	return nil
}

// plainValue decodes the values most properties have, integers, booleans and
// plain text, where they are canonical; not ok: another kind of value.
func plainValue(s string) (v any, ok bool) {
	switch {
	case s == "true" || s == "false":
		return s == "true", true
	case len(s) > 1 && s[0] == '"' && s[len(s)-1] == '"':
		text := s[1 : len(s)-1]
		for i := range len(text) {
			if c := text[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
				return nil, false
			}
		}
		return text, true
	}
	digits := strings.TrimPrefix(s, "-")
	if digits == "" || len(digits) > 18 || digits[0] == '0' && s != "0" {
		return nil, false
	}
	var n int64
	for i := range len(digits) {
		if digits[i] < '0' || digits[i] > '9' {
			return nil, false
		}
		n = n*10 + int64(digits[i]-'0')
	}
	if len(digits) < len(s) {
		n = -n
	}
	return n, true
}

// plainLabels decodes canonical labels of plain text; not ok: others, perhaps.
func plainLabels(s string) (labels []string, ok bool) {
	if len(s) < 2 || s[0] != '[' || s[len(s)-1] != ']' {
		return nil, false
	}
	labels = make([]string, 0, 2)
	for rest := s[1 : len(s)-1]; rest != ""; {
		item, more, comma := strings.Cut(rest, ",")
		if rest = more; comma && more == "" {
			return nil, false
		}
		v, ok := plainValue(item)
		label, text := v.(string)
		if !ok || !text || len(labels) > 0 && labels[len(labels)-1] >= label {
			return nil, false
		}
		labels = append(labels, label)
	}
	return labels, true
}

func checkLabels(s string) error {
	if _, ok := plainLabels(s); ok {
		return nil
	}
	labels, err := decodeLabels(s)
	if err != nil || canonicalLabels(labels) != s {
		return fmt.Errorf("%w: labels %.40q are not canonical", ErrInvalidEntry, s)
	}
	return nil
}

func comparePropName(p prop, name string) int { return strings.Compare(p.name, name) }
