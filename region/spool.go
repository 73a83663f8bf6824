package region

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region/conflict"
)

// partBytes bounds a part, about; a larger row goes in several.
const partBytes = 256 << 10

// spool is a state on its way: in a file, as it must be of one moment, takes
// long to be sent, and may be larger than the memory.
type spool struct {
	id     string
	parts  uint64
	stamps map[string]uint64 // of what the rows say is applied
	file   *os.File
	rows   *json.Decoder
}

// spoolPattern is the name of the file, in the data directory.
const spoolPattern = "region-state-*.tmp"

// collect writes this region's state down in parts.
func (n *Node) collect() (*spool, error) {
	file, err := os.CreateTemp(n.cfg.DataDir, spoolPattern)
	if err != nil {
		return nil, err
	}
	s := &spool{id: replication.NewHistory(), file: file}
	w := bufio.NewWriter(file)
	out := json.NewEncoder(w)
	err = n.machine.View(func(m replication.Meta) error { return s.write(out, m) })
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		_, err = file.Seek(0, 0)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	s.rows = json.NewDecoder(bufio.NewReader(file))
	return s, nil
}

func (s *spool) write(out *json.Encoder, m replication.Meta) error {
	v, err := readView(m)
	if err != nil {
		return err
	}
	s.stamps = v.head.Stamps
	var rows []row
	size := 0
	flush := func() error {
		err := out.Encode(rows)
		rows, size = rows[:0], 0
		s.parts++
		return err
	}
	add := func(k, v []byte) error {
		for more := false; !more || len(v) > 0; more = true {
			n := min(len(v), partBytes)
			if size > 0 && size+len(k)+n > partBytes {
				if err := flush(); err != nil {
					return err
				}
			}
			rows = append(rows, row{K: bytes.Clone(k), V: bytes.Clone(v[:n]), More: more})
			size += len(k) + n
			v = v[n:]
		}
		return nil
	}
	if err := conflict.ExportState(m.(conflict.ReadStore), add); err != nil {
		return err
	}
	if err := exportRequests(m, add); err != nil {
		return err
	}
	return flush()
}

// read reads the rows of the next part.
func (s *spool) read(p *part) error {
	if err := s.rows.Decode(&p.Rows); err != nil {
		return fmt.Errorf("reading %s: %w", s.file.Name(), err)
	}
	return nil
}

func (s *spool) close() {
	_ = s.file.Close() // it is only read
	_ = os.Remove(s.file.Name())
}

// removeSpools removes what a crash has left.
func removeSpools(dir string) error {
	names, err := fs.Glob(os.DirFS(dir), spoolPattern)
	for _, name := range names {
		err = errors.Join(err, os.Remove(filepath.Join(dir, name)))
	}
	return err
}
