package baton_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/pki"
	"github.com/baton-cluster/baton/seam"
	"github.com/baton-cluster/baton/wire"
)

// enrol asks to join the cluster as a node of that name, with files of its own.
func (c *testCluster) enrol(name, token string) (dir string, err error) {
	dir = filepath.Join(c.t.TempDir(), "pki")
	return dir, c.enrolAt(dir, name, token)
}

func (c *testCluster) enrolAt(dir, name, token string) error {
	return baton.Enrol(testContext(c.t), baton.EnrolConfig{Token: token, Addrs: c.mgmt[1:], Name: name, Host: "127.0.0.1", PKI: dir})
}

func wantCode(t testing.TB, err error, want wire.Code) {
	t.Helper()
	if wire.CodeOf(err) != want {
		t.Fatalf("%v, want %v", err, want)
	}
}

// TestJoinByToken: a node that has nothing but a token becomes one of the cluster,
// though the nodes that it asks cannot issue certificates themselves; and with that
// token nobody else does.
func TestJoinByToken(t *testing.T) {
	// n1 alone has the authority's key; the others and the operator do not.
	c := (&testCluster{t: t, network: osNetwork, edit: ownFiles(t, true)}).start()
	ctx := testContext(t)
	a := c.admin()
	text, info, err := a.CreateJoinToken(ctx, baton.JoinTokenRequest{})
	must(t, err)
	if info.State != "pending" || info.ExpiresInUS <= 0 || info.ExpiresInUS > time.Hour.Microseconds() {
		t.Errorf("a new token is %+v", info)
	}
	dir, err := c.enrol("n4", text)
	must(t, err)
	n, err := baton.Open(ctx, baton.Config{
		Name: "n4", Data: filepath.Join(c.dir, "n4"), PKI: dir, UserAddr: freeAddr(t), MgmtAddr: freeAddr(t), Join: c.mgmt, Profile: "local",
	})
	must(t, err)
	defer n.Close()
	s, err := c.client(n.UserAddr()).Open(ctx, baton.OpenOptions{ID: "s", Node: "n4"})
	must(t, err)
	if _, _, err := s.Incr(ctx, "k", 1); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"ca.key", "admin.key"} {
		if _, err := os.Stat(filepath.Join(dir, secret)); err == nil {
			t.Errorf("the node that joined has %s", secret)
		}
	}

	_, err = c.enrol("n5", text)
	wantCode(t, err, wire.Code_TOKEN_USED)
	_, err = c.enrol("n4", text) // another host that has got hold of it
	wantCode(t, err, wire.Code_TOKEN_USED)
	list, err := a.JoinTokens(ctx)
	must(t, err)
	if len(list) != 1 || list[0].State != "used" || list[0].Node != "n4" {
		t.Errorf("the tokens are %+v", list)
	}
	_, err = a.RevokeJoinToken(ctx, info.ID)
	wantCode(t, err, wire.Code_TOKEN_USED)
}

// TestAuthorityIsSilent: the one node that can issue certificates is down when another
// asks for one. That is no refusal: it gets one when the node is back.
func TestAuthorityIsSilent(t *testing.T) {
	c := (&testCluster{t: t, network: osNetwork, edit: ownFiles(t, true)}).start()
	ctx := testContext(t)
	var text string
	must(t, insist(ctx, func() (err error) {
		text, _, err = c.admin().CreateJoinToken(ctx, baton.JoinTokenRequest{})
		return err
	}))
	must(t, c.nodes[0].Close())
	_, _, err := c.admin().CreateJoinToken(ctx, baton.JoinTokenRequest{})
	wantCode(t, err, wire.Code_UNAVAILABLE)
	var asked sync.Once
	must(t, baton.Enrol(ctx, baton.EnrolConfig{
		Token: text, Addrs: c.mgmt[1:], Name: "n4", Host: "127.0.0.1", PKI: filepath.Join(t.TempDir(), "pki"),
		Log: slog.New(onWarning{slog.DiscardHandler, func() { asked.Do(func() { must(t, c.open(0)) }) }}),
	}))
}

// onWarning calls do where something is logged as a warning.
type onWarning struct {
	slog.Handler
	do func()
}

func (onWarning) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }

func (h onWarning) Handle(context.Context, slog.Record) error {
	h.do()
	return nil
}

// TestJoinTokenAgain: whose answer was lost asks again and gets what it was due.
func TestJoinTokenAgain(t *testing.T) {
	c := startCluster(t, nil)
	ctx := testContext(t)
	text, _, err := c.admin().CreateJoinToken(ctx, baton.JoinTokenRequest{Name: "n4"})
	must(t, err)
	dir, err := c.enrol("n4", text)
	must(t, err)
	for _, lost := range []string{"n4.crt", "ca.crt", "cluster.key"} {
		must(t, os.Remove(filepath.Join(dir, lost)))
	}
	must(t, c.enrolAt(dir, "n4", text))
	// And one that has its files asks nobody.
	must(t, baton.Enrol(ctx, baton.EnrolConfig{Token: "gone by now", Name: "n4", PKI: dir}))
	must(t, c.enrolAt(dir, "n4", ""))
}

func TestJoinTokenRefusals(t *testing.T) {
	c := startCluster(t, nil)
	ctx := testContext(t)
	a := c.admin()
	create := func(req baton.JoinTokenRequest) (string, baton.JoinTokenInfo) {
		t.Helper()
		var text string
		var info baton.JoinTokenInfo
		must(t, insist(ctx, func() (err error) {
			text, info, err = a.CreateJoinToken(ctx, req)
			return err
		}))
		return text, info
	}
	refused := func(name, token string, want wire.Code) {
		t.Helper()
		dir, err := c.enrol(name, token)
		wantCode(t, err, want)
		if _, err := os.Stat(filepath.Join(dir, "cluster.key")); err == nil {
			t.Errorf("%v: the node has the cluster's secret all the same", want)
		}
	}
	pending, _ := create(baton.JoinTokenRequest{})
	refused("n4", "", wire.Code_BAD_REQUEST)
	refused("n4", pending[:len(pending)-1], wire.Code_BAD_REQUEST)
	refused("n4", forged(t, pending, func(k *pki.JoinToken) { k.Secret[0] ^= 1 }), wire.Code_TOKEN_UNKNOWN)
	refused("n4", forged(t, pending, func(k *pki.JoinToken) { k.ID[0] ^= 1 }), wire.Code_TOKEN_UNKNOWN)
	refused("../n4", pending, wire.Code_BAD_REQUEST)
	refused("n2", pending, wire.Code_NAME_IN_USE)

	revoked, info := create(baton.JoinTokenRequest{})
	_, err := a.RevokeJoinToken(ctx, info.ID)
	must(t, err)
	refused("n4", revoked, wire.Code_TOKEN_REVOKED)

	named, _ := create(baton.JoinTokenRequest{Name: "n4"})
	refused("n5", named, wire.Code_TOKEN_WRONG_NAME)

	ended, _ := create(baton.JoinTokenRequest{Life: time.Second})
	for list, err := a.JoinTokens(ctx); ; list, err = a.JoinTokens(ctx) {
		must(t, err)
		expired := 0
		for _, l := range list {
			if l.State == "expired" {
				expired++
			}
		}
		if expired == 1 {
			break
		}
		must(t, ctx.Err())
		time.Sleep(20 * time.Millisecond)
	}
	refused("n4", ended, wire.Code_TOKEN_EXPIRED)

	// A token of this authority that this cluster never made, and one of another.
	refused("n4", strangersToken(t, c.pki), wire.Code_TOKEN_WRONG_CLUSTER)
	other := filepath.Join(t.TempDir(), "other")
	must(t, baton.PKIInit(other))
	refused("n4", strangersToken(t, other), wire.Code_WRONG_CLUSTER)

	_, _, err = a.CreateJoinToken(ctx, baton.JoinTokenRequest{Name: "n1"})
	wantCode(t, err, wire.Code_NAME_IN_USE)
	_, _, err = a.CreateJoinToken(ctx, baton.JoinTokenRequest{Life: baton.JoinTokenLifeMax + 1})
	wantCode(t, err, wire.Code_BAD_REQUEST)
	_, err = a.RevokeJoinToken(ctx, "nonsense")
	wantCode(t, err, wire.Code_BAD_REQUEST)
	_, err = a.RevokeJoinToken(ctx, "00000000000000000000000000000000")
	wantCode(t, err, wire.Code_TOKEN_UNKNOWN)

	// After all that the first one still works, also when its leader has gone.
	must(t, insist(ctx, func() error { return a.TransferLeader(ctx) }))
	_, err = c.enrol("n4", pending)
	must(t, err)
}

// TestNoAuthority: without the authority's key no token is made that nobody could
// honour, and the error says what to do.
func TestNoAuthority(t *testing.T) {
	c := (&testCluster{t: t, network: osNetwork, edit: ownFiles(t, false)}).start()
	ctx, a := testContext(t), c.admin()
	wantCode(t, insist(ctx, func() error {
		_, _, err := a.CreateJoinToken(ctx, baton.JoinTokenRequest{})
		return err
	}), wire.Code_NO_AUTHORITY)
}

// ownFiles gives each node a directory with its own files only; n1's has the
// authority's key too, if that is wanted.
func ownFiles(t *testing.T, authority bool) func(i int, cfg *baton.Config) {
	root := t.TempDir()
	return func(_ int, cfg *baton.Config) {
		dir := filepath.Join(root, cfg.Name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Error(err)
		}
		files := []string{"ca.crt", "cluster.key", cfg.Name + ".crt", cfg.Name + ".key"}
		if authority && cfg.Name == "n1" {
			files = append(files, "ca.key")
		}
		for _, f := range files {
			b, err := os.ReadFile(filepath.Join(cfg.PKI, f))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, f), b, 0o600)
			}
			if err != nil {
				t.Error(err)
			}
		}
		cfg.PKI = dir
	}
}

func osNetwork(int) seam.Network { return nil }

// strangersToken is a token by who has the authority's certificate, and no cluster.
func strangersToken(t *testing.T, dir string) string {
	t.Helper()
	id, err := pki.LoadAdmin(dir)
	must(t, err)
	return id.NewJoinToken().Text()
}

// forged is the token with another secret, or with another id.
func forged(t *testing.T, text string, edit func(*pki.JoinToken)) string {
	t.Helper()
	token, err := pki.ParseJoinToken(text)
	must(t, err)
	edit(&token)
	return token.Text()
}
