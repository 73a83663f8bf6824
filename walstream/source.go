package walstream

// LogSource is a Log as the Source of a Streamer.
type LogSource struct {
	*Log
	History string
}

var _ Source = LogSource{}

// Last implements Source.
func (s LogSource) Last() uint64 { return s.Handed() }

// Read implements Source.
func (s LogSource) Read(after uint64, maxEntries, maxBytes int) (*Batch, error) {
	epoch, err := s.EpochAt(after)
	if err != nil {
		return nil, err
	}
	entries, err := s.Log.Read(after, maxEntries, maxBytes)
	if err != nil {
		return nil, err
	}
	b := &Batch{Prev: Mark{after, epoch}, Entries: make([]*WireEntry, len(entries))}
	wire := make([]WireEntry, len(entries))
	for i, e := range entries {
		b.Entries[i] = toWire(&wire[i], e)
		b.Bytes += e.size
	}
	if len(b.Entries) > 0 {
		b.Entries[0].History = s.History
	}
	return b, nil
}
