package baton_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// TestStreamsFollowTheirSession: byte streams both ways go on while their session
// is moved without a break, and leave nothing behind.
func TestStreamsFollowTheirSession(t *testing.T) {
	const size = 1 << 20 // some windows; the moves are what there are to be many of
	c := startCluster(t, streamMux)
	for _, relay := range []bool{false, true} {
		t.Run(fmt.Sprintf("relayed=%v", relay), func(t *testing.T) {
			ctx := testContext(t)
			cl, err := baton.Dial(ctx, baton.ClientConfig{Addrs: c.user[:1], PKI: c.pki, RelayOnly: relay})
			must(t, err)
			defer cl.Close()
			s, err := cl.Open(ctx, baton.OpenOptions{ID: fmt.Sprintf("bulk-%v", relay)})
			must(t, err)
			for _, node := range []string{"n2", "n3"} { // connections to both stand
				must(t, c.arrive(ctx, s.ID(), node, true))
			}
			transferAll(t, ctx, s, size) // pools are filled
			before := goroutines()
			m := c.keepMoving(ctx, s, "n2", "n3")
			for m.n.Load() < 5 && !t.Failed() {
				transferAll(t, ctx, s, size)
			}
			t.Logf("%d moves", m.halt(t))
			settled(t, before)
			must(t, s.Close(ctx))
		})
	}
}

func TestStreamingCallsFollowTheirSession(t *testing.T) {
	c := startCluster(t, streamMux)
	ctx := testContext(t)
	s, err := c.client().Open(ctx, baton.OpenOptions{ID: "words"})
	must(t, err)
	st, err := s.OpenStream(ctx, "words", nil)
	must(t, err)
	m := c.keepMoving(ctx, s, "n1", "n2", "n3")
	const count = 3000
	sent := make(chan error, 1)
	go func() {
		for i := range count {
			if err := st.SendMessage(fmt.Append(nil, "word", i)); err != nil {
				sent <- err
				return
			}
		}
		sent <- st.CloseWrite()
	}()
	for i := range count {
		got, err := st.RecvMessage()
		must(t, err)
		if i == count/2 {
			m.waitFor(ctx, 5)
		}
		if want := fmt.Sprintf("%d: word%d", i+1, i); string(got) != want {
			t.Fatalf("answer %q, want %q", got, want)
		}
	}
	must(t, <-sent)
	if _, err := st.RecvMessage(); err != io.EOF {
		t.Fatalf("the end is %v", err)
	}
	t.Logf("%d moves", m.halt(t))
}

// TestStreamsThatEnd, each with a typed error that says why.
func TestStreamsThatEnd(t *testing.T) {
	c := startCluster(t, streamMux)
	ctx := testContext(t)
	cl := c.client()
	open := func(id string) *baton.Session {
		s, err := cl.Open(ctx, baton.OpenOptions{ID: id})
		must(t, err)
		return s
	}
	stream := func(s *baton.Session, method string) *baton.Stream {
		st, err := s.OpenStream(ctx, method, nil)
		must(t, err)
		_, err = st.Write([]byte("x"))
		must(t, err)
		return st
	}
	ends := func(st *baton.Stream, code wire.Code) {
		t.Helper()
		rest, err := io.ReadAll(st)
		if baton.CodeOf(err) != code {
			t.Errorf("the stream ended with %v after %q, want %v", err, rest, code)
		}
	}
	s := open("ends")
	if _, err := s.OpenStream(ctx, "none such", nil); baton.CodeOf(err) != wire.Code_UNKNOWN_METHOD {
		t.Errorf("opening an unknown method: %v", err)
	}
	if _, err := s.OpenStream(ctx, "mirror", make([]byte, 5000)); baton.CodeOf(err) != wire.Code_BAD_REQUEST {
		t.Errorf("opening with a long argument: %v", err)
	}
	st, err := s.OpenStream(ctx, "fail", nil)
	must(t, err)
	rest, err := io.ReadAll(st)
	if string(rest) != "so far" || baton.CodeOf(err) != wire.Code_HANDLER_ERROR {
		t.Errorf("a handler's error: %q, %v", rest, err)
	}
	if _, err := st.Write([]byte("y")); baton.CodeOf(err) != wire.Code_STREAM_ENDED {
		t.Errorf("writing behind the end: %v", err)
	}

	short, cancel := context.WithCancel(ctx)
	st, err = s.OpenStream(short, "mirror", nil)
	must(t, err)
	cancel()
	if _, err := st.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) || baton.CodeOf(err) != wire.Code_DEADLINE_EXCEEDED {
		t.Errorf("a stream whose context has ended: %v", err)
	}

	fragile, lasting := stream(s, "fragile"), stream(s, "mirror")
	must(t, c.migrate(ctx, "ends", c.name(c.other(c.ownerIndex(s)))))
	ends(fragile, wire.Code_STREAM_MOVED)
	must(t, lasting.CloseWrite())
	ends(lasting, wire.Code_OK)

	st = stream(s, "mirror")
	other, err := c.client().Resume(ctx, "ends", s.Secret())
	must(t, err)
	ends(st, wire.Code_DISPLACED)
	st = stream(other, "mirror")
	must(t, other.Detach(ctx))
	ends(st, wire.Code_NOT_ATTACHED)
	s = open("closed")
	st = stream(s, "mirror")
	must(t, s.Close(ctx))
	ends(st, wire.Code_SESSION_CLOSED)

	s = open("crashed")
	st = stream(s, "mirror")
	must(t, c.nodes[c.ownerIndex(s)].Close())
	ends(st, wire.Code_STREAM_LOST)
	must(t, stream(s, "mirror").Close()) // another one can be opened
}

func TestStreamsAreBounded(t *testing.T) {
	c := startCluster(t, streamMux)
	ctx := testContext(t)
	s, err := c.client().Open(ctx, baton.OpenOptions{ID: "many"})
	must(t, err)
	var all []*baton.Stream
	for range wire.StreamsPerSessionMax {
		st, err := s.OpenStream(ctx, "mirror", nil)
		must(t, err)
		all = append(all, st)
	}
	if _, err := s.OpenStream(ctx, "mirror", nil); baton.CodeOf(err) != wire.Code_TOO_MANY {
		t.Fatalf("one stream too many: %v", err)
	}
	must(t, c.migrate(ctx, "many", c.name(c.other(c.ownerIndex(s)))))
	for _, st := range all {
		must(t, st.CloseWrite())
		if _, err := io.ReadAll(st); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(testTime); ; { // the owner hears of their ends
		st, err := s.OpenStream(ctx, "mirror", nil)
		if err == nil {
			must(t, st.Close())
			return
		}
		if baton.CodeOf(err) != wire.Code_TOO_MANY || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// TestStreamsThatCannotMoveLeaveTheirPlaces: the places of streams that a move has ended
// are free once their client knows, however soon the session moves on.
func TestStreamsThatCannotMoveLeaveTheirPlaces(t *testing.T) {
	c := startCluster(t, streamMux)
	ctx := testContext(t)
	s, err := c.client().Open(ctx, baton.OpenOptions{ID: "fragile"})
	must(t, err)
	m := c.keepMoving(ctx, s, "n1", "n2", "n3")
	for range 3 * wire.StreamsPerSessionMax {
		st, err := s.OpenStream(ctx, "fragile", nil)
		for baton.CodeOf(err) == wire.Code_TOO_MANY {
			if m.n.Load() > 1000 {
				t.Fatal("the places stay taken, however often the session moves")
			}
			st, err = s.OpenStream(ctx, "fragile", nil) // its owner is to hear of the end of the others still
		}
		must(t, err)
		if _, err := io.ReadAll(st); baton.CodeOf(err) != wire.Code_STREAM_MOVED {
			t.Errorf("the stream ended with %v", err)
		}
	}
	t.Logf("%d moves", m.halt(t))
}

// ledger is a resumable handler that applies each message to the session's state
// exactly once: with it, it commits how far the stream has come.
func ledger(st *baton.ServerStream) error {
	name := "applied/" + string(st.Argument())
	var applied int64
	err := st.Commit(func(tx *baton.Tx) error {
		v, _ := tx.Get(name)
		applied, _ = strconv.ParseInt(string(v), 10, 64)
		return nil
	})
	if err != nil {
		return err
	}
	if err := st.SendMessage(strconv.AppendInt(nil, applied, 10)); err != nil {
		return err // said once a run: the client sends from there
	}
	at, _ := strconv.ParseInt(string(first(st.Resumed())), 10, 64)
	for {
		m, err := st.RecvMessage()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		n, err := strconv.ParseInt(string(m), 10, 64)
		if err != nil {
			return err
		}
		if n > applied {
			if err := st.Commit(func(tx *baton.Tx) error {
				if _, err := tx.Incr("sum", n); err != nil {
					return err
				}
				return tx.Put(name, m)
			}); err != nil {
				return err
			}
			applied = n
		}
		at = n
		if err := st.Ack(st.ReadOffset(), strconv.AppendInt(nil, at, 10)); err != nil {
			return err
		}
	}
}

func first(b []byte, _ bool) []byte { return b }

// TestStreamsCommitOnce: what a stream brings is applied once, across moves and the
// crash of its owner.
func TestStreamsCommitOnce(t *testing.T) {
	c := startCluster(t, func() *baton.Mux {
		m := baton.KV()
		m.HandleStream("ledger", ledger, baton.Resumable())
		return m
	})
	ctx := testContext(t)
	s, err := c.client().Open(ctx, baton.OpenOptions{ID: "ledger"})
	must(t, err)
	const count = 400
	crashed := make(chan struct{})
	var once sync.Once
	s.OnMove(func(m baton.Move) {
		if !m.Planned {
			once.Do(func() { close(crashed) })
		}
	})
	m := c.keepMoving(ctx, s, "n1", "n2", "n3")
	pass := func() error { // from what was applied on
		st, err := s.OpenStream(ctx, "ledger", []byte("x"))
		if err != nil {
			return err
		}
		defer st.Close()
		said, err := st.RecvMessage()
		if err != nil {
			return err
		}
		from, err := strconv.Atoi(string(said))
		if err != nil {
			return err
		}
		for n := from + 1; n <= count; n++ {
			if err := st.SendMessage(strconv.AppendInt(nil, int64(n), 10)); err != nil {
				return err
			}
			if n == count/4 {
				m.waitFor(ctx, 3)
			}
			if n == count/2 && m.halt(t) >= 3 {
				must(t, c.nodes[c.ownerIndex(s)].Close())
				<-crashed
			}
		}
		if err := st.CloseWrite(); err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, st)
		return err
	}
	if err := pass(); baton.CodeOf(err) != wire.Code_STREAM_LOST {
		t.Fatalf("after the crash: %v", err)
	}
	must(t, pass())
	v, err := s.Get(ctx, "sum")
	must(t, err)
	if want := strconv.Itoa(count * (count + 1) / 2); string(v.Value) != want {
		t.Fatalf("the sum is %s, want %s", v.Value, want)
	}
}

// gapNet is a client's network that loses everything while it is off.
type gapNet struct {
	seam.OSNetwork
	off atomic.Bool
}

type gapConn struct {
	net.PacketConn
	gap *gapNet
}

func (g *gapNet) ListenPacket(addr string) (net.PacketConn, error) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	return &gapConn{pc, g}, err
}

func (c *gapConn) WriteTo(p []byte, to net.Addr) (int, error) {
	if c.gap.off.Load() {
		return len(p), nil
	}
	return c.PacketConn.WriteTo(p, to)
}

func (c *gapConn) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		n, from, err := c.PacketConn.ReadFrom(p)
		if err != nil || !c.gap.off.Load() {
			return n, from, err
		}
	}
}

// TestStreamsOutliveTheNetwork: the client is cut off for so long, in the middle of
// transfers both ways, that its connection is lost and its session detached.
func TestStreamsOutliveTheNetwork(t *testing.T) {
	c := startCluster(t, streamMux)
	ctx := testContext(t)
	for _, relay := range []bool{false, true} {
		gap := &gapNet{}
		lost := make(chan struct{}, 1)
		cl, err := baton.Dial(ctx, baton.ClientConfig{Addrs: c.user[:1], PKI: c.pki, RelayOnly: relay, Network: gap, OnAttempt: func(a baton.Attempt) {
			if a.Err != nil && gap.off.Load() {
				select {
				case lost <- struct{}{}:
				default:
				}
			}
		}})
		must(t, err)
		s, err := cl.Open(ctx, baton.OpenOptions{ID: fmt.Sprintf("cut-%v", relay), Node: "n1"})
		must(t, err)
		must(t, c.migrate(ctx, s.ID(), "n2")) // so that a relay is one
		owner := c.lastChange(s.ID())
		wait := startAll(t, ctx, s, streamBytes/2)
		gap.off.Store(true)
		<-lost
		gap.off.Store(false)
		wait()
		if now := c.lastChange(s.ID()); now.Epoch != owner.Epoch {
			t.Errorf("the session has another owner, nothing was shown: %+v, then %+v", owner, now)
		}
		must(t, s.Close(ctx))
		must(t, cl.Close())
	}
}
