package rpcnet

import (
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// Defaults of ServerConfig and ClientConfig.
const (
	// ConnsMaxDefault bounds a node's user connections.
	ConnsMaxDefault = 100_000
	// ConnsPerIPMaxDefault is high, because a load balancer or a NAT is one
	// address; it is there so that one address cannot take everything.
	ConnsPerIPMaxDefault = 20_000
	// HandshakesUnverifiedMaxDefault is how many handshakes may be under way
	// before further ones must first prove their address (RFC 9000, 8.1.2),
	// which costs them a round trip.
	HandshakesUnverifiedMaxDefault = 256
	// HandshakesPerSecondMaxDefault is what a node begins at most, after a burst of
	// as many. A full one costs both ends about 0.6 ms of a processor, so this keeps
	// a crowd from taking all of a small node; a client that is refused comes again.
	HandshakesPerSecondMaxDefault = 2000
	// StreamsPerConnMaxDefault bounds the streams of one connection: those of its
	// sessions, and what they send beside their calls.
	StreamsPerConnMaxDefault = 256
	// SessionsPerConnMaxDefault leaves streams for a refusal to travel on.
	SessionsPerConnMaxDefault = 240
	// QueueBytesMaxDefault holds a few of the largest frames for a slow reader.
	QueueBytesMaxDefault = 4 * wire.FrameBytesMax
	// IdleTimeoutDefault is when a connection without a sign of life is lost. It
	// is what tells an idle client that its node is gone.
	IdleTimeoutDefault = 5 * time.Second
	// DialTimeoutDefault is short: elsewhere is usually better.
	DialTimeoutDefault = 500 * time.Millisecond
	// FirstFrameTimeoutDefault is how long a stream may say nothing at first.
	FirstFrameTimeoutDefault = 5 * time.Second
	// ByeTimeoutDefault is how long a client may take to acknowledge the end of a
	// stream when the server closes, and byeTimeouts times as long otherwise.
	ByeTimeoutDefault = 2 * time.Second
	byeTimeouts       = 5
)

// QUIC windows: small at first, because connections are many and mostly quiet;
// large enough at most for a few of the largest frames.
const (
	streamWindowBytesInitial = 64 << 10
	streamWindowBytesMax     = 2 << 20
	connWindowBytesInitial   = 128 << 10
	connWindowBytesMax       = 8 << 20
)

// relayRole is the certificate role that may relay for clients.
const relayRole = "node"

// ServerConfig configures a Server. Packet, TLS, Hello and Serve are required;
// every other field has a default.
type ServerConfig struct {
	Packet net.PacketConn // the user port; the server closes it
	TLS    *tls.Config    // must offer ALPNUser, and ALPNRelay where nodes relay
	// Network is whose Carrier is used; Packet is of it. nil: QUIC.
	Network seam.Network
	Clock   seam.Clock
	Log     *slog.Logger

	// Hello says who this node is and which nodes it knows. It must be quick.
	Hello func() *wire.HelloOK
	// Serve serves one session stream, on a goroutine of its own, from its first
	// frame (Open, Attach or Stream, already checked for version and cluster) until it
	// returns. When the stream's Context ends it must return soon.
	Serve func(*Stream, *wire.ClientFrame)
	// Identify reads a peer's role and name from its certificate. Without it no
	// connection may relay.
	Identify func(tls.ConnectionState) (role, name string)

	// TokenKey seals what proves a client's address, and is to be the same on
	// all nodes. ResetKey tells former peers that this node has forgotten them,
	// and is to outlive a restart. Without them both are random.
	TokenKey, ResetKey *[32]byte

	ConnsMax                int
	ConnsPerIPMax           int
	HandshakesUnverifiedMax int
	HandshakesPerSecondMax  int
	HandshakesWaitingMax    int // for a processor
	StreamsPerConnMax       int
	SessionsPerConnMax      int // one more is refused with CONNECTION_FULL
	QueueBytesMax           int // per stream
	IdleTimeout             time.Duration
	FirstFrameTimeout       time.Duration
	ByeTimeout              time.Duration
	RelayDialTimeout        time.Duration
}

// withDefaults returns a copy with every field set, or all faults at once.
func (c ServerConfig) withDefaults() (ServerConfig, error) {
	var faults []error
	if c.Packet == nil {
		faults = append(faults, errors.New("rpcnet: ServerConfig.Packet is required"))
	}
	if c.TLS == nil {
		faults = append(faults, errors.New("rpcnet: ServerConfig.TLS is required"))
	}
	if c.Hello == nil {
		faults = append(faults, errors.New("rpcnet: ServerConfig.Hello is required"))
	}
	if c.Serve == nil {
		faults = append(faults, errors.New("rpcnet: ServerConfig.Serve is required"))
	}
	if c.Clock == nil {
		c.Clock = seam.OSClock{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Identify == nil {
		c.Identify = func(tls.ConnectionState) (string, string) { return "", "" }
	}
	faults = append(faults,
		defaultTo("ConnsMax", &c.ConnsMax, ConnsMaxDefault),
		defaultTo("ConnsPerIPMax", &c.ConnsPerIPMax, ConnsPerIPMaxDefault),
		defaultTo("HandshakesUnverifiedMax", &c.HandshakesUnverifiedMax, HandshakesUnverifiedMaxDefault),
		defaultTo("HandshakesPerSecondMax", &c.HandshakesPerSecondMax, HandshakesPerSecondMaxDefault),
		defaultTo("HandshakesWaitingMax", &c.HandshakesWaitingMax, HandshakesWaitingMaxDefault()),
		defaultTo("StreamsPerConnMax", &c.StreamsPerConnMax, StreamsPerConnMaxDefault),
		defaultTo("SessionsPerConnMax", &c.SessionsPerConnMax, SessionsPerConnMaxDefault),
		defaultTo("QueueBytesMax", &c.QueueBytesMax, QueueBytesMaxDefault),
		defaultTo("IdleTimeout", &c.IdleTimeout, IdleTimeoutDefault),
		defaultTo("FirstFrameTimeout", &c.FirstFrameTimeout, FirstFrameTimeoutDefault),
		defaultTo("ByeTimeout", &c.ByeTimeout, ByeTimeoutDefault),
		defaultTo("RelayDialTimeout", &c.RelayDialTimeout, DialTimeoutDefault),
	)
	return c, errors.Join(faults...)
}

// defaultTo sets an unset limit, and reports a negative one.
func defaultTo[T int | time.Duration](name string, v *T, def T) error {
	if *v < 0 {
		return errors.New("rpcnet: " + name + " must not be negative")
	}
	if *v == 0 {
		*v = def
	}
	return nil
}

// quicServerConfig is the server's side of every user connection. The limits are
// part of what a session ticket remembers: a node with lower ones than the
// ticket's refuses 0-RTT (RFC 9000, 7.4.1), so they must be the same everywhere.
func quicServerConfig(c ServerConfig) *quic.Config {
	return &quic.Config{
		MaxIdleTimeout:                 crowdIdles * c.IdleTimeout,
		HandshakeIdleTimeout:           crowdHandshakeIdles * c.IdleTimeout,
		InitialStreamReceiveWindow:     streamWindowBytesInitial,
		MaxStreamReceiveWindow:         streamWindowBytesMax,
		InitialConnectionReceiveWindow: connWindowBytesInitial,
		MaxConnectionReceiveWindow:     connWindowBytesMax,
		MaxIncomingStreams:             int64(c.StreamsPerConnMax),
		MaxIncomingUniStreams:          -1,
		Allow0RTT:                      true,
	}
}

// In a crowd both ends may be kept from their work for longer than any node is
// silent, and a connection that is given up then is a handshake more to make. So
// there a connection lasts for more idle times without a sign of life, and the
// first half of its handshake too. An end offers the time, and the shorter offer
// holds, so nodes offer the long one to all.
const (
	crowdIdles          = 4
	crowdHandshakeIdles = 2
)

// quicCrowdConfig is base for who dials in a crowd.
func quicCrowdConfig(base *quic.Config) *quic.Config {
	c := base.Clone()
	c.MaxIdleTimeout *= crowdIdles
	c.KeepAlivePeriod *= crowdIdles
	c.HandshakeIdleTimeout *= crowdHandshakeIdles
	return c
}

// tokensMax and tokenOriginsMax bound the address tokens that a client keeps:
// one is used up with each connection and each connection brings new ones, and
// all nodes are one origin, as they bear one name.
const (
	tokensMax       = 8
	tokenOriginsMax = 16
	ticketsMax      = 16
)

// quicClientConfig is the dialling side of user and relay connections. It alone
// keeps the connection alive: one side's probes serve both. One in half the idle
// time is enough, as QUIC sends it again, and again, if it was lost; more would be
// most of what idle clients cost.
func quicClientConfig(idle time.Duration) *quic.Config {
	return &quic.Config{
		MaxIdleTimeout:                 idle,
		HandshakeIdleTimeout:           idle,
		KeepAlivePeriod:                idle / 2,
		InitialStreamReceiveWindow:     streamWindowBytesInitial,
		MaxStreamReceiveWindow:         streamWindowBytesMax,
		InitialConnectionReceiveWindow: connWindowBytesInitial,
		MaxConnectionReceiveWindow:     connWindowBytesMax,
		MaxIncomingStreams:             -1,
		MaxIncomingUniStreams:          -1,
	}
}
