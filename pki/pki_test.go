package pki

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/baton-cluster/baton/wire"
)

// newCluster makes a cluster's files with nodes n1 and n2.
func newCluster(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	must(t, Init(dir))
	must(t, Issue(dir, "n1", []string{"127.0.0.1", "n1.example.com"}))
	must(t, Issue(dir, "n2", nil))
	return dir
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, want Kind) {
	t.Helper()
	if KindOf(err) != want {
		t.Fatalf("kind %d (%v), want %d", KindOf(err), err, want)
	}
	if code := wire.CodeOf(err); code == wire.Code_OK || code == wire.Code_INTERNAL {
		t.Fatalf("code %v: not typed", code)
	}
}

// copyFile puts a file of one directory into another.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, data, 0o600))
}

func TestInitMakesKeysPrivateAndKeepsWhatIsThere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "dir")
	must(t, Init(dir))
	must(t, Issue(dir, "n1", nil))
	for _, name := range []string{"ca.key", "cluster.key", "admin.key", "n1.key"} {
		info, err := os.Stat(filepath.Join(dir, name))
		must(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", name, info.Mode())
		}
	}
	before, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	must(t, err)
	wantKind(t, Init(dir), Exists)
	wantKind(t, Issue(dir, "n1", nil), Exists)
	after, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	must(t, err)
	if !bytes.Equal(before, after) {
		t.Fatal("a second Init changed the authority's key")
	}
}

// A refused Init must not leave half a cluster behind.
func TestInitMakesAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "admin.key"), []byte("mine"), 0o600))
	wantKind(t, Init(dir), Exists)
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != 1 {
		t.Fatalf("%d files after a refusal, want only the one that was there", len(entries))
	}
}

func TestLoad(t *testing.T) {
	dir := newCluster(t)
	n1, err := Load(dir, "n1")
	must(t, err)
	n2, err := Load(dir, "n2")
	must(t, err)
	admin, err := LoadAdmin(dir)
	must(t, err)
	if n1.Name() != "n1" || n1.Role() != RoleNode || admin.Role() != RoleAdmin {
		t.Errorf("%q %q %q", n1.Name(), n1.Role(), admin.Role())
	}
	if !bytes.Equal(n1.Fingerprint(), admin.Fingerprint()) || len(n1.Fingerprint()) != 32 {
		t.Error("fingerprints of one cluster differ")
	}
	gossip := n1.ClusterKey("gossip")
	if len(gossip) != 32 || !bytes.Equal(gossip, n2.ClusterKey("gossip")) {
		t.Error("two nodes derive different keys for one purpose")
	}
	if bytes.Equal(gossip, n1.ClusterKey("seal")) {
		t.Error("two purposes got one key")
	}
	if admin.ClusterKey("gossip") != nil {
		t.Error("an operator has no cluster secret, but got a key")
	}
	secret, err := os.ReadFile(filepath.Join(dir, "cluster.key"))
	must(t, err)
	if strings.Contains(n1.ca.Subject.SerialNumber, string(secret[:16])) {
		t.Error("the authority's certificate reveals the secret")
	}
	if _, err := hex.DecodeString(n1.ca.Subject.SerialNumber); err != nil {
		t.Error(err)
	}
}

func TestNames(t *testing.T) {
	dir := newCluster(t)
	for _, name := range []string{"", "ca", "CA", "admin", "cluster", "../x", "a/b", ".hidden", "-x", "a b", "ü", strings.Repeat("a", 64)} {
		wantKind(t, Issue(dir, name, nil), Invalid)
		_, err := Load(dir, name)
		wantKind(t, err, Invalid)
	}
	for _, host := range []string{"", "a:1", "http://x", "-a", "a..b", "a_b", "a b"} {
		wantKind(t, Issue(dir, "fresh", []string{host}), Invalid)
	}
	must(t, Issue(dir, strings.Repeat("a", 63), []string{"::1", "10.0.0.1", "baton", "x-1.y"}))
}

// Each way in which files can be wrong has its own kind.
func TestLoadFaults(t *testing.T) {
	other := newCluster(t)
	tests := []struct {
		name   string
		damage func(t *testing.T, dir string)
		want   Kind
	}{
		{"no ca", func(t *testing.T, dir string) { must(t, os.Remove(dir+"/ca.crt")) }, Missing},
		{"no cert", func(t *testing.T, dir string) { must(t, os.Remove(dir+"/n1.crt")) }, Missing},
		{"no key", func(t *testing.T, dir string) { must(t, os.Remove(dir+"/n1.key")) }, Missing},
		{"no secret", func(t *testing.T, dir string) { must(t, os.Remove(dir+"/cluster.key")) }, Missing},
		{"no ca key is fine", func(t *testing.T, dir string) { must(t, os.Remove(dir+"/ca.key")) }, 0},
		{"other ca", func(t *testing.T, dir string) { copyFile(t, other+"/ca.crt", dir+"/ca.crt") }, Foreign},
		{"other cluster's node", func(t *testing.T, dir string) {
			copyFile(t, other+"/n1.crt", dir+"/n1.crt")
			copyFile(t, other+"/n1.key", dir+"/n1.key")
		}, Foreign},
		{"renamed node", func(t *testing.T, dir string) {
			copyFile(t, dir+"/n2.crt", dir+"/n1.crt")
			copyFile(t, dir+"/n2.key", dir+"/n1.key")
		}, Foreign},
		{"operator as node", func(t *testing.T, dir string) {
			copyFile(t, dir+"/admin.crt", dir+"/n1.crt")
			copyFile(t, dir+"/admin.key", dir+"/n1.key")
		}, Foreign},
		{"leaf as ca", func(t *testing.T, dir string) { copyFile(t, dir+"/n1.crt", dir+"/ca.crt") }, Foreign},
		{"other node's key", func(t *testing.T, dir string) { copyFile(t, dir+"/n2.key", dir+"/n1.key") }, Mismatched},
		{"other cluster's secret", func(t *testing.T, dir string) { copyFile(t, other+"/cluster.key", dir+"/cluster.key") }, Mismatched},
		{"garbage cert", func(t *testing.T, dir string) { must(t, os.WriteFile(dir+"/n1.crt", []byte("x"), 0o600)) }, Unreadable},
		{"garbage key", func(t *testing.T, dir string) { must(t, os.WriteFile(dir+"/n1.key", nil, 0o600)) }, Unreadable},
		{"garbage secret", func(t *testing.T, dir string) { must(t, os.WriteFile(dir+"/cluster.key", []byte("zz"), 0o600)) }, Unreadable},
		{"huge cert", func(t *testing.T, dir string) {
			must(t, os.WriteFile(dir+"/n1.crt", make([]byte, fileBytesMax+1), 0o600))
		}, Unreadable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := newCluster(t)
			tt.damage(t, dir)
			_, err := Load(dir, "n1")
			if tt.want == 0 {
				must(t, err)
				return
			}
			wantKind(t, err, tt.want)
		})
	}
}

func TestExpiry(t *testing.T) {
	dir := t.TempDir()
	made := time.Now()
	must(t, initAt(dir, made))
	must(t, issueAt(dir, "n1", nil, made))
	for _, tt := range []struct {
		name string
		at   time.Time
		want Kind
	}{
		{"new", made, 0},
		{"clock a little late", made.Add(-backdate / 2), 0},
		{"clock far too late", made.Add(-2 * backdate), Expired},
		{"last day", made.Add(leafLife - time.Hour), 0},
		{"after", made.Add(leafLife + time.Hour), Expired},
		{"authority over too", made.Add(caLife + time.Hour), Expired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := loadAt(dir, "n1", tt.at)
			if tt.want == 0 {
				must(t, err)
				return
			}
			wantKind(t, err, tt.want)
		})
	}
	// A certificate never outlives its authority.
	must(t, issueAt(dir, "late", nil, made.Add(caLife-24*time.Hour)))
	_, err := loadAt(dir, "late", made.Add(caLife-time.Hour))
	must(t, err)
}

func TestIssueNeedsTheAuthoritysOwnKey(t *testing.T) {
	dir, other := newCluster(t), newCluster(t)
	copyFile(t, other+"/ca.key", dir+"/ca.key")
	wantKind(t, Issue(dir, "n3", nil), Mismatched)
	must(t, os.Remove(dir+"/ca.key"))
	wantKind(t, Issue(dir, "n3", nil), Missing)
}

func TestShow(t *testing.T) {
	dir, other := newCluster(t), newCluster(t)
	copyFile(t, other+"/n2.crt", dir+"/n2.crt")
	must(t, os.WriteFile(dir+"/junk.crt", []byte("junk"), 0o600))
	infos, err := Show(dir)
	must(t, err)
	got := map[string]CertInfo{}
	for _, i := range infos {
		got[i.Name] = i
	}
	if len(got) != 5 {
		t.Fatalf("%d certificates, want admin, ca, junk, n1, n2: %v", len(got), infos)
	}
	for name, want := range map[string]Role{"ca": RoleCA, "admin": RoleAdmin, "n1": RoleNode} {
		if i := got[name]; i.Role != want || i.Problem != "" || len(i.Fingerprint) != 64 || i.NotAfter.IsZero() {
			t.Errorf("%s: %+v", name, i)
		}
	}
	if h := got["n1"].Hosts; strings.Join(h, " ") != "baton n1.example.com 127.0.0.1" {
		t.Errorf("hosts %q", h)
	}
	for _, name := range []string{"n2", "junk"} {
		if got[name].Problem == "" {
			t.Errorf("%s is listed without its problem", name)
		}
	}
	_, err = Show(t.TempDir())
	wantKind(t, err, Missing)
}

func TestErrorUnwraps(t *testing.T) {
	_, err := Load(t.TempDir(), "n1")
	var w *wire.Error
	if !errors.As(err, &w) || w.Code != wire.Code_NOT_INITIALISED {
		t.Fatalf("%v", err)
	}
	if KindOf(errors.New("other")) != 0 || KindOf(nil) != 0 {
		t.Fatal("a foreign error has a kind")
	}
}

// Whatever lies in the files, reading them ends in an error or a value.
func FuzzParseFiles(f *testing.F) {
	dir := f.TempDir()
	must(f, Init(dir))
	for _, name := range []string{"ca.crt", "ca.key", "cluster.key"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		must(f, err)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if cert, err := parseCert("f", data); (cert == nil) == (err == nil) {
			t.Fatal("neither a certificate nor an error")
		}
		if key, err := parseKey("f", data); (key == nil) == (err == nil) {
			t.Fatal("neither a key nor an error")
		}
		if s, err := parseClusterKey("f", data); err == nil && len(s) != clusterKeyBytes {
			t.Fatal("a secret of another size")
		}
	})
}
