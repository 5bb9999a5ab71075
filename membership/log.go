package membership

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/baton-cluster/baton/seam"
)

// logLinesMax a second pass; anyone can send garbage to a UDP port, and each
// piece of it is a line of memberlist's.
const logLinesMax = 20

// logWriter turns memberlist's lines into records. Its errors and warnings are
// information here: that another node cannot be reached is no fault of this
// one, and who acts on it says so.
type logWriter struct {
	log   *slog.Logger
	clock seam.Clock

	mu      sync.Mutex
	since   time.Duration // begin of the current second
	lines   int
	dropped int
}

func (w *logWriter) Write(line []byte) (int, error) {
	level, text := parseLine(line)
	if w.log.Enabled(context.Background(), level) && w.pass() {
		w.log.Log(context.Background(), level, text)
	}
	return len(line), nil
}

func (w *logWriter) pass() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.clock.Now()
	if now-w.since >= time.Second {
		if w.dropped > 0 {
			w.log.Warn("gossip's messages came too fast", "dropped", w.dropped)
		}
		w.since, w.lines, w.dropped = now, 0, 0
	}
	w.lines++
	if w.lines > logLinesMax {
		w.dropped++
		return false
	}
	return true
}

// parseLine reads "[LEVEL] memberlist: text".
func parseLine(line []byte) (slog.Level, string) {
	level := slog.LevelDebug
	text := bytes.TrimSpace(line)
	if tag, rest, ok := bytes.Cut(text, []byte("] ")); ok && len(tag) > 0 && tag[0] == '[' {
		text = bytes.TrimPrefix(rest, []byte("memberlist: "))
		switch string(tag[1:]) {
		case "ERR", "ERROR", "WARN", "INFO":
			level = slog.LevelInfo
		}
	}
	return level, "gossip: " + string(text)
}
