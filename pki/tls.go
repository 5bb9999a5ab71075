package pki

import (
	"crypto/tls"
	"crypto/x509"
	"path/filepath"
	"slices"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// RoleOf tells who is at the other end: its role and name, from a certificate
// that this connection's handshake verified. RoleNone without one.
func RoleOf(cs tls.ConnectionState) (role Role, name string) {
	if len(cs.VerifiedChains) == 0 || len(cs.PeerCertificates) == 0 {
		return RoleNone, ""
	}
	return roleOfCert(cs.PeerCertificates[0])
}

// PeerServer is for the management port: mutual TLS 1.3, offering the named
// protocols. The other end must hold a node's certificate of this cluster; for
// the admin protocol an operator's will do too.
func (id *Identity) PeerServer(alpn ...string) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: id.serverCert,
		ClientAuth:     tls.RequireAndVerifyClientCert,
		ClientCAs:      id.pool,
		NextProtos:     slices.Clone(alpn),
		// Each connection verifies its certificate anew; these are long-lived,
		// so resumption would save nothing.
		SessionTicketsDisabled: true,
		VerifyConnection:       verifyClient,
	}
}

// MgmtServer is PeerServer that also lets those enrol who have no certificate yet:
// they may speak that protocol and nothing else, and get the authority's
// certificate with the node's, so that they can check it against their token.
func (id *Identity) MgmtServer(alpn ...string) *tls.Config {
	enrol := &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			own := id.cert.Load()
			return &tls.Certificate{Certificate: [][]byte{own.Certificate[0], id.ca.Raw}, PrivateKey: own.PrivateKey, Leaf: own.Leaf}, nil
		},
		NextProtos:             []string{alpnEnrol},
		SessionTicketsDisabled: true,
	}
	conf := id.PeerServer(alpn...)
	conf.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(hello.SupportedProtos, alpnEnrol) {
			return enrol, nil
		}
		return nil, nil
	}
	return conf
}

// PeerClient dials a management port for one protocol.
func (id *Identity) PeerClient(alpn string) *tls.Config {
	return &tls.Config{
		MinVersion:           tls.VersionTLS13,
		GetClientCertificate: id.clientCert,
		RootCAs:              id.pool,
		ServerName:           ServerName,
		NextProtos:           []string{alpn},
		VerifyConnection:     verifyServer,
	}
}

// UserServer is for the user port (QUIC), offering the named protocols. Clients
// need no certificate, except that "baton-relay/1" is for nodes only. The two
// kinds of client get two configurations, chosen by what they offer, because a
// server must ask for a certificate before it has agreed on a protocol.
//
// Session tickets are sealed with the ring's newest key for them, so that a
// client resumes at any node what it began at another; those of all its
// generations are taken. A ticket is of no use for relaying: that configuration
// neither gives nor takes any.
func (id *Identity) UserServer(ring *Ring, alpn ...string) *UserTLS {
	base := &tls.Config{
		MinVersion:     tls.VersionTLS13,
		GetCertificate: id.serverCert,
		NextProtos:     slices.DeleteFunc(slices.Clone(alpn), func(p string) bool { return p == alpnRelay }),
	}
	u := &UserTLS{config: base, base: base}
	u.SetRing(ring)
	if !slices.Contains(alpn, alpnRelay) {
		return u
	}
	relay := id.PeerServer(alpnRelay)
	u.config = base.Clone()
	// Without this the handshake of a relay would be refused before the choice.
	u.config.NextProtos = slices.Clone(alpn)
	u.config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(hello.SupportedProtos, alpnRelay) {
			return relay, nil
		}
		return base, nil
	}
	return u
}

// RelayClient dials another node's user port to relay sessions.
func (id *Identity) RelayClient() *tls.Config { return id.PeerClient(alpnRelay) }

// LoadClient reads what a client needs from dir: ca.crt alone. The
// configuration verifies that the other end is a node of that cluster, and
// offers the clients' protocol.
func LoadClient(dir string) (*tls.Config, error) {
	ca, err := loadCA(filepath.Clean(dir), time.Now())
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return &tls.Config{
		MinVersion:       tls.VersionTLS13,
		RootCAs:          pool,
		ServerName:       ServerName,
		NextProtos:       []string{alpnUser},
		VerifyConnection: verifyServer,
	}, nil
}

// verifyClient runs after the chain was verified, on every connection.
func verifyClient(cs tls.ConnectionState) error {
	role, name := RoleOf(cs)
	switch {
	case cs.NegotiatedProtocol == "":
		return wire.Errorf(wire.Code_WRONG_VERSION, "the other end names none of the protocols spoken here")
	case role == RoleNode:
		return nil
	case role == RoleAdmin && cs.NegotiatedProtocol == alpnAdmin:
		return nil
	}
	return wire.Errorf(wire.Code_NOT_AUTHORISED, "%s may not speak %s", describe(role, name), cs.NegotiatedProtocol)
}

// verifyServer runs after the chain and the server's name were verified.
func verifyServer(cs tls.ConnectionState) error {
	if cs.NegotiatedProtocol == "" {
		return wire.Errorf(wire.Code_WRONG_VERSION, "the other end did not agree on a protocol; is it another version?")
	}
	if role, name := RoleOf(cs); role != RoleNode {
		return wire.Errorf(wire.Code_NOT_AUTHORISED, "%s answered in place of a node", describe(role, name))
	}
	return nil
}
