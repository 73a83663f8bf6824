package boltgraph

// SpillAlways makes large transactions write every change to their file at once.
func (s *Store) SpillAlways() { s.limits.large = 1 }
