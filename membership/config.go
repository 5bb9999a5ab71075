package membership

import (
	"context"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

const (
	// KeyBytes is the size of the gossip key (AES-256).
	KeyBytes = 32
	// idBytesMax, nameBytesMax, addrBytesMax and clusterBytesMax keep the meta
	// within memberlist's 512 bytes.
	idBytesMax      = 64
	nameBytesMax    = 63
	addrBytesMax    = 255
	clusterBytesMax = 64
	// membersMax bounds the table; past it the longest dead is forgotten, and
	// without one newcomers are refused.
	membersMax = 4096
	// resolveTimeout bounds looking up a host name.
	resolveTimeout = 5 * time.Second
)

// Profile is a set of timings. Detection of a dead node takes about
// ProbeEvery·(2 + SuspectRounds) in a cluster of three.
type Profile struct {
	// ProbeEvery: one other node is probed each such interval.
	ProbeEvery time.Duration
	// ProbeTimeout is the wait for a direct answer before others are asked to
	// probe; well below ProbeEvery.
	ProbeTimeout time.Duration
	// SuspectRounds is for how many intervals a suspect may still refute.
	SuspectRounds int
	// GossipEvery is the interval of spreading news.
	GossipEvery time.Duration
	// PushPullEvery is the interval of full exchanges with one random node.
	PushPullEvery time.Duration
	// StreamTimeout bounds dialling and each full exchange.
	StreamTimeout time.Duration
	// RejoinEvery is the interval of redialling peers that are missing.
	RejoinEvery time.Duration
	// KeepDead is how long news still go to a dead node, so that it may refute.
	KeepDead time.Duration
}

// The profiles, by how far apart the nodes are.
var (
	// Local detects in about a second: one machine, or one rack.
	Local = Profile{
		ProbeEvery: 200 * time.Millisecond, ProbeTimeout: 100 * time.Millisecond, SuspectRounds: 3,
		GossipEvery: 50 * time.Millisecond, PushPullEvery: 5 * time.Second, StreamTimeout: 2 * time.Second,
		RejoinEvery: time.Second, KeepDead: 15 * time.Second,
	}
	// LAN detects in little more than a second, about when a lease has run out: one
	// site, and the default.
	LAN = Profile{
		ProbeEvery: 250 * time.Millisecond, ProbeTimeout: 125 * time.Millisecond, SuspectRounds: 3,
		GossipEvery: 200 * time.Millisecond, PushPullEvery: 15 * time.Second, StreamTimeout: 5 * time.Second,
		RejoinEvery: 3 * time.Second, KeepDead: 30 * time.Second,
	}
	// WAN detects in about ten seconds: sites with round trips up to a second.
	WAN = Profile{
		ProbeEvery: 1500 * time.Millisecond, ProbeTimeout: time.Second, SuspectRounds: 5,
		GossipEvery: 400 * time.Millisecond, PushPullEvery: 30 * time.Second, StreamTimeout: 10 * time.Second,
		RejoinEvery: 10 * time.Second, KeepDead: time.Minute,
	}
)

// ProfileNamed returns local, lan or wan.
func ProfileNamed(name string) (Profile, error) {
	switch name {
	case "local":
		return Local, nil
	case "lan":
		return LAN, nil
	case "wan":
		return WAN, nil
	}
	return Profile{}, wire.Errorf(wire.Code_BAD_REQUEST, "there is no profile %q; choose local, lan or wan", name)
}

// Config configures the gossip of one node.
type Config struct {
	// ID is the node's id: unique, and never used again by another node.
	ID string
	// Name is what people call the node.
	Name    string
	Network seam.Network // used only if Packet is nil
	Clock   seam.Clock
	// Packet is the UDP socket, bound to the management port's number. New takes
	// it over: it is closed by Close, and if New fails. Nil: Advertise is bound.
	Packet net.PacketConn
	// Advertise is the management address (host:port) under which others reach
	// this node, by packet and stream. A host name is resolved once, in New, for
	// packets; streams go by name.
	Advertise string
	// Key is 32 bytes, the same on all nodes, for this purpose only.
	Key []byte
	// ClusterID returns the cluster's id, or nothing while it is unknown. A node
	// that states another one is not taken in. It must be quick, and must not
	// call Members.
	ClusterID func() []byte
	// Dial opens a stream to a management port (TLS, with gossip's ALPN).
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Profile: zero means LAN.
	Profile Profile
	Log     *slog.Logger // nil: silent
	// OnChange is called, on one goroutine, after members came, went or changed;
	// several changes may be one call. Close waits for it, so it must not call
	// Close.
	OnChange func()
}

// fill sets defaults and reports what is missing or out of range.
func (c *Config) fill() error {
	bad := func(format string, args ...any) error { return wire.Errorf(wire.Code_BAD_REQUEST, format, args...) }
	if c.Clock == nil {
		c.Clock = seam.OSClock{}
	}
	if c.Network == nil {
		c.Network = seam.OSNetwork{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.ClusterID == nil {
		c.ClusterID = func() []byte { return nil }
	}
	if c.OnChange == nil {
		c.OnChange = func() {}
	}
	if c.Profile == (Profile{}) {
		c.Profile = LAN
	}
	p := c.Profile
	switch {
	case c.ID == "" || len(c.ID) > idBytesMax:
		return bad("a node id has 1 to %d bytes", idBytesMax)
	case len(c.Name) > nameBytesMax:
		return bad("a node name has at most %d bytes", nameBytesMax)
	case len(c.Advertise) > addrBytesMax:
		return bad("an address has at most %d bytes", addrBytesMax)
	case len(c.Key) != KeyBytes:
		return bad("the gossip key has %d bytes; it must have %d", len(c.Key), KeyBytes)
	case c.Dial == nil:
		return bad("gossip needs a function that opens streams")
	case p.ProbeEvery <= 0 || p.ProbeTimeout <= 0 || p.ProbeTimeout >= p.ProbeEvery || p.SuspectRounds <= 0 ||
		p.GossipEvery <= 0 || p.PushPullEvery <= 0 || p.StreamTimeout <= 0 || p.RejoinEvery <= 0 || p.KeepDead <= 0:
		return bad("a gossip profile needs positive timings, and a probe timeout below its interval")
	}
	return nil
}

// splitAddr takes host:port apart.
func splitAddr(addr string) (host string, port uint16, err error) {
	host, text, err := net.SplitHostPort(addr)
	if err == nil && host != "" {
		var n uint64
		if n, err = strconv.ParseUint(text, 10, 16); err == nil && n > 0 {
			return host, uint16(n), nil
		}
	}
	return "", 0, wire.Errorf(wire.Code_BAD_REQUEST, "%q is not a management address; give host:port", addr)
}

// resolve finds the IP addresses of a host, which may be one already.
func resolve(ctx context.Context, host string) ([]net.IP, error) {
	if ip := net.ParseIP(host); ip != nil {
		return []net.IP{ip}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	ips, err := net.DefaultResolver.LookupIP(ctx, "ip", host)
	if err != nil {
		return nil, wire.Errorf(wire.Code_UNAVAILABLE, "the host %q cannot be found (%v); check the name, or use an IP address", host, err)
	}
	return ips, nil
}
