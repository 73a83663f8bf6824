package raftnode

import (
	"fmt"
	"io"
	"log"

	"github.com/hashicorp/go-hclog"
	"github.com/nornicdb/replication"
)

// hclogAdapter gives hashicorp/raft a logger: the embedder's own where it is an
// hclog.Logger, otherwise one that passes lines on.
func hclogAdapter(l replication.Logger) hclog.Logger {
	if h, ok := l.(hclog.Logger); ok {
		return h.Named("raft")
	}
	return &passLogger{Logger: hclog.NewNullLogger(), to: l}
}

// passLogger passes lines on with the values given to With before them.
type passLogger struct {
	hclog.Logger // what is not overridden does nothing
	to           replication.Logger
	with         []any
}

func (p *passLogger) args(args []any) []any {
	all := make([]any, 0, len(p.with)+len(args)+2)
	all = append(all, "component", "raft")
	all = append(all, p.with...)
	all = append(all, args...)
	for i, v := range all {
		all[i] = plainValue(v)
	}
	return all
}

// plainValue writes out hclog.Fmt, which hashicorp/raft passes as a value and
// other loggers do not know.
func plainValue(v any) any {
	f, ok := v.(hclog.Format)
	if !ok || len(f) == 0 {
		return v
	}
	return fmt.Sprintf(fmt.Sprint(f[0]), f[1:]...)
}

func (p *passLogger) Log(level hclog.Level, msg string, args ...any) {
	switch level {
	case hclog.Error:
		p.Error(msg, args...)
	case hclog.Warn:
		p.Warn(msg, args...)
	case hclog.Info:
		p.Info(msg, args...)
	default:
		p.Debug(msg, args...)
	}
}

func (p *passLogger) Trace(msg string, args ...any) { p.to.Debug(msg, p.args(args)...) }
func (p *passLogger) Debug(msg string, args ...any) { p.to.Debug(msg, p.args(args)...) }
func (p *passLogger) Info(msg string, args ...any)  { p.to.Info(msg, p.args(args)...) }
func (p *passLogger) Warn(msg string, args ...any)  { p.to.Warn(msg, p.args(args)...) }
func (p *passLogger) Error(msg string, args ...any) { p.to.Error(msg, p.args(args)...) }

func (p *passLogger) IsTrace() bool { return false }
func (p *passLogger) IsDebug() bool { return true }
func (p *passLogger) IsInfo() bool  { return true }
func (p *passLogger) IsWarn() bool  { return true }
func (p *passLogger) IsError() bool { return true }

func (p *passLogger) Named(string) hclog.Logger      { return p }
func (p *passLogger) ResetNamed(string) hclog.Logger { return p }
func (p *passLogger) With(args ...any) hclog.Logger {
	return &passLogger{Logger: p.Logger, to: p.to, with: append(append([]any(nil), p.with...), args...)}
}

func (p *passLogger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return log.New(io.Discard, "", 0)
}
