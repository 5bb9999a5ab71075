package rpcnet

import (
	"bytes"
	"context"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// Reply is the answer to a call.
type Reply struct {
	Payload  []byte
	Epoch    uint64 // of the owner that answered
	Seq      uint64 // of the call, in this client instance
	Change   uint64 // position of the last change that the answer saw
	Node     string // name of the node that owns the session
	Attempts int    // how often the request was sent
	// Leased: a query that its owner answered from memory, under its lease.
	Leased bool
	At     time.Duration // when the client took the answer, on its clock
}

// Push is a message from the session to its client. Each arrives once, in the
// order of Seq.
type Push struct {
	Seq     uint64
	Epoch   uint64
	Payload []byte
	// Missed is how many pushes before this one the client should have had and
	// never will; see Gap. Only clients of shared sessions miss any.
	Missed uint64
}

// Gap is a hole in the pushes that a client was to get: those numbered From to
// To. They are durable, so neither a move nor a crash makes one. Other clients of
// a shared session may: what all that are attached have had is dropped, and this
// one was not, for it had just lost its owner. What a client is told of such a
// hole is that it should look at the session's state, which misses nothing.
type Gap struct {
	From, To uint64
	Epoch    uint64 // of the push that came after
}

// Move tells that another node owns the session now, or the same one anew.
type Move struct {
	From, To *wire.NodeInfo
	Epoch    uint64        // the new one
	Planned  bool          // by a migration, not after a loss
	Pause    time.Duration // for how long nobody served this client, as far as it knows
	// Gap: what the former owner held of the session in memory only was lost.
	Gap bool
}

// Session is one client's attachment to one session. It follows the session from
// node to node by itself. It is safe for concurrent use.
//
// Calls run in the session's order, each exactly once, however often the request
// had to be sent. A call that ends with DEADLINE_EXCEEDED takes effect or does not:
// which of the two is settled before what the session asks next.
type Session struct {
	id     string
	secret []byte
	runner
}

// ID is the session's id.
func (s *Session) ID() string { return s.id }

// Secret is what it takes to Resume the session. Keep it safe.
func (s *Session) Secret() []byte { return bytes.Clone(s.secret) }

// Epoch is the highest epoch seen.
func (s *Session) Epoch() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.core.epoch
}

// Owner is the node that owned the session when the client last attached. It
// must not be changed.
func (s *Session) Owner() *wire.NodeInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.core.owner
}

// Done is closed when the session has ended for this client: closed, left,
// expired, displaced. Err then says why.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err is nil until Done.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.core.ended
}

// Call runs a method that may write, exactly once. Without a deadline in ctx it
// takes ClientConfig.RequestTimeout at most. Errors are *wire.Error: what the
// handler or the cluster refused it with; what ended the session (SESSION_CLOSED,
// SESSION_EXPIRED, DISPLACED, CLIENT_GONE, …); or DEADLINE_EXCEEDED, which is
// also the context's error, and leaves open whether the write took effect.
func (s *Session) Call(ctx context.Context, method string, payload []byte) (Reply, error) {
	return s.ask(ctx, &call{method: method, payload: payload})
}

// Query runs a read-only method. The errors are those of Call, and NOT_READ_ONLY
// for a method that may write. A Query sees the effect of every call of any
// client that was answered before it began.
func (s *Session) Query(ctx context.Context, method string, payload []byte, options ...QueryOption) (Reply, error) {
	p := &call{method: method, payload: payload, readOnly: true, confirmed: s.cfg.ConfirmedReads}
	for _, o := range options {
		p.confirmed = p.confirmed || o == Confirmed
	}
	return s.ask(ctx, p)
}

// QueryOption changes one query.
type QueryOption uint8

// Confirmed has a query confirmed by a majority of the voters, which costs a round
// trip or two, or by the log where that fails, instead of answered under the
// owner's lease: for when clocks cannot be trusted.
const Confirmed QueryOption = 1

func (s *Session) ask(ctx context.Context, p *call) (Reply, error) {
	p.done = make(chan struct{})
	if err := ctx.Err(); err != nil {
		return Reply{}, expired(p, err)
	}
	limit := s.cfg.RequestTimeout
	if d, ok := ctx.Deadline(); ok {
		limit = time.Until(d)
	}
	s.do(func(now time.Duration) {
		p.deadline = now + max(limit, time.Millisecond)
		s.core.ask(now, p)
	})
	select {
	case <-p.done:
	case <-ctx.Done():
		s.do(func(now time.Duration) { s.core.abandon(now, p, expired(p, ctx.Err())) })
		<-p.done // by now at the latest; an answer that came first counts
	}
	return p.reply, p.err
}

// OnPush sets what is called with each push, in order, from one goroutine. It may
// call the session. A push is acknowledged to the cluster when fn has returned.
// Until OnPush is called, pushes wait; nil discards them.
func (s *Session) OnPush(fn func(Push)) {
	if fn == nil {
		fn = func(Push) {}
	}
	s.setHandlers(func() { s.onPush = fn })
}

// OnGap sets what is told of pushes that are missing, before the push that comes
// after them. Without it the client logs a warning; the push says so too. The
// session goes on: what is missing will not come, and calls are not affected.
func (s *Session) OnGap(fn func(Gap)) {
	s.setHandlers(func() { s.onGap = fn })
}

// OnMove sets what is told of each change of owner, in order with the pushes.
func (s *Session) OnMove(fn func(Move)) {
	if fn == nil {
		fn = func(Move) {}
	}
	s.setHandlers(func() { s.onMove = fn })
}

// Detach leaves the session, which lives on until its TTL runs out. Calls in
// progress fail with NOT_ATTACHED. When ctx ends first, the client has left all
// the same; the cluster learns of it as of a lost connection.
func (s *Session) Detach(ctx context.Context) error { return s.leave(ctx, detaching, errDetached) }

// Close closes the session for good: its state is dropped. Calls in progress fail
// with SESSION_CLOSED. It returns nil when the session is gone. When ctx ends
// first (DEADLINE_EXCEEDED) it may live on; this client has left it.
func (s *Session) Close(ctx context.Context) error { return s.leave(ctx, closing, errClosed) }

// leave ends the session in the way given, and returns nil if that was its end.
func (s *Session) leave(ctx context.Context, how leaving, want *wire.Error) error {
	s.do(func(time.Duration) { s.core.leave(how) })
	t := s.cfg.Clock.AfterFunc(s.cfg.RequestTimeout, func() { s.stop(errNoLeave) })
	defer t.Stop()
	select {
	case <-s.done:
	case <-ctx.Done():
		s.stop(expired(&call{}, ctx.Err()))
	}
	<-s.done
	err := s.Err()
	switch {
	case wire.CodeOf(err) == want.Code:
		return nil
	case how == detaching && (err == errNoLeave || ctx.Err() != nil):
		return nil
	}
	return err
}

var errNoLeave = &deadlineError{
	refusal: wire.Errorf(wire.Code_DEADLINE_EXCEEDED, "the session's owner was not reached in time; the session may live on until its TTL runs out"),
	cause:   context.DeadlineExceeded,
}
