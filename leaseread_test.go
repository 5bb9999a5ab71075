package baton_test

import (
	"testing"
	"time"

	"github.com/baton-cluster/baton"
)

// TestLeaseReads: a cluster that is well answers queries under leases, without an
// entry in the log; or by the log, where the client asks for that.
func TestLeaseReads(t *testing.T) {
	c := startCluster(t, nil)
	ctx := testContext(t)
	s, err := c.client().Open(ctx, baton.OpenOptions{ID: "reader"})
	must(t, err)
	_, err = s.Put(ctx, "k", []byte("v"))
	must(t, err)
	for { // until the owner's first renewals have been granted
		v, err := s.Get(ctx, "k")
		must(t, err)
		if v.Leased {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	v, err := s.Get(ctx, "k", baton.Confirmed)
	must(t, err)
	if v.Leased || string(v.Value) != "v" {
		t.Fatalf("%+v", v)
	}
	all, err := baton.Dial(ctx, baton.ClientConfig{Addrs: c.user, PKI: c.pki, ConfirmedReads: true})
	must(t, err)
	defer all.Close()
	other, err := all.Resume(ctx, "reader", s.Secret())
	must(t, err)
	if v, err = other.Get(ctx, "k"); err != nil || v.Leased {
		t.Fatalf("%+v %v", v, err)
	}
}

// TestLeaseReadsThroughARelay: the node between passes on how much of the owner's
// lease was left.
func TestLeaseReadsThroughARelay(t *testing.T) {
	c := startCluster(t, nil)
	ctx := testContext(t)
	s, err := c.client().Open(ctx, baton.OpenOptions{ID: "far", Shared: true})
	must(t, err)
	via := c.user[c.other(c.ownerIndex(s))]
	client, err := baton.Dial(ctx, baton.ClientConfig{Addrs: []string{via}, PKI: c.pki, RelayOnly: true})
	must(t, err)
	defer client.Close()
	far, err := client.Resume(ctx, "far", s.Secret())
	must(t, err)
	for {
		v, err := far.Get(ctx, "k")
		must(t, err)
		if v.Leased {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestNodeThatConfirmsReads answers none under a lease.
func TestNodeThatConfirmsReads(t *testing.T) {
	dir := t.TempDir()
	must(t, baton.PKIInit(dir+"/pki"))
	must(t, baton.PKIIssue(dir+"/pki", "n1", []string{"127.0.0.1"}))
	ctx := testContext(t)
	n, err := baton.Open(ctx, baton.Config{
		Name: "n1", Data: dir + "/n1", PKI: dir + "/pki", UserAddr: "127.0.0.1:0", MgmtAddr: freeAddr(t),
		Expect: 1, Profile: "local", ConfirmedReads: true,
	})
	must(t, err)
	defer n.Close()
	client, err := baton.Dial(ctx, baton.ClientConfig{Addrs: []string{n.UserAddr()}, PKI: dir + "/pki"})
	must(t, err)
	defer client.Close()
	s, err := client.Open(ctx, baton.OpenOptions{ID: "reader"})
	must(t, err)
	for range 50 {
		v, err := s.Get(ctx, "k")
		must(t, err)
		if v.Leased {
			t.Fatal("a read was answered under a lease")
		}
		time.Sleep(10 * time.Millisecond)
	}
}
