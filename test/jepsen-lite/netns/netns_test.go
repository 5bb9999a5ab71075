package netns

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// envInside marks the process that runs in the namespace.
const envInside = "NETNS_TEST_INSIDE"

var (
	hostA  = netip.MustParseAddr("10.99.0.1")
	hostB  = netip.MustParseAddr("10.99.0.2")
	proxyB = netip.MustParseAddr("10.99.0.102")
	admin  = netip.MustParseAddr("10.99.0.253")
)

// TestHostsAndFirewall runs the test again in a namespace of its own.
func TestHostsAndFirewall(t *testing.T) {
	if os.Getenv(envInside) != "" {
		inside(t)
		return
	}
	if err := Usable(); err != nil {
		t.Skip(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestHostsAndFirewall$", "-test.v")
	cmd.Env = append(os.Environ(), envInside+"=1")
	Enter(cmd)
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "--- SKIP") {
		t.Skipf("%s", out)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func inside(t *testing.T) {
	n, err := New(map[string]netip.Addr{"a": hostA, "b": hostB}, []netip.Addr{proxyB}, admin)
	if err != nil {
		t.Skip(err)
	}
	defer n.Close()
	hub, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(proxyB, 7000)))
	if err != nil {
		t.Fatal(err)
	}
	defer hub.Close()
	var a *net.UDPConn
	if err := n.Do("a", func() error {
		a, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(hostA, 7001)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	send := func(from *net.UDPConn, to netip.Addr, port uint16, what string) {
		if _, err := from.WriteToUDPAddrPort([]byte(what), netip.AddrPortFrom(to, port)); err != nil && what != "dropped" {
			t.Fatal(err)
		}
	}
	next := func(at *net.UDPConn) string {
		b := make([]byte, 100)
		_ = at.SetReadDeadline(time.Now().Add(time.Minute)) // a hang's limit
		k, from, err := at.ReadFromUDPAddrPort(b)
		if err != nil {
			t.Fatal(err)
		}
		if at == hub && from.Addr() != hostA {
			t.Errorf("it comes from %v", from)
		}
		return string(b[:k])
	}
	send(a, proxyB, 7000, "there")
	send(hub, hostA, 7001, "back")
	if got := next(hub) + next(a); got != "thereback" {
		t.Fatalf("got %q", got)
	}
	for _, pair := range [][2]netip.Addr{{hostA, proxyB}, {proxyB, hostA}} {
		if err := n.Drop([][2]netip.Addr{pair}); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if pair[0] == hostA {
				send(a, proxyB, 7000, "dropped")
			} else {
				send(hub, hostA, 7001, "dropped")
			}
		}
		// The other direction is open.
		if pair[0] == hostA {
			send(hub, hostA, 7001, "open")
			if got := next(a); got != "open" {
				t.Fatalf("got %q", got)
			}
		}
		if err := n.Drop(nil); err != nil {
			t.Fatal(err)
		}
		send(a, proxyB, 7000, "there again")
		send(hub, hostA, 7001, "back again")
		if got := next(hub) + next(a); got != "there againback again" {
			t.Fatalf("after a drop of %v: %q", pair, got)
		}
	}
	if err := n.SetLink("a", false); err != nil {
		t.Fatal(err)
	}
	_, _ = a.WriteToUDPAddrPort([]byte("dropped"), netip.AddrPortFrom(proxyB, 7000))
	if err := n.SetLink("a", true); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // it takes a moment to have its carrier
		for {
			select {
			case <-done:
				return
			case <-time.After(10 * time.Millisecond):
				_, _ = a.WriteToUDPAddrPort([]byte("up"), netip.AddrPortFrom(proxyB, 7000))
			}
		}
	}()
	defer close(done)
	if got := next(hub); got != "up" {
		t.Fatalf("after the link was down: %q", got)
	}
	if n.SetLink("x", true) == nil || n.Do("x", nil) == nil {
		t.Error("there is a host x")
	}
}
