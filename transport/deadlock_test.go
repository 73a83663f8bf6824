package transport

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"
)

// TestManyHandlesOfAPeerThatIsDown: handles are made and given back while dials
// begin and fail. Nobody waits for anybody for ever.
func TestManyHandlesOfAPeerThatIsDown(t *testing.T) {
	tr := newTransport(t, "d", func(o *Options) {
		o.BackoffMin, o.BackoffMax = time.Nanosecond, time.Nanosecond
		o.Dial = func(context.Context, string) (net.Conn, error) { return nil, errors.New("refused") }
	})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 2000 {
				if _, err := tr.Connect(t.Context(), "down:1"); err == nil {
					t.Error("connected to nobody")
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		panic("they wait for each other") // as Close would
	}
}
