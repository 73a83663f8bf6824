package replication

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"sort"
	"strconv"
	"strings"
)

// maxValueDepth bounds the nesting of a property value.
const maxValueDepth = 64

// DecodeValue decodes one JSON value as a property value: nil, bool, string,
// int64 (a number without ".", "e" or "E"), float64, []any, map[string]any.
// An integer beyond int64, trailing data or deep nesting is an error that
// wraps [ErrInvalidCommand].
func DecodeValue(data []byte) (any, error) {
	r := plainReader{data: data}
	if v := r.value(0); r.done() {
		return v, nil
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var raw any
	if err := dec.Decode(&raw); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrInvalidCommand, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fmt.Errorf("%w: data after the value", ErrInvalidCommand)
	}
	return normalize(raw, 0)
}

// plainText: a string of these bytes is its own JSON form, between quotes.
func plainText[T string | []byte](s T) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ' || c > '~':
			return false
		case c == '"' || c == '\\' || c == '<' || c == '>' || c == '&':
			return false
		}
	}
	return true
}

// NormalizeValue converts v to the types that DecodeValue returns, so that a
// value set by a Go caller equals the same value after a trip over the wire.
func NormalizeValue(v any) (any, error) { return normalize(v, 0) }

func normalize(v any, depth int) (any, error) {
	if depth > maxValueDepth {
		return nil, fmt.Errorf("%w: value nested deeper than %d", ErrInvalidCommand, maxValueDepth)
	}
	switch x := v.(type) {
	case nil, bool, string, int64:
		return v, nil
	case json.Number:
		return normalizeNumber(x)
	case float64:
		return finite(x)
	case float32:
		return finite(float64(x))
	case int:
		return int64(x), nil
	case int8:
		return int64(x), nil
	case int16:
		return int64(x), nil
	case int32:
		return int64(x), nil
	case uint8:
		return int64(x), nil
	case uint16:
		return int64(x), nil
	case uint32:
		return int64(x), nil
	case uint:
		return normalizeUint(uint64(x))
	case uint64:
		return normalizeUint(x)
	case []string:
		list := make([]any, len(x))
		for i, s := range x {
			list[i] = s
		}
		return list, nil
	case []any:
		list := make([]any, len(x))
		for i, item := range x {
			n, err := normalize(item, depth+1)
			if err != nil {
				return nil, err
			}
			list[i] = n
		}
		return list, nil
	case map[string]any:
		m := make(map[string]any, len(x))
		for k, item := range x {
			n, err := normalize(item, depth+1)
			if err != nil {
				return nil, err
			}
			m[k] = n
		}
		return m, nil
	default:
		return nil, fmt.Errorf("%w: a %T is not a property value", ErrInvalidCommand, v)
	}
}

func normalizeNumber(n json.Number) (any, error) {
	if strings.ContainsAny(n.String(), ".eE") {
		f, err := n.Float64()
		if err != nil {
			return nil, fmt.Errorf("%w: number %s is not a float64", ErrInvalidCommand, n)
		}
		return f, nil
	}
	i, err := n.Int64()
	if err != nil {
		return nil, fmt.Errorf("%w: number %s is not an int64", ErrInvalidCommand, n)
	}
	return i, nil
}

func normalizeUint(u uint64) (any, error) {
	if u > math.MaxInt64 {
		return nil, fmt.Errorf("%w: number %d is not an int64", ErrInvalidCommand, u)
	}
	return int64(u), nil
}

func finite(f float64) (any, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return nil, fmt.Errorf("%w: %v has no JSON form", ErrInvalidCommand, f)
	}
	return f, nil
}

// AppendValue appends the canonical JSON of a property value to dst: object
// keys sorted, no white space, floats with ".", "e" or "E" so that they stay
// floats. Equal values have equal bytes on every node, which is what digests
// and comparisons stand on. The error wraps [ErrInvalidCommand].
func AppendValue(dst []byte, v any) ([]byte, error) {
	if isNormal(v, 0) {
		return appendNormal(dst, v), nil
	}
	n, err := normalize(v, 0)
	if err != nil {
		return dst, err
	}
	return appendNormal(dst, n), nil
}

// isNormal: normalize would return v as it is.
func isNormal(v any, depth int) bool {
	if depth > maxValueDepth {
		return false
	}
	switch x := v.(type) {
	case nil, bool, string, int64:
		return true
	case float64:
		return !math.IsNaN(x) && !math.IsInf(x, 0)
	case []any:
		for _, item := range x {
			if !isNormal(item, depth+1) {
				return false
			}
		}
		return true
	case map[string]any:
		for _, item := range x {
			if !isNormal(item, depth+1) {
				return false
			}
		}
		return true
	default:
		return false
	}
}

func appendNormal(dst []byte, v any) []byte {
	switch x := v.(type) {
	case nil:
		return append(dst, "null"...)
	case bool:
		return strconv.AppendBool(dst, x)
	case int64:
		return strconv.AppendInt(dst, x, 10)
	case float64:
		return appendFloat(dst, x)
	case string:
		return appendString(dst, x)
	case []any:
		dst = append(dst, '[')
		for i, item := range x {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendNormal(dst, item)
		}
		return append(dst, ']')
	case map[string]any:
		keys := make([]string, 0, len(x))
		for k := range x {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		dst = append(dst, '{')
		for i, k := range keys {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = appendString(dst, k)
			dst = append(dst, ':')
			dst = appendNormal(dst, x[k])
		}
		return append(dst, '}')
	default:
		panic(fmt.Sprintf("replication: %T passed normalize", v))
	}
}

func appendFloat(dst []byte, f float64) []byte {
	start := len(dst)
	dst = strconv.AppendFloat(dst, f, 'g', -1, 64)
	if !bytes.ContainsAny(dst[start:], ".eE") {
		dst = append(dst, '.', '0')
	}
	return dst
}

func appendString(dst []byte, s string) []byte {
	if plainText(s) {
		dst = append(dst, '"')
		dst = append(dst, s...)
		return append(dst, '"')
	}
	b, err := json.Marshal(s)
	if err != nil { // json.Marshal of a string has no error path
		panic(err)
	}
	return append(dst, b...)
}
