package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func certIn(t *testing.T, dir, name string) CertInfo {
	t.Helper()
	infos, err := Show(dir)
	must(t, err)
	for _, i := range infos {
		if i.Name == name {
			return i
		}
	}
	t.Fatalf("no certificate %s", name)
	return CertInfo{}
}

func TestRenew(t *testing.T) {
	dir, other := newCluster(t), newCluster(t)
	made := time.Now()
	must(t, os.Remove(dir+"/n2.key")) // it is on the node's host
	copyFile(t, other+"/n2.crt", dir+"/stranger.crt")
	key, err := os.ReadFile(dir + "/n1.key")
	must(t, err)

	later := made.Add(leafLife - time.Hour)
	must(t, renewAt(dir, nil, later))
	for _, name := range []string{"n1", "n2", "admin"} {
		i := certIn(t, dir, name)
		if want := later.Add(leafLife); i.NotAfter.Sub(want).Abs() > time.Minute {
			t.Errorf("%s lasts until %v, want %v", name, i.NotAfter, want)
		}
	}
	if h := certIn(t, dir, "n1").Hosts; strings.Join(h, " ") != "baton n1.example.com 127.0.0.1" {
		t.Errorf("hosts %q", h)
	}
	if now, _ := os.ReadFile(dir + "/n1.key"); !bytes.Equal(now, key) {
		t.Error("the key changed")
	}
	for _, name := range []string{"n1", "admin"} { // past the end of the former certificates
		_, err := loadLeaf(dir, map[string]Role{"n1": RoleNode, "admin": RoleAdmin}[name], name, made.Add(leafLife+time.Hour))
		must(t, err)
	}
	if same, _ := os.ReadFile(other + "/n2.crt"); !bytes.Equal(same, must1(os.ReadFile(dir+"/stranger.crt"))) {
		t.Error("a stranger's certificate was touched")
	}
	wantKind(t, Renew(dir, "n9"), Missing)
	wantKind(t, Renew(dir, "stranger"), Foreign)
	must(t, os.Remove(dir+"/ca.key"))
	wantKind(t, Renew(dir), Missing)
	if left, _ := filepath.Glob(dir + "/*.new"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func must1[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestRefresh: connections that come after a renewal see the new certificate, in
// every role, from the configurations that were made before.
func TestRefresh(t *testing.T) {
	dir := newCluster(t)
	n1, err := Load(dir, "n1")
	must(t, err)
	n2, err := Load(dir, "n2")
	must(t, err)
	ring, err := n1.OpenRing(nil, nil)
	must(t, err)
	user, err := LoadClient(dir)
	must(t, err)
	const peer = "baton-peer/1"
	server, client, users := n1.PeerServer(peer), n2.PeerClient(peer), n1.UserServer(ring, alpnUser, alpnRelay).Config()
	seen := func(server, client *tls.Config) (theServers, theClients string) {
		t.Helper()
		var shown []byte
		client = client.Clone()
		client.VerifyPeerCertificate = func(raw [][]byte, _ [][]*x509.Certificate) error { shown = raw[0]; return nil }
		serverErr, clientErr, cs := shake(t, server, client)
		must(t, serverErr)
		must(t, clientErr)
		if len(cs.PeerCertificates) > 0 {
			theClients = string(cs.PeerCertificates[0].Raw)
		}
		return string(shown), theClients
	}
	s1, c1 := seen(server, client)
	u1, _ := seen(users, user)
	if changed, err := n1.Refresh(); changed || err != nil {
		t.Fatalf("nothing was renewed: %v, %v", changed, err)
	}

	must(t, Renew(dir))
	for _, id := range []*Identity{n1, n2} {
		if changed, err := id.Refresh(); !changed || err != nil {
			t.Fatalf("renewed: %v, %v", changed, err)
		}
	}
	s2, c2 := seen(server, client)
	u2, _ := seen(users, user)
	if s1 == s2 || c1 == c2 || u1 == u2 {
		t.Errorf("still the former certificate: server %v, client %v, user port %v", s1 == s2, c1 == c2, u1 == u2)
	}
	if leaf, _ := n1.NotAfter(); !leaf.Equal(certIn(t, dir, "n1").NotAfter) {
		t.Errorf("in use until %v", leaf)
	}
}

func TestRefreshKeepsWhatWorks(t *testing.T) {
	dir, other := newCluster(t), newCluster(t)
	n1, err := Load(dir, "n1")
	must(t, err)
	in := n1.cert.Load()
	for name, spoil := range map[string]func(){
		"another cluster's": func() { copyFile(t, other+"/n1.crt", dir+"/n1.crt") },
		"half a copy":       func() { must(t, os.WriteFile(dir+"/n1.crt", []byte("-----BEGIN"), 0o644)) },
		"another cluster's, whole": func() {
			for _, f := range []string{"ca.crt", "cluster.key", "n1.crt", "n1.key"} {
				copyFile(t, other+"/"+f, dir+"/"+f)
			}
		},
		"none": func() { must(t, os.Remove(dir+"/n1.crt")) },
	} {
		spoil()
		if changed, err := n1.Refresh(); changed || KindOf(err) == 0 {
			t.Errorf("%s: %v, %v", name, changed, err)
		}
		if n1.cert.Load() != in {
			t.Fatalf("%s: the certificate that worked is gone", name)
		}
	}
}
