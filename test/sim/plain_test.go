package sim

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync"

	"github.com/baton-cluster/baton/rpcnet"
)

// lightHost is a host whose network brings its own connections: streams that
// state who is at their ends, and messages in place of QUIC's packets.
type lightHost struct{ host }

var _ rpcnet.Carrier = lightHost{}

func (lightHost) SecureClient(raw net.Conn, conf *tls.Config) rpcnet.SecureConn {
	return &plainConn{Conn: raw, conf: conf, client: true}
}

func (lightHost) SecureServer(raw net.Conn, conf *tls.Config) rpcnet.SecureConn {
	return &plainConn{Conn: raw, conf: conf}
}

// plainConn does what TLS does, but for the cryptography: both ends tell protocol
// and certificate, and are believed.
type plainConn struct {
	net.Conn
	conf   *tls.Config
	client bool
	state  tls.ConnectionState
}

func (c *plainConn) NetConn() net.Conn                    { return c.Conn }
func (c *plainConn) ConnectionState() tls.ConnectionState { return c.state }

func (c *plainConn) HandshakeContext(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = c.Conn.Close() })
	defer stop()
	if c.client {
		if err := c.say(c.conf.NextProtos[0]); err != nil {
			return err
		}
	}
	proto, cert, err := c.hear()
	if err != nil {
		return err
	}
	if !slices.Contains(c.conf.NextProtos, proto) {
		return errors.New("the other end speaks " + proto)
	}
	if c.state, err = stateOf(c.conf, proto, cert); err != nil {
		return err
	}
	if !c.client {
		return c.say(proto)
	}
	return nil
}

// say writes what this end is.
func (c *plainConn) say(proto string) error {
	der := certOf(c.conf)
	b := binary.BigEndian.AppendUint16(nil, uint16(len(proto)))
	b = binary.BigEndian.AppendUint16(append(b, proto...), uint16(len(der)))
	_, err := c.Conn.Write(append(b, der...))
	return err
}

func (c *plainConn) hear() (proto string, cert []byte, err error) {
	parts := make([][]byte, 2)
	for i := range parts {
		var n [2]byte
		if _, err := io.ReadFull(c.Conn, n[:]); err != nil {
			return "", nil, err
		}
		parts[i] = make([]byte, binary.BigEndian.Uint16(n[:]))
		if _, err := io.ReadFull(c.Conn, parts[i]); err != nil {
			return "", nil, err
		}
	}
	return string(parts[0]), parts[1], nil
}

// certOf is the certificate that an end shows, nil if it has none.
func certOf(conf *tls.Config) []byte {
	var cert *tls.Certificate
	switch {
	case conf.GetCertificate != nil:
		cert, _ = conf.GetCertificate(nil)
	case conf.GetClientCertificate != nil:
		cert, _ = conf.GetClientCertificate(nil)
	default:
		return nil
	}
	return cert.Certificate[0]
}

// stateOf is what one end knows of the other, which showed cert.
func stateOf(conf *tls.Config, proto string, cert []byte) (tls.ConnectionState, error) {
	cs := tls.ConnectionState{Version: tls.VersionTLS13, HandshakeComplete: true, NegotiatedProtocol: proto}
	if len(cert) > 0 {
		c, err := parsedCert(cert)
		if err != nil {
			return cs, err
		}
		cs.PeerCertificates = []*x509.Certificate{c}
		cs.VerifiedChains = [][]*x509.Certificate{cs.PeerCertificates}
	}
	if conf.VerifyConnection != nil {
		return cs, conf.VerifyConnection(cs)
	}
	return cs, nil
}

// parsed remembers certificates: there are few, and each is shown often.
var parsed sync.Map // of string(DER) to *x509.Certificate

func parsedCert(der []byte) (*x509.Certificate, error) {
	if c, ok := parsed.Load(string(der)); ok {
		return c.(*x509.Certificate), nil
	}
	c, err := x509.ParseCertificate(der)
	if err == nil {
		parsed.Store(string(der), c)
	}
	return c, err
}
