package replication

import (
	"encoding/base64"
	"maps"
	"slices"
	"strconv"
	"time"
)

// What is below writes what encoding/json writes, byte for byte, for the
// messages in which the data travels.

// AppendJSON appends the JSON form of the command; null where it is nil.
func (c *Command) AppendJSON(dst []byte) ([]byte, error) {
	if c == nil {
		return append(dst, "null"...), nil
	}
	const rest = 128 // about what the rest takes
	dst = slices.Grow(dst, rest+base64.StdEncoding.EncodedLen(len(c.Data)))
	dst = append(dst, `{"Type":`...)
	dst = strconv.AppendUint(dst, uint64(c.Type), 10)
	dst = append(dst, `,"Data":`...)
	dst = appendBytes(dst, c.Data)
	dst = append(dst, `,"Timestamp":`...)
	dst, err := appendTime(dst, c.Timestamp)
	if err != nil {
		return nil, err
	}
	if c.RequestID != "" {
		dst = append(dst, `,"RequestID":`...)
		dst = appendString(dst, c.RequestID)
	}
	return append(dst, '}'), nil
}

// AppendJSON appends the JSON form of the entry; null where it is nil.
func (e *WALEntry) AppendJSON(dst []byte) ([]byte, error) {
	if e == nil {
		return append(dst, "null"...), nil
	}
	dst = append(dst, `{"Position":`...)
	dst = strconv.AppendUint(dst, e.Position, 10)
	dst = append(dst, `,"Timestamp":`...)
	dst, err := appendTime(dst, e.Timestamp)
	if err != nil {
		return nil, err
	}
	dst = append(dst, `,"Command":`...)
	if dst, err = e.Command.AppendJSON(dst); err != nil {
		return nil, err
	}
	if e.Epoch != nil {
		dst = append(dst, `,"Epoch":`...)
		dst = e.Epoch.appendJSON(dst)
	}
	if e.Origin != "" {
		dst = append(dst, `,"Origin":`...)
		dst = appendString(dst, e.Origin)
	}
	if e.Time != 0 {
		dst = append(dst, `,"Time":`...)
		dst = strconv.AppendUint(dst, e.Time, 10)
	}
	if len(e.Context) == 0 {
		return append(dst, '}'), nil
	}
	separator := byte('{')
	dst = append(dst, `,"Context":`...)
	for _, region := range slices.Sorted(maps.Keys(e.Context)) {
		dst = append(dst, separator)
		dst = appendString(dst, region)
		dst = append(dst, ':')
		dst = strconv.AppendUint(dst, e.Context[region], 10)
		separator = ','
	}
	return append(dst, "}}"...), nil
}

func (e *Epoch) appendJSON(dst []byte) []byte {
	dst = append(dst, `{"Number":`...)
	dst = strconv.AppendUint(dst, e.Number, 10)
	if e.Owner != "" {
		dst = append(dst, `,"Owner":`...)
		dst = appendString(dst, e.Owner)
	}
	return append(dst, '}')
}

// AppendJSON appends the JSON form of the request.
func (r *ApplyRequest) AppendJSON(dst []byte) ([]byte, error) {
	if r.Commands == nil {
		dst = append(dst, `{"Commands":null`...)
	} else {
		dst = append(dst, `{"Commands":[`...)
		for i, c := range r.Commands {
			if i > 0 {
				dst = append(dst, ',')
			}
			var err error
			if dst, err = c.AppendJSON(dst); err != nil {
				return nil, err
			}
		}
		dst = append(dst, ']')
	}
	dst = append(dst, `,"TimeoutMS":`...)
	dst = strconv.AppendInt(dst, r.TimeoutMS, 10)
	dst = append(dst, `,"Hops":`...)
	dst = strconv.AppendInt(dst, int64(r.Hops), 10)
	return append(dst, '}'), nil
}

// appendTime fails where encoding/json does: a year of five digits, say.
func appendTime(dst []byte, t time.Time) ([]byte, error) {
	dst, err := t.AppendText(append(dst, '"'))
	return append(dst, '"'), err
}

func appendBytes(dst, data []byte) []byte {
	if data == nil {
		return append(dst, "null"...)
	}
	dst = base64.StdEncoding.AppendEncode(append(dst, '"'), data)
	return append(dst, '"')
}
