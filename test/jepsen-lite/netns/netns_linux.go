// Package netns gives each host of a run a network of its own, and a firewall
// between them that drops packets in the kernel. It needs root.
//
// All of it hangs on namespaces without names: New must be called in one that its
// caller was started in (Enter), where it makes one more for each host. They are
// held by open files of this process and by the processes in them, so nothing is
// left when those have ended, however they ended, and nothing outside is touched.
package netns

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Enter runs the program again, with args, in a network namespace of its own, and
// ends it with this one.
func Enter(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
}

// Usable reports why this process cannot make namespaces, and nil if it may try.
func Usable() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("not root")
	}
	return nil
}

// Net is the hosts' networks. Its methods may be called from any goroutine.
type Net struct {
	admin netip.Addr
	hosts map[string]*host
	fw    *firewall
}

type host struct {
	addr netip.Addr
	ns   int // file
	link netlink.Link
}

// New makes a namespace for each host with its address, joined to this one by a
// link. local addresses are this namespace's; admin is where what is dialled from
// here comes from.
func New(hosts map[string]netip.Addr, local []netip.Addr, admin netip.Addr) (*Net, error) {
	n := &Net{admin: admin, hosts: map[string]*host{}}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("no loopback device: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("the loopback device: %w", err)
	}
	for _, a := range append(local, admin) {
		if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: single(a)}); err != nil {
			return nil, fmt.Errorf("address %v: %w", a, err)
		}
	}
	if n.fw, err = newFirewall(); err != nil {
		return nil, err
	}
	for name, addr := range hosts {
		if n.hosts[name], err = n.host(name, addr); err != nil {
			n.Close()
			return nil, fmt.Errorf("host %s: %w", name, err)
		}
	}
	return n, nil
}

func single(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// host makes one host's namespace and its link.
func (n *Net) host(name string, addr netip.Addr) (*host, error) {
	h := &host{addr: addr, ns: -1}
	// On a thread of its own, which ends with it, as it cannot be trusted to be back.
	made := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			h.ns, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		made <- err
	}()
	if err := <-made; err != nil {
		return nil, err
	}
	pair := netlink.NewLinkAttrs()
	pair.Name = "to-" + name
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: pair, PeerName: "eth0", PeerNamespace: netlink.NsFd(h.ns)}); err != nil {
		return nil, fmt.Errorf("a link: %w", err)
	}
	var err error
	if h.link, err = netlink.LinkByName(pair.Name); err != nil {
		return nil, err
	}
	if err := n.inside(h, func() error { return settle(addr) }); err != nil {
		return nil, err
	}
	return h, n.up(h)
}

// settle is run in a host's namespace.
func settle(addr netip.Addr) error {
	for _, name := range []string{"lo", "eth0"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		if name == "lo" {
			continue
		}
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: single(addr)}); err != nil {
			return err
		}
		// Everything else is at the other end of the link.
		all := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: all, Scope: netlink.SCOPE_LINK}); err != nil {
			return err
		}
	}
	return nil
}

// up brings a host's link up, and back the route that goes when a link goes down.
func (n *Net) up(h *host) error {
	if err := netlink.LinkSetUp(h.link); err != nil {
		return err
	}
	return netlink.RouteReplace(&netlink.Route{
		LinkIndex: h.link.Attrs().Index, Dst: single(h.addr), Scope: netlink.SCOPE_LINK, Src: n.admin.AsSlice(),
	})
}

// SetLink takes a host's link down, or brings it up.
func (n *Net) SetLink(name string, up bool) error {
	h := n.hosts[name]
	if h == nil {
		return fmt.Errorf("there is no host %q", name)
	}
	if up {
		return n.up(h)
	}
	return netlink.LinkSetDown(h.link)
}

// Do runs fn on a thread in a host's namespace: sockets that it makes, and processes
// that it starts, are there. Nothing that fn starts on another goroutine is.
func (n *Net) Do(name string, fn func() error) error {
	h := n.hosts[name]
	if h == nil {
		return fmt.Errorf("there is no host %q", name)
	}
	return n.inside(h, fn)
}

func (n *Net) inside(h *host, fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Setns(h.ns, unix.CLONE_NEWNET)
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

// Join moves the calling thread into a host's namespace, and returns how to get back.
// The caller must have locked its goroutine to the thread.
func (n *Net) Join(name string) (back func() error, err error) {
	h := n.hosts[name]
	if h == nil {
		return nil, fmt.Errorf("there is no host %q", name)
	}
	here, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Setns(h.ns, unix.CLONE_NEWNET); err != nil {
		_ = unix.Close(here)
		return nil, err
	}
	return func() error {
		defer unix.Close(here)
		return unix.Setns(here, unix.CLONE_NEWNET)
	}, nil
}

// Drop has the firewall drop every packet from one address to another of each pair,
// and no other.
func (n *Net) Drop(pairs [][2]netip.Addr) error { return n.fw.drop(pairs) }

// Close lets the namespaces go. Processes in them keep theirs.
func (n *Net) Close() {
	for _, h := range n.hosts {
		if h != nil && h.ns >= 0 {
			_ = unix.Close(h.ns)
			h.ns = -1
		}
	}
}
