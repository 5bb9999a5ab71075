package main

import (
	"context"
	"errors"
	"net"
)

// onlyTo is a network on which a client reaches one address and no other:
// packets to all others are lost, as behind a firewall.
type onlyTo struct{ addr string }

func (o onlyTo) ListenPacket(addr string) (net.PacketConn, error) {
	to, err := net.ResolveUDPAddr("udp", o.addr)
	if err != nil {
		return nil, err
	}
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		return nil, err
	}
	return &onlyConn{c, c.(*net.UDPConn), to}, nil
}

var errNoStreams = errors.New("clients use no streams but QUIC's")

func (onlyTo) Listen(string) (net.Listener, error)            { return nil, errNoStreams }
func (onlyTo) Dial(context.Context, string) (net.Conn, error) { return nil, errNoStreams }

type onlyConn struct {
	net.PacketConn
	udp *net.UDPConn
	to  *net.UDPAddr
}

// SetReadBuffer and SetWriteBuffer let QUIC ask for larger buffers.
func (c *onlyConn) SetReadBuffer(bytes int) error  { return c.udp.SetReadBuffer(bytes) }
func (c *onlyConn) SetWriteBuffer(bytes int) error { return c.udp.SetWriteBuffer(bytes) }

func (c *onlyConn) WriteTo(p []byte, addr net.Addr) (int, error) {
	if u, ok := addr.(*net.UDPAddr); ok && u.Port == c.to.Port && u.IP.Equal(c.to.IP) {
		return c.PacketConn.WriteTo(p, addr)
	}
	return len(p), nil
}
