package cluster

import (
	"context"
	"io"
	"log"
	"log/slog"
	"strings"

	"github.com/hashicorp/go-hclog"
)

// raftLogger writes raft's log to slog, one level quieter than raft thinks: what
// is news to raft (elections, snapshots) is detail to an operator, and its
// errors are mostly peers that are away.
type raftLogger struct {
	log  *slog.Logger
	name string
	args []any
}

var _ hclog.Logger = (*raftLogger)(nil)

func newLogger(l *slog.Logger) hclog.Logger { return &raftLogger{log: l.With("part", "raft")} }

func quieter(l hclog.Level) slog.Level {
	switch l {
	case hclog.Error:
		return slog.LevelWarn
	case hclog.Warn:
		return slog.LevelInfo
	case hclog.Info:
		return slog.LevelDebug
	}
	return slog.LevelDebug - 4
}

// repetitive are messages that raft repeats many times a second for as long as
// another server cannot be reached. That a node is gone is told once, by who
// notices and acts on it.
var repetitive = []string{
	"failed to heartbeat to", "failed to appendEntries to", "failed to make requestVote RPC",
	"failed to make preVote RPC", "failed to contact", "failed to pipeline appendEntries",
	"failed to decode incoming command", "peer has newer term",
}

func (r *raftLogger) Log(level hclog.Level, msg string, args ...any) {
	as := quieter(level)
	for _, prefix := range repetitive {
		if strings.HasPrefix(msg, prefix) {
			as = slog.LevelDebug
		}
	}
	r.log.Log(context.Background(), as, msg, args...)
}
func (r *raftLogger) Trace(msg string, args ...any) { r.Log(hclog.Trace, msg, args...) }
func (r *raftLogger) Debug(msg string, args ...any) { r.Log(hclog.Debug, msg, args...) }
func (r *raftLogger) Info(msg string, args ...any)  { r.Log(hclog.Info, msg, args...) }
func (r *raftLogger) Warn(msg string, args ...any)  { r.Log(hclog.Warn, msg, args...) }
func (r *raftLogger) Error(msg string, args ...any) { r.Log(hclog.Error, msg, args...) }

func (r *raftLogger) enabled(l hclog.Level) bool {
	return r.log.Enabled(context.Background(), quieter(l))
}
func (r *raftLogger) IsTrace() bool { return r.enabled(hclog.Trace) }
func (r *raftLogger) IsDebug() bool { return r.enabled(hclog.Debug) }
func (r *raftLogger) IsInfo() bool  { return r.enabled(hclog.Info) }
func (r *raftLogger) IsWarn() bool  { return r.enabled(hclog.Warn) }
func (r *raftLogger) IsError() bool { return r.enabled(hclog.Error) }

func (r *raftLogger) ImpliedArgs() []any { return r.args }
func (r *raftLogger) With(args ...any) hclog.Logger {
	return &raftLogger{log: r.log.With(args...), name: r.name, args: append(r.args[:len(r.args):len(r.args)], args...)}
}
func (r *raftLogger) Name() string { return r.name }
func (r *raftLogger) Named(name string) hclog.Logger {
	if r.name != "" {
		name = r.name + "." + name
	}
	return r.ResetNamed(name)
}
func (r *raftLogger) ResetNamed(name string) hclog.Logger {
	return &raftLogger{log: r.log, name: name, args: r.args}
}

// SetLevel does nothing: slog's handler decides.
func (r *raftLogger) SetLevel(hclog.Level) {}

// GetLevel is the lowest that slog's handler takes.
func (r *raftLogger) GetLevel() hclog.Level {
	for _, l := range []hclog.Level{hclog.Trace, hclog.Debug, hclog.Info, hclog.Warn} {
		if r.enabled(l) {
			return l
		}
	}
	return hclog.Error
}

func (r *raftLogger) StandardLogger(o *hclog.StandardLoggerOptions) *log.Logger {
	return log.New(r.StandardWriter(o), "", 0)
}

func (r *raftLogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer {
	return slogWriter{r}
}

type slogWriter struct{ r *raftLogger }

func (w slogWriter) Write(p []byte) (int, error) {
	w.r.Info(string(p))
	return len(p), nil
}
