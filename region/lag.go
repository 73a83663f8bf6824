package region

import (
	"sync"
	"time"

	"github.com/nornicdb/replication"
	"github.com/nornicdb/replication/region/conflict"
)

// lags remember when the first entry was written that a region lacks, so that
// nobody who asks for the health waits for the Storage.
type lags struct {
	// mu guards the fields below.
	mu   sync.Mutex
	list map[string]firstLacking
}

type firstLacking struct {
	pos  uint64
	time time.Time // when it was written, by this region's clock
	age  float64   // seconds, at the last look
}

// seconds is how old the first entry is that a region lacks; 0: it has all. Where
// it has moved on since the last look, as it was then.
func (l *lags) seconds(region string, head *header, now time.Time) float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := l.list[region]
	switch cursor := head.Cursors[region]; {
	case first.time.IsZero() || cursor >= head.Last:
		return 0
	case first.pos <= cursor:
		return first.age
	}
	return max(now.Sub(first.time).Seconds(), 0)
}

// look reads the times anew. An entry that the outbox has dropped is at least as
// old as the first that is there.
func (l *lags) look(m replication.Meta, now time.Time) error {
	v, err := readView(m)
	if err != nil || v.settings == nil {
		return err
	}
	list := make(map[string]firstLacking)
	for region, cursor := range v.head.Cursors {
		first := firstLacking{pos: max(cursor+1, v.head.First)}
		if first.pos > v.head.Last {
			continue
		}
		if before := l.at(region); before.pos == first.pos {
			before.age = max(now.Sub(before.time).Seconds(), 0)
			list[region] = before
			continue
		}
		row, err := (&blockReader{m: m}).entry(first.pos)
		if err != nil {
			return err
		}
		_, entry := splitOutboxRow(row)
		e, err := conflict.DecodeOwn(entry)
		if err != nil {
			return err
		}
		first.time = time.UnixMilli(int64(conflict.WallMS(e.Time)))
		first.age = max(now.Sub(first.time).Seconds(), 0)
		list[region] = first
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = list
	return nil
}

func (l *lags) at(region string) firstLacking {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.list[region]
}

// observe looks how far the other regions are, and reports it, until Shutdown.
func (n *Node) observe() {
	tick := time.NewTicker(markInterval)
	defer tick.Stop()
	for {
		if err := n.machine.View(func(m replication.Meta) error { return n.lags.look(m, n.rt.Now()) }); err != nil {
			n.rt.Logger.Debug("how far other regions are cannot be read", "error", err)
		}
		v, _ := n.machine.now()
		n.measure(&v)
		select {
		case <-tick.C:
		case <-n.ctx.Done():
			return
		}
	}
}
