package walstream

// flight is a batch that was sent and not answered.
type flight struct {
	last  uint64
	bytes int
}

// sender decides what is sent next: the acknowledgement window of a stream. It
// has no clock, goroutine or connection.
type sender struct {
	maxBatches int
	mostBytes  int
	maxBytes   int // at present; doubles with every answer, up to mostBytes

	sent    uint64   // ≥ ack.Received at the start; handed out since
	ack     Ack      // Received ≥ Persisted ≥ Applied: what the peer said
	flights []flight // ascending; the last one's last = sent
	bytes   int      // of flights
}

// start begins anew at what the peer says it has, which after its restart can be
// less than it had said before, with a window of so many bytes.
func (s *sender) start(ack Ack, window int) {
	s.maxBytes = window
	s.ack = ack.ordered()
	s.sent, s.flights, s.bytes = s.ack.Received, nil, 0
}

// ordered makes an answer that cannot be true the least that it says.
func (a Ack) ordered() Ack {
	a.Persisted = min(a.Persisted, a.Received)
	a.Applied = min(a.Applied, a.Persisted)
	return a
}

// room says how many bytes the next batch may have; 0: none may be sent. What is
// larger than all the room goes alone.
func (s *sender) room() int {
	if len(s.flights) >= s.maxBatches {
		return 0
	}
	return max(s.maxBytes-s.bytes, 0)
}

// launch notes that a batch up to last was sent.
func (s *sender) launch(last uint64, bytes int) {
	s.flights = append(s.flights, flight{last, bytes})
	s.sent = last
	s.bytes += bytes
}

// answered takes the answer to the batch that ends at last. taken is false where
// the peer did not take it, as something before it is missing: sending has to
// start anew.
func (s *sender) answered(last uint64, ack Ack) (taken bool) {
	s.learn(ack)
	for i, f := range s.flights {
		if f.last == last {
			s.bytes -= f.bytes
			s.flights = append(s.flights[:i:i], s.flights[i+1:]...)
			break
		}
	}
	s.maxBytes = min(2*s.maxBytes, s.mostBytes)
	return ack.Received >= last
}

// learn takes what the peer says of itself, on whatever way; it only goes up. No
// peer has more than was sent to it.
func (s *sender) learn(ack Ack) {
	ack = ack.ordered()
	s.ack.Received = max(s.ack.Received, min(ack.Received, s.sent))
	s.ack.Persisted = max(s.ack.Persisted, min(ack.Persisted, s.sent))
	s.ack.Applied = max(s.ack.Applied, min(ack.Applied, s.sent))
}
