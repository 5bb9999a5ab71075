package baton

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"runtime/pprof"
	"sync"

	"github.com/baton-cluster/baton/wire"
)

// logTailLines is how much of its log a node keeps for a bundle, from level info
// on, whatever it is told to print.
const logTailLines = 2000

// logTail keeps the last lines of a log.
type logTail struct {
	mu    sync.Mutex
	lines [logTailLines][]byte
	next  int
}

// Write takes one line.
func (t *logTail) Write(line []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines[t.next%logTailLines] = bytes.Clone(line)
	t.next++
	return len(line), nil
}

func (t *logTail) text() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []byte
	for i := range t.lines {
		out = append(out, t.lines[(t.next+i)%logTailLines]...)
	}
	return out
}

// tailHandler prints what next prints, and keeps what text does.
type tailHandler struct{ next, text slog.Handler }

func newTailHandler(next slog.Handler, tail *logTail) slog.Handler {
	return tailHandler{next, slog.NewTextHandler(tail, nil)}
}

func (h tailHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.text.Enabled(ctx, l) || h.next.Enabled(ctx, l)
}

func (h tailHandler) Handle(ctx context.Context, r slog.Record) error {
	if h.text.Enabled(ctx, r.Level) {
		_ = h.text.Handle(ctx, r.Clone())
	}
	if !h.next.Enabled(ctx, r.Level) {
		return nil
	}
	return h.next.Handle(ctx, r)
}

func (h tailHandler) WithAttrs(a []slog.Attr) slog.Handler {
	return tailHandler{h.next.WithAttrs(a), h.text.WithAttrs(a)}
}

func (h tailHandler) WithGroup(name string) slog.Handler {
	return tailHandler{h.next.WithGroup(name), h.text.WithGroup(name)}
}

// NodeDebug is what one node tells of itself for a bundle. It holds no key, no
// secret and no session's state.
type NodeDebug struct {
	Node       string  `json:"node"`
	Version    string  `json:"version"`
	Faults     []Fault `json:"faults"`
	Log        string  `json:"log"`        // its last lines, from level info on
	Metrics    string  `json:"metrics"`    // as Prometheus reads them
	Goroutines string  `json:"goroutines"` // stacks, and how many have each
	Heap       []byte  `json:"heap"`       // a profile, as go tool pprof reads it
}

// page collects what a handler answers.
type page struct {
	bytes.Buffer
	head http.Header
}

func (p *page) Header() http.Header { return p.head }
func (p *page) WriteHeader(int)     {}

func (n *Node) debugInfo(ctx context.Context, _ struct{}) (NodeDebug, error) {
	out := NodeDebug{Node: n.cfg.Name, Version: n.cfg.Version, Faults: []Fault{}, Log: string(n.cfg.tail.text())}
	if n.serves.Load() {
		out.Faults = append(out.Faults, n.Faults()...)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "/metrics", http.NoBody)
		if err != nil {
			return out, err
		}
		metrics := page{head: http.Header{}}
		n.HTTPHandler().ServeHTTP(&metrics, req)
		out.Metrics = metrics.String()
	}
	var stacks, heap bytes.Buffer
	err := pprof.Lookup("goroutine").WriteTo(&stacks, 1)
	if err == nil {
		err = pprof.Lookup("heap").WriteTo(&heap, 0)
	}
	if err != nil {
		return out, wire.Errorf(wire.Code_INTERNAL, "the profiles cannot be taken: %v", err)
	}
	out.Goroutines, out.Heap = stacks.String(), heap.Bytes()
	return out, nil
}

// Debug has the node at the first address that answers tell of itself.
func (a *Admin) Debug(ctx context.Context) (NodeDebug, error) {
	return ask[NodeDebug](ctx, a, "debug", struct{}{})
}
