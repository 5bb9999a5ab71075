package rpcnet

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/wire"
)

// mgmtPKI is made once: keys and signatures are slow on small machines.
var mgmtPKI = sync.OnceValue(func() string {
	dir, err := os.MkdirTemp("", "baton-pki")
	if err == nil {
		err = errors.Join(pki.Init(dir), pki.Issue(dir, "n1", nil), pki.Issue(dir, "n2", nil))
	}
	if err != nil {
		panic(err)
	}
	return dir
})

func mgmtIdentity(t testing.TB, name string) *pki.Identity {
	t.Helper()
	id, err := pki.Load(mgmtPKI(), name)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func mgmtAdmin(t testing.TB) *pki.Identity {
	t.Helper()
	id, err := pki.LoadAdmin(mgmtPKI())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// mgmtForeign is a node of another cluster.
var mgmtForeign = sync.OnceValue(func() *pki.Identity {
	dir, err := os.MkdirTemp("", "baton-pki")
	if err == nil {
		err = errors.Join(pki.Init(dir), pki.Issue(dir, "n1", nil))
	}
	if err != nil {
		panic(err)
	}
	id, err := pki.Load(dir, "n1")
	if err != nil {
		panic(err)
	}
	return id
})

func mgmtIdentify(cs tls.ConnectionState) (string, string) {
	role, name := pki.RoleOf(cs)
	return string(role), name
}

// startMgmt listens on loopback as n1, and closes at the test's end.
func startMgmt(t testing.TB, edit func(*MgmtConfig), handlers map[string]func(net.Conn)) *Mgmt {
	t.Helper()
	cfg := MgmtConfig{Addr: "127.0.0.1:0"}
	var alpns []string
	for a := range handlers {
		alpns = append(alpns, a)
	}
	cfg.TLS = mgmtIdentity(t, "n1").PeerServer(alpns...)
	if edit != nil {
		edit(&cfg)
	}
	m, err := ListenMgmt(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for a, fn := range handlers {
		m.Handle(a, fn)
	}
	served := make(chan error, 1)
	go func() { served <- m.Serve() }()
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return m
}

// echoConn answers with what it gets, and its own name first.
func echoConn(name string) func(net.Conn) {
	return func(c net.Conn) {
		defer c.Close()
		if _, err := c.Write([]byte(name)); err != nil {
			return
		}
		_, _ = io.Copy(c, c)
	}
}

// wantHello dials and expects the handler's name.
func wantHello(t *testing.T, addr string, cfg *tls.Config, name string) {
	t.Helper()
	c, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got := make([]byte, len(name))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != name {
		t.Fatalf("%q, %v; want %q", got, err, name)
	}
}

func TestMgmtSplitsByALPN(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	m := startMgmt(t, nil, map[string]func(net.Conn){
		ALPNRaft: echoConn("raft"), ALPNPeer: echoConn("peer"), ALPNAdmin: echoConn("admin"),
	})
	defer m.Close()
	n2 := mgmtIdentity(t, "n2")
	wantHello(t, m.Addr().String(), n2.PeerClient(ALPNRaft), "raft")
	wantHello(t, m.Addr().String(), n2.PeerClient(ALPNPeer), "peer")
	wantHello(t, m.Addr().String(), mgmtAdmin(t).PeerClient(ALPNAdmin), "admin")
}

// Strangers are refused, each in their way, and the port keeps working.
func TestMgmtRefusesStrangers(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	reached := make(chan string, 1)
	handlers := map[string]func(net.Conn){
		ALPNRaft: func(c net.Conn) { reached <- c.RemoteAddr().String(); c.Close() },
		ALPNPeer: echoConn("peer"),
	}
	m := startMgmt(t, nil, handlers)
	defer m.Close()
	addr := m.Addr().String()
	// For what only the timeout ends: a good handshake may take longer.
	hasty := startMgmt(t, func(c *MgmtConfig) { c.HandshakeTimeout = 300 * time.Millisecond }, handlers)
	defer hasty.Close()
	foreign := mgmtForeign().PeerClient(ALPNRaft)
	foreign.InsecureSkipVerify = true
	foreign.VerifyConnection = nil
	none := mgmtIdentity(t, "n2").PeerClient(ALPNRaft)
	none.GetClientCertificate = nil
	for name, cfg := range map[string]*tls.Config{
		"foreign": foreign, "no certificate": none,
		"operator":      mgmtAdmin(t).PeerClient(ALPNRaft),
		"unknown alpn":  mgmtIdentity(t, "n2").PeerClient("other/1"),
		"gossip absent": mgmtIdentity(t, "n2").PeerClient(ALPNGossip),
	} {
		c, err := tls.Dial("tcp", addr, cfg)
		if err == nil {
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if err == nil {
			t.Errorf("%s: let in", name)
		}
	}
	for _, junk := range [][]byte{
		[]byte("GET / HTTP/1.1\r\n\r\n"), bytes.Repeat([]byte{0xff}, 70000), {22, 3, 1, 255, 255}, {0}, nil,
	} {
		at := addr
		if len(junk) < 5 { // not even a record's header
			at = hasty.Addr().String()
		}
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write(junk) // it may be refused half way
		// The far side must close, by refusal or by its handshake timeout.
		_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("garbage %.10q keeps a connection open", junk)
		}
		c.Close()
	}
	wantHello(t, addr, mgmtIdentity(t, "n2").PeerClient(ALPNPeer), "peer")
	select {
	case who := <-reached:
		t.Fatalf("%s reached the handler", who)
	default:
	}
}

func TestMgmtCapsConnections(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	m := startMgmt(t, func(c *MgmtConfig) { c.ConnsMax = 2 }, map[string]func(net.Conn){ALPNPeer: echoConn("peer")})
	defer m.Close()
	cfg := mgmtIdentity(t, "n2").PeerClient(ALPNPeer)
	var open []*tls.Conn
	for range 2 {
		c, err := tls.Dial("tcp", m.Addr().String(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	third, err := tls.Dial("tcp", m.Addr().String(), cfg)
	if err == nil {
		if _, err = third.Read(make([]byte, 1)); err == nil {
			t.Fatal("a third connection was let in")
		}
		third.Close()
	}
	// A place that is given up is free again, once the server has noticed.
	open[0].Close()
	for {
		c, err := tls.Dial("tcp", m.Addr().String(), cfg)
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 4))
			c.Close()
			if err == nil {
				break
			}
		}
	}
}

func TestMgmtCapsHandshakes(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	m := startMgmt(t, func(c *MgmtConfig) { c.HandshakesMax = 1; c.HandshakeTimeout = time.Hour },
		map[string]func(net.Conn){ALPNPeer: echoConn("peer")})
	defer m.Close()
	silent, err := net.Dial("tcp", m.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	second, err := net.Dial("tcp", m.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	// Accepts are in order: the second meets a full house, and is closed.
	if _, err := second.Read(make([]byte, 1)); err == nil {
		t.Fatal("no room, but a byte came")
	}
}

func TestMgmtPortInUse(t *testing.T) {
	m := startMgmt(t, nil, map[string]func(net.Conn){ALPNPeer: echoConn("peer")})
	_, err := ListenMgmt(MgmtConfig{Addr: m.Addr().String(), TLS: mgmtIdentity(t, "n1").PeerServer(ALPNPeer)})
	if wire.CodeOf(err) != wire.Code_UNAVAILABLE {
		t.Fatalf("%v", err)
	}
	if _, err := ListenMgmt(MgmtConfig{Addr: "127.0.0.1:0"}); wire.CodeOf(err) != wire.Code_BAD_REQUEST {
		t.Fatalf("without TLS: %v", err)
	}
}

// Close ends connections that a handler kept, and works twice and before Serve.
func TestMgmtClose(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	kept := make(chan net.Conn, 1)
	m := startMgmt(t, nil, map[string]func(net.Conn){ALPNRaft: func(c net.Conn) { kept <- c }})
	c, err := tls.Dial("tcp", m.Addr().String(), mgmtIdentity(t, "n2").PeerClient(ALPNRaft))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	<-kept
	for range 2 {
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Fatal("a byte from a closed port")
	}
	never, err := ListenMgmt(MgmtConfig{Addr: "127.0.0.1:0", TLS: mgmtIdentity(t, "n1").PeerServer(ALPNPeer)})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(never.Close(), never.Serve()); err != nil {
		t.Fatal(err)
	}
}
