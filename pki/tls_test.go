package pki

import (
	"crypto/tls"
	"net"
	"testing"
)

// shake runs one handshake over loopback and returns each side's error after a
// byte went each way (in TLS 1.3 a client learns of a refusal only then).
func shake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error, cs tls.ConnectionState) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := ln.Accept()
		if err != nil {
			serverErr = err
			return
		}
		c := tls.Server(raw, server)
		defer c.Close()
		if serverErr = c.Handshake(); serverErr == nil {
			_, serverErr = c.Write([]byte{1})
			cs = c.ConnectionState()
		}
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	must(t, err)
	c := tls.Client(raw, client)
	if clientErr = c.Handshake(); clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1))
	}
	c.Close()
	<-done
	return serverErr, clientErr, cs
}

func TestHandshakes(t *testing.T) {
	dir, otherDir := newCluster(t), newCluster(t)
	n1, err := Load(dir, "n1")
	must(t, err)
	n2, err := Load(dir, "n2")
	must(t, err)
	admin, err := LoadAdmin(dir)
	must(t, err)
	foreign, err := Load(otherDir, "n1")
	must(t, err)
	client, err := LoadClient(dir)
	must(t, err)
	foreignClient, err := LoadClient(otherDir)
	must(t, err)

	const peer = "baton-peer/1"
	mgmt := n1.PeerServer(peer, alpnAdmin)
	ring, err := n1.OpenRing(nil, nil)
	must(t, err)
	user := n1.UserServer(ring, alpnUser, alpnRelay).Config()
	with := func(c *tls.Config, edit func(*tls.Config)) *tls.Config {
		c = c.Clone()
		edit(c)
		return c
	}
	tests := []struct {
		name   string
		server *tls.Config
		client *tls.Config
		ok     bool
		role   Role
		who    string
	}{
		{"node to node", mgmt, n2.PeerClient(peer), true, RoleNode, "n2"},
		{"operator speaks admin", mgmt, admin.PeerClient(alpnAdmin), true, RoleAdmin, "admin"},
		{"node speaks admin", mgmt, n2.PeerClient(alpnAdmin), true, RoleNode, "n2"},
		{"operator may not speak peer", mgmt, admin.PeerClient(peer), false, "", ""},
		{"foreign node", mgmt, foreign.PeerClient(peer), false, "", ""},
		{"foreign node that trusts anyone", mgmt, with(foreign.PeerClient(peer), func(c *tls.Config) {
			c.InsecureSkipVerify = true
		}), false, "", ""},
		{"no certificate", mgmt, with(n2.PeerClient(peer), func(c *tls.Config) { c.GetClientCertificate = nil }), false, "", ""},
		{"unknown protocol", mgmt, n2.PeerClient("other/1"), false, "", ""},
		{"no protocol", mgmt, with(n2.PeerClient(peer), func(c *tls.Config) { c.NextProtos = nil; c.VerifyConnection = nil }), false, "", ""},
		{"TLS 1.2", mgmt, with(n2.PeerClient(peer), func(c *tls.Config) { c.MinVersion = tls.VersionTLS12; c.MaxVersion = tls.VersionTLS12 }), false, "", ""},
		{"operator poses as server", admin.PeerServer(peer), n2.PeerClient(peer), false, "", ""},
		{"client to node", user, client, true, RoleNone, ""},
		{"client of another cluster", user, foreignClient, false, "", ""},
		{"node relays", user, n2.RelayClient(), true, RoleNode, "n2"},
		{"client may not relay", user, with(client, func(c *tls.Config) { c.NextProtos = []string{alpnRelay} }), false, "", ""},
		{"operator may not relay", user, admin.RelayClient(), false, "", ""},
		{"client may not slip into relay", user, with(client, func(c *tls.Config) { c.NextProtos = []string{alpnUser, alpnRelay} }), false, "", ""},
		{"no relay offered", n1.UserServer(ring, alpnUser).Config(), n2.RelayClient(), false, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			serverErr, clientErr, cs := shake(t, tt.server, tt.client)
			if tt.ok != (serverErr == nil && clientErr == nil) {
				t.Fatalf("server: %v; client: %v; want success %v", serverErr, clientErr, tt.ok)
			}
			if !tt.ok {
				return
			}
			if role, who := RoleOf(cs); role != tt.role || who != tt.who {
				t.Errorf("the server sees %q %q, want %q %q", role, who, tt.role, tt.who)
			}
		})
	}
	if role, _ := RoleOf(tls.ConnectionState{}); role != RoleNone {
		t.Error("nobody has a role")
	}
}

// A certificate that nobody verified proves nothing.
func TestRoleOfNeedsVerification(t *testing.T) {
	dir := newCluster(t)
	n1, err := Load(dir, "n1")
	must(t, err)
	server := n1.PeerServer("p")
	server.ClientAuth = tls.RequireAnyClientCert
	server.ClientCAs = nil // else the client would see that its own will not do
	server.VerifyConnection = nil
	foreign, err := Load(newCluster(t), "n1")
	must(t, err)
	client := foreign.PeerClient("p")
	client.InsecureSkipVerify = true
	client.VerifyConnection = nil
	_, _, cs := shake(t, server, client)
	if role, name := RoleOf(cs); role != RoleNone || len(cs.PeerCertificates) == 0 {
		t.Fatalf("an unverified certificate was believed: %q %q", role, name)
	}
}
