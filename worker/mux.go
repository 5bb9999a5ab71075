package worker

import (
	"fmt"
	"log/slog"
	"runtime/debug"

	"github.com/baton-cluster/baton/wire"
)

// Handler runs one write-class call. It may read and write the session's state
// through tx, which commits together with the reply, or not at all. An error
// drops the writes and is committed as the outcome. It must not keep tx.
type Handler func(tx *Tx, payload []byte) ([]byte, error)

// ReadHandler runs one query. Its context cannot write. It may run beside
// other handlers of the session and must not keep v.
type ReadHandler func(v *View, payload []byte) ([]byte, error)

// Mux maps methods to handlers. Register everything before the node opens.
type Mux struct {
	handlers map[string]Handler
	readers  map[string]ReadHandler
	streams  map[string]*streamMethod
	onFreeze FreezeHook
	onResume ResumeHook
	logger   *slog.Logger
}

// NewMux makes an empty Mux.
func NewMux() *Mux {
	return &Mux{handlers: map[string]Handler{}, readers: map[string]ReadHandler{}, streams: map[string]*streamMethod{}, logger: slog.New(slog.DiscardHandler)}
}

// Handle registers a write-class method. It panics if the method is taken.
func (m *Mux) Handle(method string, h Handler) {
	m.free(method)
	m.handlers[method] = h
}

// HandleRead registers a read-only method. It panics if the method is taken.
func (m *Mux) HandleRead(method string, h ReadHandler) {
	m.free(method)
	m.readers[method] = h
}

// LogTo makes the Mux report handlers that panic.
func (m *Mux) LogTo(l *slog.Logger) { m.logger = l }

func (m *Mux) free(method string) {
	if method == wire.StreamCommitMethod || m.handlers[method] != nil || m.readers[method] != nil || m.streams[method] != nil {
		panic(fmt.Sprintf("baton: method %q is registered twice", method))
	}
}

func (m *Mux) panicked(method string, p any, stack []byte) {
	m.logger.Error("a handler panicked", "method", method, "panic", p, "stack", string(stack))
}

// query runs a read-only method. That it is read-only is a property of the
// method: a query that names another is refused.
func (m *Mux) query(v *View, r *request) (payload []byte, err error) {
	h := m.readers[r.method]
	if h == nil {
		if m.handlers[r.method] != nil {
			return nil, wire.Errorf(wire.Code_NOT_READ_ONLY, "method %q may write: call it instead of querying it", r.method)
		}
		return nil, wire.Errorf(wire.Code_UNKNOWN_METHOD, "this server has no method %q", r.method)
	}
	defer func() {
		if p := recover(); p != nil {
			payload, err = nil, wire.Errorf(wire.Code_HANDLER_PANIC, "the handler of %q panicked: %v", r.method, p)
			m.panicked(r.method, p, debug.Stack())
		}
	}()
	return h(v, r.payload)
}
