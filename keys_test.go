package baton_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/wire"
)

// adopted waits until all nodes use the generation.
func adopted(t *testing.T, a *baton.Admin, generation uint64) baton.KeyRing {
	t.Helper()
	ctx := testContext(t)
	for {
		ring, err := a.Keys(ctx)
		must(t, err)
		n := 0
		for _, node := range ring.Nodes {
			if node.Generation == generation {
				n++
			}
		}
		if n == 3 {
			return ring
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the nodes do not use generation %d: %+v", generation, ring.Nodes)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// resumes moves a session between two nodes until that has made its client a connection
// to the second, and fails if one took more than a ticket. A dial that takes too long
// is given up for a relay, and in an election a client may have gone to that node before.
func (c *testCluster) resumes(ctx context.Context, a *baton.Admin, client *baton.Client, s *baton.Session, from, to int) {
	c.t.Helper()
	move := func(node int) baton.ClientStats {
		c.moveTo(ctx, a, s.ID(), c.name(node))
		_, err := s.Get(ctx, "n") // it is answered over the new way, which has been counted then
		must(c.t, err)
		return client.Stats()
	}
	for {
		before, st := client.Stats(), move(to)
		if st.Fallback+st.WarmFull > 0 {
			c.t.Fatalf("a ticket does not resume at %s: %+v", c.name(to), st)
		}
		if st.ZeroRTT > before.ZeroRTT {
			return
		}
		move(from) // and again, when that takes a new connection
		eventually(c.t, "no connection is left on "+c.name(to), func() bool { return c.nodes[to].UserConns().Open == 0 })
	}
}

// TestKeysRotateOnALiveCluster: tickets of the former generation resume at every
// node after a rotation, with 0-RTT; sessions move all the while; nodes that
// restart, from log or snapshot, have the same ring; state hashes agree.
func TestKeysRotateOnALiveCluster(t *testing.T) {
	c := startCluster(t, nil)
	ctx := testContext(t)
	a := c.admin()
	ring := adopted(t, a, 1) // made with the cluster
	if len(ring.Generations) != 2 || ring.Generations[1].By == "" || ring.Generations[1].DropsInUS != -1 || ring.Generations[0].DropsInUS < 0 {
		t.Fatalf("%+v", ring.Generations)
	}
	client := c.client(c.user[0])
	s, err := client.Open(ctx, baton.OpenOptions{ID: "s", Node: "n1"})
	must(t, err)
	k := startCounter(t, s)
	k.passes(20)
	nonce := []byte("one rotation")
	rotate := func(req baton.KeyRotation) {
		t.Helper()
		must(t, insist(ctx, func() (err error) {
			ring, err = a.RotateKeys(ctx, req)
			return err
		}))
	}
	for range 2 { // repeated, it is the same one
		rotate(baton.KeyRotation{Nonce: nonce, By: "the test"})
		if g := ring.Generations[len(ring.Generations)-1]; g.Generation != 2 || g.By != "the test" || len(g.InUse) != 3 {
			t.Fatalf("%+v", ring.Generations)
		}
	}
	adopted(t, a, 2)
	// Warm, with the ticket that n1 gave under generation 1.
	c.resumes(ctx, a, client, s, 0, 1)
	rotate(baton.KeyRotation{Kinds: []string{"seal"}, Nonce: []byte("another")})
	ring = adopted(t, a, 3)
	if g := ring.Generations[len(ring.Generations)-2]; len(g.InUse) != 2 {
		t.Errorf("generation 2 is not in use for what was not rotated: %+v", ring.Generations)
	}
	c.resumes(ctx, a, client, s, 1, 2)
	// A node that started anew takes the cluster's tickets.
	must(t, c.nodes[0].Close())
	must(t, c.open(0))
	adopted(t, a, 3)
	c.resumes(ctx, a, client, s, 2, 0)
	// The other way: what the node that started anew seals, those open that took the
	// keys up while they served.
	other := c.client(c.user[0])
	so, err := other.Open(ctx, baton.OpenOptions{ID: "other", Node: "n1"})
	must(t, err)
	c.resumes(ctx, a, other, so, 0, 1)
	k.end()
	if verdict := c.verify(ctx); !verdict.OK {
		t.Errorf("verify: %+v", verdict)
	}
	if _, err := a.RotateKeys(ctx, baton.KeyRotation{Kinds: []string{"front door"}}); wire.CodeOf(err) != wire.Code_BAD_REQUEST {
		t.Errorf("an unknown kind: %v", err)
	}
}

// TestKeysRotateUnderMoves: sessions with live state move back and forth while
// seal keys are rotated as fast as they can be. All arrive, whole.
func TestKeysRotateUnderMoves(t *testing.T) {
	app := newBulk(300 << 10)
	c := startCluster(t, app.mux)
	ctx := testContext(t)
	a := c.admin()
	s, err := c.client().Open(ctx, baton.OpenOptions{ID: "s"})
	must(t, err)
	_, err = s.Call(ctx, "hold", nil)
	must(t, err)
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := insist(ctx, func() error {
				_, err := a.RotateKeys(ctx, baton.KeyRotation{Kinds: []string{"seal"}})
				return err
			}); err != nil {
				done <- err
				return
			}
		}
	}()
	for range 12 {
		c.moveTo(ctx, a, "s", c.name(c.other(c.ownerIndex(s))))
		app.check(t, s)
	}
	close(stop)
	must(t, <-done)
	ring, err := a.Keys(ctx)
	must(t, err)
	if n := len(ring.Generations); n > wire.KeyGenerationsMax || ring.Generations[n-1].Generation < 5 {
		t.Errorf("%d generations: %+v", n, ring.Generations)
	}
}

// TestForeignKeysAreFatal: a node that cannot open the ring of its data says so
// and does not serve.
func TestForeignKeysAreFatal(t *testing.T) {
	dir := t.TempDir()
	cfg := baton.Config{
		Name: "n1", Data: filepath.Join(dir, "data"), PKI: filepath.Join(dir, "pki"),
		UserAddr: "127.0.0.1:0", MgmtAddr: freeAddr(t), Expect: 1, Profile: "local", Mux: baton.KV(),
	}
	for _, pki := range []string{"pki", "other"} {
		must(t, baton.PKIInit(filepath.Join(dir, pki)))
		must(t, baton.PKIIssue(filepath.Join(dir, pki), "n1", []string{"127.0.0.1"}))
	}
	open := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), testTime)
		defer cancel()
		n, err := baton.Open(ctx, cfg)
		if err == nil {
			err = n.Close()
		}
		return err
	}
	must(t, open())
	must(t, open())
	noKeyOnDisk(t, cfg.Data, filepath.Join(cfg.PKI, "cluster.key"))
	cfg.PKI = filepath.Join(dir, "other")
	err := open()
	var typed *baton.Error
	if !errors.As(err, &typed) || typed.Code != wire.Code_KEYS_UNREADABLE {
		t.Fatalf("with another cluster's PKI: %v", err)
	}
	cfg.PKI = filepath.Join(dir, "pki")
	must(t, open())
}

// noKeyOnDisk fails if the nodes' secret lies in the data directory.
func noKeyOnDisk(t *testing.T, data, secretFile string) {
	t.Helper()
	secret, err := os.ReadFile(secretFile)
	must(t, err)
	must(t, filepath.WalkDir(data, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, bytes.TrimSpace(secret)) {
			t.Errorf("%s holds the nodes' secret", path)
		}
		return err
	}))
}
