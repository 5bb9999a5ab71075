package pki

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

func wantCode(t *testing.T, err error, want wire.Code) {
	t.Helper()
	if wire.CodeOf(err) != want {
		t.Fatalf("%v, want %v", err, want)
	}
}

func newToken(t testing.TB, dir string) JoinToken {
	t.Helper()
	admin, err := LoadAdmin(dir)
	must(t, err)
	token := admin.NewJoinToken()
	copy(token.Cluster[:], "cluster's own id")
	return token
}

func TestJoinTokenText(t *testing.T) {
	token := newToken(t, newCluster(t))
	text := token.Text()
	again, err := ParseJoinToken("  " + text + "\n")
	must(t, err)
	if again != token || again.Text() != text {
		t.Fatalf("%v came back as %v", token.bytes(), again.bytes())
	}
	if secret := fmt.Sprintf("%x", token.Secret); strings.Contains(fmt.Sprintf("%v %s %+v", token, token, token), secret[:16]) {
		t.Error("a printed token tells its secret")
	}
	for i := range text {
		for _, bad := range []string{text[:i], text[:i] + "_" + text[i+1:], text[:i] + text[i+1:]} {
			if got, err := ParseJoinToken(bad); bad != text && wire.CodeOf(err) != wire.Code_BAD_REQUEST {
				t.Fatalf("%q is taken for %v: %v", bad, got, err)
			}
		}
	}
}

func FuzzParseJoinToken(f *testing.F) {
	f.Add(newToken(f, newCluster(f)).Text())
	f.Add(tokenPrefix)
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseJoinToken(text)
		text = strings.NewReplacer("\r", "", "\n", "").Replace(text) // as when a line is wrapped
		if err == nil && token.Text() != strings.TrimSpace(text) {
			t.Fatalf("%q is read as %q", text, token.Text())
		}
	})
}

// A stranger may enrol and nothing else; and tells the secret to nobody but a node
// of the token's authority.
func TestEnrolHandshakes(t *testing.T) {
	dir, otherDir := newCluster(t), newCluster(t)
	n1, err := Load(dir, "n1")
	must(t, err)
	n2, err := Load(dir, "n2")
	must(t, err)
	admin, err := LoadAdmin(dir)
	must(t, err)
	foreign, err := Load(otherDir, "n1")
	must(t, err)
	token := newToken(t, dir)
	const peer = "baton-peer/1"
	offers := func(protos ...string) *tls.Config {
		c := token.EnrolClient()
		c.NextProtos, c.VerifyConnection = protos, nil
		return c
	}
	// One who brings the authority's certificate along, as anybody can.
	forged := foreign.MgmtServer(peer)
	enrol, err := forged.GetConfigForClient(&tls.ClientHelloInfo{SupportedProtos: []string{alpnEnrol}})
	must(t, err)
	shown, err := enrol.GetCertificate(nil)
	must(t, err)
	shown.Certificate = append(shown.Certificate, n1.ca.Raw)
	enrol.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return shown, nil }
	for _, tt := range []struct {
		name   string
		server *tls.Config
		client *tls.Config
		ok     bool
	}{
		{"to join", n1.MgmtServer(peer), token.EnrolClient(), true},
		{"peers as ever", n1.MgmtServer(peer), n2.PeerClient(peer), true},
		{"a stranger speaks peer", n1.MgmtServer(peer), offers(peer), false},
		{"a stranger offers no protocol", n1.MgmtServer(peer), offers(), false},
		{"another cluster answers", foreign.MgmtServer(peer), token.EnrolClient(), false},
		{"another cluster with this authority's certificate", forged, token.EnrolClient(), false},
		{"an operator poses as a node", admin.MgmtServer(peer), token.EnrolClient(), false},
		{"nobody lets join", n1.PeerServer(peer), token.EnrolClient(), false},
	} {
		serverErr, clientErr, cs := shake(t, tt.server, tt.client)
		if tt.ok != (serverErr == nil && clientErr == nil) {
			t.Errorf("%s: server: %v; client: %v; want success %v", tt.name, serverErr, clientErr, tt.ok)
		}
		if role, _ := RoleOf(cs); tt.client.NextProtos != nil && tt.client.NextProtos[0] == alpnEnrol && role != RoleNone {
			t.Errorf("%s: a stranger is %s", tt.name, role)
		}
	}
	// Offered beside another, the protocol is that of strangers.
	if _, err, cs := shake(t, n1.MgmtServer(peer), offers(peer, alpnEnrol)); err != nil || cs.NegotiatedProtocol != alpnEnrol {
		t.Errorf("a stranger speaks %q: %v", cs.NegotiatedProtocol, err)
	}
	if _, err, _ := shake(t, foreign.MgmtServer(peer), token.EnrolClient()); wire.CodeOf(err) != wire.Code_WRONG_CLUSTER {
		t.Errorf("of another cluster: %v", err)
	}
}

// enrolled runs an enrolment at n1 and returns what was made in dir.
func enrolled(t *testing.T, cluster, dir, name string) error {
	t.Helper()
	n1, err := Load(cluster, "n1")
	must(t, err)
	token := newToken(t, cluster)
	server := n1.MgmtServer("p")
	client := token.EnrolClient()
	var cs tls.ConnectionState
	client.VerifyConnection = func(c tls.ConnectionState) error { cs = c; return nil }
	if _, err, _ := shake(t, server, client); err != nil {
		t.Fatal(err)
	}
	request, err := Request(dir, name)
	must(t, err)
	cert, err := Sign(cluster, name, "127.0.0.1", request)
	must(t, err)
	return token.Enrol(dir, name, cs, cert, n1.Secret())
}

func TestEnrolMakesANode(t *testing.T) {
	cluster, dir := newCluster(t), filepath.Join(t.TempDir(), "new")
	first, err := Request(dir, "n4")
	must(t, err)
	must(t, enrolled(t, cluster, dir, "n4"))
	again, err := Request(dir, "n4")
	must(t, err)
	a, err := RequestKey(first)
	must(t, err)
	if b, err := RequestKey(again); err != nil || !bytes.Equal(a, b) {
		t.Errorf("an attempt that is repeated has another key: %v", err)
	}
	n4, err := Load(dir, "n4")
	must(t, err)
	n1, err := Load(cluster, "n1")
	must(t, err)
	if _, err, cs := shake(t, n1.MgmtServer("p"), n4.PeerClient("p")); err != nil {
		t.Error(err)
	} else if role, name := RoleOf(cs); role != RoleNode || name != "n4" {
		t.Errorf("the node is %s %s", role, name)
	}
	for _, secret := range []string{"ca.key", "admin.key", "admin.crt"} {
		if _, err := os.Stat(filepath.Join(dir, secret)); err == nil {
			t.Errorf("a node that joined has %s", secret)
		}
	}
	for _, private := range []string{"n4.key", "cluster.key"} {
		if info, err := os.Stat(filepath.Join(dir, private)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", private, info, err)
		}
	}
	// A second node in the same directory, and one of another cluster.
	must(t, enrolled(t, cluster, dir, "n5"))
	wantKind(t, enrolled(t, newCluster(t), dir, "n6"), Exists)
}

func TestSignRefuses(t *testing.T) {
	cluster, dir := newCluster(t), t.TempDir()
	request, err := Request(dir, "n4")
	must(t, err)
	for _, tt := range []struct{ name, host string }{{"admin", ""}, {"../n4", ""}, {"", ""}, {"n4", "a b"}, {"n4", "http://x"}} {
		_, err := Sign(cluster, tt.name, tt.host, request)
		wantKind(t, err, Invalid)
	}
	damaged := bytes.Clone(request)
	damaged[len(damaged)-1] ^= 1
	for _, bad := range [][]byte{nil, {1, 2, 3}, damaged} {
		_, err := Sign(cluster, "n4", "", bad)
		wantCode(t, err, wire.Code_BAD_REQUEST)
	}
	if CanSign(dir) {
		t.Error("a directory without ca.key can sign")
	}
	if !CanSign(cluster) {
		t.Error("one with it cannot")
	}
	if _, err := Sign(dir, "n4", "", request); err == nil {
		t.Error("signed without a key")
	}
}
