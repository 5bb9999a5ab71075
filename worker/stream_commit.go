package worker

import (
	"errors"

	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/wire"
)

// A stream's handler changes the session's state as everybody does: by a write
// that a client has numbered, so that it is applied once, under this epoch or not
// at all. The owner asks the client to make the call; its handler is what Commit
// was given.

// streamCommit is a change that a stream's handler waits for.
type streamCommit struct {
	number  uint64
	fn      func(*Tx) error
	running bool
	done    bool
	err     error
}

// Commit runs fn on the session's state and commits what it writes, once, and only
// while this owner's epoch lasts. fn runs in the session's order, among its calls;
// it must be quick, must not keep tx, and may run several times, of which the last
// counts. nil: it is committed. An error of fn's is returned as calls return it,
// and nothing was changed; so is a refusal as that of a full state.
//
// If the Context ends before the outcome is known its cause is returned, and the
// change was made, or will never be. While the session is about to move a Commit
// that has begun is waited for, as long as the client is there. To go on after a
// crash, or after an outcome that is not known, write how far the stream has come
// with what it has brought, and have the next handler, or the next stream, look
// that up with Commit first.
func (r *ServerStream) Commit(fn func(*Tx) error) error {
	st := r.st
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.run != r || r.ctx.Err() != nil {
		return r.cause()
	}
	st.commits++
	c := &streamCommit{number: st.commits, fn: fn}
	st.commit = c
	defer func() { st.commit = nil }()
	st.askCommit()
	over := r.ctx.Done()
	for {
		moving := errors.Is(r.cause(), errStreamMoved) && st.link != nil
		switch {
		case c.done:
			return c.err
		case r.ctx.Err() != nil && !moving && !c.running:
			return r.cause()
		}
		changed := st.changed.wait()
		st.mu.Unlock()
		select {
		case <-changed:
		case <-over:
			over = nil
		}
		st.mu.Lock()
	}
}

// askCommit asks the client to call for the commit that is waited for. st.mu is
// held.
func (st *stream) askCommit() {
	if st.commit == nil || st.commit.done || st.link == nil {
		return
	}
	_ = st.link.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_StreamCommit{StreamCommit: &wire.StreamCommit{
		Stream: st.key.id, Epoch: st.epoch, Number: st.commit.number,
	}}})
}

// findCommit returns the stream that waits for the commit which a call names.
func (t *streams) findCommit(session, client string, payload []byte) (*stream, *wire.StreamCommit) {
	m := &wire.StreamCommit{}
	if proto.Unmarshal(payload, m) != nil {
		return nil, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.of[session]
	if e == nil || e.epoch != m.GetEpoch() {
		return nil, nil
	}
	return e.byKey[streamKey{client, m.GetStream()}], m
}

// runCommit is the handler of the commit method.
func (t *streams) runCommit(tx *Tx, payload []byte) ([]byte, error) {
	gone := wire.Errorf(wire.Code_STREAM_ENDED, "no handler waits for this commit")
	st, m := t.findCommit(tx.fence.Session, tx.fence.Client, payload)
	if st == nil {
		return nil, gone
	}
	st.mu.Lock()
	c := st.commit
	if c == nil || c.number != m.GetNumber() || c.done || st.epoch != tx.fence.Epoch {
		st.mu.Unlock()
		return nil, gone
	}
	c.running = true
	st.mu.Unlock()
	defer func() {
		st.mu.Lock()
		defer st.mu.Unlock()
		c.running = false
		st.changed.wake()
	}()
	return nil, c.fn(tx)
}

// tellCommits tells handlers of byte streams what became of their commits, whatever
// became of the activation meanwhile: no attempt that has run may be unheard of,
// for the client would make another.
func (g *group) tellCommits(res []*wire.Result) {
	for i, r := range g.reqs {
		if r.method != wire.StreamCommitMethod || i >= len(res) || g.cmds[i].GetWrite() == nil {
			continue
		}
		code, text := res[i].GetReply().GetCode(), res[i].GetReply().GetMessage()
		switch c := res[i].GetCode(); c {
		case wire.Code_OK:
		case wire.Code_SEQ_MISMATCH, wire.Code_REPLY_GONE, wire.Code_NOT_ATTACHED, wire.Code_DISPLACED,
			wire.Code_STALE_EPOCH, wire.Code_STALE_INCARNATION, wire.Code_UNKNOWN_SESSION,
			wire.Code_SESSION_CLOSED, wire.Code_SESSION_EXPIRED:
			continue // it runs again, or the stream ends
		default:
			code, text = c, refusal(c)
		}
		g.s.w.streams.committed(g.s.id, string(r.client), r.payload, code, text)
	}
}

// committed tells the handler what became of a commit.
func (t *streams) committed(session, client string, payload []byte, code wire.Code, message string) {
	st, m := t.findCommit(session, client, payload)
	if st == nil {
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	c := st.commit
	if c == nil || c.number != m.GetNumber() || c.done {
		return
	}
	if c.done = true; code != wire.Code_OK {
		c.err = wire.Errorf(code, "%s", message)
	}
	st.changed.wake()
}
