package rpcnet

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// fakeCluster is the replicated state that fake nodes share: one session, its
// owner, and what its clients wrote. It keeps the exactly-once rules itself, so
// that a test can see whether the client made good use of them.
type fakeCluster struct {
	t     testing.TB
	nodes []*fakeNode

	mu       sync.Mutex
	exists   bool
	secret   []byte
	epoch    uint64
	owner    *fakeNode
	log      []string // effects, in order
	windows  map[string]*fakeWindow
	pushes   uint64
	at       *Stream // the attached client's stream
	instance string  // and its instance
	warm     *Stream
	move     *fakeMove
}

// fakeWindow is a client instance's dedup window.
type fakeWindow struct {
	last    uint64
	replies map[uint64]*wire.Response
}

// fakeMove is a migration in progress.
type fakeMove struct {
	id     uint64
	from   *fakeNode
	to     *fakeNode
	warmed chan struct{}
	frozen bool
	parked []parkedFrame
}

type parkedFrame struct {
	st *Stream
	f  *wire.ClientFrame
	in string
}

// fakeNode is a Server whose Serve plays the owner's part by the cluster's rules.
type fakeNode struct {
	cl    *fakeCluster
	name  string
	srv   *Server
	relay *tls.Config
	muted atomic.Bool // takes frames, answers nothing: a stopped process
	lossy atomic.Bool // executes, and loses the stream instead of replying

	served  chan error // Server.Serve's result
	crashed atomic.Bool
	relays  atomic.Int64
}

func (n *fakeNode) addr() string { return n.srv.Addr().String() }

func (n *fakeNode) info() *wire.NodeInfo {
	a := n.srv.Addr().(*net.UDPAddr)
	return &wire.NodeInfo{Id: "id-" + n.name, Name: n.name, Host: "127.0.0.1", UserPort: uint32(a.Port)}
}

// newFakeCluster starts nodes, and checks at the end that nothing leaked.
func newFakeCluster(t testing.TB, nodes int, edit func(*ServerConfig)) *fakeCluster {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
	cl := &fakeCluster{t: t, windows: map[string]*fakeWindow{}, epoch: 4}
	for i := range nodes {
		n := &fakeNode{cl: cl, name: string(rune('a' + i)), served: make(chan error, 1)}
		id := mgmtIdentity(t, "n1")
		n.relay = id.RelayClient()
		ring, err := id.OpenRing(nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		token, reset := ring.AddressToken(), id.ResetKey(n.name)
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		cfg := ServerConfig{
			TokenKey: &token, ResetKey: &reset,
			Packet: pc, TLS: mgmtUser(t, id), Hello: n.hello, Serve: n.serve,
			Identify: mgmtIdentify, IdleTimeout: 5 * time.Second, ByeTimeout: 10 * time.Second,
		}
		if edit != nil {
			edit(&cfg)
		}
		if n.srv, err = NewServer(cfg); err != nil {
			t.Fatal(err)
		}
		cl.nodes = append(cl.nodes, n)
	}
	for _, n := range cl.nodes {
		go func() { n.served <- n.srv.Serve() }()
		t.Cleanup(n.stop)
	}
	return cl
}

// mgmtUser is the TLS of a user port with the keys of generation 0.
func mgmtUser(t testing.TB, id *pki.Identity) *tls.Config {
	t.Helper()
	ring, err := id.OpenRing(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return id.UserServer(ring, ALPNUser, ALPNRelay).Config()
}

// stop shuts a node down in good order.
func (n *fakeNode) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_ = n.srv.Close(ctx)
	if err := <-n.served; err != nil && !n.crashed.Load() {
		n.cl.t.Errorf("Serve of %s: %v", n.name, err)
	}
	n.served <- nil
}

// crash stops the packets first, so that nobody hears of it.
func (n *fakeNode) crash() {
	n.crashed.Store(true)
	_ = n.srv.cfg.Packet.Close()
}

func (n *fakeNode) hello() *wire.HelloOK {
	h := &wire.HelloOK{Version: wire.Version, ClusterId: []byte("the cluster"), Self: n.info()}
	for _, o := range n.cl.nodes {
		h.Nodes = append(h.Nodes, o.info())
	}
	return h
}

func (n *fakeNode) serve(st *Stream, first *wire.ClientFrame) {
	if n.muted.Load() {
		for {
			if _, err := st.Recv(); err != nil {
				return
			}
		}
	}
	var instance []byte
	switch k := first.Kind.(type) {
	case *wire.ClientFrame_Open:
		instance = k.Open.GetInstance()
		if !n.open(st, k.Open) {
			return
		}
	case *wire.ClientFrame_Attach:
		instance = k.Attach.GetInstance()
		if k.Attach.GetRelay() {
			n.relayTo(st, k.Attach)
			return
		}
		if !n.attach(st, k.Attach) {
			return
		}
	}
	for {
		f, err := st.Recv()
		if err != nil {
			return
		}
		if !n.muted.Load() {
			n.cl.mu.Lock()
			n.take(st, string(instance), f)
			n.cl.mu.Unlock()
		}
	}
}

func (n *fakeNode) relayTo(st *Stream, a *wire.AttachReq) {
	n.relays.Add(1)
	to := a.GetRelayTo()
	n.cl.mu.Lock()
	owner := n.cl.owner
	for _, o := range n.cl.nodes {
		if to == o.info().GetId() {
			owner = o
		}
	}
	n.cl.mu.Unlock()
	_ = n.srv.Relay(context.Background(), st, &wire.ClientFrame{Kind: &wire.ClientFrame_Attach{Attach: a}}, owner.addr(), n.relay)
}

func (n *fakeNode) open(st *Stream, o *wire.OpenReq) bool {
	cl := n.cl
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if !cl.exists {
		cl.exists, cl.secret, cl.owner = true, o.GetSecret(), n
		cl.epoch++
	}
	return n.admit(st, o.GetSession(), o.GetInstance(), o.GetSecret())
}

func (n *fakeNode) attach(st *Stream, a *wire.AttachReq) bool {
	cl := n.cl
	if st.Confirmed() != nil {
		return false // a replay in 0-RTT
	}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if m := cl.move; m != nil && a.GetMigration() == m.id && n == m.to {
		cl.warm = st
		_ = st.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Warm{Warm: &wire.Warm{Migration: m.id}}})
		close(m.warmed)
		return true
	}
	if !cl.exists {
		st.Bye(wire.Code_UNKNOWN_SESSION, "no such session")
		return false
	}
	return n.admit(st, a.GetSession(), a.GetInstance(), a.GetSecret())
}

// admit needs cl.mu.
func (n *fakeNode) admit(st *Stream, session string, instance, secret []byte) bool {
	cl := n.cl
	switch {
	case !bytes.Equal(secret, cl.secret):
		st.Bye(wire.Code_BAD_SECRET, "wrong secret")
		return false
	case cl.owner != n:
		_ = st.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Redirect{Redirect: &wire.Redirect{Owner: cl.owner.info(), Epoch: cl.epoch}}})
		return false
	}
	if old := cl.at; old != nil && old != st {
		code := wire.Code_MOVED
		if cl.instance != string(instance) {
			code = wire.Code_DISPLACED
		}
		old.Bye(code, "attached elsewhere")
	}
	cl.at, cl.instance = st, string(instance)
	if cl.windows[string(instance)] == nil {
		cl.windows[string(instance)] = &fakeWindow{replies: map[uint64]*wire.Response{}}
	}
	_ = st.Send(n.attached(session, false))
	for seq := uint64(1); seq <= cl.pushes; seq++ {
		_ = st.Send(pushFrame(seq, cl.epoch))
	}
	return true
}

func (n *fakeNode) attached(session string, pivoted bool) *wire.ServerFrame {
	return &wire.ServerFrame{Kind: &wire.ServerFrame_Attached{Attached: &wire.Attached{
		Session: session, Epoch: n.cl.epoch, Node: n.info(), Pivoted: pivoted, FrameLimit: wire.FrameBytesMax}}}
}

// take handles a frame of an attached or warm client. It needs cl.mu.
func (n *fakeNode) take(st *Stream, instance string, f *wire.ClientFrame) {
	cl := n.cl
	if st == cl.warm && cl.move != nil && cl.owner != n {
		cl.move.parked = append(cl.move.parked, parkedFrame{st, f, instance})
		return
	}
	w := cl.windows[instance]
	if cl.owner != n || w == nil || cl.move != nil && cl.move.frozen {
		return // the client finds out by silence, or by the move
	}
	switch k := f.Kind.(type) {
	case *wire.ClientFrame_Request:
		r := k.Request
		if r.GetReadOnly() {
			_ = st.Send(cl.reply(&wire.Response{Seq: r.GetSeq(), Payload: []byte(fmt.Sprint(len(cl.log)))}))
			return
		}
		n.write(st, w, r.GetSeq(), r.GetPrev(), func() *wire.Response {
			cl.log = append(cl.log, string(r.GetPayload()))
			if r.GetMethod() == "push" {
				cl.pushes++
				_ = cl.at.Send(pushFrame(cl.pushes, cl.epoch))
			}
			return &wire.Response{Payload: append([]byte("did "), r.GetPayload()...)}
		})
	case *wire.ClientFrame_Cancel:
		n.write(st, w, k.Cancel.GetSeq(), k.Cancel.GetPrev(), func() *wire.Response {
			return &wire.Response{Code: wire.Code_CANCELLED}
		})
	case *wire.ClientFrame_Close:
		cl.exists = false
		st.Bye(wire.Code_SESSION_CLOSED, "closed")
	case *wire.ClientFrame_Detach:
		st.Bye(wire.Code_OK, "")
	}
}

// write applies one write-class request, once.
func (n *fakeNode) write(st *Stream, w *fakeWindow, seq, prev uint64, do func() *wire.Response) {
	cl := n.cl
	resp := w.replies[seq]
	switch {
	case resp != nil:
	case prev != w.last:
		_ = st.Send(cl.reply(&wire.Response{Seq: seq, Code: wire.Code_SEQ_MISMATCH, Message: "out of order"}))
		return
	default:
		resp = do()
		resp.Seq, resp.Settled = seq, true
		w.last, w.replies[seq] = seq, resp
		if n.lossy.CompareAndSwap(true, false) {
			st.out.reset(wire.Code_UNAVAILABLE)
			return
		}
	}
	_ = st.Send(cl.reply(resp))
}

func (cl *fakeCluster) reply(r *wire.Response) *wire.ServerFrame {
	return &wire.ServerFrame{Kind: &wire.ServerFrame_Response{Response: &wire.Response{
		Seq: r.GetSeq(), Epoch: cl.epoch, Code: r.GetCode(), Message: r.GetMessage(), Payload: r.GetPayload(), Settled: r.GetSettled()}}}
}

// assign gives the session to another node, as after a fence.
func (cl *fakeCluster) assign(to *fakeNode) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.owner = to
	cl.epoch++
	cl.at = nil
	cl.move = nil
}

// migrate hands the session over, with the client warm at the target. With abort
// it is called off after the freeze.
func (cl *fakeCluster) migrate(id uint64, to *fakeNode, abort bool) {
	cl.mu.Lock()
	m := &fakeMove{id: id, from: cl.owner, to: to, warmed: make(chan struct{})}
	cl.move = m
	_ = cl.at.Send(&wire.ServerFrame{Kind: &wire.ServerFrame_Pivot{Pivot: &wire.Pivot{
		Migration: id, Target: to.info(), Token: []byte("token"), Epoch: cl.epoch}}})
	cl.mu.Unlock()
	<-m.warmed

	cl.mu.Lock()
	defer cl.mu.Unlock()
	m.frozen = true
	source := cl.at
	_ = source.Send(frozenFrame(id))
	if abort {
		cl.warm.Send(bouncedFrame(id))
		cl.warm, cl.move = nil, nil
		_ = source.Send(unfrozenFrame(id))
		return
	}
	cl.owner = to
	cl.epoch++
	cl.at, cl.warm, cl.move = cl.warm, nil, nil
	_ = cl.at.Send(to.attached("s", true))
	// The source's last pushes may come too late, in an epoch that is over: what
	// the client has not acknowledged is sent again.
	for seq := uint64(1); seq <= cl.pushes; seq++ {
		_ = cl.at.Send(pushFrame(seq, cl.epoch))
	}
	for _, p := range m.parked {
		to.take(p.st, p.in, p.f)
	}
	source.Bye(wire.Code_MOVED, "")
}

// effects returns what the clients' writes did, in order.
func (cl *fakeCluster) effects() []string {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	return append([]string(nil), cl.log...)
}

// blockNet is a network on which packets to some addresses vanish.
type blockNet struct {
	seam.OSNetwork
	mu      sync.Mutex
	blocked map[string]bool
}

func (n *blockNet) block(addr string, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.blocked == nil {
		n.blocked = map[string]bool{}
	}
	n.blocked[addr] = on
}

func (n *blockNet) ListenPacket(string) (net.PacketConn, error) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	return &blockConn{PacketConn: pc, net: n}, err
}

type blockConn struct {
	net.PacketConn
	net *blockNet
}

func (c *blockConn) WriteTo(p []byte, to net.Addr) (int, error) {
	c.net.mu.Lock()
	blocked := c.net.blocked[to.String()]
	c.net.mu.Unlock()
	if blocked {
		return len(p), nil
	}
	return c.PacketConn.WriteTo(p, to)
}

// dialFake connects a client to the nodes given, with short times.
func dialFake(t testing.TB, edit func(*ClientConfig), nodes ...*fakeNode) *Client {
	t.Helper()
	conf, err := pki.LoadClient(mgmtPKI())
	if err != nil {
		t.Fatal(err)
	}
	cfg := ClientConfig{TLS: conf, Network: &blockNet{}, DialTimeout: 500 * ms, Silence: 200 * ms, IdleTimeout: 5 * time.Second, RequestTimeout: time.Minute}
	for _, n := range nodes {
		cfg.Addrs = append(cfg.Addrs, n.addr())
	}
	if edit != nil {
		edit(&cfg)
	}
	c, err := Dial(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return c
}

// untimed takes a client's patience out of play, for tests in which nothing waits for its
// end and that a node which is merely slow would disturb.
func untimed(c *ClientConfig) { c.DialTimeout, c.Silence = time.Hour, time.Hour }

// openFake opens the session, at node if that is not empty. The client should be connected
// to that node: one that takes long to dial is not opened at.
func openFake(t testing.TB, c *Client, node string) *Session {
	t.Helper()
	s, err := c.Open(context.Background(), OpenOptions{ID: "s", Node: node})
	if err != nil {
		t.Fatal(err)
	}
	if owner := s.Owner().GetName(); node != "" && owner != node {
		t.Fatalf("opened at %s, not at %s", owner, node)
	}
	return s
}
