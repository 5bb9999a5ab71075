package rpcnet

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// eventually polls for what another goroutine brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(2 * ms)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

// rawConn is a bare QUIC connection to a node.
func rawConn(t *testing.T, n *fakeNode) *quic.Conn {
	t.Helper()
	conf, err := pki.LoadClient(mgmtPKI())
	if err != nil {
		t.Fatal(err)
	}
	conf.NextProtos = []string{ALPNUser}
	qc, err := quic.DialAddr(context.Background(), n.addr(), conf, quicClientConfig(20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = qc.CloseWithError(0, "") })
	return qc
}

// rawStream sends bytes on a new stream and returns the node's frames.
func rawStream(t *testing.T, qc *quic.Conn, send []byte) (frames []*wire.ServerFrame) {
	t.Helper()
	qs, err := qc.OpenStreamSync(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer qs.Close()
	_ = qs.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := qs.Write(send); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(qs)
	for {
		b, err := ReadFrame(r, wire.FrameBytesMax, nil)
		if err == io.EOF {
			return frames
		}
		if err != nil {
			t.Fatal(err)
		}
		f, err := decodeServerFrame(b)
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, f)
	}
}

func clientBytes(t *testing.T, f *wire.ClientFrame) []byte {
	t.Helper()
	b, err := AppendFrame(nil, f, 2*wire.FrameBytesMax)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestServerRefusesWhatItCannotServe(t *testing.T) {
	nodes := 0
	cl := newFakeCluster(t, 2, func(c *ServerConfig) {
		if nodes++; nodes == 2 {
			c.FirstFrameTimeout = 100 * ms
		}
	})
	qc, hasty := rawConn(t, cl.nodes[0]), rawConn(t, cl.nodes[1])
	hello := func(version uint32, cluster string) *wire.ClientFrame {
		return &wire.ClientFrame{Kind: &wire.ClientFrame_Hello{Hello: &wire.Hello{Version: version, ClusterId: []byte(cluster)}}}
	}
	attach := func(version uint32, cluster string) *wire.ClientFrame {
		return &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{
			Version: version, ClusterId: []byte(cluster), Session: "s", Secret: make([]byte, wire.SecretBytes), Instance: make([]byte, wire.IDBytes)}}}
	}
	for _, tc := range []struct {
		name string
		send []byte
		want wire.Code
	}{
		{"garbage", rawFrame([]byte("no protobuf at all")), wire.Code_BAD_REQUEST},
		{"no kind", rawFrame(nil), wire.Code_BAD_REQUEST},
		{"a length beyond the limit", []byte{0xff, 0xff, 0xff, 0xff}, wire.Code_FRAME_TOO_LARGE},
		{"a request first", clientBytes(t, &wire.ClientFrame{Kind: &wire.ClientFrame_Request{Request: &wire.Request{Seq: 1, Method: "m"}}}), wire.Code_BAD_REQUEST},
		{"hello of another version", clientBytes(t, hello(99, "")), wire.Code_WRONG_VERSION},
		{"hello to another cluster", clientBytes(t, hello(wire.Version, "other")), wire.Code_WRONG_CLUSTER},
		{"attach of another version", clientBytes(t, attach(99, "")), wire.Code_WRONG_VERSION},
		{"attach to another cluster", clientBytes(t, attach(wire.Version, "other")), wire.Code_WRONG_CLUSTER},
		{"token of another cluster", clientBytes(t, &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{
			Version: wire.Version, ClusterId: []byte("other"), Session: "s", Token: make([]byte, 32), Migration: 7, Instance: make([]byte, wire.IDBytes),
		}}}), wire.Code_TOKEN_WRONG_CLUSTER},
		{"a session of no name", clientBytes(t, &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{}}}), wire.Code_BAD_SESSION_ID},
		{"half a frame, then nothing", []byte{0, 0, 0, 9, 1}, wire.Code_DEADLINE_EXCEEDED},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conn := qc
			if tc.want == wire.Code_DEADLINE_EXCEEDED {
				conn = hasty
			}
			frames := rawStream(t, conn, tc.send)
			if len(frames) != 1 || frames[0].GetBye() == nil || frames[0].GetBye().GetCode() != tc.want || frames[0].GetBye().GetMessage() == "" {
				t.Errorf("answered %v, want bye %v with a message", frames, tc.want)
			}
		})
	}
	// The connection has survived all that.
	frames := rawStream(t, qc, clientBytes(t, hello(wire.Version, "the cluster")))
	if len(frames) != 1 || frames[0].GetHello().GetSelf().GetName() != "a" {
		t.Errorf("hello answered %v", frames)
	}
}

func TestOnlyNodesMayRelay(t *testing.T) {
	cl := newFakeCluster(t, 1, func(c *ServerConfig) { c.TLS = mgmtUser(t, mgmtIdentity(t, "n1")) })
	conf, err := pki.LoadClient(mgmtPKI())
	if err != nil {
		t.Fatal(err)
	}
	conf.NextProtos = []string{ALPNRelay}
	qc, err := quic.DialAddr(context.Background(), cl.nodes[0].addr(), conf, quicClientConfig(20*time.Second))
	if err != nil {
		return // refused in the handshake
	}
	_, err = qc.AcceptStream(context.Background())
	if err == nil {
		t.Fatal("a client without a node's certificate may relay")
	}
}

func TestShutdownLosesNothingThatWasSent(t *testing.T) {
	// A large reply, then at once Bye and the end of the server: the client must
	// have all of it, although closing a connection discards what is unsent.
	const payload = 900_000
	release := make(chan struct{})
	cl := newFakeCluster(t, 1, func(c *ServerConfig) {
		c.Serve = func(st *Stream, _ *wire.ClientFrame) {
			for seq := range uint64(3) {
				_ = st.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Response{Response: &wire.Response{Seq: seq + 1, Payload: make([]byte, payload)}}})
			}
			close(release)
			<-st.Context().Done()
		}
	})
	qc := rawConn(t, cl.nodes[0])
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-release
		cl.nodes[0].stop()
	}()
	frames := rawStream(t, qc, clientBytes(t, &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{
		Version: wire.Version, Session: "s", Secret: make([]byte, wire.SecretBytes), Instance: make([]byte, wire.IDBytes)}}}))
	<-stopped
	if len(frames) != 4 || len(frames[2].GetResponse().GetPayload()) != payload || frames[3].GetBye().GetCode() != wire.Code_SHUTTING_DOWN {
		t.Errorf("%d frames arrived, want 3 replies and bye", len(frames))
	}
}

func TestClientThatDoesNotReadIsDropped(t *testing.T) {
	result := make(chan error, 1)
	cl := newFakeCluster(t, 1, func(c *ServerConfig) {
		c.QueueBytesMax = 1 << 20
		c.Serve = func(st *Stream, _ *wire.ClientFrame) {
			f := &wire.ServerFrame{Kind: &wire.ServerFrame_Push{Push: &wire.PushFrame{Payload: make([]byte, 64<<10)}}}
			var err error
			for err == nil { // Send never blocks
				err = st.Send(f)
			}
			<-st.Context().Done()
			result <- err
		}
	})
	qc := rawConn(t, cl.nodes[0])
	qs, err := qc.OpenStreamSync(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := qs.Write(clientBytes(t, &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{
		Version: wire.Version, Session: "s", Secret: make([]byte, wire.SecretBytes), Instance: make([]byte, wire.IDBytes)}}})); err != nil {
		t.Fatal(err)
	}
	wantCode(t, <-result, wire.Code_OVERLOADED)
	_, err = io.Copy(io.Discard, qs)
	wantCode(t, streamErr(err), wire.Code_OVERLOADED)
	_ = qs.Close()
}

func TestManyClientsAtOnce(t *testing.T) {
	// More at once than QUIC's accept queue holds: the server must drain it.
	cl := newFakeCluster(t, 1, func(c *ServerConfig) {
		c.Serve = func(st *Stream, _ *wire.ClientFrame) { st.Bye(wire.Code_UNKNOWN_SESSION, "none here") }
	})
	const n = 100
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			conf, _ := pki.LoadClient(mgmtPKI())
			c, err := Dial(context.Background(), ClientConfig{
				Addrs: []string{cl.nodes[0].addr()}, TLS: conf, Network: &blockNet{}, DialTimeout: 30 * time.Second, Silence: 30 * time.Second, IdleTimeout: 30 * time.Second, RequestTimeout: time.Minute})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if _, err = c.Resume(context.Background(), "s", make([]byte, wire.SecretBytes)); wire.CodeOf(err) != wire.Code_UNKNOWN_SESSION {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	eventually(t, "all connections are counted off", func() bool {
		s := cl.nodes[0].srv
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.connCount == 0 && len(s.perIP) == 0 && s.handshakes.Load() == 0 && len(s.streams) == 0
	})
}

func TestConnectionsAreCapped(t *testing.T) {
	cl := newFakeCluster(t, 1, func(c *ServerConfig) { c.ConnsPerIPMax = 2 })
	one, two := rawConn(t, cl.nodes[0]), rawConn(t, cl.nodes[0])
	conf, err := pki.LoadClient(mgmtPKI())
	if err != nil {
		t.Fatal(err)
	}
	conf.NextProtos = []string{ALPNUser}
	_, err = quic.DialAddr(context.Background(), cl.nodes[0].addr(), conf, nil)
	var refused *quic.TransportError
	if !errors.As(err, &refused) || refused.ErrorCode != quic.ConnectionRefused {
		t.Fatalf("a third connection: %v", err)
	}
	_ = one.CloseWithError(0, "")
	eventually(t, "a place is free again", func() bool {
		qc, err := quic.DialAddr(context.Background(), cl.nodes[0].addr(), conf, nil)
		if err == nil {
			_ = qc.CloseWithError(0, "")
		}
		return err == nil
	})
	_ = two
}

// heldClock stands still until it is let go.
type heldClock struct {
	seam.OSClock
	goes atomic.Bool
}

func (c *heldClock) Now() time.Duration {
	if !c.goes.Load() {
		return 0
	}
	return c.OSClock.Now()
}

// More clients than handshakes a second: those that are turned away come again,
// and no caller hears of it.
func TestHandshakesPerSecondAreBounded(t *testing.T) {
	clock := &heldClock{} // else clients that are slow to come all find a place
	cl := newFakeCluster(t, 1, func(c *ServerConfig) {
		c.HandshakesPerSecondMax, c.Clock = 10, clock
		c.Serve = func(st *Stream, _ *wire.ClientFrame) { st.Bye(wire.Code_UNKNOWN_SESSION, "none here") }
	})
	var wg sync.WaitGroup
	defer wg.Wait()
	for range 25 {
		wg.Go(func() {
			conf, _ := pki.LoadClient(mgmtPKI())
			c, err := Dial(context.Background(), ClientConfig{Addrs: []string{cl.nodes[0].addr()}, TLS: conf, RequestTimeout: time.Minute})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			if _, err = c.Resume(context.Background(), "s", make([]byte, wire.SecretBytes)); wire.CodeOf(err) != wire.Code_UNKNOWN_SESSION {
				t.Error(err)
			}
		})
	}
	eventually(t, "a client is turned away", func() bool { return cl.nodes[0].srv.Stats().Refused > 0 })
	clock.goes.Store(true)
}

func TestBucket(t *testing.T) {
	b := bucket{perSecond: 2}
	passed := ""
	for _, now := range []time.Duration{5000, 5000, 5000, 5400, 5500, 5900, 6000, 60000, 60000, 60000} {
		passed += map[bool]string{true: "y", false: "n"}[b.take(now*ms)]
	}
	if passed != "yynnynyyyn" {
		t.Errorf("passed %s", passed)
	}
}

// Connections that QUIC turns away because nobody accepts are counted.
func TestAcceptQueueOverflowIsCounted(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv, err := NewServer(ServerConfig{
		Packet: pc, TLS: mgmtUser(t, mgmtIdentity(t, "n1")), Hello: func() *wire.HelloOK { return &wire.HelloOK{} },
		Serve: func(*Stream, *wire.ClientFrame) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = srv.Close(t.Context()) }() // Serve never runs
	conf, err := pki.LoadClient(mgmtPKI())
	if err != nil {
		t.Fatal(err)
	}
	conf.NextProtos = []string{ALPNUser}
	for srv.Stats().Overflown == 0 {
		qc, err := quic.DialAddr(t.Context(), pc.LocalAddr().String(), conf, nil)
		if err == nil {
			defer func() { _ = qc.CloseWithError(0, "") }()
		}
		if srv.Conns() > 40 {
			t.Fatal("more than 32 connections wait to be accepted, and none was turned away")
		}
	}
}

func TestHandshakeFloodHasToProveItsAddress(t *testing.T) {
	cl := newFakeCluster(t, 1, func(c *ServerConfig) { c.HandshakesUnverifiedMax = 1 })
	// One handshake is under way, as after a packet whose sender does not answer.
	cl.nodes[0].srv.handshakes.Add(1)
	defer cl.nodes[0].srv.handshakes.Add(-1)
	// A client with an address of its own comes through, by way of a Retry.
	frames := rawStream(t, rawConn(t, cl.nodes[0]), clientBytes(t, &wire.ClientFrame{Kind: &wire.ClientFrame_Hello{Hello: &wire.Hello{Version: wire.Version}}}))
	if len(frames) != 1 || frames[0].GetHello() == nil {
		t.Errorf("hello answered %v", frames)
	}
}

func TestPoolOpensAnotherConnectionWhenOneIsFull(t *testing.T) {
	cl := newFakeCluster(t, 1, func(c *ServerConfig) {
		c.StreamsPerConnMax = 4
		c.Serve = func(st *Stream, first *wire.ClientFrame) {
			_ = st.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Attached{Attached: &wire.Attached{Session: first.GetAttach().GetSession(), Epoch: 1, Node: testNode("a")}}})
			for {
				if _, err := st.Recv(); err != nil {
					return
				}
			}
		}
	})
	c := dialFake(t, nil, cl.nodes[0])
	for i := range 10 {
		if _, err := c.Resume(context.Background(), fmt.Sprint("s", i), make([]byte, wire.SecretBytes)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestServerConfigNamesAllFaults(t *testing.T) {
	_, err := NewServer(ServerConfig{ConnsMax: -1})
	for _, want := range []string{"Packet", "TLS", "Hello", "Serve", "ConnsMax"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}

// brokenStream breaks at the first read, or after a frame.
type brokenStream struct {
	MuxStream
	frames io.Reader
}

func (b brokenStream) Read(p []byte) (int, error) {
	if n, err := b.frames.Read(p); err == nil {
		return n, nil
	}
	return 0, &quic.StatelessResetError{}
}

// TestRelayToAFormerProcess: a client that is called to a move's target is told to ask
// again, as this node's connection may have been to a process that is no more. Nobody
// else is, nor who has been answered: that may have had an effect.
func TestRelayToAFormerProcess(t *testing.T) {
	frame, err := AppendFrame(nil, &wire.ServerFrame{Kind: &wire.ServerFrame_Warm{Warm: &wire.Warm{}}}, wire.FrameBytesMax)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		retry  bool
		frames []byte
		want   wire.Code
	}{
		{"called", true, nil, wire.Code_RETRY},
		{"called and answered", true, frame, wire.Code_UNAVAILABLE},
		{"another", false, nil, wire.Code_UNAVAILABLE},
	} {
		var workers sync.WaitGroup
		st := &Stream{out: sendQueue{qs: discard{}, conn: &connWriter{workers: &workers}, limit: 1 << 20, workers: &workers}}
		if err := relayDown(t.Context(), brokenStream{frames: bytes.NewReader(c.frames)}, st, c.retry); wire.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		workers.Wait()
	}
}

// discard is a stream that takes everything.
type discard struct{ MuxStream }

func (discard) TryWriteAll([]byte) error { return nil }
