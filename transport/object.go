package transport

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
)

var (
	errNotObject = errors.New("not a JSON object")
	errJSON      = errors.New("not valid JSON")
)

// maxDepth is how deep values may be nested, as in encoding/json.
const maxDepth = 10000

// eachMember calls fn with each member of a JSON object: its key, and its value
// as it stands in data, without a copy. It reads data once, and what it takes is
// what encoding/json takes; where that ends with an error, fn may have been called
// with what stands before it.
func eachMember(data []byte, fn func(key string, value []byte) error) error {
	i := skipSpace(data, 0)
	if i == len(data) || data[i] != '{' {
		if json.Valid(data) {
			return errNotObject
		}
		return errJSON
	}
	end, err := scanObject(data, i, 1, func(key, value []byte) error {
		name := string(key[1 : len(key)-1])
		if !plainKey(name) {
			if err := json.Unmarshal(key, &name); err != nil {
				return err
			}
		}
		return fn(name, value)
	})
	if err == nil && skipSpace(data, end) != len(data) {
		err = errJSON
	}
	return err
}

// plainKey: the key is what stands between its quotes.
func plainKey(key string) bool {
	for i := range len(key) {
		if c := key[i]; c == '\\' || c >= 0x80 {
			return false
		}
	}
	return true
}

// scanValue is where the value that begins at i ends, or an error: it is not valid.
func scanValue(data []byte, i, depth int) (int, error) {
	if i == len(data) {
		return 0, errJSON
	}
	switch c := data[i]; c {
	case '"':
		return scanString(data, i)
	case '{':
		return scanObject(data, i, depth+1, nil)
	case '[':
		return scanArray(data, i, depth+1)
	case 't':
		return scanWord(data, i, "true")
	case 'f':
		return scanWord(data, i, "false")
	case 'n':
		return scanWord(data, i, "null")
	}
	return scanNumber(data, i)
}

// scanObject scans the object that begins at i; fn, if not nil, is called with each
// key, in its quotes, and value.
func scanObject(data []byte, i, depth int, fn func(key, value []byte) error) (end int, err error) {
	if depth > maxDepth {
		return 0, errJSON
	}
	if i = skipSpace(data, i+1); i < len(data) && data[i] == '}' {
		return i + 1, nil
	}
	for {
		if i == len(data) || data[i] != '"' {
			return 0, errJSON
		}
		key := i
		if i, err = scanString(data, i); err != nil {
			return 0, err
		}
		keyEnd := i
		if i = skipSpace(data, i); i == len(data) || data[i] != ':' {
			return 0, errJSON
		}
		value := skipSpace(data, i+1)
		if i, err = scanValue(data, value, depth); err != nil {
			return 0, err
		}
		if fn != nil {
			if err := fn(data[key:keyEnd], data[value:i:i]); err != nil {
				return 0, err
			}
		}
		if i = skipSpace(data, i); i == len(data) {
			return 0, errJSON
		}
		switch data[i] {
		case '}':
			return i + 1, nil
		case ',':
			i = skipSpace(data, i+1)
		default:
			return 0, errJSON
		}
	}
}

func scanArray(data []byte, i, depth int) (end int, err error) {
	if depth > maxDepth {
		return 0, errJSON
	}
	if i = skipSpace(data, i+1); i < len(data) && data[i] == ']' {
		return i + 1, nil
	}
	for {
		if i, err = scanValue(data, i, depth); err != nil {
			return 0, err
		}
		if i = skipSpace(data, i); i == len(data) {
			return 0, errJSON
		}
		switch data[i] {
		case ']':
			return i + 1, nil
		case ',':
			i = skipSpace(data, i+1)
		default:
			return 0, errJSON
		}
	}
}

func scanString(data []byte, i int) (int, error) {
	size := bytes.IndexByte(data[i+1:], '"')
	if size < 0 {
		return 0, errJSON
	}
	text := data[i+1 : i+1+size]
	if bytes.IndexByte(text, '\\') >= 0 {
		return scanEscaped(data, i)
	}
	if hasControl(text) {
		return 0, errJSON
	}
	return i + size + 2, nil
}

// scanEscaped is scanString of a string that has escapes.
func scanEscaped(data []byte, i int) (int, error) {
	for i++; i < len(data); i++ {
		switch c := data[i]; {
		case c == '"':
			return i + 1, nil
		case c < ' ':
			return 0, errJSON
		case c != '\\':
			continue
		}
		if i++; i == len(data) {
			return 0, errJSON
		}
		switch data[i] {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		case 'u':
			if i+4 >= len(data) || !isHex(data[i+1:i+5]) {
				return 0, errJSON
			}
			i += 4
		default:
			return 0, errJSON
		}
	}
	return 0, errJSON
}

func isHex(digits []byte) bool {
	for _, c := range digits {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F') {
			return false
		}
	}
	return true
}

func scanWord(data []byte, i int, word string) (int, error) {
	if len(data)-i < len(word) || string(data[i:i+len(word)]) != word {
		return 0, errJSON
	}
	return i + len(word), nil
}

// scanNumber scans -?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?.
func scanNumber(data []byte, i int) (int, error) {
	at := func(chars string) bool {
		if i < len(data) {
			for _, c := range []byte(chars) {
				if data[i] == c {
					return true
				}
			}
		}
		return false
	}
	digits := func() bool {
		begin := i
		for i < len(data) && data[i] >= '0' && data[i] <= '9' {
			i++
		}
		return i > begin
	}
	if at("-") {
		i++
	}
	if at("0") {
		i++
	} else if !digits() {
		return 0, errJSON
	}
	if at(".") {
		if i++; !digits() {
			return 0, errJSON
		}
	}
	if at("eE") {
		if i++; at("+-") {
			i++
		}
		if !digits() {
			return 0, errJSON
		}
	}
	return i, nil
}

func skipSpace(data []byte, i int) int {
	for i < len(data) && (data[i] == ' ' || data[i] == '\t' || data[i] == '\n' || data[i] == '\r') {
		i++
	}
	return i
}

// hasControl finds control characters, which JSON does not allow in a string. It
// looks at eight bytes at once: the subtraction sets the top bit of one that is
// below a space, and perhaps that of one above it.
func hasControl(text []byte) bool {
	const each = 0x0101010101010101
	for ; len(text) >= 8; text = text[8:] {
		if w := binary.LittleEndian.Uint64(text); (w-' '*each)&^w&(0x80*each) != 0 {
			return true
		}
	}
	for _, c := range text {
		if c < ' ' {
			return true
		}
	}
	return false
}
