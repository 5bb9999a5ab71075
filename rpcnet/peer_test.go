package rpcnet

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// peerPair is a node n1 that answers at addr, and a node n2 that calls it.
type peerPair struct {
	services *Services
	server   *Peers
	client   *Peers
	addr     string
	mgmt     *Mgmt
}

func newPeerPair(t testing.TB, edit func(server, client *PeerConfig)) *peerPair {
	t.Helper()
	p := &peerPair{services: NewServices()}
	RegisterRaw(p.services, "echo", func(_ context.Context, _ Caller, body []byte) ([]byte, error) { return body, nil })
	server := PeerConfig{Self: "id1", Services: p.services, Identify: mgmtIdentify}
	client := PeerConfig{Self: "id2", TLS: mgmtIdentity(t, "n2").PeerClient(ALPNPeer), ALPN: ALPNPeer}
	if edit != nil {
		edit(&server, &client)
	}
	p.server, p.client = NewPeers(server), NewPeers(client)
	p.mgmt = startMgmt(t, nil, map[string]func(net.Conn){
		ALPNPeer: func(c net.Conn) { p.server.Serve(c) }, ALPNAdmin: func(c net.Conn) { p.server.Serve(c) },
	})
	p.addr = p.mgmt.Addr().String()
	t.Cleanup(p.server.Close)
	t.Cleanup(p.client.Close)
	return p
}

// close ends all of it before a leak check, which runs before cleanups.
func (p *peerPair) close() {
	p.client.Close()
	p.server.Close()
	p.mgmt.Close()
}

func wantCode(t testing.TB, err error, want wire.Code) {
	t.Helper()
	if wire.CodeOf(err) != want {
		t.Fatalf("%v (%v), want %v", wire.CodeOf(err), err, want)
	}
}

func TestPeerCall(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	p := newPeerPair(t, nil)
	defer p.close()
	callers := make(chan Caller, 1)
	Register(p.services, "find", func() *wire.FindReq { return &wire.FindReq{} },
		func(_ context.Context, from Caller, req *wire.FindReq) (*wire.FindResp, error) {
			callers <- from
			return &wire.FindResp{Node: req.Node + "!"}, nil
		})
	var resp wire.FindResp
	if err := Invoke(t.Context(), p.client, p.addr, "find", &wire.FindReq{Node: "x"}, &resp); err != nil {
		t.Fatal(err)
	}
	if resp.Node != "x!" {
		t.Errorf("%v", &resp)
	}
	if from := <-callers; from != (Caller{Node: "id2", Role: "node", Name: "n2"}) {
		t.Errorf("caller %+v", from)
	}
	// Sizes around every buffer's edge.
	for _, n := range []int{0, 1, peerReadBytes, peerChunkBytes + 1, peerBufferKeepBytes + 1, 8 << 20} {
		body := bytes.Repeat([]byte{byte(n)}, n)
		got, err := p.client.Call(t.Context(), p.addr, "echo", body)
		if err != nil || !bytes.Equal(got, body) {
			t.Fatalf("%d bytes: %d came back, %v", n, len(got), err)
		}
	}
}

// Many calls at once share one connection and get each their own answer.
func TestPeerCallsAreMultiplexed(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	p := newPeerPair(t, nil)
	defer p.close()
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			body := fmt.Appendf(nil, "call %d", i)
			got, err := p.client.Call(t.Context(), p.addr, "echo", body)
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("%q, %v; want %q", got, err, body)
			}
		})
	}
	wg.Wait()
	p.server.mu.Lock()
	defer p.server.mu.Unlock()
	if n := len(p.server.served); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestPeerErrors(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	p := newPeerPair(t, nil)
	defer p.close()
	RegisterRaw(p.services, "not leader", func(context.Context, Caller, []byte) ([]byte, error) {
		return nil, fmt.Errorf("wrapped: %w", &wire.Error{Code: wire.Code_NOT_LEADER, Message: "ask the leader", Leader: "h:1"})
	})
	RegisterRaw(p.services, "untyped", func(context.Context, Caller, []byte) ([]byte, error) { return nil, errors.New("oh \xff") })
	RegisterRaw(p.services, "panic", func(context.Context, Caller, []byte) ([]byte, error) { panic("poison") })
	RegisterRaw(p.services, "large", func(context.Context, Caller, []byte) ([]byte, error) {
		return make([]byte, wire.PeerFrameBytesMax), nil
	})
	Register(p.services, "typed", func() *wire.FindReq { return &wire.FindReq{} },
		func(context.Context, Caller, *wire.FindReq) (*wire.FindResp, error) { return &wire.FindResp{}, nil })
	for method, want := range map[string]wire.Code{
		"not leader": wire.Code_NOT_LEADER, "untyped": wire.Code_INTERNAL, "panic": wire.Code_INTERNAL,
		"large": wire.Code_REPLY_TOO_LARGE, "absent": wire.Code_UNKNOWN_METHOD, "": wire.Code_UNKNOWN_METHOD,
		"typed": wire.Code_BAD_REQUEST,
	} {
		_, err := p.client.Call(t.Context(), p.addr, method, []byte{0xff})
		if wire.CodeOf(err) != want || Unsent(err) {
			t.Errorf("%q: %v, want %v, from the far side", method, err, want)
		}
		var e *wire.Error
		if method == "not leader" && (!errors.As(err, &e) || e.Leader != "h:1" || e.Message != "ask the leader") {
			t.Errorf("the leader was lost: %#v", e)
		}
	}
	_, err := p.client.Call(t.Context(), p.addr, "echo", make([]byte, wire.PeerFrameBytesMax))
	wantCode(t, err, wire.Code_FRAME_TOO_LARGE)
	// None of this has cost the connection.
	if _, err := p.client.Call(t.Context(), p.addr, "echo", nil); err != nil {
		t.Fatal(err)
	}
}

// refusingNet is a network on which nobody listens: a port that was closed just now may
// be another process's.
type refusingNet struct{ seam.OSNetwork }

func (refusingNet) Dial(context.Context, string) (net.Conn, error) {
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
}

func TestPeerUnreachable(t *testing.T) {
	p := newPeerPair(t, func(_, c *PeerConfig) { c.Network = refusingNet{} })
	_, err := p.client.Call(t.Context(), p.addr, "echo", nil)
	wantCode(t, err, wire.Code_UNAVAILABLE)
	var op *net.OpError
	if !errors.As(err, &op) || !Unsent(err) {
		t.Errorf("the cause is lost: %v", err)
	}
	_, err = p.server.Call(t.Context(), p.addr, "echo", nil) // it has no TLS to dial with
	wantCode(t, err, wire.Code_NOT_AUTHORISED)
}

// A server that speaks garbage, or nothing, is an error in bounded time.
func TestPeerAgainstGarbage(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	p := newPeerPair(t, func(_, c *PeerConfig) { c.DialTimeout = 300 * time.Millisecond })
	defer p.close()
	for _, junk := range []string{"HTTP/1.1 400 Bad Request\r\n\r\n", ""} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte(junk))
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		})
		_, err = p.client.Call(t.Context(), ln.Addr().String(), "echo", nil)
		wantCode(t, err, wire.Code_UNAVAILABLE)
		ln.Close()
		wg.Wait()
	}
}

func TestPeerForeignCertificate(t *testing.T) {
	p := newPeerPair(t, nil)
	foreign := NewPeers(PeerConfig{Self: "x", TLS: mgmtForeign().PeerClient(ALPNPeer)})
	defer foreign.Close()
	_, err := foreign.Call(t.Context(), p.addr, "echo", nil)
	wantCode(t, err, wire.Code_NOT_AUTHORISED) // the client sees a foreign server

	trusting := mgmtForeign().PeerClient(ALPNPeer)
	trusting.InsecureSkipVerify = true
	trusting.VerifyConnection = nil
	intruder := NewPeers(PeerConfig{Self: "x", TLS: trusting})
	defer intruder.Close()
	_, err = intruder.Call(t.Context(), p.addr, "echo", nil)
	wantCode(t, err, wire.Code_NOT_AUTHORISED) // the server sees a foreign client
}

// An operator's calls name no node, whatever they claim.
func TestPeerOperator(t *testing.T) {
	p := newPeerPair(t, nil)
	callers := make(chan Caller, 1)
	RegisterRaw(p.services, "who", func(_ context.Context, from Caller, _ []byte) ([]byte, error) {
		callers <- from
		return nil, nil
	})
	admin := NewPeers(PeerConfig{Self: "id1", TLS: mgmtAdmin(t).PeerClient(ALPNAdmin), ALPN: ALPNAdmin})
	defer admin.Close()
	if _, err := admin.Call(t.Context(), p.addr, "who", nil); err != nil {
		t.Fatal(err)
	}
	if from := <-callers; from != (Caller{Role: "admin", Name: "admin"}) {
		t.Errorf("%+v", from)
	}
}

func TestPeerWrongCluster(t *testing.T) {
	for _, tt := range []struct {
		ours, theirs string
		want         wire.Code
	}{
		{"a", "a", wire.Code_OK}, {"", "a", wire.Code_OK}, {"a", "", wire.Code_OK}, {"", "", wire.Code_OK},
		{"a", "b", wire.Code_WRONG_CLUSTER},
	} {
		p := newPeerPair(t, func(s, c *PeerConfig) {
			s.ClusterID = func() []byte { return []byte(tt.theirs) }
			c.ClusterID = func() []byte { return []byte(tt.ours) }
		})
		_, err := p.client.Call(t.Context(), p.addr, "echo", nil)
		wantCode(t, err, tt.want)
	}
}

// A connection made before ids were known is checked once they are.
func TestPeerClusterLearntLater(t *testing.T) {
	var ours, theirs atomic.Value
	ours.Store("")
	theirs.Store("b")
	p := newPeerPair(t, func(s, c *PeerConfig) {
		s.ClusterID = func() []byte { return []byte(theirs.Load().(string)) }
		c.ClusterID = func() []byte { return []byte(ours.Load().(string)) }
	})
	if _, err := p.client.Call(t.Context(), p.addr, "echo", nil); err != nil {
		t.Fatal(err)
	}
	ours.Store("a")
	_, err := p.client.Call(t.Context(), p.addr, "echo", nil)
	wantCode(t, err, wire.Code_WRONG_CLUSTER)

	// The answering side learns later than the calling one.
	ours.Store("a")
	theirs.Store("")
	if _, err := p.client.Call(t.Context(), p.addr, "echo", nil); err != nil {
		t.Fatal(err)
	}
	theirs.Store("b")
	_, err = p.client.Call(t.Context(), p.addr, "echo", nil)
	wantCode(t, err, wire.Code_WRONG_CLUSTER)
	theirs.Store("a")
	if _, err := p.client.Call(t.Context(), p.addr, "echo", nil); err != nil {
		t.Fatal(err)
	}
}

func TestPeerWrongVersion(t *testing.T) {
	p := newPeerPair(t, nil)
	c, err := tls.Dial("tcp", p.addr, mgmtIdentity(t, "n2").PeerClient(ALPNPeer))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	hello, err := peerExchange(c, &wire.PeerHello{Version: wire.Version + 1})
	if err != nil || hello.Refused != wire.Code_WRONG_VERSION || hello.Message == "" {
		t.Fatalf("%v, %v", hello, err)
	}
	if _, err := c.Read(make([]byte, 1)); err != io.EOF && err == nil {
		t.Fatal("the connection is still open")
	}
}

// soonContext is due soon after it is asked, and does not end: so the call is sent, however
// late, and it is the far side that ends it.
type soonContext struct{ context.Context }

func (soonContext) Deadline() (time.Time, bool) { return time.Now().Add(50 * time.Millisecond), true }

// The far side learns when a caller's time is over, and when it gives up.
func TestPeerCancel(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	p := newPeerPair(t, nil)
	defer p.close()
	started, ended := make(chan bool, 1), make(chan error, 1)
	RegisterRaw(p.services, "wait", func(ctx context.Context, _ Caller, _ []byte) ([]byte, error) {
		_, hasDeadline := ctx.Deadline()
		started <- hasDeadline
		<-ctx.Done()
		ended <- ctx.Err()
		return nil, ctx.Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := p.client.Call(ctx, p.addr, "wait", nil)
		result <- err
	}()
	<-started
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) || wire.CodeOf(err) != wire.Code_UNAVAILABLE {
		t.Fatalf("%v", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("the far side: %v", err)
	}

	_, err := p.client.Call(soonContext{t.Context()}, p.addr, "wait", nil)
	wantCode(t, err, wire.Code_DEADLINE_EXCEEDED)
	if errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the call was not sent: %v", err)
	}
	<-started
	if err := <-ended; !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the far side: %v", err)
	}
	// The late answer of the first call disturbs nobody.
	if _, err := p.client.Call(t.Context(), p.addr, "echo", nil); err != nil {
		t.Fatal(err)
	}
	gone, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	_, err = p.client.Call(gone, p.addr, "echo", nil)
	wantCode(t, err, wire.Code_DEADLINE_EXCEEDED)
}

// Past the cap a call is refused without being run; cancelling makes room.
func TestPeerOverload(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	p := newPeerPair(t, func(s, _ *PeerConfig) { s.CallsMax = 3 })
	defer p.close()
	started, release := make(chan struct{}, 8), make(chan struct{})
	RegisterRaw(p.services, "wait", func(context.Context, Caller, []byte) ([]byte, error) {
		started <- struct{}{}
		<-release
		return nil, nil
	})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if _, err := p.client.Call(t.Context(), p.addr, "wait", nil); err != nil {
				t.Error(err)
			}
		})
	}
	for range 3 {
		<-started
	}
	_, err := p.client.Call(t.Context(), p.addr, "wait", nil)
	wantCode(t, err, wire.Code_OVERLOADED)
	if len(started) != 0 {
		t.Error("a refused call was run")
	}
	close(release)
	wg.Wait()
}

// Close of either side, with calls in flight, fails them and leaves nothing.
func TestPeerCloseInFlight(t *testing.T) {
	for _, side := range []string{"client", "server", "port"} {
		t.Run(side, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			p := newPeerPair(t, nil)
			defer p.close()
			started := make(chan struct{}, 16)
			RegisterRaw(p.services, "wait", func(ctx context.Context, _ Caller, _ []byte) ([]byte, error) {
				started <- struct{}{}
				<-ctx.Done()
				return nil, ctx.Err()
			})
			errs := make(chan error, 16)
			for range cap(errs) {
				go func() {
					_, err := p.client.Call(context.Background(), p.addr, "wait", nil)
					errs <- err
				}()
			}
			for range cap(started) {
				<-started
			}
			want := wire.Code_UNAVAILABLE
			switch side {
			case "client":
				want = wire.Code_SHUTTING_DOWN
				p.client.Close()
			case "server":
				p.server.Close()
			case "port":
				p.mgmt.Close()
			}
			for range cap(errs) {
				wantCode(t, <-errs, want)
			}
			if side == "client" {
				_, err := p.client.Call(t.Context(), p.addr, "echo", nil)
				wantCode(t, err, wire.Code_SHUTTING_DOWN)
			}
		})
	}
}

// Close while dialling: a far side that never answers must not hold it up.
func TestPeerCloseWhileDialling(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	p := NewPeers(PeerConfig{TLS: mgmtIdentity(t, "n2").PeerClient(ALPNPeer), DialTimeout: time.Hour})
	result := make(chan error, 1)
	go func() {
		_, err := p.Call(context.Background(), ln.Addr().String(), "echo", nil)
		result <- err
	}()
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Read(make([]byte, 1)); err != nil { // the client's hello is under way
		t.Fatal(err)
	}
	p.Close()
	if err := <-result; err == nil {
		t.Fatal("a call to nobody succeeded")
	}
}

// After the far side restarted, the next call dials anew.
func TestPeerReconnects(t *testing.T) {
	p := newPeerPair(t, nil)
	if _, err := p.client.Call(t.Context(), p.addr, "echo", nil); err != nil {
		t.Fatal(err)
	}
	p.server.mu.Lock()
	for c := range p.server.served {
		peerCloseSocket(c)
	}
	p.server.mu.Unlock()
	// The first call may meet the connection before its end was noticed.
	for {
		_, err := p.client.Call(t.Context(), p.addr, "echo", nil)
		if err == nil {
			break
		}
		wantCode(t, err, wire.Code_UNAVAILABLE)
	}
}

// pipeNet dials pipes to serve, without cryptography: on a bubble's clock nothing is late,
// and a certificate is not valid yet.
type pipeNet struct {
	seam.Network
	Carrier
	serve func(net.Conn)
}

func (n pipeNet) Dial(context.Context, string) (net.Conn, error) {
	near, far := net.Pipe()
	go n.serve(pipeConn{far})
	return near, nil
}

func (pipeNet) SecureClient(raw net.Conn, _ *tls.Config) SecureConn { return pipeConn{raw} }

type pipeConn struct{ net.Conn }

func (pipeConn) HandshakeContext(context.Context) error { return nil }
func (pipeConn) ConnectionState() tls.ConnectionState   { return tls.ConnectionState{} }
func (c pipeConn) NetConn() net.Conn                    { return c.Conn }

// bubblePeers runs test in a bubble: client's connections are served as serve says.
func bubblePeers(t *testing.T, serve func(server *Peers, c net.Conn), test func(t *testing.T, client *Peers)) {
	synctest.Test(t, func(t *testing.T) {
		services := NewServices()
		RegisterRaw(services, "echo", func(_ context.Context, _ Caller, body []byte) ([]byte, error) { return body, nil })
		RegisterRaw(services, "slow", func(ctx context.Context, _ Caller, _ []byte) ([]byte, error) {
			return []byte("done"), seam.Sleep(ctx, seam.OSClock{}, 3*peerSilence*peerKeepalive)
		})
		server := NewPeers(PeerConfig{Self: "id1", Services: services})
		defer server.Close()
		client := NewPeers(PeerConfig{Self: "id2", TLS: &tls.Config{}, Network: pipeNet{serve: func(c net.Conn) { serve(server, c) }}})
		defer client.Close()
		test(t, client)
	})
}

// TestPeerDoubtsTheSilent: a connection on which a call ran out of time, and nothing was
// heard for long, is not used again.
func TestPeerDoubtsTheSilent(t *testing.T) {
	silent := true
	serve := func(server *Peers, c net.Conn) {
		if !silent {
			server.Serve(c)
			return
		}
		silent = false
		if _, err := peerReadHello(c); err == nil {
			_ = peerSendHello(c, &wire.PeerHello{Version: wire.Version})
		}
	}
	bubblePeers(t, serve, func(t *testing.T, client *Peers) {
		call := func() error {
			ctx, cancel := context.WithTimeout(t.Context(), peerDoubt/4)
			defer cancel()
			_, err := client.Call(ctx, "n1", "echo", nil)
			return err
		}
		wantCode(t, call(), wire.Code_DEADLINE_EXCEEDED)
		time.Sleep(peerDoubt)
		synctest.Wait()
		if err := call(); err != nil {
			t.Errorf("no new connection is used: %v", err)
		}
	})
}

// TestPeerTrustsTheSlow: a connection whose far side lives stays, however long its calls
// take.
func TestPeerTrustsTheSlow(t *testing.T) {
	bubblePeers(t, (*Peers).Serve, func(t *testing.T, client *Peers) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		_, err := client.Call(ctx, "n1", "slow", nil)
		wantCode(t, err, wire.Code_DEADLINE_EXCEEDED)
		client.mu.Lock()
		conn := client.slots["n1"].conn
		client.mu.Unlock()
		if !conn.doubted.Load() {
			t.Fatal("it is not looked whether the far side lives")
		}
		time.Sleep(peerDoubt)
		synctest.Wait()
		if _, err := client.Call(t.Context(), "n1", "echo", nil); err != nil {
			t.Fatal(err)
		}
		conn.mu.Lock()
		defer conn.mu.Unlock()
		if conn.doubted.Load() || conn.retired {
			t.Error("the connection was given up")
		}
	})
}

// dueContext is past its deadline and does not know it yet, as contexts are until the
// runtime comes to their timer.
type dueContext struct{ context.Context }

func (dueContext) Deadline() (time.Time, bool) { return time.Now().Add(-time.Millisecond), true }

// TestPeerCallThatIsDue: who calls too late hears so, whatever the context says.
func TestPeerCallThatIsDue(t *testing.T) {
	p := newPeerPair(t, nil)
	_, err := p.client.Call(dueContext{t.Context()}, p.addr, "echo", nil)
	wantCode(t, err, wire.Code_DEADLINE_EXCEEDED)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v is not the context's error", err)
	}
}

// A connection that is quiet for several silences stays, by its pings.
func TestPeerKeepalive(t *testing.T) {
	bubblePeers(t, (*Peers).Serve, func(t *testing.T, client *Peers) {
		if got, err := client.Call(t.Context(), "n1", "slow", nil); err != nil || string(got) != "done" {
			t.Fatalf("%q, %v", got, err)
		}
	})
}

// A connection whose far side fell silent is given up, and the calls that wait on it
// with it.
func TestPeerSilence(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	p := newPeerPair(t, func(_, c *PeerConfig) { c.keepalive = 50 * time.Millisecond })
	defer p.close()
	// A far side that shakes hands, and then says nothing more.
	ln, err := tls.Listen("tcp", "127.0.0.1:0", mgmtIdentity(t, "n1").PeerServer(ALPNPeer))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if _, err := peerReadHello(c); err == nil {
			_ = peerSendHello(c, &wire.PeerHello{Version: wire.Version})
			_, _ = io.Copy(io.Discard, c)
		}
	})
	// The writes succeed, so only the silence can tell.
	dead, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	_, err = p.client.Call(dead, ln.Addr().String(), "echo", nil)
	wantCode(t, err, wire.Code_UNAVAILABLE)
	wg.Wait()
}

// FuzzPeerServe lets a peer with a good certificate send anything at all.
func FuzzPeerServe(f *testing.F) {
	hello, _ := AppendFrame(nil, &wire.PeerHello{Version: wire.Version, Node: "id2"}, 1<<20)
	add := func(frames ...*wire.PeerFrame) {
		var out []byte
		for _, m := range frames {
			out, _ = AppendFrame(out, m, 1<<20)
		}
		f.Add(append(bytes.Clone(hello), out...))
	}
	call := func(id uint64, method string, us uint64) *wire.PeerFrame {
		return &wire.PeerFrame{Id: id, Kind: &wire.PeerFrame_Call{Call: &wire.PeerCall{Method: method, TimeoutUs: us, Body: []byte("b")}}}
	}
	cancel := &wire.PeerFrame{Id: 1, Kind: &wire.PeerFrame_Cancel{Cancel: &wire.PeerCancel{}}}
	add(call(1, "echo", 0), call(2, "wait", 1), call(3, "absent", 1<<63))
	add(call(1, "wait", 0), cancel, call(1, "echo", 5))
	add(call(1, "wait", 0), call(1, "wait", 0))
	add(call(0, "", 0), &wire.PeerFrame{Id: 4, Kind: &wire.PeerFrame_Answer{Answer: &wire.PeerAnswer{}}})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte("\x00\x00\x00\x08\x01\x1a\x03id2\x00\x00")) // a hello that is none
	f.Add(append(bytes.Clone(hello), 0, 0, 0, 3, 9, 9, 9))
	services := NewServices()
	RegisterRaw(services, "echo", func(_ context.Context, _ Caller, body []byte) ([]byte, error) { return body, nil })
	RegisterRaw(services, "wait", func(ctx context.Context, _ Caller, _ []byte) ([]byte, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	f.Fuzz(func(t *testing.T, data []byte) {
		p := NewPeers(PeerConfig{Self: "id1", Services: services})
		defer p.Close()
		near, far := net.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = io.Copy(io.Discard, near) })
		wg.Go(func() {
			_, _ = near.Write(data)
			near.Close()
		})
		p.serve(far, "node", "n2") // must return, since the far end closed
		far.Close()                // which Serve does in serve's place
		wg.Wait()
	})
}

// FuzzPeerAnswers lets a server send anything at all to a calling side.
func FuzzPeerAnswers(f *testing.F) {
	a, _ := AppendFrame(nil, &wire.PeerFrame{Id: 1, Kind: &wire.PeerFrame_Answer{Answer: &wire.PeerAnswer{Code: 1}}}, 1<<20)
	f.Add(a)
	f.Add(append(bytes.Clone(a), a...))
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		p := NewPeers(PeerConfig{})
		defer p.Close()
		c := newPeerConn(p, "a", tls.Client(fuzzConn{}, &tls.Config{}), nil, &wire.PeerHello{})
		answer := make(chan *wire.PeerAnswer, 1)
		if _, err := c.register(answer); err != nil {
			t.Fatal(err)
		}
		r := bytes.NewReader(data)
		var buf []byte
		for {
			var err error
			if buf, err = ReadFrame(r, 1<<20, buf); err != nil {
				break
			}
			m := &wire.PeerFrame{}
			if proto.Unmarshal(buf, m) != nil || m.GetAnswer() == nil {
				break
			}
			c.deliver(m.Id, m.GetAnswer()) // must never block
		}
		c.cancel()
	})
}

// fuzzConn is a connection to nowhere.
type fuzzConn struct{ net.Conn }

func (fuzzConn) Close() error { return nil }
