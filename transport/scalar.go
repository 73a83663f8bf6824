package transport

import (
	"bytes"
	"encoding/json"
	"unicode/utf8"
)

// decodeUint is json.Unmarshal.
func decodeUint(value []byte, n *uint64) error {
	const most = 19 // digits that there is room for, whichever they are
	if len(value) == 0 || len(value) > most || value[0] == '0' {
		return json.Unmarshal(value, n)
	}
	sum := uint64(0)
	for _, d := range value {
		if d -= '0'; d > 9 {
			return json.Unmarshal(value, n)
		}
		sum = 10*sum + uint64(d)
	}
	*n = sum
	return nil
}

// decodeText is json.Unmarshal.
func decodeText(value []byte, s *string) error {
	if !isText(value) || bytes.IndexByte(value, '\\') >= 0 || !utf8.Valid(value) {
		return json.Unmarshal(value, s)
	}
	*s = string(value[1 : len(value)-1])
	return nil
}

// isText: the JSON value is a string.
func isText(value []byte) bool {
	if len(value) == 0 || value[0] != '"' {
		return false
	}
	end, err := scanString(value, 0)
	return err == nil && end == len(value)
}
