package mesh

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// far bounds waits for what must come; near is how long a test listens for
// what must not (too short a wait can only miss a fault, not invent one).
const (
	far  = 10 * time.Second
	near = 50 * time.Millisecond
)

func newMesh(t *testing.T) *Mesh {
	t.Helper()
	m, err := New(Config{Seed: 1, Nodes: 3, Clients: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m
}

func udp(t *testing.T, addr string) net.PacketConn {
	t.Helper()
	c, err := net.ListenPacket("udp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func send(t *testing.T, c net.PacketConn, to, msg string) {
	t.Helper()
	a, err := net.ResolveUDPAddr("udp4", to)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteTo([]byte(msg), a); err != nil {
		t.Fatal(err)
	}
}

// recv waits for one packet and returns it with its source; "" after wait.
func recv(t *testing.T, c net.PacketConn, wait time.Duration) (string, string) {
	t.Helper()
	buf := make([]byte, 1500)
	_ = c.SetReadDeadline(time.Now().Add(wait))
	n, from, err := c.ReadFrom(buf)
	if err != nil {
		return "", ""
	}
	return string(buf[:n]), from.String()
}

// awaitDrop waits until node 0's link to node 1 has dropped a packet. Until then that
// may be with the proxy still, and would pass once the link is open.
func awaitDrop(t *testing.T, m *Mesh) {
	t.Helper()
	for limit := time.Now().Add(far); m.Stats(Node(0), Node(1)).Dropped == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("nothing was dropped")
		}
	}
}

func TestPacketsBetweenNodes(t *testing.T) {
	m := newMesh(t)
	a, b := udp(t, m.RealMgmt(0)), udp(t, m.RealMgmt(1))
	send(t, a, m.PublicMgmt(1), "hi")
	msg, from := recv(t, b, far)
	if msg != "hi" || from != m.PublicMgmt(0) {
		t.Fatalf("got %q from %s, want it from the sender's public address %s", msg, from, m.PublicMgmt(0))
	}
	send(t, b, from, "ho") // an answer to the source goes through a proxy, too
	if msg, from = recv(t, a, far); msg != "ho" || from != m.PublicMgmt(1) {
		t.Fatalf("got %q from %s", msg, from)
	}
	m.Set(Node(0), Node(1), Policy{Blocked: true}) // one way
	send(t, a, m.PublicMgmt(1), "lost")
	awaitDrop(t, m)
	if msg, _ = recv(t, b, near); msg != "" {
		t.Fatalf("%q came through a blocked link", msg)
	}
	send(t, b, m.PublicMgmt(0), "open")
	if msg, _ = recv(t, a, far); msg != "open" {
		t.Fatal("the other way is blocked as well")
	}
	m.Heal()
	send(t, a, m.PublicMgmt(1), "again")
	if msg, _ = recv(t, b, far); msg != "again" {
		t.Fatalf("after healing got %q", msg)
	}
	if s := m.Stats(Node(0), Node(1)); s.Dropped != 1 || s.Packets != 3 {
		t.Fatalf("stats %+v", s)
	}
}

func TestPacketsOfClients(t *testing.T) {
	m := newMesh(t)
	node := udp(t, m.RealUser(2))
	c1, c2 := udp(t, m.ClientIP(0)+":0"), udp(t, m.ClientIP(1)+":0")
	send(t, c1, m.PublicUser(2), "one")
	_, from1 := recv(t, node, far)
	send(t, c2, m.PublicUser(2), "two")
	_, from2 := recv(t, node, far)
	if from1 == from2 || from1 == "" || from2 == "" {
		t.Fatalf("the node cannot tell the clients apart: %s, %s", from1, from2)
	}
	send(t, node, from1, "to one")
	if msg, from := recv(t, c1, far); msg != "to one" || from != m.PublicUser(2) {
		t.Fatalf("client 1 got %q from %s", msg, from)
	}
	m.Set(Node(2), Client(1), Policy{Blocked: true})
	send(t, node, from2, "to two")
	if msg, _ := recv(t, c2, near); msg != "" {
		t.Fatalf("%q came through a blocked link", msg)
	}
	// A node's socket on another port is a flow of that node's link.
	other := udp(t, host(t, m.RealUser(0))+":0")
	m.Set(Node(0), Node(2), Policy{Blocked: true})
	send(t, other, m.PublicUser(2), "lost")
	if msg, _ := recv(t, node, near); msg != "" {
		t.Fatalf("%q came through a blocked link", msg)
	}
}

func TestPacketsLossDupDelay(t *testing.T) {
	m := newMesh(t)
	a, b := udp(t, m.RealMgmt(0)), udp(t, m.RealMgmt(1))
	m.Set(Node(0), Node(1), Policy{Loss: 1})
	send(t, a, m.PublicMgmt(1), "lost")
	awaitDrop(t, m)
	if msg, _ := recv(t, b, near); msg != "" {
		t.Fatal("nothing is lost")
	}
	m.Set(Node(0), Node(1), Policy{Dup: 1, Delay: time.Millisecond, Jitter: time.Millisecond})
	send(t, a, m.PublicMgmt(1), "twice")
	for range 2 {
		if msg, _ := recv(t, b, far); msg != "twice" {
			t.Fatalf("got %q", msg)
		}
	}
}

func TestLinkIsSeeded(t *testing.T) {
	fates := func(seed uint64) (out []bool) {
		l := newLink(seed, "a", "b")
		l.set(Policy{Loss: 0.5})
		for range 64 {
			out = append(out, len(l.packet(100, nil)) > 0)
		}
		return out
	}
	same := func(a, b []bool) bool {
		for i := range a {
			if a[i] != b[i] {
				return false
			}
		}
		return true
	}
	if !same(fates(1), fates(1)) || same(fates(1), fates(2)) {
		t.Fatal("loss does not follow the seed")
	}
}

func host(t *testing.T, addr string) string {
	t.Helper()
	h, _, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// streams connects node 0 to node 1 through the mesh.
func streams(t *testing.T, m *Mesh) (dialler, acceptor net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp4", m.RealMgmt(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	from, _ := net.ResolveTCPAddr("tcp4", host(t, m.RealMgmt(0))+":0")
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		acceptor, _ = l.Accept()
	}()
	d := net.Dialer{LocalAddr: from, Timeout: far}
	dialler, err = d.Dial("tcp4", m.PublicMgmt(1))
	if err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if acceptor == nil {
		t.Fatal("nothing was accepted")
	}
	t.Cleanup(func() { dialler.Close(); acceptor.Close() })
	return dialler, acceptor
}

func readN(c net.Conn, n int, wait time.Duration) (string, error) {
	buf := make([]byte, n)
	_ = c.SetReadDeadline(time.Now().Add(wait))
	k, err := io.ReadFull(c, buf)
	return string(buf[:k]), err
}

func write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := c.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
}

func TestStreamsHoldWhileBlocked(t *testing.T) {
	m := newMesh(t)
	a, b := streams(t, m)
	write(t, a, "ab")
	if s, err := readN(b, 2, far); s != "ab" {
		t.Fatal(s, err)
	}
	m.Set(Node(0), Node(1), Policy{Blocked: true})
	write(t, a, "cd")
	if s, _ := readN(b, 1, near); s != "" {
		t.Fatalf("%q came through a blocked link", s)
	}
	write(t, b, "xy") // the other way is open
	if s, err := readN(a, 2, far); s != "xy" {
		t.Fatal(s, err)
	}
	m.Heal()
	if s, err := readN(b, 2, far); s != "cd" {
		t.Fatalf("held bytes were lost: %q %v", s, err)
	}
	// The end travels, too, and what was written before it is not cut short.
	write(t, a, "end")
	a.(*net.TCPConn).CloseWrite()
	if s, _ := readN(b, 3, far); s != "end" {
		t.Fatal(s)
	}
	if _, err := readN(b, 1, far); err != io.EOF {
		t.Fatal(err)
	}
}

func TestStreamsDelayKeepsOrder(t *testing.T) {
	m := newMesh(t)
	a, b := streams(t, m)
	m.Set(Node(0), Node(1), Policy{Delay: time.Millisecond, Jitter: 5 * time.Millisecond})
	for _, s := range []string{"a", "b", "c", "d"} {
		write(t, a, s)
		time.Sleep(2 * time.Millisecond) // so that they travel as chunks of their own
	}
	if s, err := readN(b, 4, far); s != "abcd" {
		t.Fatal(s, err)
	}
}

func TestChunkOfDialledStreams(t *testing.T) {
	l := newLink(1, "a", "b")
	l.set(Policy{Delay: time.Second, Dialled: time.Minute})
	if d := l.chunk(100, true); d != time.Minute+time.Second {
		t.Errorf("a dialled stream's bytes take %v", d)
	}
	if d := l.chunk(100, false); d != time.Second {
		t.Errorf("an accepted stream's bytes take %v", d)
	}
}

func TestSever(t *testing.T) {
	m := newMesh(t)
	a, b := streams(t, m)
	write(t, a, "x")
	readN(b, 1, far)
	m.Sever(Node(0), Node(2)) // another pair: nothing happens
	write(t, a, "y")
	if s, _ := readN(b, 1, far); s != "y" {
		t.Fatal("the wrong streams were severed")
	}
	m.Sever(Node(1), Node(0))
	for _, c := range []net.Conn{a, b} {
		if _, err := readN(c, 1, far); err == nil || isTimeout(err) {
			t.Fatalf("still alive: %v", err)
		}
	}
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func TestRefusedIsReset(t *testing.T) {
	m := newMesh(t)
	c, err := net.Dial("tcp4", m.PublicMgmt(0)) // nothing listens at the real address
	if err != nil {
		return // the reset came while dialling still
	}
	defer c.Close()
	if _, err := readN(c, 1, far); err == nil || isTimeout(err) {
		t.Fatalf("no reset: %v", err)
	}
}

func TestCloseWhileBlocked(t *testing.T) {
	m := newMesh(t)
	a, _ := streams(t, m)
	m.Set(Node(0), Node(1), Policy{Blocked: true})
	m.Set(Node(1), Node(0), Policy{Blocked: true})
	write(t, a, "held")
	m.Close()
	m.Close()
}
