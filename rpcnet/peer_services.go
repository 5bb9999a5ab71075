package rpcnet

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/wire"
)

// Caller is who sent a call.
type Caller struct {
	// Node is the node id that the caller stated; empty for an operator.
	Node string
	// Role ("node" or "admin") and Name are from the caller's certificate.
	Role string
	Name string
}

// peerHandler serves one method. body is the handler's to keep.
type peerHandler func(ctx context.Context, from Caller, body []byte) ([]byte, error)

// Services is the methods that a node answers. Methods may be added while
// calls come in: rooms of a node open one after another, and a call that is too
// early is refused as UNKNOWN_METHOD.
type Services struct {
	mu      sync.RWMutex
	methods map[string]peerHandler
}

// NewServices returns an empty set.
func NewServices() *Services {
	return &Services{methods: map[string]peerHandler{}}
}

// Register adds a method whose bodies are messages. newReq makes an empty
// request. fn may be called by many goroutines at once; its ctx ends with the
// caller's deadline, when the caller gives up, and when the connection ends. An
// error that is a *wire.Error reaches the caller with code, message and leader;
// any other as INTERNAL. Registering a name twice replaces the first.
func Register[Req, Resp proto.Message](s *Services, method string, newReq func() Req, fn func(ctx context.Context, from Caller, req Req) (Resp, error)) {
	RegisterRaw(s, method, func(ctx context.Context, from Caller, body []byte) ([]byte, error) {
		req := newReq()
		if err := proto.Unmarshal(body, req); err != nil {
			return nil, wire.Errorf(wire.Code_BAD_REQUEST, "the body of a call of %q cannot be read: %v", method, err)
		}
		resp, err := fn(ctx, from, req)
		if err != nil {
			return nil, err
		}
		return proto.Marshal(resp)
	})
}

// RegisterRaw adds a method whose bodies are bytes.
func RegisterRaw(s *Services, method string, fn func(ctx context.Context, from Caller, body []byte) ([]byte, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.methods[method] = fn
}

func (s *Services) find(method string) (peerHandler, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	fn, ok := s.methods[method]
	return fn, ok
}

// peerTransportError is a call's failure on the way: code and message for those
// who branch, and the cause for those who look further (errors.Is with
// context.DeadlineExceeded, net.ErrClosed, …).
type peerTransportError struct {
	err   *wire.Error
	cause error
}

func (e *peerTransportError) Error() string   { return e.err.Error() }
func (e *peerTransportError) Unwrap() []error { return []error{e.err, e.cause} }

func peerUnavailable(cause error, format string, args ...any) error {
	return &peerTransportError{err: wire.Errorf(wire.Code_UNAVAILABLE, format, args...), cause: cause}
}

// peerContextError is for a call whose context ended for that cause: the outcome is
// unknown.
func peerContextError(cause error, method, addr string) error {
	code := wire.Code_UNAVAILABLE
	why := "its caller gave up"
	if errors.Is(cause, context.DeadlineExceeded) {
		code, why = wire.Code_DEADLINE_EXCEEDED, "its time was over"
	}
	return &peerTransportError{
		err:   wire.Errorf(code, "the call of %q to %s was not answered before %s", method, addr, why),
		cause: cause,
	}
}
