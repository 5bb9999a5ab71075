package baton_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/baton-cluster/baton"
	"github.com/baton-cluster/baton/seam"
)

// conns is how many connections a client has made.
func conns(c *baton.Client) uint64 {
	s := c.Stats()
	return s.Full + s.ZeroRTT + s.Fallback
}

// stand waits until as many sessions stand by at the cluster's nodes as there are
// clients' sessions.
func (c *testCluster) stand(want int) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("%d sessions stand by", want), func() bool {
		n := 0
		for _, node := range c.nodes {
			n += node.Standbys()
		}
		return n == want
	})
}

// A client that stands by dials nobody when its node loses its power: the next
// owners speak first, on connections that all its sessions share.
func TestStandbyIsSpokenTo(t *testing.T) {
	cables := []*cable{{}, {}, {}}
	c := startClusterOn(t, nil, func(i int) seam.Network { return cables[i] })
	ctx := testContext(t)
	client, err := baton.Dial(ctx, baton.ClientConfig{Addrs: c.user, PKI: c.pki, Standby: true})
	must(t, err)
	t.Cleanup(func() { _ = client.Close() })
	const sessions = 40
	all := make([]*baton.Session, sessions)
	for i := range all {
		all[i], err = client.Open(ctx, baton.OpenOptions{ID: fmt.Sprint("s", i), Node: c.name(0)})
		must(t, err)
		_, _, err = all[i].Incr(ctx, "n", 1)
		must(t, err)
	}
	c.stand(sessions)
	before := conns(client)
	cables[0].cut()
	var wg sync.WaitGroup
	for _, s := range all {
		wg.Go(func() {
			sum, r, err := s.Incr(ctx, "n", 1)
			if err != nil || sum != 2 || r.Node == c.name(0) {
				t.Errorf("%s: %d from %s, %v", s.ID(), sum, r.Node, err)
			}
		})
	}
	wg.Wait()
	if n := conns(client); n != before {
		t.Errorf("%d connections were dialled after the crash", n-before)
	}
	// Each has a standby again: the one node that is left.
	c.stand(sessions)
}

// Without standby the client dials where it was told beforehand.
func TestSuccessorIsAskedAfterACrash(t *testing.T) {
	cables := []*cable{{}, {}, {}}
	c := startClusterOn(t, nil, func(i int) seam.Network { return cables[i] })
	ctx := testContext(t)
	client := c.client(c.user[0]) // it knows the others from the cluster only
	s, err := client.Open(ctx, baton.OpenOptions{ID: "alone", Node: c.name(0)})
	must(t, err)
	k := startCounter(t, s)
	k.passes(10)
	cables[0].cut()
	k.passes(10)
	k.end()
	if s.Owner().Name == c.name(0) {
		t.Error("the owner is the node that is gone")
	}
}

// A standby is a hint: one that is told nothing, as its node is cut off, harms
// nobody.
func TestStandbyNodeDiesWithTheOwner(t *testing.T) {
	c := startCluster(t, nil)
	ctx := testContext(t)
	client, err := baton.Dial(ctx, baton.ClientConfig{Addrs: c.user, PKI: c.pki, Standby: true})
	must(t, err)
	t.Cleanup(func() { _ = client.Close() })
	s, err := client.Open(ctx, baton.OpenOptions{ID: "s", Node: c.name(0)})
	must(t, err)
	_, _, err = s.Incr(ctx, "n", 1)
	must(t, err)
	c.stand(1)
	second := 0
	for i, node := range c.nodes {
		if node.Standbys() == 1 {
			second = i
		}
	}
	// The standby goes first, and the client finds another one; then both come
	// back, so that there is a quorum, and the owner goes.
	must(t, c.nodes[second].Close())
	sum, _, err := s.Incr(ctx, "n", 1)
	must(t, err)
	must(t, c.open(second))
	must(t, c.nodes[0].Close())
	sum, _, err = s.Incr(ctx, "n", 1)
	must(t, err)
	if sum != 3 {
		t.Errorf("the sum is %d after 3 increments", sum)
	}
	must(t, c.open(0))
}

// eventually polls for what another goroutine brings about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(testTime)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}
