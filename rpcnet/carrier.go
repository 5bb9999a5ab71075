package rpcnet

import (
	"context"
	"crypto/tls"
	"net"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/baton-cluster/baton/seam"
)

// Carrier makes authenticated connections out of a network's raw ones. The
// product's is TLS over streams and QUIC over packets. A seam.Network that is a
// Carrier as well brings its own: a simulation's knows both ends of everything
// and leaves the cryptography out. Whoever writes another vouches for who is let
// in.
type Carrier interface {
	// SecureClient and SecureServer are what tls.Client and tls.Server are.
	SecureClient(raw net.Conn, conf *tls.Config) SecureConn
	SecureServer(raw net.Conn, conf *tls.Config) SecureConn
	// Muxer carries connections of many streams over a packet socket.
	Muxer(packet net.PacketConn, o MuxerOptions) Muxer
}

// SecureConn is what of a *tls.Conn is used.
type SecureConn interface {
	net.Conn
	HandshakeContext(ctx context.Context) error
	ConnectionState() tls.ConnectionState
	// NetConn is the raw connection.
	NetConn() net.Conn
}

// MuxerOptions are what of a quic.Transport is set.
type MuxerOptions struct {
	ConnContext         func(context.Context, *quic.ClientInfo) (context.Context, error)
	VerifySourceAddress func(net.Addr) bool
	TokenKey, ResetKey  *[32]byte
}

// Muxer is what of a quic.Transport is used.
type Muxer interface {
	Listen(conf *tls.Config, q *quic.Config) (MuxListener, error)
	Dial(ctx context.Context, to net.Addr, conf *tls.Config, q *quic.Config) (MuxConn, error)
	DialEarly(ctx context.Context, to net.Addr, conf *tls.Config, q *quic.Config) (MuxConn, error)
	Close() error
}

// MuxListener is what of a *quic.EarlyListener is used.
type MuxListener interface {
	Accept(ctx context.Context) (MuxConn, error)
	Close() error
}

// MuxConn is what of a *quic.Conn is used. Errors are QUIC's.
type MuxConn interface {
	OpenStream() (MuxStream, error)
	AcceptStream(ctx context.Context) (MuxStream, error)
	CloseWithError(code quic.ApplicationErrorCode, why string) error
	Context() context.Context
	HandshakeComplete() <-chan struct{}
	// Settle waits for the end of the handshake; after a refusal of 0-RTT it puts
	// the connection in order.
	Settle(ctx context.Context) error
	ConnectionState() quic.ConnectionState
	ConnectionStats() quic.ConnectionStats
	RemoteAddr() net.Addr
}

// MuxStream is what of a *quic.Stream is used.
type MuxStream interface {
	Read(b []byte) (int, error)
	Write(b []byte) (int, error)
	// TryWriteAll writes all of b or, with quic.ErrWouldBlock, nothing.
	TryWriteAll(b []byte) error
	Close() error
	CancelRead(code quic.StreamErrorCode)
	CancelWrite(code quic.StreamErrorCode)
	SetReadDeadline(t time.Time) error
}

// CarrierOf is the network's own Carrier, or the product's.
func CarrierOf(network seam.Network) Carrier {
	if c, ok := network.(Carrier); ok {
		return c
	}
	return crypto{}
}

// crypto is the product's Carrier: TLS and QUIC.
type crypto struct{}

func (crypto) SecureClient(raw net.Conn, conf *tls.Config) SecureConn { return tls.Client(raw, conf) }
func (crypto) SecureServer(raw net.Conn, conf *tls.Config) SecureConn { return tls.Server(raw, conf) }

func (crypto) Muxer(packet net.PacketConn, o MuxerOptions) Muxer {
	t := &quic.Transport{Conn: packet, ConnContext: o.ConnContext, VerifySourceAddress: o.VerifySourceAddress}
	if o.TokenKey != nil {
		t.TokenGeneratorKey = (*quic.TokenGeneratorKey)(o.TokenKey)
	}
	if o.ResetKey != nil {
		t.StatelessResetKey = (*quic.StatelessResetKey)(o.ResetKey)
	}
	return quicMuxer{t}
}

type quicMuxer struct{ t *quic.Transport }

func (m quicMuxer) Listen(conf *tls.Config, q *quic.Config) (MuxListener, error) {
	l, err := m.t.ListenEarly(conf, q)
	if err != nil {
		return nil, err
	}
	return quicListener{l}, nil
}

func (m quicMuxer) Dial(ctx context.Context, to net.Addr, conf *tls.Config, q *quic.Config) (MuxConn, error) {
	return asMuxConn(m.t.Dial(ctx, to, conf, q))
}

func (m quicMuxer) DialEarly(ctx context.Context, to net.Addr, conf *tls.Config, q *quic.Config) (MuxConn, error) {
	return asMuxConn(m.t.DialEarly(ctx, to, conf, q))
}

func (m quicMuxer) Close() error { return m.t.Close() }

type quicListener struct{ *quic.EarlyListener }

func (l quicListener) Accept(ctx context.Context) (MuxConn, error) {
	return asMuxConn(l.EarlyListener.Accept(ctx))
}

// quicConn hands out streams as the interface has them.
type quicConn struct{ *quic.Conn }

func asMuxConn(c *quic.Conn, err error) (MuxConn, error) {
	if err != nil {
		return nil, err
	}
	return quicConn{c}, nil
}

func (c quicConn) OpenStream() (MuxStream, error) { return asMuxStream(c.Conn.OpenStream()) }
func (c quicConn) AcceptStream(ctx context.Context) (MuxStream, error) {
	return asMuxStream(c.Conn.AcceptStream(ctx))
}

func (c quicConn) Settle(ctx context.Context) error {
	_, err := c.NextConnection(ctx)
	return err
}

func asMuxStream(s *quic.Stream, err error) (MuxStream, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}
