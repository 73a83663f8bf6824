package main

import (
	"sync"
	"testing"
	"time"
)

const standstillTick = 10 * time.Millisecond

// standstill measures how long this machine stood still, or had no processor to
// give: by how much the ticks of a clock came too late. What took long meanwhile
// says nothing about the processes.
type standstill struct {
	mu    sync.Mutex
	last  time.Time // tick
	total time.Duration
}

func watchStandstill(t *testing.T) *standstill {
	s := &standstill{last: time.Now()}
	done, ended := make(chan struct{}), make(chan struct{})
	ticker := time.NewTicker(standstillTick)
	t.Cleanup(func() { close(done); <-ended; ticker.Stop() })
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				s.ticked()
			}
		}
	}()
	return s
}

func (s *standstill) ticked() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total += max(0, time.Since(s.last)-2*standstillTick)
	s.last = time.Now()
}

// since the last call.
func (s *standstill) since() time.Duration {
	s.ticked() // the one that is due may not have come yet
	s.mu.Lock()
	defer s.mu.Unlock()
	total := s.total
	s.total = 0
	return total
}
