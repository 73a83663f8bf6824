package testharness

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nornicdb/replication"
)

// Transcript collects what happens to a cluster, a line each, in one order:
// what the schedule does, what network and disks do, what nodes log and tell
// their subscribers. Safe for concurrent use.
type Transcript struct {
	start time.Time

	// mu guards lines.
	mu    sync.Mutex
	lines []string
}

// NewTranscript begins a transcript; its times count from now.
func NewTranscript() *Transcript { return &Transcript{start: time.Now()} }

// Add adds a line about someone: a node's ID, "network", "schedule".
func (t *Transcript) Add(who, format string, args ...any) {
	at := time.Since(t.start)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, fmt.Sprintf("%11.6f  %-9s %s", at.Seconds(), who, fmt.Sprintf(format, args...)))
}

func (t *Transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines, "\n") + "\n"
}

// Keep writes the transcript of a failed test to a file and says where.
func (t *Transcript) Keep(tb testing.TB) {
	tb.Helper()
	if !tb.Failed() {
		return
	}
	f, err := os.CreateTemp("", "transcript-*.txt")
	if err == nil {
		_, err = f.WriteString(t.String())
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		tb.Logf("the transcript was not kept: %v", err)
		return
	}
	tb.Logf("transcript of all nodes: %s", f.Name())
}

// events adds what a replicator tells until it is shut down.
func (t *Transcript) events(who string, events <-chan replication.Event) {
	for e := range events {
		line := string(e.Type)
		for _, part := range []struct{ name, value string }{{"leader", e.Leader}, {"role", e.Role}, {"peer", e.Peer}, {"detail", e.Detail}} {
			if part.value != "" {
				line += " " + part.name + "=" + part.value
			}
		}
		if e.Term > 0 {
			line += fmt.Sprintf(" term=%d", e.Term)
		}
		if e.Position > 0 {
			line += fmt.Sprintf(" position=%d", e.Position)
		}
		t.Add(who, "event %s", line)
	}
}

// nodeLogger is a node's log in the transcript. Debug lines are left out.
type nodeLogger struct {
	t   *Transcript
	who string
}

var _ replication.Logger = nodeLogger{}

func (l nodeLogger) add(level, msg string, args []any) {
	var b strings.Builder
	for i := 0; i+1 < len(args); i += 2 {
		fmt.Fprintf(&b, " %v=%v", args[i], args[i+1])
	}
	l.t.Add(l.who, "%s %s%s", level, msg, b.String())
}

func (l nodeLogger) Debug(string, ...any)          {}
func (l nodeLogger) Info(msg string, args ...any)  { l.add("info", msg, args) }
func (l nodeLogger) Warn(msg string, args ...any)  { l.add("WARN", msg, args) }
func (l nodeLogger) Error(msg string, args ...any) { l.add("ERROR", msg, args) }
