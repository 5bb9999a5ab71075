package rpcnet

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/wire"
)

// awaitTicket waits until the client has a ticket of the node it is connected
// to. The nodes send them after the handshake.
func awaitTicket(t *testing.T, cache tls.ClientSessionCache) {
	t.Helper()
	eventually(t, "a session ticket came", func() bool {
		_, ok := cache.Get(pki.ServerName)
		return ok
	})
}

func TestTicketOfOneNodeResumesAtAnother(t *testing.T) {
	cl := newFakeCluster(t, 3, nil)
	c := dialFake(t, untimed, cl.nodes[0])
	s := openFake(t, c, "a")
	awaitTicket(t, c.cfg.TLS.ClientSessionCache)
	writeMany(t, s, "w", 60, func(done int) {
		if done == 20 || done == 40 {
			cl.migrate(uint64(done), cl.nodes[done/20], false)
		}
	})
	wantOnce(t, cl, 60)
	if got, want := c.Stats(), (ClientStats{ZeroRTT: 2, Full: 1}); got != want {
		t.Errorf("the client counts %+v, want %+v", got, want)
	}
	for _, n := range cl.nodes[1:] {
		eventually(t, "node "+n.name+" counts a connection", func() bool { return handshakes(n.srv.Stats()) > 0 })
		if got := n.srv.Stats(); got.ZeroRTT != 1 || got.Full != 0 || got.AddrVerified != 1 {
			t.Errorf("node %s counts %+v; want one connection, by 0-RTT and with an address token", n.name, got)
		}
	}
}

// handshakes counts those that are over: the node counts each on its own, beside the frames
// that it brought.
func handshakes(s ServerStats) uint64 { return s.Full + s.Resumed + s.ZeroRTT }

// A node with lower limits than the ticket's must refuse 0-RTT. That costs a
// round trip, and is counted.
func TestFallbackIsCounted(t *testing.T) {
	t.Run("as it goes", func(t *testing.T) { testFallbackIsCounted(t, false) })
	t.Run("handshake before the frame", func(t *testing.T) { testFallbackIsCounted(t, true) })
}

// slowDialler comes back from a dial when the handshake is over.
type slowDialler struct{ Muxer }

func (d slowDialler) DialEarly(ctx context.Context, to net.Addr, conf *tls.Config, qconf *quic.Config) (MuxConn, error) {
	qc, err := d.Muxer.DialEarly(ctx, to, conf, qconf)
	if err == nil {
		<-qc.HandshakeComplete()
	}
	return qc, err
}

func testFallbackIsCounted(t *testing.T, slow bool) {
	streams := []int{64, 32}
	cl := newFakeCluster(t, 2, func(c *ServerConfig) {
		c.StreamsPerConnMax, streams = streams[0], streams[1:]
	})
	c := dialFake(t, untimed, cl.nodes[0])
	if slow {
		c.pool.cfg.transport = slowDialler{c.pool.cfg.transport}
	}
	s := openFake(t, c, "a")
	awaitTicket(t, c.cfg.TLS.ClientSessionCache)
	writeMany(t, s, "w", 40, func(done int) {
		if done == 20 {
			cl.migrate(1, cl.nodes[1], false)
		}
	})
	wantOnce(t, cl, 40)
	if got, want := c.Stats(), (ClientStats{Fallback: 1, Full: 1}); got != want {
		t.Errorf("the client counts %+v, want %+v", got, want)
	}
	eventually(t, "the node counts a connection", func() bool { return handshakes(cl.nodes[1].srv.Stats()) > 0 })
	if got := cl.nodes[1].srv.Stats(); got.ZeroRTT != 0 || got.Resumed != 1 {
		t.Errorf("the node counts %+v", got)
	}
}

// divertNet takes what the client sends to one address off the wire and sends it
// from another place to another node, as one does who has seen it go by. The
// answers go astray.
type divertNet struct {
	blockNet
	from string
	to   net.Addr
	by   net.PacketConn
}

func (n *divertNet) ListenPacket(addr string) (net.PacketConn, error) {
	pc, err := n.blockNet.ListenPacket(addr)
	return &divertConn{PacketConn: pc, net: n}, err
}

type divertConn struct {
	net.PacketConn
	net *divertNet
}

func (c *divertConn) WriteTo(p []byte, to net.Addr) (int, error) {
	if to.String() == c.net.from {
		return c.net.by.WriteTo(p, c.net.to)
	}
	return c.PacketConn.WriteTo(p, to)
}

// Whoever has seen a warm attach in 0-RTT sends its datagrams again, to a node
// where that move would be taken for real. The node decrypts it, and nothing
// comes of it.
func TestReplayedAttachIsNoAttach(t *testing.T) {
	hints, ended := make(chan *Stream, 4), make(chan error, 4)
	nodes := 0
	cl := newFakeCluster(t, 3, func(c *ServerConfig) {
		if nodes++; nodes < 3 {
			return
		}
		c.IdleTimeout = time.Second // of the handshake that is never completed
		serve := c.Serve
		c.Serve = func(st *Stream, first *wire.ClientFrame) {
			hints <- st
			serve(st, first)
			ended <- st.Confirmed()
		}
	})
	thief, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer thief.Close()
	target := cl.nodes[2]
	network := &divertNet{from: cl.nodes[1].addr(), to: target.srv.Addr(), by: thief}
	c := dialFake(t, func(cfg *ClientConfig) { cfg.Network, cfg.DialTimeout = network, 5*time.Second }, cl.nodes[0])
	s := openFake(t, c, "a")
	awaitTicket(t, c.cfg.TLS.ClientSessionCache)

	cl.mu.Lock()
	m := &fakeMove{id: 7, from: cl.nodes[0], to: target, warmed: make(chan struct{})}
	cl.move = m
	at, epoch := cl.at, cl.epoch
	cl.mu.Unlock()
	first := &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{
		Version: wire.Version, Session: "s", Instance: make([]byte, wire.IDBytes), Migration: 7, Token: []byte("token")}}}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	given := make(chan error, 1)
	go func() {
		_, _, _, err := c.pool.openFor(ctx, cl.nodes[1].addr(), c.cfg.TLS, dialFor{early: earlyFrame(first)})
		given <- err
	}()
	<-hints // it was decrypted, and reached the node as a hint
	cancel()
	if err := <-given; err == nil {
		t.Error("the client has a stream over a connection that was never made")
	}
	if err := <-ended; err == nil {
		t.Error("a replay was confirmed")
	}
	select {
	case <-m.warmed:
		t.Error("a replay made the client warm")
	default:
	}
	cl.mu.Lock()
	if cl.at != at || cl.warm != nil || cl.epoch != epoch {
		t.Error("a replay changed who is attached")
	}
	cl.move = nil
	cl.mu.Unlock()
	if got := target.srv.Stats(); got.Full+got.Resumed+got.ZeroRTT+got.Refused+got.Overflown > 0 {
		t.Errorf("the node counts a connection: %+v", got)
	}
	// These are as of now, and the connection's end may not have been dealt with.
	eventually(t, "nothing is left of the connection", func() bool {
		got := target.srv.Stats()
		return got.Open == 0 && got.Sessions == 0
	})
	writeMany(t, s, "x", 10, nil)
}

// What else comes in 0-RTT (no client of ours sends it) waits for the handshake,
// and is then served as ever.
func TestOnlyAWarmAttachIsServedEarly(t *testing.T) {
	for _, f := range []*wire.ClientFrame{
		{Kind: &wire.ClientFrame_Hello{Hello: &wire.Hello{}}},
		{Kind: &wire.ClientFrame_Open{Open: &wire.OpenReq{}}},
		{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{Secret: make([]byte, wire.SecretBytes)}}},
		{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{Migration: 1, Token: make([]byte, 32), Relay: true}}},
		{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{Migration: 1, Secret: make([]byte, wire.SecretBytes)}}},
		{Kind: &wire.ClientFrame_Request{Request: &wire.Request{}}},
	} {
		if mayBeEarly(f) {
			t.Errorf("%v is acted on before the handshake is complete", f)
		}
	}
	if !mayBeEarly(&wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{Migration: 1, Token: make([]byte, 32)}}}) {
		t.Error("a warm attach has to wait")
	}
}

func TestSecretsDoNotTravelEarly(t *testing.T) {
	token := &wire.AttachReq{Migration: 3, Token: make([]byte, 32)}
	if earlyFrame(&wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: token}}) == nil {
		t.Error("a warm attach does not travel in 0-RTT")
	}
	for _, f := range []*wire.ClientFrame{
		{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{Migration: 3, Secret: make([]byte, wire.SecretBytes)}}},
		{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{Secret: make([]byte, wire.SecretBytes)}}},
		{Kind: &wire.ClientFrame_Open{Open: &wire.OpenReq{}}},
		{Kind: &wire.ClientFrame_Request{Request: &wire.Request{}}},
	} {
		if earlyFrame(f) != nil {
			t.Errorf("%v would travel in 0-RTT", f)
		}
	}
}

// A ticket that a client got as a client is worth nothing where nodes relay.
func TestTicketDoesNotMakeARelay(t *testing.T) {
	var relayed atomic.Int64
	cl := newFakeCluster(t, 1, func(c *ServerConfig) {
		c.Serve = func(st *Stream, _ *wire.ClientFrame) {
			if st.Relayed() {
				relayed.Add(1)
			}
			st.Bye(wire.Code_MOVED, "")
		}
	})
	conf, err := pki.LoadClient(mgmtPKI())
	if err != nil {
		t.Fatal(err)
	}
	conf.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	addr := cl.nodes[0].addr()
	dial := func(alpn ...string) (*quic.Conn, error) {
		conf := conf.Clone()
		conf.NextProtos = alpn
		return quic.DialAddrEarly(context.Background(), addr, conf, quicClientConfig(20*time.Second))
	}
	user, err := dial(ALPNUser)
	if err != nil {
		t.Fatal(err)
	}
	defer user.CloseWithError(0, "")
	awaitTicket(t, conf.ClientSessionCache)
	attach := clientBytes(t, &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: &wire.AttachReq{Version: wire.Version, Session: "s", Instance: make([]byte, wire.IDBytes), Token: make([]byte, 32), Migration: 1}}})
	for _, alpn := range [][]string{{ALPNRelay}, {ALPNUser, ALPNRelay}, {ALPNRelay, ALPNUser}} {
		qc, err := dial(alpn...)
		if err != nil {
			continue // refused in the handshake
		}
		if qs, err := qc.OpenStream(); err == nil {
			_, _ = qs.Write(attach)
		}
		<-qc.Context().Done()
		if cause := context.Cause(qc.Context()); !errors.As(cause, new(*quic.TransportError)) {
			t.Errorf("with %v the connection ended by %v, not by the handshake", alpn, cause)
		}
	}
	if relayed.Load() != 0 {
		t.Error("a client relays by means of its ticket")
	}
	// Nor do nodes get tickets for relaying: each connection shows a certificate.
	node := mgmtIdentity(t, "n1").RelayClient()
	node.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	qc, err := quic.DialAddr(context.Background(), addr, node, quicClientConfig(20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	defer qc.CloseWithError(0, "")
	if frames := rawStream(t, qc, attach); len(frames) != 1 || relayed.Load() != 1 {
		t.Errorf("a node may not relay: %v", frames)
	}
	if _, ok := node.ClientSessionCache.Get(pki.ServerName); ok {
		t.Error("a node got a ticket for relaying")
	}
}

// A node that was restarted tells the clients of its former life at once, with
// the key that it had then.
func TestRestartedNodeResetsFormerConnections(t *testing.T) {
	cl := newFakeCluster(t, 1, nil)
	n := cl.nodes[0]
	qc := rawConn(t, n)
	rawStream(t, qc, clientBytes(t, &wire.ClientFrame{Kind: &wire.ClientFrame_Hello{Hello: &wire.Hello{Version: wire.Version}}}))
	n.crash()
	pc, err := net.ListenPacket("udp", n.addr())
	if err != nil {
		t.Fatal(err)
	}
	cfg := n.srv.cfg
	cfg.Packet = pc
	again, err := NewServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- again.Serve() }()
	defer func() {
		_ = again.Close(context.Background())
		<-served
	}()
	<-qc.Context().Done() // its keep-alive probe is answered
	if cause := context.Cause(qc.Context()); !errors.As(cause, new(*quic.StatelessResetError)) {
		t.Errorf("the connection ended by %v, not by a reset", cause)
	}
}
