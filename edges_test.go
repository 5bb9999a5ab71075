package baton_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"sync/atomic"
	"testing"

	"github.com/quic-go/quic-go"
	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/rpcnet"
	"github.com/baton-cluster/baton/wire"
)

// Exactly once at its edges, from outside: real nodes, and a client that speaks the
// protocol by itself, as the library acknowledges by itself and would repeat nothing
// that it has an answer to.

// rawClient is one client instance of a session.
type rawClient struct {
	t        *testing.T
	c        *testCluster
	session  string
	secret   []byte
	instance []byte
	fresh    bool
	st       *quic.Stream
}

func newRawClient(t *testing.T, c *testCluster, session string, secret []byte) *rawClient {
	r := &rawClient{t: t, c: c, session: session, secret: secret, instance: make([]byte, wire.IDBytes), fresh: true}
	_, _ = rand.Read(r.instance)
	return r
}

// attach attaches at node i and returns the first frame that comes back.
func (r *rawClient) attach(ctx context.Context, i int) *wire.ServerFrame {
	r.t.Helper()
	conf, err := pki.LoadClient(r.c.pki)
	must(r.t, err)
	packet, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(r.t, err)
	tr := &quic.Transport{Conn: packet}
	r.t.Cleanup(func() { _ = tr.Close(); _ = packet.Close() })
	addr, err := net.ResolveUDPAddr("udp", r.c.user[i])
	must(r.t, err)
	conn, err := tr.Dial(ctx, addr, conf, nil)
	must(r.t, err)
	r.st, err = conn.OpenStreamSync(ctx)
	must(r.t, err)
	if deadline, ok := ctx.Deadline(); ok {
		_ = r.st.SetDeadline(deadline)
	}
	r.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{
		Version: wire.Version, Session: r.session, Secret: r.secret, Instance: r.instance, Fresh: r.fresh,
	}}})
	f := r.read()
	r.fresh = r.fresh && f.GetAttached() == nil
	return f
}

// answered is attach, again while the answer is not final: a node that has not heard
// of what was done elsewhere yet says that it is to be asked again.
func (r *rawClient) answered(ctx context.Context, i int) *wire.ServerFrame {
	r.t.Helper()
	for {
		if f := r.attach(ctx, i); !f.GetBye().GetCode().Retryable() {
			return f
		}
	}
}

// attached attaches at whichever node owns the session.
func (r *rawClient) attached(ctx context.Context) *wire.Attached {
	r.t.Helper()
	return r.attachedAt(ctx, 0, 1, 2)
}

// attachedAt asks these nodes only: one that is closed does not answer.
func (r *rawClient) attachedAt(ctx context.Context, nodes ...int) *wire.Attached {
	r.t.Helper()
	for ctx.Err() == nil {
		for _, i := range nodes {
			if f := r.attach(ctx, i); f.GetAttached() != nil {
				return f.GetAttached()
			}
		}
	}
	r.t.Fatal(ctx.Err())
	return nil
}

func (r *rawClient) send(f *wire.ClientFrame) {
	r.t.Helper()
	b, err := rpcnet.AppendFrame(nil, f, wire.FrameBytesMax)
	must(r.t, err)
	_, err = r.st.Write(b)
	must(r.t, err)
}

func (r *rawClient) read() *wire.ServerFrame {
	r.t.Helper()
	b, err := rpcnet.ReadFrame(r.st, wire.FrameBytesMax, nil)
	must(r.t, err)
	f := &wire.ServerFrame{}
	must(r.t, proto.Unmarshal(b, f))
	return f
}

// call asks for seq and returns its answer, other frames aside. ack is the lowest
// seq whose answer the client says that it has not got.
func (r *rawClient) call(seq, ack uint64, attempt uint32, method, payload string) *wire.Response {
	r.t.Helper()
	r.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Request{Request: &wire.Request{
		Seq: seq, Attempt: attempt, Prev: seq - 1, Ack: ack, Method: method, Payload: []byte(payload),
	}}})
	for {
		if a := r.read().GetResponse(); a.GetSeq() == seq {
			return a
		}
	}
}

// counts is a mux whose count adds one to a key.
func counts() *baton.Mux {
	mux := baton.KV()
	mux.Handle("count", func(tx *baton.Tx, key []byte) ([]byte, error) {
		n, err := tx.Incr(string(key), 1)
		return fmt.Append(nil, n), err
	})
	return mux
}

// openRaw opens a session with the library, leaves it, and returns a raw client of it.
func openRaw(ctx context.Context, t *testing.T, c *testCluster, node string) *rawClient {
	t.Helper()
	s, err := c.client().Open(ctx, baton.OpenOptions{ID: "s", Node: node})
	must(t, err)
	secret := s.Secret()
	must(t, s.Detach(ctx))
	return newRawClient(t, c, "s", secret)
}

func wantReply(t *testing.T, r *wire.Response, want string) {
	t.Helper()
	if r.GetCode() != wire.Code_OK || string(r.GetPayload()) != want {
		t.Fatalf("%v, want %q", r, want)
	}
}

// TestRetriesGetTheFirstAnswer: until its client acknowledges it, an answer is given
// again, on the same connection, on another, and by the next owner after a crash;
// nothing runs twice. When the cache is full a request is refused before it runs,
// typed and retryable, and an acknowledgement makes room.
func TestRetriesGetTheFirstAnswer(t *testing.T) {
	c := startCluster(t, counts)
	ctx := testContext(t)
	r := openRaw(ctx, t, c, "n1")
	r.attached(ctx)
	for seq := uint64(1); seq <= wire.RepliesMax; seq++ {
		wantReply(t, r.call(seq, 1, 1, "count", "n"), fmt.Sprint(seq))
	}
	const over = wire.RepliesMax + 1
	full := r.call(over, 1, 1, "count", "n")
	if full.GetCode() != wire.Code_REPLY_CACHE_FULL || !full.GetCode().Retryable() || full.GetSettled() {
		t.Fatalf("with %d answers unacknowledged: %v", wire.RepliesMax, full)
	}
	wantReply(t, r.call(7, 1, 2, "count", "n"), "7")
	r.attached(ctx) // another connection of the same instance
	wantReply(t, r.call(7, 1, 3, "count", "n"), "7")

	must(t, c.nodes[0].Close())
	if a := r.attachedAt(ctx, 1, 2); a.GetLast() != wire.RepliesMax {
		t.Fatalf("the next owner knows of %d requests: %v", a.GetLast(), a)
	}
	for seq := uint64(1); seq <= wire.RepliesMax; seq++ {
		wantReply(t, r.call(seq, 1, 4, "count", "n"), fmt.Sprint(seq))
	}
	if full := r.call(over, 1, 5, "count", "n"); full.GetCode() != wire.Code_REPLY_CACHE_FULL {
		t.Fatalf("after a failover, with %d answers unacknowledged: %v", wire.RepliesMax, full)
	}
	wantReply(t, r.call(over, over, 6, "count", "n"), fmt.Sprint(over)) // it acknowledges all before it
	if gone := r.call(7, 7, 5, "count", "n"); gone.GetCode() != wire.Code_REPLY_GONE {
		t.Fatalf("an acknowledged answer is asked for: %v", gone)
	}
	wantReply(t, r.call(over+1, over+1, 1, "count", "n"), fmt.Sprint(over+1))
	must(t, c.open(0))
}

// TestRetryWhileTheHandlerRunsAtTheFormerOwner: the first attempt is in its handler
// when the owner loses the session, and ends after the next owner has answered the
// retry. It counts once.
func TestRetryWhileTheHandlerRunsAtTheFormerOwner(t *testing.T) {
	entered, let := make(chan int, 1), make(chan struct{})
	var held atomic.Bool
	c := startClusterWith(t, func(i int, cfg *baton.Config) {
		cfg.Mux = counts()
		cfg.Mux.Handle("slow", func(tx *baton.Tx, key []byte) ([]byte, error) {
			n, err := tx.Incr(string(key), 1)
			if held.CompareAndSwap(false, true) {
				entered <- i
				<-let
			}
			return fmt.Append(nil, n), err
		})
	})
	ctx := testContext(t)
	r := openRaw(ctx, t, c, "n1")
	epoch := r.attached(ctx).GetEpoch()
	wantReply(t, r.call(1, 1, 1, "count", "n"), "1")
	r.send(&wire.ClientFrame{Kind: &wire.ClientFrame_Request{Request: &wire.Request{Seq: 2, Attempt: 1, Prev: 1, Ack: 2, Method: "slow", Payload: []byte("n")}}})
	var owner int
	select {
	case owner = <-entered:
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	closed := make(chan error, 1)
	go func() { closed <- c.nodes[owner].Close() }()
	if a := r.attachedAt(ctx, c.other(owner), c.other(c.other(owner))); a.GetEpoch() <= epoch || a.GetLast() != 1 {
		t.Fatalf("at the next owner, after epoch %d: %v", epoch, a)
	}
	wantReply(t, r.call(2, 2, 2, "slow", "n"), "2")
	close(let)
	must(t, <-closed)
	wantReply(t, r.call(2, 2, 3, "slow", "n"), "2")
	wantReply(t, r.call(3, 3, 1, "count", "n"), "3")
}

// TestReopenedUnderTheSameID: what the client of a session that was closed still
// asks never reaches the session that is opened under its id later.
func TestReopenedUnderTheSameID(t *testing.T) {
	c := startCluster(t, counts)
	ctx := testContext(t)
	r := openRaw(ctx, t, c, "n1")
	epoch := r.attached(ctx).GetEpoch()
	wantReply(t, r.call(1, 1, 1, "count", "n"), "1")
	other, err := c.client().Resume(ctx, "s", r.secret)
	must(t, err)
	must(t, other.Close(ctx))
	again, err := c.client().Open(ctx, baton.OpenOptions{ID: "s", Node: "n2"})
	must(t, err)
	if again.Epoch() <= epoch {
		t.Fatalf("epoch %d after %d", again.Epoch(), epoch)
	}
	for i := range c.nodes {
		refused := r.answered(ctx, i)
		if code := refused.GetBye().GetCode(); refused.GetRedirect() == nil && code != wire.Code_BAD_SECRET {
			t.Fatalf("the former client at node %d: %v", i+1, refused)
		}
	}
	// With the new secret even, the instance's requests are of another session.
	known := newRawClient(t, c, "s", again.Secret())
	known.instance, known.fresh = r.instance, false
	for i := range c.nodes {
		if f := known.answered(ctx, i); f.GetRedirect() == nil && f.GetBye().GetCode() != wire.Code_CLIENT_GONE {
			t.Fatalf("the former instance with the new secret at node %d: %v", i+1, f)
		}
	}
	n, _, err := again.Incr(ctx, "n", 1)
	must(t, err)
	if n != 1 {
		t.Fatalf("n = %d in a new session", n)
	}
}
