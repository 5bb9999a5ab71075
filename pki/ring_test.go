package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"slices"
	"testing"

	"github.com/baton-cluster/baton/wire"
)

var ringCluster = []byte("cluster")

// keyRows is a ring of n generations of all kinds, made by id.
func keyRows(t *testing.T, id *Identity, n uint64) (rows []*wire.KeyGeneration) {
	t.Helper()
	rows = []*wire.KeyGeneration{{Kinds: wire.KeyKindsAll}}
	for g := uint64(1); g <= n; g++ {
		root, err := id.NewRoot(ringCluster, g, rand.Reader)
		must(t, err)
		rows = append(rows, &wire.KeyGeneration{Generation: g, Root: root, Kinds: wire.KeyKindsAll})
	}
	return rows
}

func mustRing(t *testing.T, id *Identity, rows []*wire.KeyGeneration) *Ring {
	t.Helper()
	r, err := id.OpenRing(ringCluster, rows)
	must(t, err)
	return r
}

func twoNodes(t *testing.T) (dir string, n1, n2 *Identity) {
	t.Helper()
	dir = newCluster(t)
	n1, err := Load(dir, "n1")
	must(t, err)
	n2, err = Load(dir, "n2")
	must(t, err)
	return dir, n1, n2
}

// All nodes derive the same keys from a ring; each kind and generation has its
// own; generation 0 needs no ring.
func TestRingKeys(t *testing.T) {
	_, n1, n2 := twoNodes(t)
	rows := keyRows(t, n1, 2)
	seen := map[string]string{}
	for i := range len(rows) + 1 {
		a, b := mustRing(t, n1, rows[:i]), mustRing(t, n2, rows[:i])
		if i > 0 && a.Generation() != rows[i-1].Generation {
			t.Errorf("%d generations, the newest is %d", i, a.Generation())
		}
		if a.AddressToken() != b.AddressToken() || !slices.Equal(a.tickets(), b.tickets()) {
			t.Error("two nodes derive different keys")
		}
		gen, key := a.Seal()
		if again, ok := b.SealOf(gen); gen != a.Generation() || !ok || !bytes.Equal(again, key) {
			t.Error("one node does not open what the other seals")
		}
		token := a.AddressToken()
		for kind, key := range map[string][]byte{"seal": key, "token": token[:], "ticket": a.tickets()[0][:]} {
			name := kind + string(rune('0'+gen))
			if other, dup := seen[string(key)]; dup && other != name {
				t.Errorf("%s and %s are one key", other, name)
			}
			seen[string(key)] = name
		}
		if _, ok := a.SealOf(gen + 1); ok {
			t.Error("there is a key of a generation to come")
		}
	}
	if len(seen) != 9 {
		t.Errorf("%d keys for three generations of three kinds", len(seen))
	}
}

// The newest of a kind is used, older ones are kept to open with.
func TestRingKinds(t *testing.T) {
	_, n1, _ := twoNodes(t)
	rows := keyRows(t, n1, 3)
	rows[2].Kinds = uint32(wire.KeyKind_KEY_KIND_TICKET)
	rows[3].Kinds = uint32(wire.KeyKind_KEY_KIND_ADDRESS)
	r := mustRing(t, n1, rows)
	if gen, _ := r.Seal(); gen != 1 {
		t.Errorf("seals are of generation %d", gen)
	}
	if n := len(r.tickets()); n != 3 {
		t.Errorf("%d ticket keys", n)
	}
	if r.tickets()[0] != mustRing(t, n1, rows[:3]).tickets()[0] {
		t.Error("the newest ticket key is not the one in use")
	}
	if _, ok := r.SealOf(2); ok {
		t.Error("a generation seals that is for tickets only")
	}
}

// A wrapped root opens with its cluster's secret, for its cluster and generation,
// unchanged; nothing of it is readable.
func TestRingWrapping(t *testing.T) {
	dir, n1, _ := twoNodes(t)
	foreign, err := Load(newCluster(t), "n1")
	must(t, err)
	rows := keyRows(t, n1, 1)
	refused := func(what string, id *Identity, cluster []byte, rows []*wire.KeyGeneration) {
		t.Helper()
		if _, err := id.OpenRing(cluster, rows); wire.CodeOf(err) != wire.Code_KEYS_UNREADABLE {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("another PKI", foreign, ringCluster, rows)
	refused("another cluster", n1, []byte("other"), rows)
	other := &wire.KeyGeneration{Generation: 2, Root: rows[1].Root, Kinds: wire.KeyKindsAll}
	refused("another generation", n1, ringCluster, []*wire.KeyGeneration{other})
	for i := range rows[1].Root {
		bad := bytes.Clone(rows[1].Root)
		bad[i] ^= 1
		refused("a bit flipped", n1, ringCluster, []*wire.KeyGeneration{{Generation: 1, Root: bad, Kinds: 7}})
		refused("cut off", n1, ringCluster, []*wire.KeyGeneration{{Generation: 1, Root: rows[1].Root[:i], Kinds: 7}})
	}
	admin, err := LoadAdmin(dir)
	must(t, err)
	if _, err := admin.NewRoot(ringCluster, 1, rand.Reader); wire.CodeOf(err) != wire.Code_NOT_AUTHORISED {
		t.Errorf("an operator makes keys: %v", err)
	}
	if _, err := admin.OpenRing(ringCluster, rows); wire.CodeOf(err) != wire.Code_NOT_AUTHORISED {
		t.Errorf("an operator opens the ring: %v", err)
	}
	if _, err := n1.NewRoot(ringCluster, 1, bytes.NewReader(nil)); wire.CodeOf(err) != wire.Code_INTERNAL {
		t.Errorf("keys without randomness: %v", err)
	}
}

// Resets are a node's own, and outlive rotations.
func TestResetKey(t *testing.T) {
	_, n1, n2 := twoNodes(t)
	foreign, err := Load(newCluster(t), "n1")
	must(t, err)
	if n1.ResetKey("id-1") != n2.ResetKey("id-1") || n1.ResetKey("id-1") == n1.ResetKey("id-2") || n1.ResetKey("id-1") == foreign.ResetKey("id-1") {
		t.Error("a reset key does not depend on the cluster and the node's id alone")
	}
}

// A ticket resumes at another node, before and after a rotation, until its
// generation is dropped; the port serves all the while.
func TestTicketsAcrossRotations(t *testing.T) {
	dir, n1, n2 := twoNodes(t)
	rows := keyRows(t, n1, 2)
	for _, alpn := range [][]string{{alpnUser}, {alpnUser, alpnRelay}} {
		a := n1.UserServer(mustRing(t, n1, rows[:2]), alpn...)
		b := n2.UserServer(mustRing(t, n2, rows[:2]), alpn...)
		client, err := LoadClient(dir)
		must(t, err)
		client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
		resumes := func(u *UserTLS) bool {
			t.Helper()
			serverErr, clientErr, cs := shake(t, u.Config(), client)
			must(t, serverErr)
			must(t, clientErr)
			return cs.DidResume
		}
		if resumes(a) {
			t.Fatal("resumed out of nothing")
		}
		if !resumes(b) {
			t.Error("a ticket does not resume at another node")
		}
		b.SetRing(mustRing(t, n2, rows))
		if !resumes(b) {
			t.Error("a ticket of the former generation does not resume")
		}
		if resumes(a) {
			t.Error("a ticket of a generation that the node has not heard of resumes")
		}
		if a.SetRing(mustRing(t, n1, rows)); !resumes(b) || !resumes(a) {
			t.Error("rotated nodes do not take each other's tickets")
		}
		a.SetRing(mustRing(t, n1, rows[:2]))
		if resumes(a) {
			t.Error("a key that is gone opens")
		}
		b.SetRing(mustRing(t, n2, rows[2:])) // the ticket that a just gave is of a dropped generation
		if resumes(b) {
			t.Error("a dropped generation resumes")
		}
	}
}
