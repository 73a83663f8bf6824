package transport

import (
	"encoding/json"
	"errors"
)

var (
	errNotObject = errors.New("not a JSON object")
	errJSON      = errors.New("not valid JSON")
)

// eachMember calls fn with each member of a JSON object: its key, and its value
// as it stands in data, without a copy. The object is checked as a whole first.
func eachMember(data []byte, fn func(key string, value []byte) error) error {
	if !json.Valid(data) {
		return errJSON
	}
	i := skipSpace(data, 0)
	if data[i] != '{' {
		return errNotObject
	}
	// From here on data is known to be well formed.
	for i = skipSpace(data, i+1); data[i] != '}'; {
		end := valueEnd(data, i)
		var key string
		if err := json.Unmarshal(data[i:end], &key); err != nil {
			return err
		}
		start := skipSpace(data, skipSpace(data, end)+1) // behind the colon
		end = valueEnd(data, start)
		if err := fn(key, data[start:end:end]); err != nil {
			return err
		}
		if i = skipSpace(data, end); data[i] == ',' {
			i = skipSpace(data, i+1)
		}
	}
	return nil
}

func skipSpace(data []byte, i int) int {
	for data[i] == ' ' || data[i] == '\t' || data[i] == '\n' || data[i] == '\r' {
		i++
	}
	return i
}

// valueEnd is where the value that starts at i ends, in a valid JSON object.
func valueEnd(data []byte, i int) int {
	switch data[i] {
	case '"':
		return stringEnd(data, i)
	case '{', '[':
		for depth := 0; ; i++ {
			switch data[i] {
			case '"':
				i = stringEnd(data, i) - 1
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
		}
	}
	for { // a number, true, false or null: in an object something follows it
		switch data[i] {
		case ',', '}', ' ', '\t', '\n', '\r':
			return i
		}
		i++
	}
}

func stringEnd(data []byte, i int) int {
	for i++; data[i] != '"'; i++ {
		if data[i] == '\\' {
			i++
		}
	}
	return i + 1
}
